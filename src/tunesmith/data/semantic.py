"""Semantic duplicates: texts that say the same in other words, or the same words in another order.

Two texts are semantic duplicates when the cosine of their embeddings reaches a threshold and, as a check on the model, their
sets of words overlap enough: embeddings put texts of one template together that differ in what matters, and words tell. The
check is a Jaccard similarity of word sets, which edits of single words lower far less than that of shingles; 0 turns it off,
for paraphrases that share few words. Every row is compared with every better one that stays, so that nothing is missed and equal rows are no extra work;
time grows with the square of the rows that stay.

Source: Abbas et al. 2023, SemDeDup (thresholds on embeddings); here without clusters and with the words as a second witness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.dedup import Keep, by_preference, sift
from tunesmith.data.near_duplicates import PAIRS_SCHEMA
from tunesmith.data.shingles import ShingleSets, Texts, shingle_sets
from tunesmith.data.sifted import Sifted
from tunesmith.errors import DataError

_BLOCK = 1024


def drop_semantic_duplicates(
    rows: pl.DataFrame,
    embeddings: NDArray[np.float32],
    threshold: float,
    *,
    min_word_overlap: float = 0.65,
    keep: Keep = "longest",
    previous: pl.DataFrame | None = None,
    previous_embeddings: NDArray[np.float32] | None = None,
) -> Sifted:
    """Drop each row that is a semantic duplicate of a better row that stays, as `semantic_duplicate`.

    Args:
        rows: Columns `id`, `text`, what `keep` needs, and those of `Document` that there are. Ids are distinct.
        embeddings: shape (n, D). One unit vector a row, in their order.
        threshold: Least cosine, in (0, 1].
        min_word_overlap: Least Jaccard similarity of the sets of words, in [0, 1].
        keep: Which row is better, as in `dedup.by_preference`.
        previous: Columns `id` and `text`. These stay, come before all rows, and are not in the result.
        previous_embeddings: shape (n_previous, D).

    Returns:
        Kept rows in the order of the input. Dropped rows name a better row that stays (`kept_id`) and the cosine to it.
        Dropping again drops nothing; kept rows are no semantic duplicates of each other.

    Raises:
        DataError: rows and embeddings differ in number.
    """
    fixed = rows.select("id", "text").clear() if previous is None else previous.select("id", "text")
    fixed_vectors = embeddings[:0] if previous_embeddings is None else previous_embeddings
    for frame, vectors in ((rows, embeddings), (fixed, fixed_vectors)):
        if len(frame) != len(vectors):
            raise DataError(f"Each row needs one embedding. Received: {len(frame)} rows, {len(vectors)} embeddings.")
    ranked = by_preference(rows.with_row_index("position"), keep)
    whole = pl.concat([fixed, ranked.select("id", "text")])
    vectors = np.concatenate([fixed_vectors, embeddings[ranked["position"].to_numpy()]])
    keeper, cosine = _keepers(shingle_sets(whole["text"], 1), vectors, threshold, min_word_overlap, len(fixed))
    return sift(rows, whole["id"], keeper, cosine, "semantic_duplicate", "cosine {} to {}")


def semantic_duplicate_pairs(
    texts: Texts,
    embeddings: NDArray[np.float32],
    others: Texts,
    other_embeddings: NDArray[np.float32],
    threshold: float,
    min_word_overlap: float = 0.65,
) -> pl.DataFrame:
    """List the semantic duplicates between two sets of texts. Arguments as in `drop_semantic_duplicates`.

    Returns:
        Columns `left` (position in `texts`), `right` (position in `others`) and `similarity`, the cosine; sorted by position.
    """
    sides = (_Side(shingle_sets(texts, 1), np.arange(len(texts)), embeddings), _Side(shingle_sets(others, 1), np.arange(len(others)), other_embeddings))
    left, right, cosine = _verified(*sides, threshold, min_word_overlap)
    return pl.DataFrame({"left": left, "right": right, "similarity": cosine}, schema=PAIRS_SCHEMA)


@dataclass(frozen=True)
class _Side:
    """Some texts: their positions in all sets, and their vectors."""

    sets: ShingleSets
    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]


def _verified(left: _Side, right: _Side, threshold: float, overlap: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs of both witnesses: positions in the sets, ordered by left, then right, and cosines."""
    from tunesmith.data.minhash import similarities
    from tunesmith.models.neighbours import above

    parts = []
    for rows, columns, cosine in above(left.vectors, right.vectors, threshold):
        one, other = left.positions[rows], right.positions[columns]
        shared = np.empty(len(one))
        similarities(one, other, left.sets.hashes, left.sets.ends, right.sets.hashes, right.sets.ends, overlap, shared)
        agree = shared >= overlap
        parts.append((one[agree], other[agree], cosine[agree].astype(np.float64)))
    empty = np.zeros(0, dtype=np.int64)
    one, other, cosines = (np.concatenate(column) for column in zip((empty, empty, np.zeros(0)), *parts, strict=True))
    return one, other, cosines


def _keepers(sets: ShingleSets, vectors: NDArray[np.float32], threshold: float, overlap: float, n_fixed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, for rows that stand best first, the rank of a better row that stays (-1 for one that stays itself) and the cosine."""
    n = len(sets)
    keeper, cosine = np.full(n, -1), np.zeros(n)
    staying, held = np.arange(n), vectors.copy()  # ranks and vectors of the rows that stay, packed at the beginning
    n_stay = n_fixed
    for begin in range(n_fixed, n, _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, n))
        worse, better, found = _verified(_Side(sets, block, vectors[block]), _Side(sets, staying[:n_stay], held[:n_stay]), threshold, overlap)
        by_cosine = np.lexsort((better, -found, worse))
        rows, first = np.unique(worse[by_cosine], return_index=True)
        keeper[rows], cosine[rows] = better[by_cosine][first], found[by_cosine][first]
        block = block[keeper[block] < 0]
        side = _Side(sets, block, vectors[block])
        for row, other, value in zip(*(column.tolist() for column in _verified(side, side, threshold, overlap)), strict=True):
            if other < row and keeper[other] < 0 and value > cosine[row]:
                keeper[row], cosine[row] = other, value
        block = block[keeper[block] < 0]
        staying[n_stay : n_stay + len(block)], held[n_stay : n_stay + len(block)] = block, vectors[block]
        n_stay += len(block)
    return keeper, cosine
