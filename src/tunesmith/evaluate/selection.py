"""What is the best of several candidates worth, when the records that chose it are the ones that it is measured on?

The best of twenty figures is partly the luckiest of twenty: it looks better than it is. Here the choice is repeated on
resampled records, and each time the winner is measured on the records that the resample left out. The mean of these figures
is what the choice is worth, without new records and without a look at the test split. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import FloatArray, Interval, OfSums


def worth_of_best(of_sums: OfSums, candidates: Sequence[FloatArray], *, maximize: bool, n_samples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Estimate the figure that the best of several candidates will have on new records.

    Args:
        of_sums: What chooses, and what is measured, as a function of sums over records.
        candidates: Per candidate, what each of the same records adds to the sums, shape (n, k).
        maximize: Whether more is better.
        n_samples: Resamples.
        level: Level of the interval, a ratio in (0, 1).
        seed: Seed of the resamples.

    Returns:
        The mean over resamples of the winner's figure on the records left out, with its percentile interval. It is measured on
        37 of 100 records at a time, so that the interval is rather too wide than too narrow.

    Raises:
        DataError: there are no candidates, or fewer than two records.

    Source:
        Tsamardinos, Greasidou and Borboudakis 2018, Bootstrapping the out-of-sample predictions for efficient and accurate
        cross-validation, Machine Learning 107, algorithm 5 (BBC-CV).
    """
    n = len(candidates[0]) if candidates else 0
    if n < 2:
        raise DataError(f"A choice needs candidates and at least two records. Received: {len(candidates)} and {n}.")
    draw, sign = np.random.default_rng(seed), 1.0 if maximize else -1.0
    worth: list[float] = []
    while len(worth) < n_samples:
        counts: FloatArray = np.bincount(draw.integers(n, size=n), minlength=n).astype(np.float64)
        left_out = (counts == 0).astype(np.float64)
        if not left_out.any():  # of a handful of records, each may have been drawn
            continue
        winner = max(range(len(candidates)), key=lambda candidate: sign * float(of_sums(counts @ candidates[candidate])))
        worth.append(float(of_sums(left_out @ candidates[winner])))
    low, high = np.quantile(worth, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(worth)), float(low), float(high))
