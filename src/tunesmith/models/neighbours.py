"""Nearest neighbours by cosine, by comparing all with all in blocks.

Below some 100,000 vectors this is faster than building a graph index, and it misses nothing. Where the processor
multiplies bfloat16 natively, blocks are compared in it and what may count is computed again in float32: `above` allows
for the rounding and is exact, `nearest` takes three times the neighbours asked for and more, of which rounding loses
none in practice. Vectors are rows of length 1 (or 0); cosines are in [-1, 1]. Time grows with the product of the two
numbers of vectors, memory with one block of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.models.embed import multiplies_bfloat16

_BLOCK = 1024
_ROUNDING = 0.01  # most that a cosine of unit vectors is off in bfloat16; tested
_SPARE = 3  # so many times more candidates than neighbours are computed again


def nearest(queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, *, exclude_self: bool = False) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest vectors of each query.

    Args:
        queries: shape (n_queries, D).
        vectors: shape (n, D).
        k: Neighbours a query; fewer where there are not as many vectors.
        exclude_self: Query i is vector i, which is not its own neighbour.

    Returns:
        Positions in `vectors` and cosines, shape (n_queries, min(k, n)); nearest first, equal ones by position.
    """
    k = max(0, min(k, len(vectors) - exclude_self))
    positions, cosines = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
    if k == 0 or len(queries) == 0:
        return positions, cosines
    all_vectors, exact = _in_pass_dtype(vectors), torch.from_numpy(vectors)
    n_candidates = min(len(vectors), k * _SPARE + 16)
    for begin in range(0, len(queries), _BLOCK):
        block = torch.from_numpy(queries[begin : begin + _BLOCK])
        products = block.to(all_vectors.dtype) @ all_vectors.t()
        if exclude_self:
            rows = torch.arange(len(block))
            products[rows, rows + begin] = -torch.inf
        candidates = products.topk(n_candidates, dim=1).indices.sort(dim=1).values
        again = torch.bmm(exact[candidates], block[:, :, None])[:, :, 0]
        if exclude_self:
            again.masked_fill_(candidates == (torch.arange(len(block)) + begin)[:, None], -torch.inf)
        best = again.sort(dim=1, descending=True, stable=True)
        positions[begin : begin + len(block)] = candidates.gather(1, best.indices[:, :k]).numpy()
        cosines[begin : begin + len(block)] = best.values[:, :k].numpy()
    return positions, cosines


def above(left: NDArray[np.float32], right: NDArray[np.float32], least: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Yield all pairs whose cosine is at least `least`, block by block of `left`.

    Args:
        left: shape (n_left, D).
        right: shape (n_right, D).
        least: In (-1, 1].

    Yields:
        Positions in `left`, ascending, positions in `right`, ascending within those of `left`, and cosines.
    """
    others, exact = _in_pass_dtype(right), torch.from_numpy(right)
    margin = _ROUNDING if others.dtype == torch.bfloat16 else 1e-5
    for begin in range(0, len(left), _BLOCK):
        block = torch.from_numpy(left[begin : begin + _BLOCK])
        rows, columns = torch.nonzero(block.to(others.dtype) @ others.t() >= least - margin, as_tuple=True)
        cosines = torch.empty(len(rows))
        for at in range(0, len(rows), 1 << 16):
            part = slice(at, at + (1 << 16))
            cosines[part] = (block[rows[part]] * exact[columns[part]]).sum(1)
        close = cosines >= least
        yield (rows[close] + begin).numpy(), columns[close].numpy(), cosines[close].numpy()


def _in_pass_dtype(vectors: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(vectors).to(torch.bfloat16 if multiplies_bfloat16() else torch.float32)
