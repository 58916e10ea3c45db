"""run, its children and the router -> what they are worth together: calibrators, threshold, gate of each child, figures.

Each split has one job. Train fitted the weights, calibration the temperatures and calibrators, validation chooses the threshold,
test is looked at by the children's gate and measures. Answers are kept as files, so that a killed command goes on where it
stopped; what a child answered once is not asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.entities import DatasetVersion, Evaluation, Run, content_id
from tunesmith.errors import NotFoundError
from tunesmith.files import write_json
from tunesmith.flow.adapters import child_types, children_of, routes_of, train_router
from tunesmith.flow.dataset import dataset_of, embed_texts
from tunesmith.flow.scoring import answer_file, engine, in_order
from tunesmith.models.router import PARENT, Router
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.models.engine import Engine

# Bump when the same inputs would say something else.
STEP_VERSION = 2

# Bump when the same child would answer the same records otherwise.
_ANSWERS_VERSION = 1

ROUTED_FILE = "routed-test.parquet"
"""What the adapters answered to the test split, each text by the one that it was routed to."""

_FILE = "routing.json"


@dataclass(frozen=True)
class Routing:
    """What a router and the adapters that it picks from are worth.

    Attributes:
        id: Names all that it depends on.
        folder: Where it is kept.
        router: Picks.
        threshold: The confidence in a route at or below which the parent answers.
        children: Document type -> run, of the children that passed their gate.
        calibrators: Document type -> method and parameters, of the same children.
        report: The section `routing` of report.json.
    """

    id: str
    folder: Path
    router: Router
    threshold: float
    children: dict[str, Run]
    calibrators: dict[str, dict[str, Any]]
    report: dict[str, Any]


def route(project: Project, run: Run, evaluation: Evaluation) -> Routing | None:
    """Measure the children of a run and the router, or find it done; None where the run has no children.

    Raises:
        NotFoundError: some of its children are trained with the present settings, and some are not.
    """
    if project.config.train.adapters is None or run.parent is not None or run.document_type:
        return None
    dataset = dataset_of(project, run)
    types, children = child_types(project, dataset), children_of(project, dataset, run)
    if not children:
        return None
    if lacking := sorted(set(types) - children.keys()):
        raise NotFoundError(
            f"Every document type needs its child. Received none, with the present settings, for: {', '.join(lacking)}.", hint="tunesmith train"
        )
    router_id, router = train_router(project, dataset, types)
    of_report = project.config.evaluate.model_dump(mode="json", include={"confidence_level", "bootstrap_samples", "seed"})
    settings = [project.config.router.model_dump(mode="json"), project.config.calibrate.model_dump(mode="json", exclude={"by"}), of_report]
    identity = content_id("rtg", evaluation.id, {each: child.id for each, child in children.items()}, router_id, settings, STEP_VERSION)
    folder = project.root / evaluation.path / identity
    with needs_extra("train"), project.step("route") as done:
        if skipped := (folder / _FILE).exists():
            saved = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        else:
            saved = _measure(project, dataset, run, evaluation, children, router, folder)
            write_json(folder / _FILE, saved)
        served = {each: children[each] for each in saved["calibrators"]}
        done(f"{identity}: {_in_words(saved['report'], served)}", skipped=skipped)
        return Routing(identity, folder, router, saved["threshold"], served, saved["calibrators"], saved["report"])


@dataclass(frozen=True)
class _Split:
    """What is known of the records of one split, in the order of the parent's answers.

    Attributes:
        records: The records.
        y: shape (n,). Right labels, as indices.
        logits: Adapter -> shape (n, n_labels); zeros where a child was not asked.
    """

    records: pl.DataFrame
    y: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]

    def own(self, document_type: str) -> NDArray[np.bool_]:
        return (self.records["document_type"] == document_type).to_numpy()


def _measure(
    project: Project, dataset: DatasetVersion, run: Run, evaluation: Evaluation, children: dict[str, Run], router: Router, folder: Path
) -> dict[str, Any]:
    from tunesmith.evaluate.calibration import choose_calibrator, fit_calibrators, softmax
    from tunesmith.evaluate.calibration_effect import calibration_effect
    from tunesmith.evaluate.metrics import is_correct
    from tunesmith.evaluate.predict_split import SplitScores, label_indices
    from tunesmith.evaluate.routing import choose_threshold, pick, routing_figures
    from tunesmith.registry.gates import judge_children

    names, section, calibrated = project.config.task.names, project.config.evaluate, project.config.calibrate
    common: dict[str, Any] = {"level": section.confidence_level, "n_samples": section.bootstrap_samples, "seed": section.seed}
    routes, splits = {}, {}

    @cache
    def load(run_id: str) -> Engine:
        return engine(project, project.store.get(Run, run_id))

    for split in ("validation", "calibration", "test"):
        parent = SplitScores.load(project.root / evaluation.path / f"tuned-{split}.parquet")
        records = in_order(project, dataset, parent.ids)
        splits[split] = known = _Split(records, label_indices(records, names), {PARENT: parent.logits})
        if split != "calibration":
            routes[split] = router.route(embed_texts(project, records["text"].to_list()))
        for document_type, child in children.items():
            asked = [known.own(document_type)]
            if split in routes:
                asked.append((np.array(routes[split].names) == document_type) & ~asked[0])
            logits = np.zeros_like(parent.logits)
            for rows in asked:
                if rows.any():
                    logits[rows] = _answers(project, child, records.filter(rows), load, f"child {document_type}, {split}")
            known.logits[document_type] = logits

    tables, calibrators, fitted = {}, {}, {}
    for adapter, logits in splits["calibration"].logits.items():
        own = splits["calibration"].own(adapter) if adapter != PARENT else np.ones(len(logits), dtype=bool)
        y = splits["calibration"].y[own]
        calibrators[adapter], tables[adapter] = choose_calibrator(logits[own], y, calibrated.method, section.seed, n_bins=calibrated.n_bins)
        fitted[adapter] = fit_calibrators(logits[own], y)
    validation, test = splits["validation"], splits["test"]
    threshold = project.config.router.threshold
    is_given = threshold is not None
    if threshold is None:
        threshold = choose_threshold(routes["validation"], {each: is_correct(validation.y, logits) for each, logits in validation.logits.items()})

    right = {each: is_correct(test.y, logits) for each, logits in test.logits.items()}
    verdicts = judge_children(
        project.store,
        project.config.registry,
        project.config.model_name,
        parent=run.id,
        children={each: child.id for each, child in children.items()},
        record_ids=test.records["id"].to_list(),
        right={each: (right[each][test.own(each)], right[PARENT][test.own(each)]) for each in children},
        **common,
    )
    served = [verdict.document_type for verdict in verdicts if verdict.served]
    probabilities = {each: calibrators[each].probabilities(logits) for each, logits in test.logits.items()}
    raw = {each: softmax(logits) for each, logits in test.logits.items()}
    types = test.records["document_type"].to_list()
    figures = routing_figures(
        routes["test"], routes_of(test.records, [*children]), types, probabilities, test.y, served, threshold, raw=raw, n_bins=calibrated.n_bins, **common
    )
    shown = []
    for verdict in verdicts:
        own, each = test.own(verdict.document_type), verdict.document_type
        method = calibrators[each].to_dict()["method"]
        by_method = {name: one.probabilities(test.logits[each][own]) for name, one in fitted[each].items()}
        about: dict[str, Any] = {"method": method, "table": tables[each], "fitted": by_method, "n_bins": calibrated.n_bins}
        effect = calibration_effect(raw[each][own], probabilities[each][own], test.y[own], **about, **common)
        shown.append(verdict.model_dump() | {"run": children[each].id, "calibration": effect["calibration"]})
    adapters = routes["test"].adapters(threshold, served)
    SplitScores(tuple(test.records["id"]), names, pick(adapters, test.logits)).save(folder / ROUTED_FILE)
    rule = "given" if is_given else f"most right answers on {len(validation.y):,} validation records"
    report = figures | {"threshold_rule": rule, "temperature": router.temperature, "routes": [*router.routes], "children": shown}
    return {"threshold": threshold, "calibrators": {each: calibrators[each].to_dict() for each in served}, "report": report}


def _answers(project: Project, child: Run, records: pl.DataFrame, load: Callable[[str], Engine], what: str) -> NDArray[np.float32]:
    """Return what a child answers to records, in their order; what it answered before is read again."""
    from tunesmith.evaluate.predict_split import SplitScores

    file = project.state / "scores" / f"{content_id('scr', child.id, sorted(records['id']), _ANSWERS_VERSION)}.parquet"
    if not file.exists():
        answer_file(project, load(child.id), records, file, what)
    found = SplitScores.load(file)
    at = {record_id: row for row, record_id in enumerate(found.ids)}
    return found.logits[[at[record_id] for record_id in records["id"]]]


def _in_words(report: dict[str, Any], served: Sequence[str] | dict[str, Run]) -> str:
    ends = report["end_accuracy"]
    who = ", ".join(served) or "none"
    accuracy = f"accuracy {100 * ends['predicted_routes']['value']:.1f} %, parent alone {100 * ends['parent']['value']:.1f} %"
    errors = [report[name]["value"] for name in ("calibration_error_before", "calibration_error")]
    accuracy += f"; expected calibration error {errors[0]:.3f} -> {errors[1]:.3f}"
    return f"{accuracy}; routes right {100 * report['accuracy']['value']:.1f} %; children served: {who}"
