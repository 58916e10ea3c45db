"""What is the best of several candidates worth, when the records that chose it are the ones that it is measured on?

The best of twenty figures is partly the luckiest of twenty: it looks better than it is. Here the choice is repeated on
resampled records, and each time the winner is measured on the records that the resample left out. The mean of these figures
is what the choice is worth, without new records and without a look at the test split. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Interval
from tunesmith.evaluate.metrics import Metric, check


def worth_of_best(
    metric: Metric, y: ArrayLike, candidates: Sequence[ArrayLike], *, maximize: bool, n_samples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate the figure that the best of several candidates will have on new records.

    Args:
        metric: What chooses, and what is measured.
        y: shape (n,). Right label of each record, an index.
        candidates: Per candidate, probabilities of the same records, shape (n, n_labels).
        maximize: Whether more is better.
        n_samples: Resamples.
        level: Level of the interval, a ratio in (0, 1).
        seed: Seed of the resamples.

    Returns:
        The mean over resamples of the winner's figure on the records left out, with its percentile interval. It is measured on
        37 of 100 records at a time, so that the interval is rather too wide than too narrow.

    Raises:
        DataError: there are no candidates or fewer than two records, or see `metrics.check`.

    Source:
        Tsamardinos, Greasidou and Borboudakis 2018, Bootstrapping the out-of-sample predictions for efficient and accurate
        cross-validation, Machine Learning 107, algorithm 5 (BBC-CV).
    """
    if not candidates or np.shape(y)[0] < 2:
        raise DataError(f"A choice needs candidates and at least two records. Received: {len(candidates)} and {np.shape(y)[0]}.")
    rows = [metric.rows(*check(y, probabilities)) for probabilities in candidates]
    n, draw, sign = len(rows[0]), np.random.default_rng(seed), 1.0 if maximize else -1.0
    worth: list[float] = []
    while len(worth) < n_samples:
        counts: NDArray[np.float64] = np.bincount(draw.integers(n, size=n), minlength=n).astype(np.float64)
        left_out = (counts == 0).astype(np.float64)
        if not left_out.any():  # of a handful of records, each may have been drawn
            continue
        winner = max(range(len(rows)), key=lambda candidate: sign * float(metric.of_sums(counts @ rows[candidate])))
        worth.append(float(metric.of_sums(left_out @ rows[winner])))
    low, high = np.quantile(worth, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(worth)), float(low), float(high))
