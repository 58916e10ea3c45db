"""Prediction sets: which labels can the right one be?

A set holds every label whose probability is at least a cut-off, which is taken from the calibration split so that the right
label is in the set as often as asked, on average over calibration splits and records, whatever the model and the data
(split conformal prediction). A sure answer has a set of one, a hard one of several, and a person sees what is still open.
Probabilities are those before calibration: the calibrator was fitted on the same records. The promise is marginal: how often
it holds for each label is measured on test and shown, not promised.

Source:
    Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; the score 1 - p of the right label: Sadinle, Lei and
    Wasserman 2019, Least Ambiguous Set-Valued Classifiers with Bounded Error Levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.evaluate.intervals import Bootstrap, wilson
from tunesmith.evaluate.metrics import check, counted, mean_of_sums


def fit_cutoff(y: ArrayLike, probabilities: ArrayLike, coverage: float) -> float:
    """Return the least probability of a label that is in the set.

    Args:
        y: shape (n,). Right labels of the calibration split, one record a document.
        probabilities: shape (n, n_labels). Before calibration.
        coverage: How often the right label shall be in the set, a ratio in (0, 1).

    Returns:
        The k-th largest probability of a right label, k = ceil((n + 1) coverage); 0, which takes every label, where n is too small.

    Raises:
        DataError: see `metrics.check`.
    """
    y, probabilities = check(y, probabilities)
    rank = math.ceil((len(y) + 1) * coverage)
    return 0.0 if rank > len(y) else float(np.sort(probabilities[np.arange(len(y)), y])[len(y) - rank])


def sets(probabilities: ArrayLike, cutoff: float) -> NDArray[np.bool_]:
    """Return which labels are in each record's set, shape (n, n_labels); the answer itself always is."""
    given = np.asarray(probabilities, dtype=np.float64)
    inside = given >= cutoff
    inside[np.arange(len(given)), given.argmax(axis=1)] = True
    return np.asarray(inside)


def sets_on_test(
    cutoff: float, y: ArrayLike, probabilities: ArrayLike, labels: Sequence[str], *, coverage: float, level: float = 0.95, n_samples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Show on the test split how often sets hold the right label, and how large they are.

    Returns:
        `asked` and `cutoff`; `coverage` and `mean_size` with value, low and high; `sizes`, how many records have a set of 1, 2, ... labels;
        `per_label`, label, coverage and n of each label that occurs.

    Raises:
        DataError: see `metrics.check`.
    """
    y, probabilities = check(y, probabilities)
    inside = sets(probabilities, cutoff)
    covered, size = inside[np.arange(len(y)), y], inside.sum(axis=1)
    bootstrap = Bootstrap(len(y), n_samples=n_samples, level=level, seed=seed)
    return {
        "asked": coverage,
        "cutoff": cutoff,
        "coverage": wilson(int(covered.sum()), len(y), level).to_dict(),
        "mean_size": bootstrap.interval(mean_of_sums, counted(size.astype(np.float64))).to_dict(),
        "sizes": np.bincount(size, minlength=len(labels) + 1)[1:].tolist(),
        "per_label": [
            {"label": label, **wilson(int(covered[y == at].sum()), int((y == at).sum()), level).to_dict(), "n": int((y == at).sum())}
            for at, label in enumerate(labels)
            if (y == at).any()
        ],
    }
