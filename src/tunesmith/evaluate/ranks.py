"""How well do the probabilities put the right records first, wherever the threshold lies?

Areas under curves depend on the order of the records, so that they are no function of sums (see `metrics`). Here a figure is a
function of how often each record counts, shape (b, n): `intervals.Bootstrap` gives it the weights of its resamples, and a
thousand of them cost one sort a label and cumulated sums.

Each area is the mean over labels of one label against the rest, over the labels that have records and are not all of them.
Of equal scores none is before the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.evaluate.intervals import OfWeights
from tunesmith.evaluate.metrics import FloatArray, check


class Area(ABC):
    """The mean over labels of an area under a curve, a ratio."""

    def of_weights(self, y: ArrayLike, probabilities: ArrayLike) -> OfWeights:
        """Return the figure as a function of how often each record counts.

        Args:
            y: shape (n,). Right label of each record, an index.
            probabilities: shape (n, n_labels).

        Raises:
            DataError: see `metrics.check`.
        """
        truth, scores = check(y, probabilities)
        sorted_scores = [_Sorted(scores[:, label], truth == label) for label in range(scores.shape[1])]

        def figure(weights: FloatArray) -> FloatArray:
            sums, counted, total = np.zeros(len(weights)), np.zeros(len(weights)), weights.sum(axis=1)
            for one in sorted_scores:
                n_right = weights[:, one.right].sum(axis=1)
                occurs = (n_right > 0) & (n_right < total)
                sums[occurs] += self._one(one, weights[occurs])
                counted += occurs
            return np.divide(sums, counted, out=np.zeros_like(sums), where=counted > 0)

        return figure

    def __call__(self, y: ArrayLike, probabilities: ArrayLike) -> float:
        """Measure; arguments as in `of_weights`."""
        return float(self.of_weights(y, probabilities)(np.ones((1, len(np.asarray(y)))))[0])

    @abstractmethod
    def _one(self, one: _Sorted, weights: FloatArray) -> FloatArray:
        """Return the area of one label, shape (b,), from how often each record counts, shape (b, n)."""


class _Sorted:
    """One label's scores, lowest first.

    Attributes:
        right: shape (p,). Records of the label, by score.
    """

    def __init__(self, scores: FloatArray, is_right: NDArray[np.bool_]) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered, at = scores[self._order], np.flatnonzero(is_right[self._order])
        self.right = self._order[at]
        self._all = [np.searchsorted(ordered, ordered[at], side) for side in ("left", "right")]
        self._right = [np.searchsorted(ordered[at], ordered[at], side) for side in ("left", "right")]

    def counts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return, for each record of the label, how many of the label and of all have a lower score, and how many a lower or equal one."""
        of_all, of_right = _cumulated(weights[:, self._order]), _cumulated(weights[:, self.right])
        (below, through), (right_below, right_through) = self._all, self._right
        return of_right[:, right_below], of_all[:, below], of_right[:, right_through], of_all[:, through]


class Auroc(Area):
    """Area under the receiver operating characteristic: how often a record of the label is scored above one of another.

    Source:
        Hanley and McNeil 1982, The Meaning and Use of the Area under a ROC Curve; macro average over one against the rest.
    """

    def _one(self, one: _Sorted, weights: FloatArray) -> FloatArray:
        right_below, below, right_through, through = one.counts(weights)
        of_right = weights[:, one.right]
        n_right = of_right.sum(axis=1)
        beaten = (below - right_below + through - right_through) / 2
        return np.asarray((of_right * beaten).sum(axis=1) / (n_right * (weights.sum(axis=1) - n_right)))


class Auprc(Area):
    """Area under precision over recall, as average precision: the mean precision at each record of the label.

    Source:
        Davis and Goadrich 2006, The Relationship Between Precision-Recall and ROC Curves; without interpolation, as in scikit-learn.
    """

    def _one(self, one: _Sorted, weights: FloatArray) -> FloatArray:
        right_below, below, _, _ = one.counts(weights)
        of_right = weights[:, one.right]
        n_right = of_right.sum(axis=1, keepdims=True)
        # Down to the threshold that is the record's own score: all equal ones are in.
        n_above = weights.sum(axis=1, keepdims=True) - below
        precision = np.divide(n_right - right_below, n_above, out=np.zeros_like(of_right), where=n_above > 0)
        return np.asarray((of_right * precision).sum(axis=1) / n_right[:, 0])


def _cumulated(weights: FloatArray) -> FloatArray:
    """Return sums of the first 0, 1, ... n columns, shape (b, n + 1)."""
    return np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)


auroc = Auroc()
auprc = Auprc()
