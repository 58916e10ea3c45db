"""Which texts are the same, or nearly?

Three rules, from strict to loose:

- exact duplicates: equal text once runs of white space count as one space;
- near duplicates: the Jaccard similarity of their sets of word 3-shingles reaches a threshold;
- same opening: their first words are equal, as in letters written from one template.

Words are lower-cased runs of letters, digits and underscores; in a script without spaces a run is a whole clause, so
that near duplicates are found only where clauses repeat. Exact duplicates are dropped here. Near duplicates and same
openings are only told: `split.py` keeps them out of different splits. Everything depends on content, nothing on chance.

Sources:
    Broder 1997, On the Resemblance and Containment of Documents (shingles, MinHash);
    Lee et al. 2021, Deduplicating Training Data Makes Language Models Better (MinHash, then verification).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from itertools import islice

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.sifted import Sifted, as_dropped

PAIRS_SCHEMA: dict[str, type[pl.DataType]] = {"left": pl.Int64, "right": pl.Int64, "similarity": pl.Float64}

_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 3
_MOST_HASHES = 128
_MISS_RATE = 0.005  # of pairs exactly at the threshold; the more similar are missed less
_LOWEST_PLANNED = 0.05  # below this threshold the signature would grow without bound
_MOST_NEIGHBOURS = 16  # a text is compared with so many of its bucket, which keeps a bucket of equals linear
_BLOCK = 1 << 16  # shingles hashed at once; fits the cache


def words(text: str) -> list[str]:
    """Return the normalised words of a text; a text without any is one word, so that equal texts stay equal."""
    return _WORD.findall(text.lower()) or [text.strip()]


def drop_exact_duplicates(documents: pl.DataFrame, previous: pl.DataFrame | None = None) -> Sifted:
    """Keep the first of each set of equal texts.

    Copies are dropped as `exact_duplicate`, and as `conflicting_label` when the first has another label: keeping both
    would teach two answers to one question, and dropping both would let one stray copy remove a good document.

    Args:
        documents: Columns `id`, `text`, `label` and those of `Document`, in order of preference.
        previous: Rows with columns `id`, `text` and `label` that are kept already and come before the documents.
    """
    columns = ["id", "text", "label"]
    rows = documents.select(columns) if previous is None else pl.concat([previous.select(columns), documents.select(columns)])
    key = pl.col("text").str.replace_all(r"\s+", " ").str.strip_chars()
    firsts = rows.select(kept_id=pl.col("id").first().over(key), kept_label=pl.col("label").first().over(key)).tail(len(documents))
    marked = pl.concat([documents, firsts], how="horizontal")
    is_copy = pl.col("id") != pl.col("kept_id")
    conflicts = pl.col("label") != pl.col("kept_label")
    dropped = marked.filter(is_copy).with_columns(
        reason=pl.when(conflicts).then(pl.lit("conflicting_label")).otherwise(pl.lit("exact_duplicate")),
        evidence=pl.when(conflicts)
        .then(pl.format("same text as {}, which has the label '{}'", "kept_id", "kept_label"))
        .otherwise(pl.format("same text and label as {}", "kept_id")),
        similarity=pl.lit(1.0),
    )
    return Sifted(kept=marked.filter(~is_copy).drop("kept_id", "kept_label"), dropped=as_dropped(dropped))


def near_duplicate_pairs(texts: Sequence[str], threshold: float) -> pl.DataFrame:
    """Find pairs of texts whose word 3-shingles have a Jaccard similarity of at least the threshold.

    MinHash signatures, cut into bands, propose candidates; each is verified on the exact sets, so that every pair
    returned is right. Of the pairs at the threshold fewer than 2 in 100 are missed, and fewer the more similar they are.
    In a set of more than 16 near-equal texts not every pair is listed, but enough to hold the set together: see
    `clusters`. Below a threshold of 0.05 pairs are missed more often.

    Args:
        texts: The texts, n of them.
        threshold: In (0, 1].

    Returns:
        Columns `left` < `right` (positions in `texts`) and `similarity` in [threshold, 1], sorted by position. Takes time
        linear in the number of words, whatever the texts.
    """
    shingles = _shingles(texts)
    bands, rows = _bands_and_rows(threshold)
    signatures = _signatures(shingles, bands * rows).reshape(len(texts), bands, rows)
    candidates = _candidates(signatures)
    sets = {position: set(shingles[position].tolist()) for position in np.unique(candidates).tolist()}
    found = []
    for left, right in candidates.tolist():
        common = len(sets[left] & sets[right])
        similarity = common / (len(sets[left]) + len(sets[right]) - common)
        if similarity >= threshold:
            found.append((left, right, similarity))
    return pl.DataFrame(found, schema=PAIRS_SCHEMA, orient="row")


def same_opening_pairs(texts: Sequence[str], n_words: int) -> pl.DataFrame:
    """Pair each text with the first one that has the same `n_words` first words. Shorter texts have no opening.

    Returns:
        Columns as in `near_duplicate_pairs`; `similarity` is null. 0 words give no pair.
    """
    first: dict[str, int] = {}
    found = []
    for position, text in enumerate(texts):
        start = opening(text, n_words)
        if start and first.setdefault(start, position) != position:
            found.append((first[start], position, None))
    return pl.DataFrame(found, schema=PAIRS_SCHEMA, orient="row")


def opening(text: str, n_words: int) -> str:
    """Return the first `n_words` normalised words of a text, or an empty string when it has fewer."""
    start = [match.group() for match in islice(_WORD.finditer(text.lower()), n_words)]
    return " ".join(start) if len(start) == n_words else ""


def jaccard(left: str, right: str) -> float:
    """Return the exact similarity of two texts, in [0, 1], as `near_duplicate_pairs` measures it."""
    a, b = (set(shingles.tolist()) for shingles in _shingles([left, right]))
    return len(a & b) / len(a | b)


def clusters(n: int, pairs: pl.DataFrame) -> NDArray[np.int64]:
    """Join what is linked, directly or through others (union-find).

    Args:
        n: Number of texts.
        pairs: Columns `left` and `right`, positions in [0, n).

    Returns:
        Shape (n,). The smallest position in each text's cluster.
    """
    parent = list(range(n))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for left, right in pairs.select("left", "right").iter_rows():
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return np.array([root(position) for position in range(n)], dtype=np.int64)


class _WordHashes(dict[str, int]):
    """Word -> 64 bits that depend on nothing but the word; each word is hashed once."""

    def __missing__(self, word: str) -> int:
        value = self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return value


def _shingles(texts: Sequence[str]) -> list[NDArray[np.uint64]]:
    """Return the sorted hashes of each text's distinct shingles; at least one a text, for short ones are padded."""
    hashes = _WordHashes()
    found = []
    for text in texts:
        codes = [hashes[word] for word in words(text)]
        codes += [0] * (_SHINGLE_WORDS - len(codes))
        word = np.array(codes, dtype=np.uint64)
        mixed = word[:-2] * np.uint64(0x9E3779B97F4A7C15) + word[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + word[2:] * np.uint64(0x165667B19E3779F9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        found.append(np.unique(mixed))
    return found


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


def _signatures(shingles: list[NDArray[np.uint64]], n_hashes: int) -> NDArray[np.uint32]:
    """Return the MinHash signatures, shape (n_texts, n_hashes): under each hash function the least value of a text."""
    random = np.random.default_rng(0)  # fixed functions: the same texts give the same candidates
    factors = random.integers(0, 1 << 32, n_hashes, dtype=np.uint32) | np.uint32(1)
    offsets = random.integers(0, 1 << 32, n_hashes, dtype=np.uint32)
    signatures = np.empty((len(shingles), n_hashes), dtype=np.uint32)
    start = 0
    while start < len(shingles):
        stop, size = start, 0
        while stop < len(shingles) and (size == 0 or size + len(shingles[stop]) <= _BLOCK):
            size += len(shingles[stop])
            stop += 1
        block = shingles[start:stop]
        values = (np.concatenate(block) >> np.uint64(32)).astype(np.uint32)
        starts = np.cumsum([0, *map(len, block[:-1])])
        for column, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            signatures[start:stop, column] = np.minimum.reduceat(values * factor + offset, starts)
        start = stop
    return signatures


def _candidates(signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Pair texts that agree on a whole band.

    Texts are sorted by band and then by the next band, which brings the most similar of a bucket together, and each is
    paired with the few that follow it in its bucket.

    Args:
        signatures: shape (n_texts, bands, rows).

    Returns:
        Shape (n_pairs, 2): distinct, left < right, sorted.
    """
    n, bands, _ = signatures.shape
    codes = np.zeros(0, dtype=np.int64)
    keys = [np.unique(signatures[:, band], axis=0, return_inverse=True)[1].reshape(-1) for band in range(bands)] if n else []
    for band, key in enumerate(keys):
        order = np.lexsort((keys[(band + 1) % bands], key))
        found = [codes]
        for step in range(1, min(_MOST_NEIGHBOURS, n - 1) + 1):
            first, second = order[:-step], order[step:]
            same = key[first] == key[second]
            if not same.any():
                break
            first, second = first[same], second[same]
            found.append(np.minimum(first, second) * n + np.maximum(first, second))
        codes = np.unique(np.concatenate(found))
    return np.stack([codes // max(n, 1), codes % max(n, 1)], axis=1)
