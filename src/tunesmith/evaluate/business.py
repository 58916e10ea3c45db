"""What does a model save, in money?

The costs are the user's: of each kind of mistake that goes out, of a minute of review, and of the process of today. From them
and from answers to the test split follow the expected cost of 1,000 documents, with an interval, of three ways to work: as
today; with the model alone; and with the model where its answers are accepted (see `acceptance`) and a person where they are
not. Nothing here knows a price of its own; what is left at zero counts as nothing and is shown so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import ConfigError
from tunesmith.evaluate.intervals import Bootstrap, Interval
from tunesmith.evaluate.metrics import FloatArray, IntArray, Mean, answers, check, counted, mean_of_sums
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


def cost_matrix(section: BusinessSection, labels: Sequence[str]) -> FloatArray:
    """Return what each answer to each label costs, shape (n_labels, n_labels).

    Raises:
        ConfigError: a cost names a label outside the label space, or no cost is set at all.
    """
    if section.error_cost is None:
        raise ConfigError("Costs need evaluate.business.error_cost. Received: none.", hint="tunesmith config explain evaluate.business")
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
    labels: Sequence[str],
    y: ArrayLike,
    scores: Mapping[str, ArrayLike],
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
        labels: The label space.
        y: shape (n,). Right label of each test record, an index.
        scores: Model -> probabilities, each of shape (n, n_labels).
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
        ConfigError: see `cost_matrix`.
        DataError: shapes do not fit each other.
    """
    matrix = cost_matrix(section, labels)
    bootstrap = Bootstrap(len(np.asarray(y)), n_samples=n_samples, level=level, seed=seed, groups=groups)
    running = section.running_cost_per_month / section.documents_per_month if section.documents_per_month else 0.0
    costs = {model: BusinessCost(matrix).values(*check(y, given)) + running * (model == "tuned") for model, given in scores.items()}
    typical = float(section.error_cost or 0.0)
    if accepted is not None:
        reviewed = section.review_minutes * section.minute_cost + (1 - section.reviewer_accuracy) * typical
        costs["tuned_with_review"] = np.where(accepted, costs["tuned"], reviewed + running)
    each = {way: bootstrap.interval(mean_of_sums, counted(cost)) for way, cost in costs.items()}
    found: dict[str, Any] = {"currency": section.currency, "per_1000": {way: _times(cost, 1000).to_dict() for way, cost in each.items()}}
    if section.current is None:
        return found
    today = section.current.minutes * section.minute_cost + (1 - section.current.accuracy) * typical
    found["per_1000"] = {"current": {"value": 1000 * today}, **found["per_1000"]}
    if section.documents_per_month:
        ways = [way for way in ("tuned", "tuned_with_review") if way in each]
        yearly = section.documents_per_month * MONTHS
        saving = {way: _times(Interval(today - each[way].value, today - each[way].high, today - each[way].low), yearly) for way in ways}
        found["saving_per_year"] = {way: saved.to_dict() for way, saved in saving.items()}
        found["months_to_break_even"] = {way: _months(section.setup_cost, saved) for way, saved in saving.items()}
    truth, tuned = check(y, scores["tuned"])
    wrong = answers(tuned) != truth
    mistake = float(BusinessCost(matrix).values(truth, tuned)[wrong].mean()) if wrong.any() else 0.0
    found["break_even_error"] = min(1.0, max(0.0, (today - running) / mistake)) if mistake else None
    return found


def cheapest_threshold(section: BusinessSection, labels: Sequence[str], y: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Return the confidence from which accepting answers costs least on the calibration split; None where reviewing all of them does.

    Args:
        section: The costs.
        labels: The label space.
        y: shape (n,). Right labels, indices.
        probabilities: shape (n, n_labels). Before calibration.

    Raises:
        ConfigError: see `cost_matrix`.
        DataError: see `metrics.check`.
    """
    truth, given = check(y, probabilities)
    reviewed = section.review_minutes * section.minute_cost + (1 - section.reviewer_accuracy) * float(section.error_cost or 0.0)
    confidence = given.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    saved = np.cumsum(reviewed - BusinessCost(cost_matrix(section, labels)).values(truth, given)[order])
    # Equal confidences are accepted together.
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    best = last[np.argmax(saved[last])]
    return float(confidence[order][best]) if saved[best] > 0 else None


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)


def _months(setup: float, saving: Interval) -> dict[str, float | None]:
    """Return months until the set-up is earned; the low end belongs to the highest saving."""

    def until(yearly: float) -> float | None:
        return MONTHS * setup / yearly if yearly > 0 else None

    return {"value": until(saving.value), "low": until(saving.high), "high": until(saving.low)}
