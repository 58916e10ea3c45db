"""A document's blocks -> chunks: pieces that fit a token budget and stay on one subject.

Structure comes first: a heading opens a chunk and stays with what follows it; tables and lists stay whole where they fit.
Inside a section the text is cut between sentences where the meaning turns: where the likeness of the sentences before and
after a place, by their embeddings, has an unusually deep valley for this document. What is still too long is cut at the best
place left: between blocks, then between sentences or lines, then words, then characters. Chunks tile the document's text:
joined they give it back, no character lost or doubled.

What this does not do: tokenize or embed, which are passed in; overlap chunks; cut across documents.

Source: Hearst 1997, TextTiling, with embeddings in the place of word counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from tunesmith.data.blocks import JoinedText, text_of
from tunesmith.data.engine import DataEngine, LocalEngine, stateless
from tunesmith.data.settings import ChunkSection
from tunesmith.entities import content_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_VERSION = 1
"""Raised when the same blocks would give other chunks."""

CHUNK_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "document_id": pl.String,
    "position": pl.Int64,  # from 0 in the document
    "start": pl.Int64,  # first character in the document's text
    "end": pl.Int64,  # one past the last
    "text": pl.String,
    "n_tokens": pl.Int64,
    "block_ids": pl.List(pl.String),  # blocks that it has a character of, in reading order
    "page": pl.Int64,  # of its first block
    "confidence": pl.Float64,  # of the OCR, weighted by length, in [0, 1]
}
"""Column -> type of a frame of chunks."""

CountTokens = Callable[[str], int]
"""How many tokens a text has, by the tokenizer of the base model; never more for a character than 16."""
Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Texts -> unit vectors, shape (n_texts, n_dimensions)."""

_WINDOW = 3  # sentences on each side of a place
_DOCUMENTS = 16  # cut by one call of a worker
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9\u00c0-\u024f\u0370-\uffff])|(?<=[\u3002\uff01\uff1f])|\n+")


class _Atom(NamedTuple):
    """What is not cut any more: a heading, a whole table or list, a sentence, a line."""

    start: int
    end: int
    is_heading: bool
    opens_block: bool


def chunk(blocks: pl.DataFrame, count_tokens: CountTokens, section: ChunkSection, embed: Embed | None = None, engine: DataEngine | None = None) -> pl.DataFrame:
    """Cut documents into chunks.

    Args:
        blocks: Columns of `blocks.block_schema()`, of any number of documents.
        count_tokens: The tokenizer of the base model. Special tokens that it adds count against the budget.
        section: The budget, and how readily meaning cuts.
        embed: Called once a document. None cuts by structure alone.
        engine: Where documents are cut; here when None.

    Returns:
        A frame of `CHUNK_SCHEMA`, in the order of the documents. The texts of one document's chunks, joined, are
        `text_of(its blocks).text`. No chunk has more than `max_tokens` tokens.
    """
    documents = blocks.partition_by("document_id", maintain_order=True)
    parts = [pl.concat(documents[at : at + _DOCUMENTS]) for at in range(0, len(documents), _DOCUMENTS)]
    cut = partial(_chunk, count_tokens=count_tokens, section=section, embed=embed)
    made = (engine or LocalEngine()).map(stateless(cut), parts, runs_in="threads" if embed else "python")
    return pl.concat([pl.DataFrame(schema=CHUNK_SCHEMA), *made])


def _chunk(blocks: pl.DataFrame, count_tokens: CountTokens, section: ChunkSection, embed: Embed | None) -> pl.DataFrame:
    rows: list[tuple[object, ...]] = []
    for (document_id,), own in blocks.group_by("document_id", maintain_order=True):
        joined = text_of(own)
        ordered = own.sort("position")
        spans = _Cutter(joined, ordered["kind"].to_list(), count_tokens, section, embed).spans()
        confidences, pages = ordered["confidence"].to_list(), ordered["page"].to_list()
        at = {block_id: number for number, block_id in enumerate(joined.block_ids)}
        for position, (start, end) in enumerate(spans):
            text = joined.text[start:end]
            held = joined.blocks_in(start, end)
            numbers = [at[block_id] for block_id in held]
            lengths = [max(1, min(end, joined.ends[number]) - max(start, joined.starts[number])) for number in numbers]
            sure = sum(confidences[number] * length for number, length in zip(numbers, lengths, strict=True)) / max(1, sum(lengths))
            made = content_id("chk", document_id, start, text)
            rows.append((made, document_id, position, start, end, text, count_tokens(text), list(held), pages[numbers[0]] if numbers else 1, sure))
    return pl.DataFrame(rows, schema=CHUNK_SCHEMA, orient="row")


class _Cutter:
    """Cuts one document."""

    def __init__(self, joined: JoinedText, kinds: Sequence[str], count_tokens: CountTokens, section: ChunkSection, embed: Embed | None) -> None:
        self._text = joined.text
        self._count = count_tokens
        self._most, self._least = section.max_tokens, section.min_tokens
        self._atoms = self._make_atoms(joined, kinds)
        # Sums of the atoms' own counts guide where to cut; whether a chunk fits is counted on its text.
        self._sums = [0, *accumulate(count_tokens(self._text[atom.start : atom.end]) for atom in self._atoms)]
        self._turns, self._sharp = self._find_turns(embed, section.boundary_sharpness)

    def spans(self) -> list[tuple[int, int]]:
        """Return the first and one past the last character of each chunk."""
        if not self._atoms:
            return []
        opens = [at for at in range(1, len(self._atoms)) if self._atoms[at].is_heading and not self._atoms[at - 1].is_heading]
        sections = list(pairwise([0, *opens, len(self._atoms)]))
        pieces = [piece for first, last in sections for piece in self._by_meaning(first, last)]
        fitting = [part for first, last in self._merge_small(pieces) for part in self._fit(first, last)]
        return [(self._atoms[first].start, self._atoms[last - 1].end) for first, last in fitting]

    # --- atoms ---------------------------------------------------------------------------------------------------

    def _make_atoms(self, joined: JoinedText, kinds: Sequence[str]) -> list[_Atom]:
        atoms: list[_Atom] = []
        ends = [*joined.starts[1:], len(self._text)]  # the separator belongs to the block before it
        for start, end, kind in zip(joined.starts, ends, kinds, strict=True):
            if start == end:
                continue
            cuts = [start, end]
            whole = kind != "paragraph" and self._fits(start, end)
            if not whole:
                pattern = re.compile(r"\n") if kind in ("table", "list", "key_value") else _SENTENCE
                cuts = [start, *(start + found.end() for found in pattern.finditer(self._text[start:end]) if start + found.end() < end), end]
            parts = [part for first, last in pairwise(sorted(set(cuts))) for part in self._small_enough(first, last)]
            atoms += [_Atom(first, last, kind == "heading", first == start) for first, last in parts]
        return atoms

    def _small_enough(self, start: int, end: int) -> list[tuple[int, int]]:
        """Cut what has no sentences: between words near the middle, or characters where there is no word's end."""
        if end - start == 1 or self._fits(start, end):
            return [(start, end)]
        middle = (start + end) // 2
        quarter = max(1, (end - start) // 4)
        space = self._text.rfind(" ", middle - quarter, middle + quarter)
        cut = space + 1 if start < space + 1 < end else middle
        return [*self._small_enough(start, cut), *self._small_enough(cut, end)]

    def _fits(self, start: int, end: int) -> bool:
        return self._count(self._text[start:end]) <= self._most

    # --- meaning -------------------------------------------------------------------------------------------------

    def _find_turns(self, embed: Embed | None, sharpness: float) -> tuple[NDArray[np.float64], float]:
        """Return for each atom how deep the valley of likeness before it is, in [0, 4], and from what depth on that is a cut."""
        n = len(self._atoms)
        turns = np.zeros(n)
        if embed is None or n < 2:
            return turns, np.inf
        vectors = np.asarray(embed([self._text[atom.start : atom.end] for atom in self._atoms]), dtype=np.float64)
        sums = np.vstack([np.zeros(vectors.shape[1]), np.cumsum(vectors, axis=0)])
        at = np.arange(1, n)
        before = sums[at] - sums[np.maximum(at - _WINDOW, 0)]
        after = sums[np.minimum(at + _WINDOW, n)] - sums[at]
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        turns[1:] = _depths(1 - (before * after).sum(axis=1) / np.maximum(lengths, 1e-12))
        return turns, float(turns[1:].mean() + sharpness * turns[1:].std())

    def _by_meaning(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cut a section where the meaning turns sharply, more than at the places around it."""
        cuts = [first]
        for at in range(first + 1, last):
            around = self._turns[max(first + 1, at - _WINDOW + 1) : min(last, at + _WINDOW)]
            is_turn = self._turns[at] > self._sharp and self._turns[at] >= around.max() and not self._atoms[at - 1].is_heading
            if is_turn and self._sum(cuts[-1], at) >= self._least and self._sum(at, last) >= self._least:
                cuts.append(at)
        return list(pairwise([*cuts, last]))

    # --- budget --------------------------------------------------------------------------------------------------

    def _sum(self, first: int, last: int) -> int:
        return self._sums[last] - self._sums[first]

    def _merge_small(self, pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Join a piece under the least size with the next one, where both fit."""
        merged = [pieces[0]]
        for first, last in pieces[1:]:
            before = merged[-1][0]
            if self._sum(*merged[-1]) < self._least and self._fits(self._atoms[before].start, self._atoms[last - 1].end):
                merged[-1] = (before, last)
            else:
                merged.append((first, last))
        return merged

    def _fit(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cut at the best place until everything fits."""
        if last - first == 1 or self._fits(self._atoms[first].start, self._atoms[last - 1].end):
            return [(first, last)]
        cut = self._best_cut(first, last)
        return [*self._fit(first, cut), *self._fit(cut, last)]

    def _best_cut(self, first: int, last: int) -> int:
        whole = self._sum(first, last)
        # Far over the budget, near the middle, so that the cuts stay few; else where both parts are worth a chunk.
        least = whole // 4 if whole > 4 * self._most else min(self._least, whole // 4)
        places = range(first + 1, last)
        good = [at for at in places if self._sum(first, at) >= least and self._sum(at, last) >= least]
        good = [at for at in good or places if not self._atoms[at - 1].is_heading] or good or list(places)

        def worth(at: int) -> tuple[float, float, int]:
            # The larger first part that fits leaves fewer chunks.
            before = self._sum(first, at)
            fits = before / self._most if before <= self._most else 0.0
            return (self._turns[at] + 0.3 * self._atoms[at].opens_block, fits, -at)

        return max(good, key=worth)


def _depths(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each distance stands above the lowest ones that can be reached from it downhill, left and right (Hearst)."""
    left, right = distances.copy(), distances.copy()
    for at in range(1, len(distances)):
        if distances[at - 1] <= distances[at]:
            left[at] = left[at - 1]
    for at in range(len(distances) - 2, -1, -1):
        if distances[at + 1] <= distances[at]:
            right[at] = right[at + 1]
    return 2 * distances - left - right
