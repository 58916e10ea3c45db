"""Several ways to train on the same data, each with several seeds: how much does each gain, and which is best?

Every candidate answered the same validation records once a seed. Its score is the mean over seeds; gains and differences
are paired on the records. Intervals hold both sources of chance: records are resampled, and seeds are resampled with
their spread widened by sqrt(S / (S - 1)), since S seeds drawn from S show too little of it. With one seed only the
records' chance is in them, and that is said.

The best candidate is compared with each other one, and the p-values are corrected by Holm's procedure for having tried
that many. Its own score is flattered by the choice: the test split, which is not looked at here, says what it is worth.

Sources: Efron and Tibshirani 1993, chapter 16 (bootstrap tests); Holm 1979, A Simple Sequentially Rejective Multiple Test
Procedure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, Difference, FloatArray, Interval, OfSums, two_sided


def compare_candidates(
    candidates: Mapping[str, Sequence[FloatArray]],
    base: FloatArray,
    of_sums: OfSums,
    *,
    maximizes: bool = True,
    eligible: Sequence[str] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare candidates on the validation split and choose the best.

    Args:
        candidates: Name -> what each record adds to the figure that is compared, per seed, each of shape (n, k).
        base: shape (n, k). What each record adds to the untuned model's figure.
        of_sums: The figure as a function of sums over records.
        maximizes: Whether more of it is better.
        eligible: Candidates that may be chosen; all when None.
        groups: shape (n,). Document of each record, where a document has several.
        level: Level of the intervals, a ratio.
        n_samples: Resamples.
        seed: Seed of the resamples.

    Returns:
        `base` and `candidates.NAME.score` with value, low and high; `candidates.NAME.gain` over the base, signed so that more is
        better; `best`, or None where none is eligible; `candidates.NAME.behind_best` with the difference, its interval and
        `p_value`, corrected by Holm, for each eligible candidate but the best; `level_with_best`.

    Raises:
        DataError: there are no candidates or seeds, or shapes do not fit each other.
    """
    if not candidates or not all(candidates.values()):
        raise DataError("A comparison needs a candidate, and a seed of each. Received: none.")
    sign = 1.0 if maximizes else -1.0
    bootstrap = Bootstrap(len(base), n_samples=n_samples, level=level, seed=seed, groups=groups)
    draw = np.random.default_rng([seed, 1])

    def of_seeds(rows: Sequence[FloatArray]) -> tuple[float, FloatArray]:
        value = float(np.mean([of_sums(own.sum(axis=0)) for own in rows]))
        return value, _with_seeds(np.stack([bootstrap.replicates(of_sums, own) for own in rows]), draw)

    base_value, base_replicates = float(of_sums(base.sum(axis=0))), bootstrap.replicates(of_sums, base)
    found = {name: of_seeds(rows) for name, rows in candidates.items()}
    shown: dict[str, dict[str, Any]] = {
        name: {
            "score": Interval(value, *bootstrap.ends(replicates)).to_dict(),
            "gain": _difference(sign * (value - base_value), sign * (replicates - base_replicates), bootstrap).to_dict(),
            "seeds": len(candidates[name]),
        }
        for name, (value, replicates) in found.items()
    }
    may_be_chosen = [name for name in found if eligible is None or name in eligible]
    best = max(may_be_chosen, key=lambda name: sign * found[name][0], default=None)
    rivals = [name for name in may_be_chosen if name != best]
    if best is not None:
        behind = [_difference(sign * (found[name][0] - found[best][0]), sign * (found[name][1] - found[best][1]), bootstrap) for name in rivals]
        for name, difference, corrected in zip(rivals, behind, holm([each.p_value for each in behind]), strict=True):
            shown[name]["behind_best"] = difference.to_dict() | {"p_value": corrected}
    return {
        "n": len(base),
        "base": Interval(base_value, *bootstrap.ends(base_replicates)).to_dict(),
        "candidates": shown,
        "best": best,
        "level_with_best": [name for name in rivals if shown[name]["behind_best"]["p_value"] > 1 - level],
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being that many, in their order: at most a share alpha of families then has any false alarm below alpha.

    Source:
        Holm 1979.
    """
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = running
    return corrected


def _with_seeds(replicates: FloatArray, draw: np.random.Generator) -> FloatArray:
    """Average replicates over seeds drawn anew for each; shape (S, n_samples) -> (n_samples,)."""
    n_seeds, n_samples = replicates.shape
    mean: FloatArray = replicates.mean(axis=0)
    if n_seeds == 1:
        return mean
    drawn = replicates[draw.integers(n_seeds, size=(n_seeds, n_samples)), np.arange(n_samples)].mean(axis=0)
    widened: FloatArray = mean + np.sqrt(n_seeds / (n_seeds - 1)) * (drawn - mean)
    return widened


def _difference(value: float, replicates: FloatArray, bootstrap: Bootstrap) -> Difference:
    return Difference(value, *bootstrap.ends(replicates), two_sided(replicates))
