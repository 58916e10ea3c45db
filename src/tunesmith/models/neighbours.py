"""Nearest neighbours by cosine, by comparing all with all in blocks.

Below some 100,000 vectors this is faster than building a graph index, and it misses nothing; `centres` cut more of them into
cells. Where the processor multiplies bfloat16 natively, blocks are compared in it and what may count is computed again in
float32: `above` allows for the rounding and is exact, `nearest` takes three times the neighbours asked for and more, of
which rounding loses none in practice. Vectors are rows of length 1 (or 0); cosines are in [-1, 1]. Time grows with the
product of the two numbers of vectors, memory with one block of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.models.processor import multiplies_bfloat16

_BLOCK = 1024  # queries at once
_MOST_PRODUCTS = 1 << 27  # at once; fewer queries where there are more than 131,072 vectors
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
    all_vectors, exact, size = _in_pass_dtype(vectors), torch.from_numpy(vectors), _block(len(vectors))
    n_candidates = min(len(vectors), k * _SPARE + 16)
    for begin in range(0, len(queries), size):
        block = torch.from_numpy(queries[begin : begin + size])
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
    others, exact, size = _in_pass_dtype(right), torch.from_numpy(right), _block(len(right))
    margin = _ROUNDING if others.dtype == torch.bfloat16 else 1e-5
    for begin in range(0, len(left), size):
        block = torch.from_numpy(left[begin : begin + size])
        rows, columns = torch.nonzero(block.to(others.dtype) @ others.t() >= least - margin, as_tuple=True)
        cosines = torch.empty(len(rows))
        for at in range(0, len(rows), 1 << 16):
            part = slice(at, at + (1 << 16))
            cosines[part] = (block[rows[part]] * exact[columns[part]]).sum(1)
        close = cosines >= least
        yield (rows[close] + begin).numpy(), columns[close].numpy(), cosines[close].numpy()


def centres(vectors: NDArray[np.float32], k: int, n_steps: int = 8) -> NDArray[np.float32]:
    """Find k centres of vectors by spherical k-means on at most 64 a centre, which stand evenly among them; so do the first centres.

    Args:
        vectors: shape (n, D), n at least k. Their order decides.
        k: How many, at least 1.
        n_steps: Rounds.

    Returns:
        shape (k, D), rows of length 1; a centre without vectors stays where it was.

    Source: Dhillon and Modha 2001, Concept Decompositions for Large Sparse Text Data Using Clustering.
    """
    sample = vectors[np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), 64 * k)).astype(np.int64))]
    found = sample[np.linspace(0, len(sample) - 1, k).astype(np.int64)].copy()
    for _ in range(n_steps):
        home = nearest(sample, found, 1)[0][:, 0]
        order = np.argsort(home, kind="stable")
        cells, starts = np.unique(home[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found[cells] = np.divide(sums, lengths, out=found[cells], where=lengths > 0)
    return found


def _block(n: int) -> int:
    return min(max(_MOST_PRODUCTS // max(n, 1), 1), _BLOCK)


def _in_pass_dtype(vectors: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(vectors).to(torch.bfloat16 if multiplies_bfloat16() else torch.float32)
