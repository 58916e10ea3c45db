"""evaluation -> how sure its model is of each field of an extraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.entities import DatasetVersion
from tunesmith.flow.scoring import in_order
from tunesmith.project import Project

if TYPE_CHECKING:
    from tunesmith.evaluate.field_confidence import StatedFields


@dataclass(frozen=True)
class Fields:
    """Calibrators of an extraction's fields.

    Attributes:
        calibrators: Field -> `method` and its parameters; empty of other tasks, and of answers from before fields had a confidence.
        report: See `evaluate.field_confidence`; empty where they are.
    """

    calibrators: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def calibrate_fields(project: Project, dataset: DatasetVersion, folder: Path) -> Fields:
    """Fit the calibrators of the fields on the calibration split, and measure them on test.

    Args:
        project: The project.
        dataset: The dataset version of the evaluation.
        folder: The evaluation's folder, with the answers.
    """
    from tunesmith.evaluate.field_confidence import field_effect, fit_fields

    asked, section = project.config.evaluate, project.config.calibrate
    calibration, test = (_stated(project, dataset, folder / f"tuned-{split}.parquet") for split in ("calibration", "test"))
    if calibration is None or test is None:
        return Fields()
    fitted, table = fit_fields(calibration, section.method, asked.seed, n_bins=section.n_bins)
    if not fitted:
        return Fields()
    levels: dict[str, Any] = {"level": asked.confidence_level, "n_samples": asked.bootstrap_samples, "seed": asked.seed, "n_bins": section.n_bins}
    report = field_effect(fitted, table, calibration, test, **levels)
    return Fields({name: each.to_dict() for name, each in fitted.items()}, report)


def _stated(project: Project, dataset: DatasetVersion, file: Path) -> StatedFields | None:
    from tunesmith.evaluate.field_confidence import stated_fields
    from tunesmith.evaluate.score_written import WrittenScores

    task = project.config.task
    if task.type != "extraction":
        return None
    written = WrittenScores.load(file)
    if not any(written.fields):
        return None
    records = in_order(project, dataset, written.ids)
    return stated_fields(task.json_schema, written.fields, records["label"].to_list(), records["document_id"].to_list())
