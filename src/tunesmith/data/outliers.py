"""Which rows are unlike the rest of their class?

A row's distance is one minus its mean cosine to the ten nearest other rows of its class: a class may have several centres,
and on planted strangers this found more than the distance to one. Distances are judged robustly, by median and median absolute
deviation, within each class: a class of varied texts is not punished for it. Small classes are judged by the distances of all
rows. Each row comes with its nearest neighbours, of any class, as evidence. These are proposals for a reviewer: nothing is
dropped here. Needs contextual embeddings; static ones tell duplicates but not outliers.

Sources: Ramaswamy, Rastogi and Shim 2000 (outliers by nearest neighbours); Iglewicz and Hoaglin 1993 (the modified z-score
and its cut of 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.errors import DataError

_MAD_TO_SIGMA = 1.4826
_NEIGHBOURS = 10
_SMALLEST_CLASS = 20
_LEAST_SPREAD = 1e-3  # of distances, below which a class of near-equal texts would make outliers of rounding

OUTLIER_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "position": pl.Int64,
    "distance": pl.Float64,  # 1 - mean cosine to the nearest rows of the class, in [0, 2]; 1 for a row alone
    "score": pl.Float64,  # robust z: 0 is the class's median, 1 a standard deviation beyond it
    "is_proposed": pl.Boolean,
    "neighbours": pl.List(pl.Int64),  # positions, nearest first
    "similarities": pl.List(pl.Float64),  # cosines to them
}


def score_outliers(embeddings: NDArray[np.float32], labels: Sequence[str], *, min_score: float = 3.5, n_neighbours: int = 5) -> pl.DataFrame:
    """Score each row by how far it is from its class.

    Args:
        embeddings: shape (n, D). Unit vectors.
        labels: n class names; equal ones everywhere where there are no classes.
        min_score: Robust z from which a row is proposed; 3.5 is one in 4,300 rows of a normal distribution.
        n_neighbours: Rows named as evidence, of any class.

    Returns:
        Columns of `OUTLIER_SCHEMA`, one row a row, in their order. The order of the rows changes no score beyond rounding.

    Raises:
        DataError: embeddings and labels differ in number.
    """
    if len(embeddings) != len(labels):
        raise DataError(f"Each row needs one embedding and one label. Received: {len(embeddings)} embeddings, {len(labels)} labels.")
    from tunesmith.models.neighbours import nearest

    names, of = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
    distance = np.zeros(len(embeddings))
    for number in range(len(names)):
        members = np.flatnonzero(of == number)
        _, cosines = nearest(embeddings[members], embeddings[members], _NEIGHBOURS, exclude_self=True)
        distance[members] = 1 - cosines.mean(1) if cosines.size else 1.0
    score = _robust_z(distance, distance)
    for number in range(len(names)):
        members = np.flatnonzero(of == number)
        if len(members) >= _SMALLEST_CLASS:
            score[members] = _robust_z(distance[members], distance[members])
    positions, similarities = nearest(embeddings, embeddings, n_neighbours, exclude_self=True)
    columns = {
        "position": np.arange(len(embeddings)),
        "distance": distance,
        "score": score,
        "is_proposed": score >= min_score,
        "neighbours": positions.tolist(),
        "similarities": similarities.tolist(),
    }
    return pl.DataFrame(columns, schema=OUTLIER_SCHEMA)


def _robust_z(values: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(reference) == 0:
        return values
    middle = np.median(reference)
    return (values - middle) / max(_MAD_TO_SIGMA * float(np.median(np.abs(reference - middle))), _LEAST_SPREAD)
