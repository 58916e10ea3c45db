"""What makes one run better than another? The figure by which candidates and trials are judged on the validation split.

Each kind of task has figures of its own; asking one for another's is refused before anything is trained. Figures that
silence makes perfect, as the hallucination rate, are no objective: the best model would state nothing. Nothing here looks
at the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tunesmith.entities import DatasetVersion, Run
from tunesmith.errors import ConfigError
from tunesmith.flow.dataset import read
from tunesmith.flow.scoring import counts_of, is_written, score_validation, truth
from tunesmith.project import Project

if TYPE_CHECKING:
    from tunesmith.evaluate.intervals import FloatArray

OBJECTIVES = {
    "compare.objective": {
        "classification": ("macro_f1", "accuracy", "log_loss", "business_cost"),
        "extraction": ("micro_f1", "exact_match", "business_cost"),
        "chat": ("token_f1", "exact_match", "business_cost"),
    },
    "sweep.metric": {
        "classification": ("accuracy", "macro_f1", "log_loss", "brier"),
        "extraction": ("micro_f1", "exact_match"),
        "chat": ("token_f1", "exact_match"),
    },
}
"""Key -> kind of task -> what it may be; the first is what `auto` means."""


class _Figure(Protocol):
    def of_sums(self, sums: FloatArray) -> FloatArray: ...


@dataclass(frozen=True)
class Objective:
    """A figure that runs are judged by.

    Attributes:
        name: Its name, never `auto`.
        maximizes: Whether more of it is better.
        figure: How it is measured.
    """

    name: str
    maximizes: bool
    figure: _Figure

    def rows(self, project: Project, dataset: DatasetVersion, run: Run | None) -> FloatArray:
        """Return what each validation record adds to a run's figure, or to that of the base model where it is None.

        Records that are not answered yet are.

        Returns:
            shape (n, k). Records are in the order of their ids, which is the same for all runs.
        """
        found: FloatArray = _rows(project, dataset, run, self.figure)
        return found

    def score(self, rows: FloatArray) -> float:
        """Return the figure of all records."""
        return float(self.figure.of_sums(rows.sum(axis=0)))


def objective(project: Project, key: str) -> Objective:
    """Return what a key of the project means for its task.

    Args:
        project: The project.
        key: `compare.objective` or `sweep.metric`.

    Raises:
        ConfigError: it is no figure of this kind of task, or a cost is not stated.
    """
    section, _, field = key.partition(".")
    kind, given = project.config.task.type, getattr(getattr(project.config, section), field)
    allowed = OBJECTIVES[key][kind]
    if given not in ("auto", *allowed):
        article = "an" if kind == "extraction" else "a"
        raise ConfigError(
            f"{key} of {article} {kind} must be {', '.join(allowed)}, or auto for the first. Received: {given}.", hint=f"tunesmith {section} --set {key}=auto"
        )
    name = allowed[0] if given == "auto" else given
    return Objective(name, name not in ("log_loss", "brier", "business_cost"), _figure(project, name))


def documents(project: Project, dataset: DatasetVersion) -> list[str] | None:
    """Return the document of each validation record, in the order of `Objective.rows`; None where each has one of its own."""
    records = read(project, dataset)
    own = records.filter(records["split"] == "validation").sort("id")["document_id"]
    return own.to_list() if own.n_unique() < len(own) else None


def _figure(project: Project, name: str) -> Any:
    from tunesmith.evaluate import metrics
    from tunesmith.evaluate.business import BusinessCost, WrittenCost, cost_matrix
    from tunesmith.evaluate.written import FIGURES

    task = project.config.task
    if name == "business_cost":
        costs = project.config.evaluate.business
        return WrittenCost(costs, task.type) if is_written(project) else BusinessCost(cost_matrix(costs, task.names))
    if is_written(project):
        return FIGURES[task.type][name]
    return getattr(metrics, name)


def _rows(project: Project, dataset: DatasetVersion, run: Run | None, figure: Any) -> Any:
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.metrics import check
    from tunesmith.evaluate.predict_split import SplitScores
    from tunesmith.evaluate.score_written import WrittenScores

    file = score_validation(project, dataset, run)
    if is_written(project):
        ids = WrittenScores.load(file).ids
        rows = figure.rows(counts_of(project, dataset, file))
    else:
        scores = SplitScores.load(file)
        ids = scores.ids
        rows = figure.rows(*check(truth(project, dataset, scores), softmax(scores.logits)))
    return rows[np.argsort(np.array(ids))]
