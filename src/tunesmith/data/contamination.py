"""Did the texts that measure a model leak into the texts that teach it?

Each measuring text is compared with all teaching texts in two ways: by words, the share of 5-grams of the shorter text that
the other holds too, which finds copies, excerpts, texts within longer ones and moved sentences; and by meaning, the cosine of
embeddings, which finds copies with many words changed; static embeddings find more of those than contextual ones. What shares
half of its 5-grams is a leak whatever else holds. Below, what is far enough from chance is one, and chance is measured: a sample
of the teaching texts is compared with the other teaching texts in the same way, copies among them left out, and the threshold
of each way is the value that at most half of the stated false positive rate of them exceeds. Families of like texts, which
share less than half, raise the thresholds and hide leaks.

Sources: Brown et al. 2020, Language Models are Few-Shot Learners, appendix C (n-gram overlap); Vovk, Gammerman and Shafer
2005 (thresholds with a stated rate from a sample of the null).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.shingles import ShingleSets, Texts, shingle_sets
from tunesmith.errors import ConfigError, DataError

LEAKS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "left": pl.Int64,  # position of the measuring text
    "right": pl.Int64,  # position of the teaching text that it is most like
    "score": pl.Float64,  # in [0, 1]: share of 5-grams, or cosine where `how` is meaning
    "how": pl.String,  # exact, words or meaning
}

_GRAM = 5
_LEAST_GRAMS = 10  # a text of fewer 5-grams counts as having so many: a phrase in common is no leak
_COMMON = 32  # a 5-gram of more teaching texts than this says nothing
_SURE = 0.5  # share of 5-grams that is no chance
_SAMPLE = 2000  # teaching texts that chance is measured on


@dataclass(frozen=True)
class Leaks:
    """What leaked, and by which thresholds.

    Attributes:
        pairs: Columns of `LEAKS_SCHEMA`, one row a leaked measuring text, by position.
        words_threshold: Least share of 5-grams, in (0, 1].
        meaning_threshold: Least cosine; above 1 where no embeddings were given.
    """

    pairs: pl.DataFrame
    words_threshold: float
    meaning_threshold: float


def find_leaks(
    texts: Texts,
    against: Texts,
    *,
    embeddings: NDArray[np.float32] | None = None,
    against_embeddings: NDArray[np.float32] | None = None,
    false_positive_rate: float = 0.01,
) -> Leaks:
    """Find measuring texts that are among the teaching texts, whole, in part or changed.

    Args:
        texts: The texts that measure: a test split, or a benchmark.
        against: The texts that teach.
        embeddings: shape (len(texts), D). Unit vectors; without them words alone decide.
        against_embeddings: shape (len(against), D).
        false_positive_rate: Most unrelated texts that may be named, in (0, 1), if they are like teaching texts as those are
            like each other. Few teaching texts cannot show that a low rate is met: then only sure leaks are named.

    Raises:
        ConfigError: the rate is not in (0, 1).
        DataError: texts and embeddings differ in number.
    """
    if not 0 < false_positive_rate < 1:
        raise ConfigError(f"false_positive_rate must be between 0 and 1. Received: {false_positive_rate}.")
    if embeddings is not None and against_embeddings is not None:
        for what, vectors in ((texts, embeddings), (against, against_embeddings)):
            if len(what) != len(vectors):
                raise DataError(f"Each text needs one embedding. Received: {len(what)} texts, {len(vectors)} embeddings.")
    grams, others = shingle_sets(texts, _GRAM), shingle_sets(against, _GRAM)
    sample = np.unique(np.linspace(0, len(against) - 1, min(_SAMPLE, len(against))).astype(np.int64)) if len(against) else np.zeros(0, dtype=np.int64)
    # By content, so that the order of the teaching texts does not choose the sample.
    sample = np.sort(np.argsort(_fingerprints(others), kind="stable")[sample])
    best, share = _by_words(grams, others)
    _, chance = _by_words(_take(others, sample), others, itself=sample)
    unrelated = chance < _SURE
    words_threshold = min(_threshold(chance[unrelated], false_positive_rate / 2), _SURE)
    how = np.where(share >= words_threshold, "words", "")
    meaning_threshold = 2.0
    if embeddings is not None and against_embeddings is not None and len(against) > 1:
        from tunesmith.models.neighbours import nearest

        near, cosine = nearest(embeddings, against_embeddings, 1)
        itself, like = nearest(against_embeddings[sample], against_embeddings, 2)
        others_like = np.where(itself[:, 0] == sample, like[:, 1], like[:, 0])
        meaning_threshold = _threshold(others_like[unrelated], false_positive_rate / 2)
        close = (cosine[:, 0] >= meaning_threshold) & (how == "")
        how[close] = "meaning"
        best, share = np.where(close, near[:, 0], best), np.where(close, cosine[:, 0], share)
    own, held = _fingerprints(grams), _fingerprints(others)
    places = np.argsort(held, kind="stable")
    at = np.minimum(np.searchsorted(held[places], own), max(len(held) - 1, 0))
    same = held[places][at] == own if len(held) else np.zeros(len(own), dtype=bool)
    how[same] = "exact"
    best[same], share[same] = places[at[same]], 1.0
    found = np.flatnonzero(how != "")
    pairs = pl.DataFrame({"left": found, "right": best[found], "score": np.clip(share[found], 0, 1), "how": how[found]}, schema=LEAKS_SCHEMA)
    return Leaks(pairs, words_threshold, meaning_threshold)


def _threshold(chance: NDArray[np.floating], rate: float) -> float:
    """Return the least value that a new draw like `chance` exceeds with at most the rate; 2 where the sample is too small to say."""
    rank = int(np.ceil((len(chance) + 1) * (1 - rate)))
    return float(np.nextafter(np.sort(chance)[rank - 1], np.inf)) if rank <= len(chance) else 2.0


def _by_words(texts: ShingleSets, others: ShingleSets, itself: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, for each text, the other text that shares most of its 5-grams, and the share; 0 and 0 where none does.

    Args:
        texts: n sets.
        others: Sets to look in.
        itself: shape (n,). Position of each text among the others, where it is not to be found.
    """
    order = np.argsort(others.hashes, kind="stable")
    hashes, owners = others.hashes[order], np.repeat(np.arange(len(others)), others.sizes)[order]
    first = np.searchsorted(hashes, texts.hashes)
    holders = np.searchsorted(hashes, texts.hashes, side="right") - first
    hit = np.flatnonzero((holders > 0) & (holders <= _COMMON + (itself is not None)))  # itself is one
    text = np.repeat(np.repeat(np.arange(len(texts)), texts.sizes)[hit], holders[hit])
    within = np.arange(len(text)) - np.repeat(np.cumsum(holders[hit]) - holders[hit], holders[hit])
    other = owners[np.repeat(first[hit], holders[hit]) + within]
    codes, common = np.unique(text * max(len(others), 1) + other, return_counts=True)
    text, other = np.divmod(codes, max(len(others), 1))
    share = common / np.maximum(np.minimum(texts.sizes[text], others.sizes[other]), _LEAST_GRAMS)
    if itself is not None:
        share[other == itself[text]] = 0.0
    best, most = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts))
    by_share = np.lexsort((-other, share, text))  # of equal shares the first other text comes last, and wins
    best[text[by_share]], most[text[by_share]] = other[by_share], share[by_share]
    return best, most


def _take(sets: ShingleSets, positions: NDArray[np.int64]) -> ShingleSets:
    ends = np.concatenate([[0], np.cumsum(sets.sizes[positions])]).astype(np.int64)
    at = np.repeat(sets.ends[positions] - ends[:-1], sets.sizes[positions]) + np.arange(ends[-1])
    return ShingleSets(sets.hashes[at], ends)


def _fingerprints(sets: ShingleSets) -> NDArray[np.uint64]:
    """Return one number a set, equal for equal sets and, but for a chance of one in 2**64, for no others."""
    mixed = (sets.hashes ^ (sets.hashes >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return np.add.reduceat(mixed, sets.ends[:-1]) if len(sets) else np.zeros(0, dtype=np.uint64)
