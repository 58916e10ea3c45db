"""Which answers may go out without a person looking at them?

An answer is accepted when the model's own confidence, before calibration, is at least a threshold. The threshold is chosen so
that a sentence holds: of the answers that are accepted at most `max_error` are wrong, with probability 1 - `delta` over the
draw of the calibration split. It is found by Learn then Test: validation proposes thresholds and the order in which they are
tested, by a smooth curve of its own errors; calibration tests them in that order, each at level delta, until the first is not
shown to hold; of those that hold, the one that accepts most is taken. Fixed-sequence testing spends delta once, however many
thresholds are tested, because the order does not depend on what tests them. A threshold's test is exact: if its risk were above
`max_error`, so few errors among its accepted answers would be seen with probability delta at most (binomial tail).

The confidence before calibration is used because the calibrator was fitted on these very records. The sentence is about new
answers that are drawn as the calibration split was, one a document; when the documents change, it is void.

Source:
    Angelopoulos, Bates, Candes, Jordan and Lei 2021, Learn then Test, sections 2.3 and 4 (fixed-sequence testing with a
    learned order); Geifman and El-Yaniv 2017, Selective Classification for Deep Neural Networks (selective risk).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, Interval, wilson
from tunesmith.evaluate.metrics import FloatArray
from tunesmith.evaluate.ranks import auroc

SHARES = np.arange(0.02, 1.001, 0.02)
"""Shares of answers that the proposed thresholds accept on validation. Coarse, since each that is tested must hold."""

CURVE_POINTS = 50


@dataclass(frozen=True)
class Acceptance:
    """A threshold, and how calibration answered there.

    Attributes:
        rule: `guarantee`, or how else the threshold was chosen: then nothing is promised.
        threshold: Least confidence before calibration of an accepted answer; None where none can be accepted.
        max_error: Most share of accepted answers that are wrong, a ratio.
        delta: Chance, over calibration splits, that more are wrong.
        n: Calibration records, one a document.
        accepted: Of them, how many have the threshold's confidence.
        errors: Of those, how many are wrong.
        p_value: Of the test that at most `max_error` of the accepted are wrong; a guarantee's is at most `delta`.
        tested: How many thresholds were tested.
    """

    rule: str
    threshold: float | None
    max_error: float
    delta: float
    n: int
    accepted: int
    errors: int
    p_value: float
    tested: int

    def accepts(self, confidence: ArrayLike) -> NDArray[np.bool_]:
        """Return whether answers of this confidence, shape (n,), need no review."""
        given = np.asarray(confidence)
        return np.zeros(given.shape, dtype=bool) if self.threshold is None else given >= self.threshold


def guarantee(validation: tuple[ArrayLike, ArrayLike], calibration: tuple[ArrayLike, ArrayLike], *, max_error: float = 0.05, delta: float = 0.05) -> Acceptance:
    """Find the threshold that accepts most answers while the guarantee holds.

    Args:
        validation: Confidence, shape (m,), and whether the answer was wrong, shape (m,), of the validation split: they propose.
        calibration: The same of the calibration split, shape (n,), one record a document: they test.
        max_error: Most share of wrong answers among the accepted, a ratio in (0, 1).
        delta: Chance that the guarantee fails, a ratio in (0, 1).

    Raises:
        DataError: there are no records, or shapes do not fit each other.
    """
    proposed = _propose(*_checked(*validation), n=len(np.asarray(calibration[0])), max_error=max_error)
    found, tested = at_threshold("guarantee", None, calibration, max_error=max_error, delta=delta), 0
    for threshold in proposed:
        candidate, tested = at_threshold("guarantee", threshold, calibration, max_error=max_error, delta=delta), tested + 1
        if candidate.p_value > delta:
            break
        if candidate.accepted > found.accepted:
            found = candidate
    return replace(found, tested=tested)


def at_threshold(rule: str, threshold: float | None, calibration: tuple[ArrayLike, ArrayLike], *, max_error: float = 0.05, delta: float = 0.05) -> Acceptance:
    """Return how calibration answered at a threshold, whatever chose it.

    Args:
        rule: What chose it.
        threshold: Least confidence of an accepted answer; None accepts none.
        calibration: Confidence, shape (n,), and whether the answer was wrong, shape (n,).
        max_error: Most share of wrong answers among the accepted, a ratio in (0, 1).
        delta: Level of the test.

    Raises:
        DataError: there are no records, or shapes do not fit each other.
    """
    confidence, wrong = _checked(*calibration)
    accepted = np.zeros(len(wrong), dtype=bool) if threshold is None else confidence >= threshold
    n, errors = int(accepted.sum()), int(wrong[accepted].sum())
    return Acceptance(rule, threshold, max_error, delta, len(wrong), n, errors, float(bdtr(errors, n, max_error)) if n else 1.0, 0)


def busiest_threshold(confidence: ArrayLike, share_reviewed: float) -> float | None:
    """Return the threshold at which at most this share of answers is reviewed; None where all can be.

    Args:
        confidence: shape (n,). Of the calibration split.
        share_reviewed: What people can look at, a ratio, 0 or more.
    """
    ordered = np.sort(np.asarray(confidence, dtype=np.float64))
    reviewed = int(np.floor(share_reviewed * len(ordered)))
    return None if reviewed >= len(ordered) else float(ordered[reviewed])


def _propose(confidence: FloatArray, wrong: NDArray[np.bool_], *, n: int, max_error: float) -> list[float]:
    """Return thresholds, the one most likely to pass a test on n records first.

    How likely follows from how many standard errors its expected share of wrong answers lies below `max_error`. That share
    is read from a logistic curve, since few records lie above a high threshold and none of them may be wrong.
    """
    thresholds = np.unique(np.quantile(confidence, 1 - SHARES, method="lower"))
    expected = _expected_error(confidence, wrong)
    scored = []
    for threshold in thresholds:
        above = confidence >= threshold
        margin = (max_error - float(expected[above].mean())) * np.sqrt(n * float(above.mean()) / (max_error * (1 - max_error)))
        scored.append((-margin, float(threshold)))
    return [threshold for _, threshold in sorted(scored)]


def _expected_error(confidence: FloatArray, wrong: NDArray[np.bool_]) -> FloatArray:
    from tunesmith.evaluate.calibration import fit_logistic

    odds = _log_odds(confidence)
    slope, intercept = fit_logistic(odds[:, None], ~wrong)
    return np.asarray(1 / (1 + np.exp(np.clip(slope * odds + intercept, -700, 700))))


def _log_odds(confidence: FloatArray) -> FloatArray:
    inside = np.clip(confidence, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def acceptance_on_test(found: Acceptance, confidence: ArrayLike, wrong: ArrayLike, *, level: float = 0.95) -> dict[str, Any]:
    """Show on the test split what was promised.

    Args:
        found: The threshold.
        confidence: shape (n,). Before calibration, of the test split.
        wrong: shape (n,). Whether each answer is wrong.
        level: Level of the intervals, a ratio.

    Returns:
        The fields of `Acceptance`; `share`, accepted on test, and `error`, wrong among them (None where none is accepted), each with value,
        low and high by Wilson; `n_test`; `curve`, points of `share` accepted, most confident first, and `error` among them with its
        `low` and `high`; `excess`, the mean of the curve's errors over shares minus that of a model that puts all right answers first.

    Raises:
        DataError: there are no records, or shapes do not fit each other.
    """
    confidence, wrong = _checked(confidence, wrong)
    accepted = found.accepts(confidence)
    n = int(accepted.sum())
    return {
        **asdict(found),
        "share": wilson(n, len(wrong), level).to_dict(),
        "error": wilson(int(wrong[accepted].sum()), n, level).to_dict() if n else None,
        "n_test": len(wrong),
        "curve": coverage_risk(confidence, wrong, level=level),
        "excess": float(_mean_risk(wrong[np.argsort(-confidence, kind="stable")]) - _mean_risk(np.sort(wrong))),
    }


def coverage_risk(confidence: ArrayLike, wrong: ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95) -> list[dict[str, float]]:
    """Return how many answers are wrong among the most confident ones, for growing shares.

    Args:
        confidence: shape (n,).
        wrong: shape (n,). Whether each answer is wrong.
        groups: shape (n,). Document of each answer, where a document has several: intervals are then as wide as if each document had one.
        level: Level of the intervals, by Wilson, a ratio.

    Returns:
        Points of `share`, `error` and its `low` and `high`.

    Source:
        El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification.
    """
    confidence, wrong = _checked(confidence, wrong)
    order = np.argsort(-confidence, kind="stable")
    ordered, own = wrong[order], np.arange(len(wrong)) if groups is None else np.asarray(groups)[order]
    is_first = np.zeros(len(wrong), dtype=bool)
    is_first[np.unique(own, return_index=True)[1]] = True
    counts = sorted({max(1, round(len(wrong) * point / CURVE_POINTS)) for point in range(1, CURVE_POINTS + 1)})
    points = []
    for count in counts:
        error, trials = float(ordered[:count].mean()), int(is_first[:count].sum())
        risk = wilson(error * trials, trials, level)
        points.append({"share": count / len(wrong), "error": error, "low": risk.low, "high": risk.high})
    return points


def confidence_auroc(
    confidence: ArrayLike, wrong: ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95, n_samples: int = 2000, seed: int = 0
) -> dict[str, float] | None:
    """Return how often a right answer has a higher confidence than a wrong one, equal ones counted half: value, low and high.

    Args:
        confidence: shape (n,). A ratio, of the test split; whether calibrated or not changes nothing.
        wrong: shape (n,). Whether each answer is wrong.
        groups: shape (n,). Document of each record, where a document has several.
        level: Level of the interval, a ratio.
        n_samples: Resamples; one without a right or without a wrong answer has no such figure and is left out.
        seed: Seed of the resamples.

    Returns:
        None where all answers are right, or all are wrong.
    """
    confidence, wrong = _checked(confidence, wrong)
    if wrong.all() or not wrong.any():
        return None
    area = auroc.of_weights(wrong.astype(int), np.column_stack([confidence, 1 - confidence]))

    def figure(weights: FloatArray) -> FloatArray:
        n_wrong = weights[:, wrong].sum(axis=1)
        return np.where((n_wrong > 0) & (n_wrong < weights.sum(axis=1)), area(weights), np.nan)

    bootstrap = Bootstrap(len(wrong), n_samples=n_samples, level=level, seed=seed, groups=groups)
    resampled = bootstrap.replicates_of_weights(figure)
    return Interval(float(area(np.ones((1, len(wrong))))[0]), *bootstrap.ends(resampled[~np.isnan(resampled)])).to_dict()


def _mean_risk(ordered: NDArray[np.bool_]) -> float:
    """Return the area under the coverage-risk curve."""
    return float(np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))


def _checked(confidence: ArrayLike, wrong: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    given, errors = np.asarray(confidence, dtype=np.float64), np.asarray(wrong, dtype=bool)
    if given.ndim != 1 or given.shape != errors.shape or not len(given) or not np.isfinite(given).all():
        raise DataError(f"A threshold needs records, each with a finite confidence. Received: shapes {given.shape} and {errors.shape}.")
    return given, errors
