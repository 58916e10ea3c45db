"""Near duplicates: texts whose sets of word 3-shingles have a Jaccard similarity of at least a threshold.

MinHash signatures, cut into bands, propose candidates (locality-sensitive hashing); each is verified on the exact sets,
so that every pair returned is right. Signatures of the texts seen can be kept in a `NearIndex`, by which new texts name
the old ones that they repeat. Everything depends on content, nothing on order or chance; time is linear in the number of
words, whatever the texts. Meaning is not looked at: that is `semantic.py`.

Sources:
    Broder 1997, On the Resemblance and Containment of Documents (shingles, MinHash);
    Lee et al. 2021, Deduplicating Training Data Makes Language Models Better (MinHash, then verification).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data import shingles
from tunesmith.data.shingles import ShingleSets, Texts, shingle_sets
from tunesmith.errors import DataError, NotFoundError

PAIRS_SCHEMA: dict[str, type[pl.DataType]] = {"left": pl.Int64, "right": pl.Int64, "similarity": pl.Float64}
MATCHES_SCHEMA: dict[str, type[pl.DataType]] = {"new": pl.Int64, "old_id": pl.String, "similarity": pl.Float64}

SHINGLE_WORDS = 3
_MOST_HASHES = 128
_MISS_RATE = 0.005  # of pairs exactly at the threshold; the more similar are missed less
_LOWEST_PLANNED = 0.05  # below this threshold the signature would grow without bound
_MOST_NEIGHBOURS = 16  # a text is compared with so many of its bucket, which keeps a bucket of equals linear
_KEY_BITS = 24  # of a sorting key: the next band's, which brings the most similar of a bucket together
_FORMAT = 1  # of a saved index; bump when hashes or layout change


def near_duplicate_pairs(texts: Texts, threshold: float) -> pl.DataFrame:
    """Find pairs of texts whose word 3-shingles have a Jaccard similarity of at least the threshold.

    Of the pairs at the threshold fewer than 2 in 100 are missed, and fewer the more similar they are. In a set of more than
    16 near-equal texts not every pair is listed, but enough to hold the set together: see `dedup.clusters`. Below a
    threshold of 0.05 pairs are missed more often.

    Args:
        texts: The texts, n of them.
        threshold: In (0, 1].

    Returns:
        Columns `left` < `right` (positions in `texts`) and `similarity` in [threshold, 1], sorted by position. Takes time
        linear in the number of words, whatever the texts.

    Raises:
        MissingExtraError: Numba is not installed.
    """
    return Sketches.of(texts, threshold).pairs(threshold)


@dataclass(frozen=True)
class Sketches:
    """What is kept of n texts to find near duplicates: exact sets, a key a band, and a hash of the whole set.

    Attributes:
        sets: Sets of 3-shingles.
        keys: shape (n, n_bands). Texts with an equal key in some band are candidates.
        whole: shape (n,). Orders texts by content.
    """

    sets: ShingleSets
    keys: NDArray[np.uint64]
    whole: NDArray[np.uint64]

    @classmethod
    def of(cls, texts: Texts, threshold: float) -> Sketches:
        """Sketch texts for pairs of at least a similarity."""
        sets = shingle_sets(texts, SHINGLE_WORDS)
        from tunesmith.data.minhash import band_keys

        bands, rows = _bands_and_rows(threshold)
        random = np.random.default_rng(0)  # fixed functions: the same texts give the same candidates
        factors = random.integers(0, 1 << 32, bands * rows, dtype=np.uint32) | np.uint32(1)
        offsets = random.integers(0, 1 << 32, bands * rows, dtype=np.uint32)
        keys, whole = np.empty((len(sets), bands), dtype=np.uint64), np.empty(len(sets), dtype=np.uint64)
        band_keys(sets.hashes, sets.ends, factors, offsets, rows, keys, whole)
        return cls(sets, keys, whole)

    def pairs(self, threshold: float) -> pl.DataFrame:
        """Return the pairs as `near_duplicate_pairs` does."""
        from tunesmith.data.minhash import join_band

        n, n_bands = self.keys.shape
        ranks = np.empty((n, n_bands), dtype=np.int32)
        found = []
        for band, (_, order) in enumerate(_sorted_bands(self)):
            ranks[order, band] = np.arange(n)
            columns = join_band(band, order, self.keys, ranks, _KEY_BITS, _MOST_NEIGHBOURS, self.sets.hashes, self.sets.ends, threshold)
            found.append(pl.DataFrame(columns, schema=PAIRS_SCHEMA))
        return pl.concat(found).sort("left", "right")

    def keepers(self, threshold: float, n_fixed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Decide which texts stay when the better of near duplicates is kept; the texts stand best first.

        A text goes when it is a near duplicate of a better one that stays. In a bucket with more than 16 texts that stay,
        unlike each other, it is compared with the best 16.

        Args:
            threshold: Least similarity.
            n_fixed: So many texts at the beginning stay whatever they are like.

        Returns:
            For each text the most similar one that stays, -1 where it stays itself; and their similarity, else 0.
        """
        from tunesmith.data.minhash import keep_first

        n, n_bands = self.keys.shape
        buckets = np.full((n, n_bands), -1, dtype=np.int32)
        n_buckets, rooms = 0, [np.zeros(1, dtype=np.int64)]
        for band in range(n_bands):
            order = np.argsort(self.keys[:, band], kind="stable")
            key = self.keys[order, band]
            begins = np.concatenate([[True], key[1:] != key[:-1]])[:n]
            sizes = np.diff(np.flatnonzero(np.append(begins, True)))
            shared = sizes > 1
            numbers = np.where(shared, np.cumsum(shared) - 1 + n_buckets, -1)
            buckets[order, band] = np.repeat(numbers, sizes)
            n_buckets += int(shared.sum())
            rooms.append(np.minimum(sizes[shared], _MOST_NEIGHBOURS))
        starts = np.cumsum(np.concatenate(rooms))
        keeper, similarity = np.empty(n, dtype=np.int64), np.empty(n)
        keep_first(buckets, starts, _MOST_NEIGHBOURS, self.sets.hashes, self.sets.ends, threshold, n_fixed, keeper, similarity)
        return keeper, similarity


class NearIndex:
    """Texts seen so far, to name the ones that a new text repeats.

    Args:
        threshold: Least Jaccard similarity of word 3-shingles that counts, in (0, 1].
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._ids: list[str] = []
        self._sketches = Sketches.of([], threshold)
        self._bands: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], texts: Texts) -> None:
        """Take texts in, under their ids.

        Raises:
            DataError: ids and texts differ in number.
        """
        if len(ids) != len(texts):
            raise DataError(f"An index takes one id a text. Received: {len(ids)} ids, {len(texts)} texts.")
        old, new = self._sketches, Sketches.of(texts, self.threshold)
        self._ids += ids
        self._sketches = Sketches(shingles.concat([old.sets, new.sets]), np.concatenate([old.keys, new.keys]), np.concatenate([old.whole, new.whole]))
        self._bands = None

    def query(self, texts: Texts) -> pl.DataFrame:
        """Find the old texts that new ones repeat.

        Returns:
            Columns `new` (position in `texts`), `old_id` and `similarity` in [threshold, 1]; sorted by `new`, the most
            similar first, then by id. Each row is right; of old texts at the threshold fewer than 2 in 100 are missed, and of
            more than 16 near-equal ones not all are named. Takes time linear in the new texts, logarithmic in the old.
        """
        from tunesmith.data.minhash import probe, similarities

        new, n_old = Sketches.of(texts, self.threshold), len(self._ids)
        if self._bands is None:
            self._bands = list(_sorted_bands(self._sketches))
        codes = np.zeros(0, dtype=np.int64)
        for (sorted_keys, order), keys in zip(self._bands, _band_columns(new.keys), strict=True):
            at = np.searchsorted(sorted_keys, keys)
            found = np.empty(probe(sorted_keys, at, keys, _KEY_BITS, _MOST_NEIGHBOURS, codes[:0]), dtype=np.int64)
            probe(sorted_keys, at, keys, _KEY_BITS, _MOST_NEIGHBOURS, found)
            position, place = np.divmod(found, max(n_old, 1))
            codes = np.union1d(codes, position * n_old + order[place])
        position, old = np.divmod(codes, max(n_old, 1))
        similarity = np.empty(len(codes))
        similarities(position, old, new.sets.hashes, new.sets.ends, self._sketches.sets.hashes, self._sketches.sets.ends, self.threshold, similarity)
        near = similarity >= self.threshold
        ids = pl.Series(self._ids, dtype=pl.String).gather(old[near])
        found_rows = pl.DataFrame({"new": position[near], "old_id": ids, "similarity": similarity[near]}, schema=MATCHES_SCHEMA)
        return found_rows.sort("new", "similarity", "old_id", descending=[False, True, False])

    def save(self, path: Path) -> None:
        """Write the index as arrays (.npz), by write-then-rename."""
        partial = path.with_name(f".{path.name}.part")
        held = self._sketches
        with partial.open("wb") as file:
            np.savez(
                file,
                format=np.array(_FORMAT),
                threshold=np.array(self.threshold),
                ids=np.array(self._ids, dtype=np.str_),
                hashes=held.sets.hashes,
                ends=held.sets.ends,
                keys=held.keys,
                whole=held.whole,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> NearIndex:
        """Read an index that `save` wrote. Nothing in the file is run.

        Raises:
            NotFoundError: there is no such file.
            DataError: it is not an index, or one of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                if int(held["format"]) != _FORMAT:
                    raise ValueError(f"format {int(held['format'])}, expected {_FORMAT}")
                index = cls(float(held["threshold"]))
                index._ids = held["ids"].tolist()
                index._sketches = Sketches(ShingleSets(held["hashes"], held["ends"]), held["keys"], held["whole"])
        except FileNotFoundError:
            raise NotFoundError(f"There is no index {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(f"{path} must be an index of near duplicates. Received: {error}", hint="Delete it; it is made again.") from error
        return index


def _bands_and_rows(threshold: float) -> tuple[int, int]:
    """Choose the longest bands that still miss few pairs: a pair of similarity s is missed with (1 - s**rows)**bands."""
    planned = max(threshold, _LOWEST_PLANNED)
    best = (0, 0)
    for rows in range(1, _MOST_HASHES + 1):
        hit = planned**rows
        bands = 1 if hit == 1 else math.ceil(math.log(_MISS_RATE) / math.log1p(-hit))
        if bands * rows > _MOST_HASHES:
            break
        best = (bands, rows)
    return best


def _band_columns(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Yield the sorting keys of each band: its own key, cut to 40 bits, then the first bits of the next band's."""
    low = np.uint64(_KEY_BITS)
    for band in range(keys.shape[1]):
        following = keys[:, (band + 1) % keys.shape[1]]
        yield (keys[:, band] >> low) << low | following >> np.uint64(64 - _KEY_BITS)


def _sorted_bands(held: Sketches) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield each band's keys, sorted, and the texts' positions; equal keys stand by content, so that input order changes no cluster."""
    by_content = np.argsort(held.whole, kind="stable")
    for keys in _band_columns(held.keys[by_content]):
        order = np.argsort(keys, kind="stable")
        yield keys[order], by_content[order]
