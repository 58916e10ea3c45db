"""What models said about a split, kept as files: labels of a classification, or written answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.entities import DatasetVersion, Run, content_id
from tunesmith.files import write_json
from tunesmith.flow.dataset import read
from tunesmith.models.settings import ConfidenceSection
from tunesmith.project import Project

if TYPE_CHECKING:
    from tunesmith.evaluate.forgetting import Probes, ProbeScores
    from tunesmith.evaluate.predict_split import SplitScores
    from tunesmith.evaluate.prior import Prior
    from tunesmith.models.engine import Engine
    from tunesmith.models.generator import Generator
    from tunesmith.models.routed import RoutedEngine

# Bump when the same model would say something else about the same records.
STEP_VERSION = 2

_CONFIDENCE_FILE = "confidence.json"


@dataclass(frozen=True)
class Judged:
    """How good each answer of one model on one split is.

    Attributes:
        ids: Record ids, n of them.
        right: shape (n,), in [0, 1]. Of a label whether it is right, of a written answer its F1.
    """

    ids: tuple[str, ...]
    right: NDArray[np.float64]


def is_written(project: Project) -> bool:
    """Whether the task's answers are written, not picked from a label space."""
    return project.config.task.type != "classification"


def score_all(project: Project, run: Run, dataset: DatasetVersion, folder: Path) -> None:
    """Let the base model, the run and a classical opponent answer what they have to, and write the files that are missing."""
    records = read(project, dataset)
    common: dict[str, Any] = {
        "folder": folder,
        "base_file": base_scores_file(project, dataset, records.filter(pl.col("split") == "test")),
        "probes": read_probe_texts(project),
        "base_probes_file": base_probes_file(project),
        "n_latencies": project.config.evaluate.latency_samples,
        "progress": project.progress.advance,
    }
    task = project.config.task
    if is_written(project):
        from tunesmith.evaluate.score_written import score_written

        score_written(records, task.type, task.json_schema, base=lambda: writer(project, None), tuned=lambda: writer(project, run), **common)
    else:
        from tunesmith.evaluate.score_models import score_models

        score_models(records, task.names, base=lambda: untuned(project, records), tuned=lambda: engine(project, run), **common)
    _score_disturbed(project, run, records, folder)


def keep_confidence(project: Project, folder: Path) -> None:
    """Keep with an evaluation how its model tells how sure it is: whatever the settings say later, its calibrator is about this."""
    if is_written(project):
        write_json(folder / _CONFIDENCE_FILE, project.config.evaluate.confidence.model_dump(mode="json"))


def confidence_of(folder: Path) -> ConfidenceSection:
    """Return how the model of an evaluation tells how sure it is."""
    file = folder / _CONFIDENCE_FILE
    return ConfidenceSection.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else ConfidenceSection()


def disturbed_files(project: Project, folder: Path) -> dict[str, Path]:
    """Return disturbance -> file of the tuned model's answers to disturbed texts; none where robustness is not measured."""
    from tunesmith.evaluate.robustness import disturbances

    task = project.config.task
    kinds = disturbances(task.type, [label.written for label in task.labels]) if project.config.evaluate.robustness_samples else {}
    return {kind: folder / f"tuned-disturbed-{kind}.parquet" for kind in kinds}


def _score_disturbed(project: Project, run: Run, records: pl.DataFrame, folder: Path) -> None:
    """Let the tuned model answer disturbed texts of the first test records by id, which is no order of theirs."""
    from tunesmith.evaluate.robustness import disturb, disturbances

    task, section = project.config.task, project.config.evaluate
    missing = {kind: file for kind, file in disturbed_files(project, folder).items() if not file.exists()}
    if not missing:
        return
    model = answerer(project, run, records)
    sample = records.filter(pl.col("split") == "test").sort("id").head(section.robustness_samples)
    how = disturbances(task.type, [label.written for label in task.labels])
    for kind, file in missing.items():
        texts = disturb(sample["text"].to_list(), how[kind], section.seed)
        answer_file(project, model, sample.with_columns(text=pl.Series(texts)), file, f"tuned model, {kind.replace('_', ' ')}")


def counts_of(project: Project, dataset: DatasetVersion, file: Path) -> dict[str, NDArray[np.float64]]:
    """Return the counts of each written answer of a file: see `evaluate.written.count_answers`.

    Raises:
        NotFoundError: there is no such file.
    """
    from tunesmith.evaluate.score_written import WrittenScores
    from tunesmith.evaluate.written import count_answers

    written, task = WrittenScores.load(file), project.config.task
    records = in_order(project, dataset, written.ids)
    return count_answers(task.type, task.json_schema, written.answers, records["label"].to_list(), records["text"].to_list())


def judge_file(project: Project, dataset: DatasetVersion, file: Path) -> Judged:
    """Judge a file of answers by the labels of a dataset version.

    Raises:
        NotFoundError: there is no such file.
    """
    if is_written(project):
        from tunesmith.evaluate.score_written import WrittenScores, record_f1

        written = WrittenScores.load(file)
        task = project.config.task
        return Judged(written.ids, record_f1(task.type, task.json_schema, written.answers, in_order(project, dataset, written.ids)))
    from tunesmith.evaluate.metrics import is_correct
    from tunesmith.evaluate.predict_split import SplitScores

    scores = SplitScores.load(file)
    return Judged(scores.ids, is_correct(truth(project, dataset, scores), scores.logits).astype(np.float64))


def answer_file(project: Project, model: Engine | Generator | RoutedEngine | Prior, records: pl.DataFrame, file: Path, what: str) -> None:
    """Let a model answer records and write the file. Nobody asks how sure it is of a written answer."""

    def tell(done: int, total: int) -> None:
        project.progress.advance(done, total, what)

    if is_written(project):
        from tunesmith.evaluate.score_written import write_split

        write_split(model, records, tell, with_confidence=False).save(file)  # type: ignore[arg-type]
        return
    from tunesmith.evaluate.predict_split import score_split

    score_split(model, records, project.config.task.names, tell).save(file)  # type: ignore[arg-type]


def engine(project: Project, run: Run | None) -> Engine:
    """Load what scores the label space: a run, or the base model where it is None."""
    from tunesmith.models.engine import Engine

    weights = _weights(project, run)
    return Engine(project.base.path, project.prompt, project.answering(weights), weights=weights, batch_size=project.config.evaluate.batch_size)


def untuned(project: Project, records: pl.DataFrame) -> Engine | Prior:
    """Load what the untuned model answers: of an encoder, whose head is new, the shares of the labels in train.

    Args:
        project: The project.
        records: All records of the dataset version.
    """
    from tunesmith.evaluate.prior import Prior

    if is_encoder(project):
        return Prior(records.filter(pl.col("split") == "train")["label"].to_list(), project.config.task.names)
    return engine(project, None)


def answerer(project: Project, run: Run | None, records: pl.DataFrame) -> Engine | Generator | Prior:
    """Load what answers the task: a run, or the untuned model where it is None. Arguments as in `untuned`."""
    if is_written(project):
        return writer(project, run)
    return engine(project, run) if run else untuned(project, records)


def is_encoder(project: Project) -> bool:
    """Whether the base model is an encoder, which picks labels and writes nothing."""
    return project.model_section.num_labels > 0


def writer(project: Project, run: Run | None) -> Generator:
    """Load what writes answers: a run, or the base model where it is None."""
    from tunesmith.models.generator import Generator

    weights, section = _weights(project, run), project.config.evaluate
    about: dict[str, Any] = {"weights": weights, "batch_size": section.batch_size, "confidence": section.confidence}
    return Generator(project.base.path, project.prompt, project.answering(weights), **about)


def _weights(project: Project, run: Run | None) -> Path | None:
    from tunesmith.models.weights import WEIGHTS_FOLDER

    return project.root / run.path / WEIGHTS_FOLDER if run else None


def score_validation(project: Project, dataset: DatasetVersion, run: Run | None) -> Path:
    """Let a run, or the base model where it is None, answer the validation split; what was answered before is kept.

    Candidates are chosen by this, so that the test split stays unseen.

    Returns:
        The file of answers.
    """
    every = read(project, dataset)
    records = every.filter(pl.col("split") == "validation")
    file = project.root / run.path / "validation.parquet" if run else base_scores_file(project, dataset, records)
    if not file.exists():
        answer_file(project, answerer(project, run, every), records, file, f"{run.id if run else 'base model'}, validation")
    return file


def read_probes(project: Project, run: Run | None) -> ProbeScores:
    """Let a run, or the base model where it is None, read the probes of forgetting; what was read before is loaded."""
    from tunesmith.evaluate.forgetting import ProbeScores, score_probes

    file = project.root / run.path / "probes.json" if run else base_probes_file(project)
    probes = read_probe_texts(project)
    if not file.exists() and probes:
        score_probes(writer(project, run) if is_written(project) else engine(project, run), probes).save(file)
    return ProbeScores.load(file)


def read_probe_texts(project: Project) -> Probes | None:
    """Return the probes of forgetting, or None where they are turned off or the model is an encoder, for which a text has no probability."""
    from tunesmith.evaluate.forgetting import load_probes

    section = project.config.evaluate
    if not section.forgetting or is_encoder(project):
        return None
    return load_probes(project.root / section.general_text if section.general_text else None)


def base_probes_file(project: Project) -> Path:
    """Name what the base model said about the probes by what it depends on."""
    probes, section = read_probe_texts(project), project.answering(None)
    read_texts = [probes.texts, probes.questions] if probes else []
    key = content_id("prb", project.base.sha256, section.dtype, section.forward, read_texts, STEP_VERSION)
    return _scores_folder(project) / f"{key}.json"


def base_scores_file(project: Project, dataset: DatasetVersion, records: pl.DataFrame) -> Path:
    """Name the base model's answers by what they depend on: a later run on the same records finds them."""
    task = project.config.task
    free = [task.json_schema, task.max_answer_tokens] if is_written(project) else [dataset.id] if is_encoder(project) else []
    prompt = (project.prompt.render(""), project.prompt.max_length, project.prompt.keep, [label.written for label in task.labels], *free)
    section = project.answering(None)
    key = content_id("scr", project.base.sha256, section.dtype, section.forward, prompt, sorted(records["id"]), STEP_VERSION)
    return _scores_folder(project) / f"{key}.parquet"


def _scores_folder(project: Project) -> Path:
    folder = project.state / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answers_in(project: Project, file: Path) -> dict[str, str]:
    """Return record id -> answer of a file of answers."""
    if is_written(project):
        from tunesmith.evaluate.score_written import WrittenScores

        written = WrittenScores.load(file)
        return dict(zip(written.ids, written.answers, strict=True))
    from tunesmith.evaluate.predict_split import SplitScores

    scores = SplitScores.load(file)
    return {identity: scores.labels[at] for identity, at in zip(scores.ids, scores.logits.argmax(axis=1), strict=True)}


def truth(project: Project, dataset: DatasetVersion, scores: SplitScores) -> Any:
    """Return the right label of each scored record, as indices."""
    from tunesmith.evaluate.predict_split import label_indices

    return label_indices(in_order(project, dataset, scores.ids), project.config.task.names)


def in_order(project: Project, dataset: DatasetVersion, ids: tuple[str, ...]) -> pl.DataFrame:
    """Return records of a dataset version in the order of their ids."""
    return pl.DataFrame({"id": list(ids)}).join(read(project, dataset), on="id", how="left", maintain_order="left")
