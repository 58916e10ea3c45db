"""How good are the answers?

Every metric here depends on the records only through sums over them: accuracy on the number of right answers, a class's
F1 on three counts, the calibration error on one signed gap a bin. So a metric has two halves, `rows` (what a record adds)
and `of_sums` (the figure that the sums give), and `intervals.Bootstrap` computes thousands of resamples with one matrix
product. Called as a function, a metric checks its input and returns a float.

Labels are indices into the label space, shape (n,). Probabilities have shape (n, n_labels) and rows that sum to 1; the
answer is the most probable label (the first of equals) and its probability is the confidence. Figures are ratios in
[0, 1] unless a metric says otherwise, never percentages. Nothing here reads a file or draws at random.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError

if TYPE_CHECKING:  # serving applies calibrators without SciPy, which intervals need
    from tunesmith.evaluate.intervals import Bootstrap, Interval, Method

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a record may sum: room for float32, none for percentages or logits."""


def check(y: ArrayLike, probabilities: ArrayLike) -> tuple[IntArray, FloatArray]:
    """Return labels and probabilities as arrays that fit each other.

    Raises:
        DataError: there are no records, shapes do not fit, a label is outside the label space, or a row of
            probabilities holds NaN, a value outside [0, 1] or does not sum to 1.
    """
    labels, given = np.asarray(y), np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or labels.shape != given.shape[:1] or given.size == 0:
        raise DataError(f"Labels (n,) and probabilities (n, n_labels) must fit each other. Received: shapes {labels.shape} and {given.shape}.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= given.shape[1]:
        raise DataError(f"Labels must be indices from 0 to {given.shape[1] - 1}. Received: {labels.dtype} from {labels.min()} to {labels.max()}.")
    # Written so that NaN, which compares false, is refused too.
    if not (np.all(given >= 0) and np.all(given <= 1) and np.all(np.abs(given.sum(axis=1) - 1) <= SUM_TOLERANCE)):
        raise DataError(f"Probabilities must be in [0, 1] and sum to 1 a record. Received: {given.min()} to {given.max()}, sums to {given.sum(axis=1).max()}.")
    return labels.astype(np.int64), given


class Metric(ABC):
    """A figure that depends on the records only through sums over them.

    Attributes:
        method: How its interval is made of resamples, as `intervals.Bootstrap.interval` names it.
    """

    method: ClassVar[Method] = "percentile"

    @abstractmethod
    def rows(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return what each record adds, shape (n, k)."""

    @abstractmethod
    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the figures, shape (...), that sums of rows give, shape (..., k)."""

    def __call__(self, y: ArrayLike, probabilities: ArrayLike) -> float:
        """Measure.

        Args:
            y: shape (n,). Right label of each record, an index.
            probabilities: shape (n, n_labels).

        Raises:
            DataError: see `check`.
        """
        return float(self.of_sums(self.rows(*check(y, probabilities)).sum(axis=0)))

    def interval(self, bootstrap: Bootstrap, rows: FloatArray) -> Interval:
        """Return the figure of what `rows` returned, with its interval."""
        return bootstrap.interval(self.of_sums, rows, method=self.method)


class Mean(Metric):
    """The mean over records of one value each; a metric below only says which value."""

    @abstractmethod
    def values(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return the value of each record, shape (n,)."""

    def rows(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return value and 1, shape (n, 2)."""
        return counted(self.values(y, probabilities))

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the quotient of both sums."""
        return mean_of_sums(sums)


def counted(values: FloatArray) -> FloatArray:
    """Put a 1 beside each value, shape (n,) -> (n, 2), so that the sums give the mean."""
    return np.column_stack([values, np.ones(len(values))])


def mean_of_sums(sums: FloatArray) -> FloatArray:
    """Return the mean, shape (...), from sums of `counted` values, shape (..., 2)."""
    return _ratio(sums[..., 0], sums[..., 1])


class Accuracy(Mean):
    """Share of right answers."""

    def values(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return 1 for a right answer, else 0."""
        return is_correct(y, probabilities).astype(np.float64)


class LogLoss(Mean):
    """Mean negative log probability of the right label, in nats, 0 or more; 0 is perfect.

    Probabilities below the smallest step of a float64 count as that step, as in scikit-learn: one sure mistake must not
    make a figure infinite.
    """

    def values(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return -log p of the right label."""
        right = probabilities[np.arange(len(y)), y]
        return np.asarray(-np.log(np.clip(right, np.finfo(np.float64).eps, 1)))


class Brier(Mean):
    """Mean squared distance between the probabilities and the truth, in [0, 2]; 0 is perfect.

    Source:
        Brier 1950, Verification of Forecasts Expressed in Terms of Probability, equation 2 (summed over all labels).
    """

    def values(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return the squared distance."""
        return np.asarray(np.square(probabilities - np.eye(probabilities.shape[1])[y]).sum(axis=1))


class _PerClass(Metric):
    """A macro average: one figure a label from its counts, then the mean over labels."""

    def rows(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return one-hot hit, answer and truth, shape (n, 3 * n_labels)."""
        one_hot = np.eye(probabilities.shape[1])
        truth, answer = one_hot[y], one_hot[answers(probabilities)]
        return np.hstack([truth * answer, answer, truth])


class MacroF1(_PerClass):
    """Mean over labels of F1 = 2 TP / (2 TP + FP + FN).

    Averaged over the labels that occur in the truth or among the answers, as scikit-learn does: a label that the split
    never saw says nothing.
    """

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the mean F1."""
        hit, answer, truth = np.split(sums, 3, axis=-1)
        occurs = (answer + truth) > 0
        return _ratio(_ratio(2 * hit, answer + truth).sum(axis=-1), occurs.sum(axis=-1))


class WeightedF1(_PerClass):
    """Mean of the labels' F1, each weighted by how many records have the label."""

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the weighted mean."""
        hit, answer, truth = np.split(sums, 3, axis=-1)
        return _ratio((truth * _ratio(2 * hit, answer + truth)).sum(axis=-1), truth.sum(axis=-1))


class MatthewsCorrelation(_PerClass):
    """Correlation of truth and answers, in [-1, 1]; 0 says no more than chance, and where only one label occurs.

    Source:
        Gorodkin 2004, Comparing Two K-Category Assignments by a K-Category Correlation Coefficient.
    """

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the correlation."""
        hit, answer, truth = np.split(sums, 3, axis=-1)
        n = truth.sum(axis=-1)
        covariance = hit.sum(axis=-1) * n - (answer * truth).sum(axis=-1)
        return _ratio(covariance, np.sqrt((n**2 - (answer**2).sum(axis=-1)) * (n**2 - (truth**2).sum(axis=-1))))


class FalseNegativeRate(_PerClass):
    """Mean over labels of FN / (FN + TP): how often a record of a label is given another. Over the labels that occur in the truth."""

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the mean rate."""
        hit, _, truth = np.split(sums, 3, axis=-1)
        return _ratio(_ratio(truth - hit, truth).sum(axis=-1), (truth > 0).sum(axis=-1))


class FalsePositiveRate(_PerClass):
    """Mean over labels of FP / (FP + TN): how often a record of another label is given this one.

    Averaged over the whole label space, one label against the rest. A label that all records have has no negatives and
    counts as 0.
    """

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the mean rate."""
        hit, answer, truth = np.split(sums, 3, axis=-1)
        negatives = truth.sum(axis=-1, keepdims=True) - truth
        return np.asarray(_ratio(answer - hit, negatives).mean(axis=-1))


@dataclass(frozen=True)
class TopK(Mean):
    """Share of records whose right label is among the k most probable ones; of equals the first in the label space.

    Args:
        k: 1 or more.
    """

    k: int = 3

    def values(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return 1 where the right label is among them, else 0."""
        likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.k]
        return np.asarray((likeliest == y[:, None]).any(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class ExpectedCalibrationError(Metric):
    """The mean gap between confidence and accuracy; 0 is perfect.

    Bins have equal width, open on the left, closed on the right; confidence 0 falls into the first; or equal mass, that is
    as many answers each. Biased upwards when bins hold few answers: report it with an interval.

    Args:
        n_bins: Number of bins.
        equal_mass: Bins of equal mass; their edges are those of the records given, not of each resample.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks, equations 2 and 3; equal mass: Nguyen and O'Connor 2015,
        Posterior Calibration and Exploratory Analysis for Natural Language Processing Models.
    """

    method = "distance"
    n_bins: int = 15
    equal_mass: bool = False

    def rows(self, y: IntArray, probabilities: FloatArray) -> FloatArray:
        """Return confidence minus hit in the column of the record's bin, and a 1, shape (n, n_bins + 1)."""
        confidence = probabilities.max(axis=1)
        rows = np.zeros((len(y), self.n_bins + 1))
        within = np.argsort(np.argsort(confidence, kind="stable")) * self.n_bins // len(y) if self.equal_mass else bin_of(confidence, self.n_bins)
        rows[np.arange(len(y)), within] = confidence - is_correct(y, probabilities)
        rows[:, -1] = 1
        return rows

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the summed absolute gaps over the number of records."""
        return _ratio(np.abs(sums[..., :-1]).sum(axis=-1), sums[..., -1])


accuracy = Accuracy()
macro_f1 = MacroF1()
weighted_f1 = WeightedF1()
matthews_correlation = MatthewsCorrelation()
false_positive_rate = FalsePositiveRate()
false_negative_rate = FalseNegativeRate()
expected_calibration_error = ExpectedCalibrationError()
log_loss = LogLoss()
brier = Brier()


def answers(probabilities: ArrayLike) -> IntArray:
    """Return the most probable label of each record, shape (n,); the first of equals. Logits give the same."""
    return np.asarray(np.argmax(np.asarray(probabilities), axis=1), dtype=np.int64)


def is_correct(y: ArrayLike, probabilities: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each answer is right, shape (n,)."""
    return np.asarray(answers(probabilities) == np.asarray(y))


def bin_of(confidence: FloatArray, n_bins: int) -> IntArray:
    """Return the bin of each confidence, 0 to n_bins - 1; bin b is (b / n_bins, (b + 1) / n_bins]."""
    edges = np.arange(1, n_bins) / n_bins  # correctly rounded, so that 0.7 meets the edge 7 / 10
    return np.asarray(np.searchsorted(edges, confidence, side="left"), dtype=np.int64)


def reliability(y: ArrayLike, probabilities: ArrayLike, *, n_bins: int = 15) -> list[dict[str, Any]]:
    """Return the bins behind the calibration error, lowest first.

    Returns:
        `low`, `high`, `count`, `confidence` and `accuracy` a bin; both means are None where the bin is empty.

    Raises:
        DataError: see `check`.
    """
    y, probabilities = check(y, probabilities)
    confidence, hit = probabilities.max(axis=1), is_correct(y, probabilities)
    where = bin_of(confidence, n_bins)
    counts = np.bincount(where, minlength=n_bins)
    sums = [np.bincount(where, weights=values, minlength=n_bins) for values in (confidence, hit.astype(np.float64))]
    return [
        {
            "low": b / n_bins,
            "high": (b + 1) / n_bins,
            "count": int(counts[b]),
            "confidence": float(sums[0][b] / counts[b]) if counts[b] else None,
            "accuracy": float(sums[1][b] / counts[b]) if counts[b] else None,
        }
        for b in range(n_bins)
    ]


def confusion_matrix(y: ArrayLike, probabilities: ArrayLike) -> IntArray:
    """Count records by right label (rows) and answer (columns), shape (n_labels, n_labels).

    Raises:
        DataError: see `check`.
    """
    y, probabilities = check(y, probabilities)
    n_labels = probabilities.shape[1]
    return np.bincount(y * n_labels + answers(probabilities), minlength=n_labels**2).reshape(n_labels, n_labels).astype(np.int64)


def per_class(y: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return `label`, `precision`, `recall`, `f1` and `support` (records of that label), in the order of the label space.

    A ratio whose denominator is 0 is 0.

    Raises:
        DataError: see `check`.
    """
    confusion = confusion_matrix(y, probabilities).astype(np.float64)
    hit, answer, truth = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    figures = zip(labels, _ratio(hit, answer), _ratio(hit, truth), _ratio(2 * hit, answer + truth), truth, strict=True)
    return [{"label": label, "precision": float(p), "recall": float(r), "f1": float(f1), "support": int(n)} for label, p, r, f1, n in figures]


def _ratio(numerator: FloatArray, denominator: NDArray[Any]) -> FloatArray:
    """Divide; 0 / 0 is 0."""
    result: FloatArray = np.divide(numerator, denominator, out=np.zeros(np.broadcast(numerator, denominator).shape), where=np.asarray(denominator) > 0)
    return result
