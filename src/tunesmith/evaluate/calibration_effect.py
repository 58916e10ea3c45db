"""What did calibration do to the stated confidence, on the test split?

Of the calibrator that was chosen, of every other one, and of one for each slice of the records. Calibrators are fitted and chosen on
the calibration split; nothing here chooses anything, so that a calibrator which looks better on test stays unchosen.

Plain data for report.json:

    calibration.{method, before, after, table}            the chosen one; before and after with value, low and high
    calibration.on_test.METHOD.{error, change}            each one on all of test; change is the paired difference to none, p corrected by Holm
    calibration.slices[].{name, n_calibration, n_test, method, before, common, own, change}
                                                          before: raw; common: by the chosen one; own: by one that is fitted on the slice's
                                                          calibration records; change: own minus common, p corrected by Holm
    calibration.few[].{name, n_calibration, n_test}       slices with too few records for a calibrator of their own
    calibration.by                                        the column that the slices are values of
    calibration.confidence                                of written answers: the section `evaluate.confidence` that they were asked with
    reliability.{before, after}                           bins of the reliability diagram

Errors are expected calibration errors with bins of equal width. They are biased upwards, the more the fewer records: between slices
of unlike sizes compare the changes, not the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.evaluate.calibration import Calibrator, choose_calibrator, softmax
from tunesmith.evaluate.candidates import holm
from tunesmith.evaluate.intervals import Bootstrap
from tunesmith.evaluate.metrics import ExpectedCalibrationError, FloatArray, IntArray, check, reliability
from tunesmith.evaluate.slices import MIN_RECORDS


def calibration_effect(
    before: ArrayLike,
    after: ArrayLike,
    y: ArrayLike,
    *,
    method: str,
    table: Mapping[str, Mapping[str, float]],
    fitted: Mapping[str, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    n_bins: int = 15,
) -> dict[str, Any]:
    """Measure on the test split what the calibrator did to the tuned model.

    Args:
        before: shape (n, n_labels). Probabilities without the calibrator.
        after: shape (n, n_labels). Probabilities with it.
        y: shape (n,). Right label of each record, an index.
        method: Name of the calibrator.
        table: What `choose_calibrator` measured on the calibration split.
        fitted: Name of each calibrator -> probabilities with it, shape (n, n_labels); `on_test` is left out without them.
        groups: shape (n,). Document of each record, where a document has several.
        level: Level of the intervals, a ratio.
        n_samples: Resamples behind them.
        seed: Seed of the resamples.
        n_bins: Bins of the calibration error and of the reliability table.

    Returns:
        `calibration` and `reliability` of the module docstring, without `slices`.

    Raises:
        DataError: shapes do not fit each other.
    """
    metric = ExpectedCalibrationError(n_bins)
    bootstrap = Bootstrap(len(np.asarray(y)), n_samples=n_samples, level=level, seed=seed, groups=groups)
    both = {"before": before, "after": after}
    rows = {when: metric.rows(*check(y, probabilities)) for when, probabilities in both.items()}
    found: dict[str, Any] = {"method": method, "table": {name: dict(row) for name, row in table.items()}}
    found |= {when: metric.interval(bootstrap, own).to_dict() for when, own in rows.items()}
    if fitted:
        of_each = {name: metric.rows(*check(y, probabilities)) for name, probabilities in fitted.items()}
        found["on_test"] = {name: {"error": metric.interval(bootstrap, own).to_dict(), "change": None} for name, own in of_each.items()}
        changes = {name: bootstrap.difference(metric.of_sums, own, rows["before"]).to_dict() for name, own in of_each.items() if name != "none"}
        for name, change in zip(changes, _corrected([*changes.values()]), strict=True):
            found["on_test"][name]["change"] = change
    return {"calibration": found, "reliability": {when: reliability(y, probabilities, n_bins=n_bins) for when, probabilities in both.items()}}


@dataclass(frozen=True)
class Answers:
    """The answers of one split.

    Attributes:
        values: n texts, the slice that each record is in; empty or None for none.
        logits: shape (n, n_labels).
        y: shape (n,). Right labels, as indices.
    """

    values: Sequence[str | None]
    logits: FloatArray
    y: IntArray

    def of(self, value: str) -> tuple[FloatArray, IntArray]:
        """Return logits and right labels of one slice."""
        inside = np.array([each == value for each in self.values], dtype=bool)
        return self.logits[inside], self.y[inside]


def calibration_by(
    calibration: Answers,
    test: Answers,
    common: Calibrator,
    *,
    method: str = "auto",
    judges: str = "label",
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    n_bins: int = 15,
) -> dict[str, Any]:
    """Fit a calibrator to each slice, and measure it on test beside the one of all records.

    Args:
        calibration: Answers of the calibration split.
        test: Answers of the test split.
        common: The calibrator of all records.
        method: As in `choose_calibrator`.
        judges: As in `choose_calibrator`.
        groups: shape (n_test,). Document of each test record, where a document has several.
        level: Level of the intervals, a ratio.
        n_samples: Resamples.
        seed: Seed of folds and resamples.
        n_bins: Bins of the calibration error.

    Returns:
        `slices` and `few` of the module docstring; empty where the records of test are in fewer than two slices.
    """
    names = sorted({value for value in test.values if value})
    if len(names) < 2:
        return {}
    metric = ExpectedCalibrationError(n_bins)
    slices: list[dict[str, Any]] = []
    few: list[dict[str, Any]] = []
    for name in names:
        (logits, y), (own_logits, own_y) = test.of(name), calibration.of(name)
        about: dict[str, Any] = {"name": name, "n_calibration": len(own_y), "n_test": len(y)}
        if min(len(y), len(own_y)) < MIN_RECORDS:
            few.append(about)
            continue
        own, _ = choose_calibrator(own_logits, own_y, method, seed, n_bins=n_bins, judges=judges)
        within = None if groups is None else np.asarray(groups)[[value == name for value in test.values]]
        bootstrap = Bootstrap(len(y), n_samples=n_samples, level=level, seed=seed, groups=within)
        stated = {"before": softmax(logits), "common": common.probabilities(logits), "own": own.probabilities(logits)}
        rows = {which: metric.rows(y, probabilities) for which, probabilities in stated.items()}
        errors = {which: metric.interval(bootstrap, each).to_dict() for which, each in rows.items()}
        change = bootstrap.difference(metric.of_sums, rows["own"], rows["common"]).to_dict()
        slices.append({**about, "method": own.to_dict()["method"], **errors, "change": change})
    for row, change in zip(slices, _corrected([row["change"] for row in slices]), strict=True):
        row["change"] = change
    return {"slices": slices, "few": few}


def _corrected(changes: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [change | {"p_value": p_value} for change, p_value in zip(changes, holm([change["p_value"] for change in changes]), strict=True)]
