"""Words and shingles of texts: what the exact, near and contamination tiers count.

Words are lower-cased runs of letters, digits and underscores, as `re` knows them; a text without any is one word, so that
equal texts stay equal. In a script without spaces a run is a whole clause. A shingle is a run of words.

`words` is the definition; `shingle_sets` computes the same for many texts at once, compiled, and a test holds them
together. Texts are read in blocks, so that memory beyond the result stays small.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.errors import MissingExtraError

Texts = Sequence[str] | pl.Series

_WORD = re.compile(r"\w+")
_BLOCK_CHARACTERS = 1 << 22


def words(text: str) -> list[str]:
    """Return the normalised words of a text; a text without any is one word, so that equal texts stay equal."""
    lower = text.lower()
    return _WORD.findall(lower) or [lower.strip()]


@dataclass(frozen=True)
class ShingleSets:
    """Sets of hashed shingles, one a text.

    Attributes:
        hashes: All sets one after the other, each sorted and without repeats.
        ends: shape (n + 1,). 0, then the end of each set in `hashes`.
    """

    hashes: NDArray[np.uint64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of shingles of each text, at least 1."""
        return np.diff(self.ends)


def concat(parts: Sequence[ShingleSets]) -> ShingleSets:
    """Return the sets of all parts, in order."""
    offsets = np.cumsum([0, *(len(part.hashes) for part in parts)])
    ends = [part.ends[1:] + offset for part, offset in zip(parts, offsets, strict=False)]
    return ShingleSets(np.concatenate([np.zeros(0, np.uint64), *(part.hashes for part in parts)]), np.concatenate([np.zeros(1, np.int64), *ends]))


def shingle_sets(texts: Texts, width: int) -> ShingleSets:
    """Return the hashed shingles of `width` words of each text; texts with fewer words are padded and have one.

    Raises:
        MissingExtraError: Numba is not installed.
    """
    try:
        from tunesmith.data import minhash
    except ImportError:
        raise MissingExtraError("numba", "data") from None
    kinds = _kinds()
    parts, start = [], 0
    while start < len(texts):
        block, size = [], 0
        while start < len(texts) and size < _BLOCK_CHARACTERS:
            block.append(texts[start].lower())
            size += len(block[-1])
            start += 1
        codes = np.frombuffer("".join(block).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ends = np.cumsum([0, *map(len, block)], dtype=np.int64)
        into = np.empty(len(codes) // 2 + 2 * len(block), dtype=np.uint64)
        into_ends = np.empty(len(block) + 1, dtype=np.int64)
        minhash.shingle(codes, ends, kinds, width, into, into_ends)
        parts.append(ShingleSets(into[: into_ends[-1]].copy(), into_ends))
    return concat(parts)


@cache
def _kinds() -> NDArray[np.uint8]:
    """Return the kind of each code point, as `re` and `str.strip` see it: other 0, word 1, white space 2."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = np.zeros(len(everything), dtype=np.uint8)
    for kind, pattern in ((1, _WORD), (2, re.compile(r"\s+"))):
        for run in pattern.finditer(everything):
            kinds[run.start() : run.end()] = kind
    return kinds
