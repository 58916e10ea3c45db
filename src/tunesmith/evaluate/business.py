"""What does a model save, in money?

The costs are the user's: of each kind of mistake that goes out (a confusion of labels; a wrong, an invented or a missing value of an
extraction), of a minute of review, and of the process of today. From them and from answers to the test split follow the expected cost
of 1,000 documents, with an interval, of three ways to work: as today; with the model alone; and with the model where its answers are
accepted (see `acceptance`) and a person where they are not. Nothing here knows a price of its own; what is left at zero counts as
nothing and is shown so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import ConfigError
from tunesmith.evaluate.intervals import Bootstrap, Interval
from tunesmith.evaluate.metrics import FloatArray, IntArray, Mean, answers, counted, mean_of_sums
from tunesmith.evaluate.settings import BusinessSection

MONTHS = 12


@dataclass(frozen=True)
class BusinessCost(Mean):
    """Mean money that a model's mistakes cost a document when all its answers go out; lower is better.

    Args:
        matrix: shape (n_labels, n_labels). Cost of an answer (column) to a record of a label (row); 0 on the diagonal.
    """

    matrix: FloatArray

    def values(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return the cost of each answer."""
        return np.asarray(self.matrix[y, answers(probabilities)])


@dataclass(frozen=True)
class WrittenCost:
    """Mean money that a model's written answers cost a document when all of them go out; lower is better.

    Args:
        section: The costs.
        task_type: extraction or chat.

    Raises:
        ConfigError: no cost is set, or one that belongs to another kind of task.
    """

    section: BusinessSection
    task_type: str

    def __post_init__(self) -> None:
        _check_costs(self.section, self.task_type)

    def values(self, counts: Mapping[str, FloatArray]) -> FloatArray:
        """Return the cost of each answer, shape (n,), from the counts of `written.count_answers`."""
        costs = self.section.values
        if costs is None:
            return np.where(counts["f1"] < 1, float(self.section.error_cost or 0.0), 0.0)
        money: FloatArray = costs.wrong * counts["wrong_values"] + costs.hallucinated * counts["invented_values"] + costs.missing * counts["lacking_values"]
        return money

    def rows(self, counts: Mapping[str, FloatArray]) -> FloatArray:
        """Return cost and 1 of each answer, shape (n, 2)."""
        return counted(self.values(counts))

    @staticmethod
    def of_sums(sums: FloatArray) -> FloatArray:
        """Return the quotient of both sums."""
        return mean_of_sums(sums)


def _check_costs(section: BusinessSection, task_type: str) -> None:
    if section.error_cost is None:
        raise ConfigError("Costs need evaluate.business.error_cost. Received: none.", hint="tunesmith config explain evaluate.business")
    for key, kind in (("costs", "classification"), ("values", "extraction")):
        if getattr(section, key) and task_type != kind:
            raise ConfigError(f"evaluate.business.{key} belongs to a task of type {kind}. Received: it for {task_type}.", hint="tunesmith config check")


def cost_matrix(section: BusinessSection, labels: Sequence[str]) -> FloatArray:
    """Return what each answer to each label costs, shape (n_labels, n_labels).

    Raises:
        ConfigError: a cost names a label outside the label space, no cost is set at all, or one that belongs to an extraction.
    """
    _check_costs(section, "classification")
    matrix = np.full((len(labels), len(labels)), section.error_cost)
    for entry in section.costs:
        unknown = {entry.truth, entry.answer} - {*labels, "*"}
        if unknown:
            raise ConfigError(f"evaluate.business.costs names labels of the task, or *. Received: {', '.join(sorted(unknown))}.", hint="tunesmith config check")
        rows = slice(None) if entry.truth == "*" else labels.index(entry.truth)
        columns = slice(None) if entry.answer == "*" else labels.index(entry.answer)
        matrix[rows, columns] = entry.cost
    np.fill_diagonal(matrix, 0.0)
    return matrix


def business_case(
    section: BusinessSection,
    costs: Mapping[str, ArrayLike],
    wrong: ArrayLike,
    accepted: NDArray[np.bool_] | None,
    *,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Reckon the money table.

    Args:
        section: The costs.
        costs: Model -> what each of its answers costs when it goes out, shape (n,): of `BusinessCost` or `WrittenCost`.
        wrong: shape (n,). Whether the tuned model's answer is wrong.
        accepted: shape (n,). Whether the tuned model's answer needs no review; None where no threshold is set.
        level: Level of the intervals, a ratio.
        n_samples: Resamples.
        seed: Seed of the resamples.
        groups: shape (n,). Document of each record, where a document has several.

    Returns:
        `currency`; `per_1000.WAY`, the expected cost of 1,000 documents with value, low and high, WAY being `current` (a given figure, without
        interval) where it is known, each model alone, and `tuned_with_review`; where a volume and the current process are given `saving_per_year.WAY`
        for the tuned model's two ways, `months_to_break_even.WAY` (None where it never is), and `break_even_error`, the share of wrong answers
        at which the tuned model alone costs as much as today (mistakes mixed as they are now; None where it makes none).

    Raises:
        DataError: there are no answers, or shapes do not fit each other.
    """
    of_mistakes = np.asarray(costs["tuned"], dtype=np.float64)[np.asarray(wrong, dtype=bool)]
    bootstrap = Bootstrap(len(np.asarray(wrong)), n_samples=n_samples, level=level, seed=seed, groups=groups)
    running = section.running_cost_per_month / section.documents_per_month if section.documents_per_month else 0.0
    of_way = {model: np.asarray(cost, dtype=np.float64) + running * (model == "tuned") for model, cost in costs.items()}
    if accepted is not None:
        of_way["tuned_with_review"] = np.where(accepted, of_way["tuned"], review_cost(section) + running)
    each = {way: bootstrap.interval(mean_of_sums, counted(cost)) for way, cost in of_way.items()}
    found: dict[str, Any] = {"currency": section.currency, "per_1000": {way: _times(cost, 1000).to_dict() for way, cost in each.items()}}
    if section.current is None:
        return found
    today = section.current.minutes * section.minute_cost + (1 - section.current.accuracy) * float(section.error_cost or 0.0)
    found["per_1000"] = {"current": {"value": 1000 * today}, **found["per_1000"]}
    if section.documents_per_month:
        ways = [way for way in ("tuned", "tuned_with_review") if way in each]
        yearly = section.documents_per_month * MONTHS
        saving = {way: _times(Interval(today - each[way].value, today - each[way].high, today - each[way].low), yearly) for way in ways}
        found["saving_per_year"] = {way: saved.to_dict() for way, saved in saving.items()}
        found["months_to_break_even"] = {way: _months(section.setup_cost, saved) for way, saved in saving.items()}
    mistake = float(of_mistakes.mean()) if len(of_mistakes) else 0.0
    found["break_even_error"] = min(1.0, max(0.0, (today - running) / mistake)) if mistake else None
    return found


def review_cost(section: BusinessSection) -> float:
    """Return what the review of an answer costs, with the mistakes that it leaves."""
    return section.review_minutes * section.minute_cost + (1 - section.reviewer_accuracy) * float(section.error_cost or 0.0)


def cheapest_threshold(section: BusinessSection, confidence: ArrayLike, costs: ArrayLike) -> float | None:
    """Return the confidence from which accepting answers costs least on the calibration split; None where reviewing all of them does.

    Args:
        section: The costs.
        confidence: shape (n,). Confidence in each answer, before calibration.
        costs: shape (n,). What each answer costs when it goes out.
    """
    sure = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(-sure, kind="stable")
    saved = np.cumsum(review_cost(section) - np.asarray(costs, dtype=np.float64)[order])
    # Equal confidences are accepted together.
    last = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))
    best = last[np.argmax(saved[last])]
    return float(sure[order][best]) if saved[best] > 0 else None


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)


def _months(setup: float, saving: Interval) -> dict[str, float | None]:
    """Return months until the set-up is earned; the low end belongs to the highest saving."""

    def until(yearly: float) -> float | None:
        return MONTHS * setup / yearly if yearly > 0 else None

    return {"value": until(saving.value), "low": until(saving.high), "high": until(saving.low)}
