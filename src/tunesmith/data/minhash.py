"""The compiled kernels of the near-duplicate tier: text -> shingles -> MinHash -> pairs -> exact similarity.

Everything here is plain loops over flat arrays, compiled by Numba and cached beside this file (or where NUMBA_CACHE_DIR
says). A text is a run of Unicode code points, lower-cased already; its shingles are 64-bit hashes of three words in a
row, sorted and distinct. Two different shingles of a data set share a hash with a chance of about n**2 / 2**65: one in
many millions for a million records. Nothing here draws at random or knows what an id is.

Layout: n texts; `ends` (n + 1,) holds 0 and the end of each text's run in a flat array.
Source: Broder 1997, On the Resemblance and Containment of Documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

OTHER, WORD, SPACE = 0, 1, 2
"""Kinds of a code point: `\\w` of `re`, white space, anything else."""

_PRIME = np.uint64(0x100000001B3)
_START = np.uint64(0xCBF29CE484222325)
_WORDLESS = np.uint64(0x9AE16A3B2F90404F)
_FIRST, _SECOND, _THIRD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _compiled(function: Any) -> Any:
    return njit(cache=True, nogil=True, error_model="numpy")(function)


@_compiled
def _mix(value: Any) -> Any:
    """Finalise a hash (SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@_compiled
def shingle(
    codes: NDArray[np.uint32], ends: NDArray[np.int64], kinds: NDArray[np.uint8], width: int, into: NDArray[np.uint64], into_ends: NDArray[np.int64]
) -> None:
    """Write the sorted distinct shingles of `width` words of each text. Short texts are padded; one without words is one word.

    Args:
        codes: code points of all texts, lower-cased.
        ends: shape (n + 1,).
        kinds: shape (0x110000,). Kind of each code point.
        width: Words a shingle.
        into: Room for at least len(codes) // 2 + 2 * n shingles.
        into_ends: shape (n + 1,), filled.
    """
    window = np.zeros(width, dtype=np.uint64)
    filled = 0
    into_ends[0] = 0
    for text in range(len(ends) - 1):
        begin = filled
        n_words = 0
        value = _START
        inside = False
        for at in range(ends[text], ends[text + 1] + 1):
            is_word = at < ends[text + 1] and kinds[codes[at]] == WORD
            if is_word:
                value = (value ^ np.uint64(codes[at])) * _PRIME
                inside = True
            elif inside:
                window[n_words % width] = _mix(value)
                n_words += 1
                if n_words >= width:
                    into[filled] = _window_hash(window, n_words)
                    filled += 1
                value = _START
                inside = False
        if n_words < width:
            if n_words == 0:
                first, last = ends[text], ends[text + 1]
                while first < last and kinds[codes[first]] == SPACE:
                    first += 1
                while last > first and kinds[codes[last - 1]] == SPACE:
                    last -= 1
                value = _WORDLESS
                for at in range(first, last):
                    value = (value ^ np.uint64(codes[at])) * _PRIME
                window[0] = _mix(value)
                n_words = 1
            for _ in range(n_words, width):
                window[n_words % width] = np.uint64(0)
                n_words += 1
            into[filled] = _window_hash(window, n_words)
            filled += 1
        run = into[begin:filled]
        run.sort()
        kept = begin + 1
        for at in range(begin + 1, filled):
            if into[at] != into[at - 1]:
                into[kept] = into[at]
                kept += 1
        filled = kept
        into_ends[text + 1] = filled


@_compiled
def _window_hash(window: Any, n_words: Any) -> Any:
    """Hash the words of a ring buffer, oldest first."""
    width = len(window)
    value = np.uint64(0)
    for step in range(width):
        value = value * _FIRST + window[(n_words + step) % width] * _SECOND + _THIRD
    return _mix(value)


@_compiled
def band_keys(
    shingles: NDArray[np.uint64],
    ends: NDArray[np.int64],
    factors: NDArray[np.uint32],
    offsets: NDArray[np.uint32],
    rows: int,
    keys: NDArray[np.uint64],
    whole: NDArray[np.uint64],
) -> None:
    """Write one key a band, a hash of `rows` MinHash values, into `keys` (n, bands), and a hash of each whole set into `whole` (n,)."""
    n_hashes = len(factors)
    least = np.empty(n_hashes, dtype=np.uint32)
    for text in range(len(ends) - 1):
        least[:] = np.uint32(0xFFFFFFFF)
        total = np.uint64(0)
        for at in range(ends[text], ends[text + 1]):
            value = np.uint32(shingles[at] >> np.uint64(32))
            total += shingles[at]
            for number in range(n_hashes):
                hashed = np.uint32(value * factors[number] + offsets[number])
                least[number] = min(least[number], hashed)
        whole[text] = _mix(total)
        for band in range(n_hashes // rows):
            key = np.uint64(band)
            for row in range(rows):
                key = (key ^ np.uint64(least[band * rows + row])) * _FIRST
                key ^= key >> np.uint64(32)
            keys[text, band] = _mix(key)


@_compiled
def join_band(
    band: int,
    order: NDArray[np.int64],
    keys: NDArray[np.uint64],
    ranks: NDArray[np.int32],
    shift: int,
    most: int,
    hashes: NDArray[np.uint64],
    ends: NDArray[np.int64],
    threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Verify each text against the few that follow it in its bucket, unless an earlier band listed the pair.

    Args:
        band: Which band.
        order: shape (n,). Texts, sorted by this band's key.
        keys: shape (n, n_bands). Texts of one bucket share the bits above `shift`.
        ranks: shape (n, n_bands). Place of each text in the order of each band; filled up to this band.
        shift: Bits of a key that do not name the bucket.
        most: Most texts that a text is compared with.
        hashes: Shingles, a sorted set a text.
        ends: shape (n + 1,). 0 and the ends of the sets.
        threshold: Least Jaccard similarity.

    Returns:
        low < high, and their similarity.
    """
    n = len(order)
    found = 0
    low, high, similarity = np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.float64)
    for place in range(n):
        first = order[place]
        bucket = keys[first, band] >> np.uint64(shift)
        for step in range(1, min(most + 1, n - place)):
            second = order[place + step]
            if keys[second, band] >> np.uint64(shift) != bucket:
                break
            is_known = False
            for earlier in range(band):
                if (keys[first, earlier] ^ keys[second, earlier]) >> np.uint64(shift) == 0 and abs(ranks[first, earlier] - ranks[second, earlier]) <= most:
                    is_known = True
                    break
            if is_known:
                continue
            value = _jaccard(hashes[ends[first] : ends[first + 1]], hashes[ends[second] : ends[second + 1]], threshold)
            if value >= threshold:
                if found == len(low):
                    low, high, similarity = np.append(low, low), np.append(high, high), np.append(similarity, similarity)
                low[found], high[found], similarity[found] = min(first, second), max(first, second), value
                found += 1
    return low[:found], high[:found], similarity[:found]


@_compiled
def _jaccard(left: Any, right: Any, threshold: float) -> float:
    """Return the exact similarity of two sorted sets, or 0 as soon as it cannot reach the threshold."""
    total = len(left) + len(right)
    needed = threshold / (1 + threshold) * total - 1e-6  # in common
    spare = min(len(left), len(right)) - needed
    if spare < 0:
        return 0.0
    a, b, common = 0, 0, 0
    while a < len(left) and b < len(right):
        x, y = left[a], right[b]
        common += x == y
        a += x <= y
        b += y <= x
        if min(a, b) - common > spare:
            return 0.0
    return common / (total - common)


@_compiled
def probe(sorted_keys: NDArray[np.uint64], at: NDArray[np.int64], keys: NDArray[np.uint64], shift: int, most: int, into: NDArray[np.int64]) -> int:
    """Write the places, in a sorted band, of the texts nearest to each new one in its bucket.

    Args:
        sorted_keys: shape (n_old,).
        at: shape (n_new,). Where each new key would be inserted.
        keys: shape (n_new,).
        shift: Bits of a key that do not name the bucket.
        most: Most old texts for a new one, half on each side.
        into: Filled with new * n_old + place; too short a one is only counted against.
    """
    n_old = len(sorted_keys)
    found = 0
    for new in range(len(keys)):
        bucket = keys[new] >> np.uint64(shift)
        for side in range(2):
            for step in range(most // 2):
                place = at[new] + step if side else at[new] - 1 - step
                if place < 0 or place >= n_old or sorted_keys[place] >> np.uint64(shift) != bucket:
                    break
                if found < len(into):
                    into[found] = new * n_old + place
                found += 1
    return found


@_compiled
def similarities(
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    left_hashes: NDArray[np.uint64],
    left_ends: NDArray[np.int64],
    right_hashes: NDArray[np.uint64],
    right_ends: NDArray[np.int64],
    threshold: float,
    into: NDArray[np.float64],
) -> None:
    """Write the exact Jaccard similarity of each pair of sets, or 0 where it is below the threshold."""
    for pair in range(len(left)):
        one = left_hashes[left_ends[left[pair]] : left_ends[left[pair] + 1]]
        other = right_hashes[right_ends[right[pair]] : right_ends[right[pair] + 1]]
        into[pair] = _jaccard(one, other, threshold)


@_compiled
def keep_first(
    buckets: NDArray[np.int32],
    starts: NDArray[np.int64],
    most: int,
    hashes: NDArray[np.uint64],
    ends: NDArray[np.int64],
    threshold: float,
    n_fixed: int,
    keeper: NDArray[np.int64],
    similarity: NDArray[np.float64],
) -> None:
    """Decide, best row first, which rows stay: one that repeats a better row that stays does not.

    Only rows that stay are ever compared with, so that a bucket of equals holds one row and time is linear.

    Args:
        buckets: shape (n, n_bands). Number of each row's bucket; -1 where it is alone in it.
        starts: shape (n_buckets + 1,). Room of each bucket in a flat list, up to `most` rows.
        most: Most rows of a bucket that a row is compared with: the best ones.
        hashes: Shingles, a sorted set a row.
        ends: shape (n + 1,). 0 and the ends of the sets.
        threshold: Least Jaccard similarity.
        n_fixed: The first rows stay whatever they are like.
        keeper: shape (n,). Filled with the most similar row that stays, -1 for a row that stays itself.
        similarity: shape (n,). Filled with the similarity to it, else 0.
    """
    n, n_bands = buckets.shape
    members = np.empty(starts[-1], dtype=np.int32)
    counts = np.zeros(len(starts) - 1, dtype=np.int32)
    compared = np.full(n, -1, dtype=np.int32)
    for row in range(n):
        keeper[row], similarity[row] = -1, 0.0
        own = hashes[ends[row] : ends[row + 1]]
        if row >= n_fixed:
            for band in range(n_bands):
                bucket = buckets[row, band]
                if bucket < 0:
                    continue
                for at in range(starts[bucket], starts[bucket] + counts[bucket]):
                    other = members[at]
                    if compared[other] == row:
                        continue
                    compared[other] = row
                    value = _jaccard(own, hashes[ends[other] : ends[other + 1]], threshold)
                    if value >= threshold and (value > similarity[row] or (value == similarity[row] and other < keeper[row])):
                        keeper[row], similarity[row] = other, value
        if keeper[row] < 0:
            for band in range(n_bands):
                bucket = buckets[row, band]
                if bucket >= 0 and counts[bucket] < starts[bucket + 1] - starts[bucket]:
                    members[starts[bucket] + counts[bucket]] = row
                    counts[bucket] += 1
