"""The blocks of a document, and how they become one text.

A block is what a reader sees as one thing: a heading, a paragraph, a list, a table, or a group of keys with their values.
Blocks stand in reading order; their boxes are in PDF points (1/72 inch) from the top left corner of the page, and null
where the format has no pages (HTML, DOCX, mail, text). Confidence is a ratio in [0, 1]: what the OCR says of its words,
weighted by their length; 1.0 for a text layer. Parsers make `Block`s; frames are made of them at the end, in one place.

What this does not do: find blocks (`pdf.py`, `office.py`, `layout.py`), or cut text (`chunk.py`).
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from tunesmith.entities import content_id

if TYPE_CHECKING:  # A parsing process has no use for it, and little memory.
    import polars as pl

BlockKind = Literal["heading", "paragraph", "list", "table", "key_value"]
BLOCK_KINDS: tuple[BlockKind, ...] = get_args(BlockKind)
SEPARATOR = "\n\n"
"""Stands between two blocks in a document's text."""


class Box(NamedTuple):
    """A rectangle, from the top left corner: x0 <= x1, y0 <= y1."""

    x0: float
    y0: float
    x1: float
    y1: float

    def union(self, other: Box) -> Box:
        """Return the smallest box around both."""
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))


class Word(NamedTuple):
    """One word on a page."""

    text: str
    box: Box
    confidence: float = 1.0


class Rule(NamedTuple):
    """A ruled line, horizontal or vertical, from its first to its last point."""

    x0: float
    y0: float
    x1: float
    y1: float


class Block(NamedTuple):
    """One block as a parser found it."""

    kind: BlockKind
    text: str
    """A list has one line an item, a table one line a row with ` | ` between cells, a key with its value is `Key: value`."""
    page: int = 1
    """Counted from 1; 1 where the format has no pages."""
    level: int | None = None
    """1 (highest) to 6 for headings, else None."""
    box: Box | None = None
    confidence: float = 1.0
    cells: tuple[tuple[str, ...], ...] | None = None
    """Rows of cells, for tables and key_value."""


def make_table(rows: Sequence[Sequence[str]], *, page: int = 1, box: Box | None = None, confidence: float = 1.0) -> Block | None:
    """Make a block of rows of cells: key_value when there are two columns and each key ends with a colon, else a table.

    Returns:
        None when every cell is empty. Short rows are filled up with empty cells; white space in a cell becomes one space.
    """
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    if not cells:
        return None
    width = max(map(len, cells))
    grid = tuple(tuple(row + [""] * (width - len(row))) for row in cells)
    if width == 2 and all(key.endswith(":") for key, _ in grid):
        return Block("key_value", "\n".join(f"{key} {value}".rstrip() for key, value in grid), page, None, box, confidence, grid)
    return Block("table", "\n".join(" | ".join(row) for row in grid), page, None, box, confidence, grid)


def block_schema() -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return column -> type of a frame of blocks.

    `page` counts from 1, `position` from 0 over the whole document in reading order; `level` is null but for headings; `x0`
    to `y1` are null where there is no page geometry; `cells` is JSON, a list of rows of texts, null where there are none.
    """
    import polars as pl

    texts, numbers, ratios = pl.String, pl.Int64, pl.Float64
    return {
        "id": texts, "document_id": texts, "page": numbers, "position": numbers, "kind": texts, "level": numbers, "text": texts,
        "x0": ratios, "y0": ratios, "x1": ratios, "y1": ratios, "confidence": ratios, "cells": texts,
    }  # fmt: skip


def block_frame(document_id: str, blocks: Sequence[Block]) -> pl.DataFrame:
    """Make the frame of a document's blocks.

    Args:
        document_id: Whose blocks they are.
        blocks: In reading order.

    Returns:
        A frame of `block_schema()`. An id names the document, the place and what stands there, so a second reading gives
        the same ids, and another OCR engine that reads other words gives others.
    """
    import polars as pl

    rows = []
    for position, block in enumerate(blocks):
        cells = None if block.cells is None else json.dumps(block.cells, ensure_ascii=False)
        made = content_id("blk", document_id, block.page, position, block.kind, block.text)
        box = block.box or (None, None, None, None)
        rows.append((made, document_id, block.page, position, block.kind, block.level, block.text, *box, block.confidence, cells))
    return pl.DataFrame(rows, schema=block_schema(), orient="row")


@dataclass(frozen=True)
class JoinedText:
    """The text of some blocks, and the way back from its characters to them.

    Attributes:
        text: The blocks' texts with `SEPARATOR` between them.
        block_ids: One a block, in reading order.
        starts: Where each block begins in `text`; it ends where the separator before the next one begins.
        ends: One past the last character of each block.
    """

    text: str
    block_ids: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def blocks_in(self, start: int, end: int) -> tuple[str, ...]:
        """Return the ids of the blocks that have a character in [start, end), in reading order."""
        first = bisect_right(self.ends, start)
        last = bisect_left(self.starts, end)
        return self.block_ids[first:last]


def text_of(blocks: pl.DataFrame) -> JoinedText:
    """Join the blocks of one document into its text.

    Args:
        blocks: Columns of `block_schema()`, in any order; `position` counts.
    """
    ordered = blocks.sort("position")
    return join_texts(ordered["id"].to_list(), ordered["text"].to_list())


def join_texts(block_ids: Sequence[str], texts: Sequence[str]) -> JoinedText:
    """Join texts in the order given."""
    starts, ends, at = [], [], 0
    for text in texts:
        starts.append(at)
        ends.append(at + len(text))
        at = ends[-1] + len(SEPARATOR)
    return JoinedText(SEPARATOR.join(texts), tuple(block_ids), tuple(starts), tuple(ends))


def mean_confidence(blocks: Sequence[Block]) -> float:
    """Return the confidence of a document: its blocks' mean, weighted by length of text; 1.0 when there is no text."""
    length = sum(len(block.text) for block in blocks)
    return sum(len(block.text) * block.confidence for block in blocks) / length if length else 1.0
