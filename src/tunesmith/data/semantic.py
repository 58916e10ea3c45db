"""Semantic duplicates: texts that say the same in other words, or the same words in another order.

Two texts are semantic duplicates when the cosine of their embeddings reaches a threshold and, as a check on the model, their
sets of words overlap enough: embeddings put texts of one template together that differ in what matters, and words tell. The
check is a Jaccard similarity of word sets, which edits of single words lower far less than that of shingles; 0 turns it off,
for paraphrases that share few words.

Up to 100,000 rows every row is compared with every better one that stays: nothing is missed, and time grows with the square of
the rows that stay. More rows are compared within cells, one for each of as many centres (k-means) as the root of their number: a
row with the better ones that stay in the cells of its 32 nearest centres, and with all that stand near it in rank. Missed is a
duplicate whose cell is none of these: 1 in 100 of those that the full comparison drops, among 337,000 rows at the default
threshold; more with more rows, or a lower threshold. Time grows with the power 1.5.

Source: Abbas et al. 2023, SemDeDup (thresholds on embeddings, within k-means clusters); here with several cells a row and the
words as a second witness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.dedup import Keep, by_preference, sift
from tunesmith.data.near_duplicates import PAIRS_SCHEMA
from tunesmith.data.shingles import ShingleSets, Texts, shingle_sets
from tunesmith.data.sifted import Sifted
from tunesmith.errors import DataError

_LARGEST_FULL = 100_000  # rows that are all compared with each other
_STRIDE = 16_384  # of more rows, so many that follow each other are all compared with each other
_PROBES = 32  # 8 found .93 of what the full comparison finds, 16 .97, 32 .99, 64 .996, among 337,000 real and composed texts at 0.93
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
        Up to 100,000 rows dropping again drops nothing, and kept rows are no semantic duplicates of each other.

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
    decision = _Decision(shingle_sets(whole["text"], 1), vectors, threshold, min_word_overlap)
    decision.keep_first(len(fixed))
    return sift(rows, whole["id"], decision.keeper, decision.cosine, "semantic_duplicate", "cosine {} to {}")


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


class _Decision:
    """Which of n rows stay, the best standing first.

    Attributes:
        keeper: shape (n,). Rank of a better row that stays; -1 for one that stays itself.
        cosine: shape (n,). Cosine to it, else 0.
    """

    def __init__(self, sets: ShingleSets, vectors: NDArray[np.float32], threshold: float, overlap: float) -> None:
        self._sets, self._vectors, self._threshold, self._overlap = sets, vectors, threshold, overlap
        self.keeper, self.cosine = np.full(len(sets), -1), np.zeros(len(sets))

    def keep_first(self, n_fixed: int) -> None:
        """Decide about all but the first n_fixed rows, which stay."""
        n = len(self._sets)
        if n <= _LARGEST_FULL:
            self._keep_first_of(np.arange(n_fixed, n), np.arange(n_fixed))
            return
        cells = _Cells(self._vectors)
        for begin in range(n_fixed, n, _STRIDE):
            rows = np.arange(begin, min(begin + _STRIDE, n))
            for asking, held in cells.of(rows):
                self._compare(asking, held[self.keeper[held] < 0])
            self._keep_first_of(self._staying(rows), rows[:0])

    def _staying(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows[self.keeper[rows] < 0]

    def _side(self, rows: NDArray[np.int64]) -> _Side:
        return _Side(self._sets, rows, self._vectors[rows])

    def _compare(self, rows: NDArray[np.int64], others: NDArray[np.int64] | _Side) -> None:
        """Let rows go that are duplicates of others, which are better and stay."""
        held = others if isinstance(others, _Side) else self._side(others)
        worse, better, found = _verified(self._side(rows), held, self._threshold, self._overlap)
        by_cosine = np.lexsort((better, -found, worse))
        gone, first = np.unique(worse[by_cosine], return_index=True)
        better, found = better[by_cosine][first], found[by_cosine][first]
        closer = found > self.cosine[gone]
        self.keeper[gone[closer]], self.cosine[gone[closer]] = better[closer], found[closer]

    def _keep_first_of(self, rows: NDArray[np.int64], before: NDArray[np.int64]) -> None:
        """Compare each row with all that stay before it, and with `before`, which stay."""
        every = np.concatenate([before, rows])
        staying, held = every.copy(), self._vectors[every]  # of the rows that stay, packed at the beginning
        n_stay = len(before)
        for begin in range(0, len(rows), _BLOCK):
            block = rows[begin : begin + _BLOCK]
            self._compare(block, _Side(self._sets, staying[:n_stay], held[:n_stay]))
            side = self._side(self._staying(block))
            for row, other, value in zip(*(column.tolist() for column in _verified(side, side, self._threshold, self._overlap)), strict=True):
                if other < row and self.keeper[other] < 0 and value > self.cosine[row]:
                    self.keeper[row], self.cosine[row] = other, value
            block = self._staying(block)
            staying[n_stay : n_stay + len(block)], held[n_stay : n_stay + len(block)] = block, self._vectors[block]
            n_stay += len(block)


class _Cells:
    """The rows by their nearest centre, of as many centres as the root of their number."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        from tunesmith.models.neighbours import centres, nearest

        self._vectors = vectors
        self._centres = centres(vectors, round(len(vectors) ** 0.5))
        home = nearest(vectors, self._centres, 1)[0][:, 0]
        self._rows = np.argsort(home, kind="stable")  # by cell, then by rank
        self._starts = np.searchsorted(home[self._rows], np.arange(len(self._centres) + 1))

    def of(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield, for each cell, those of some consecutive rows that are near it, and the rows in it that stand before all of them."""
        from tunesmith.models.neighbours import nearest

        cells = nearest(self._vectors[rows], self._centres, _PROBES)[0]
        asked = np.argsort(cells, axis=None, kind="stable")
        starts = np.searchsorted(cells.ravel()[asked], np.arange(len(self._centres) + 1))
        for cell in range(len(self._centres)):
            asking = rows[asked[starts[cell] : starts[cell + 1]] // cells.shape[1]]
            held = self._rows[self._starts[cell] : self._starts[cell + 1]]
            held = held[: np.searchsorted(held, rows[0])]
            if len(asking) and len(held):
                yield asking, held
