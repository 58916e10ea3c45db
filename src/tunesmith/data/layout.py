"""Words on a page -> blocks in reading order: columns, headings, paragraphs, lists, tables and key-value lines.

liteparse (PDFium and heuristics in Rust, no model) finds columns, headings and tables; this module turns what it found into
`Block`s, splits paragraphs that it ran together, and recognises keys with values. The words that an OCR read take the same
way: they are set as a PDF page of their own, each word in its place and the ruled lines with them, so there is one layout
code for text layers and scans. All lengths are PDF points from the top left.

liteparse writes typographic dashes and quotation marks as their ASCII counterparts; so do the blocks.

What this does not do: read files (`pdf.py`), recognise words (`ocr.py`), straighten scans (`scan.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith.data.blocks import Block, Box, Rule, Word, make_table
from tunesmith.data.typeset import typeset
from tunesmith.errors import MissingExtraError

if TYPE_CHECKING:
    from liteparse import LayoutBlock, ParsedPage, ParseResult


class _Line(NamedTuple):
    text: str
    box: Box


def lay_out(words: Sequence[Word], rules: Sequence[Rule], width: float, height: float, page: int = 1) -> list[Block]:
    """Find the blocks of a page of recognised words.

    Args:
        words: In any order; boxes in points.
        rules: Ruled lines, which tables and forms are seen by.
        width: Of the page, in points.
        height: Of the page, in points.
        page: Its number, counted from 1.

    Returns:
        Blocks in reading order; each has the confidence of its words, weighted by length.

    Raises:
        MissingExtraError: liteparse is not installed.
    """
    if not words:
        return []
    raw, restore = typeset(words, rules, width, height)
    blocks = page_blocks(parse_pdf(raw).pages[0], page, words)
    return [block._replace(text=block.text.translate(restore), cells=_translated(block.cells, restore)) for block in blocks]


def _translated(cells: tuple[tuple[str, ...], ...] | None, table: dict[int, str]) -> tuple[tuple[str, ...], ...] | None:
    return None if cells is None else tuple(tuple(cell.translate(table) for cell in row) for row in cells)


def parse_pdf(raw: bytes, first: int = 1, last: int | None = None) -> ParseResult:
    """Let liteparse read the text layer and the layout of some pages.

    Args:
        raw: The whole PDF.
        first: First page, counted from 1.
        last: Last page; None for all from `first`.

    Raises:
        MissingExtraError: liteparse is not installed.
        ValueError: the bytes are not a PDF that it can read.
    """
    try:
        from liteparse import ParseError
    except ImportError:
        raise MissingExtraError("liteparse", "documents") from None
    try:
        return _parser("" if last is None else f"{first}-{last}").parse(raw)
    except ParseError as error:
        raise ValueError(str(error)) from error


@cache
def _parser(pages: str) -> Any:
    from liteparse import LiteParse

    return LiteParse(
        ocr_enabled=False,  # ours is ocr.py: this one would fetch models
        extract_blocks=True,
        extract_form_fields=True,
        emit_word_boxes=True,
        keep_headers_footers=True,  # nothing is left out silently
        extract_links=False,
        max_pages=1_000_000,
        target_pages=pages or None,
        num_workers=1,
        quiet=True,
    )


# --- what liteparse found -> blocks -----------------------------------------------------------------------------------


def page_blocks(parsed: ParsedPage, page: int, words: Sequence[Word] | None = None) -> list[Block]:
    """Turn a page as liteparse parsed it into blocks.

    Args:
        parsed: The page, with its blocks and word boxes.
        page: Its number, counted from 1.
        words: What an OCR read, whose confidence the blocks take on; None for a text layer, which has 1.0.
    """
    placed = [_word(word) for item in parsed.text_items for word in item.words]
    made: list[Block] = []
    items: list[LayoutBlock] = []
    for found in parsed.blocks or []:
        if found.kind == "list_item":
            items.append(found)
            continue
        made += _list(items, page)
        items = []
        made += _blocks(found, page, placed)
    made += _list(items, page)
    # Text in figures, and what stands aside: at the end of the page, rather than nowhere.
    made += [Block("paragraph", line.text, page, None, line.box) for line in _lines(_left_out(placed, made))]
    made += _filled_in(parsed, page, "\n".join(block.text for block in made))
    made = [block for block in made if block.text.strip()]
    if words is None:
        return made
    return [block._replace(confidence=_confidence_in(block.box, words)) for block in made]


def _filled_in(parsed: ParsedPage, page: int, told: str) -> list[Block]:
    """Return what was typed or ticked in the form on a page, as far as the text layer does not hold it: keys with values."""
    pairs: list[tuple[str, str]] = []
    box: Box | None = None
    for field in parsed.form_fields or []:
        is_tick = field.type in ("checkbox", "radio")
        value = " ".join((("yes" if field.checked else "") if is_tick else field.value or "").split())
        if not value or field.type == "pushbutton" or (not is_tick and value in told):
            continue
        label = field.alternate_name or re.sub(r"\[\d+\]", "", field.name or "").rpartition(".")[2] or field.type
        pairs.append((" ".join(label.split()).rstrip(":") + ":", value))
        if field.rect:
            at = Box(field.rect.x, field.rect.y, field.rect.x + field.rect.width, field.rect.y + field.rect.height)
            box = box.union(at) if box else at
    table = make_table(pairs, page=page, box=box)
    return [table] if table else []


def _left_out(placed: Sequence[Word], blocks: Sequence[Block]) -> list[Word]:
    """Return the words that stand in no block's box and in no block's text either: boxes alone are not exact."""
    told = Counter(token for block in blocks for token in re.split(r"[\s|]+", block.text))
    missing = Counter(word.text for word in placed) - told
    boxes = [block.box for block in blocks if block.box]
    left = []
    for word in placed:
        if missing[word.text] and not any(_inside(word.box, box, 2.0) for box in boxes):
            missing[word.text] -= 1
            left.append(word)
    return left


def _word(word: Any) -> Word:
    return Word(word.text, Box(word.x, word.y, word.x + word.width, word.y + word.height))


def _blocks(found: LayoutBlock, page: int, words: Sequence[Word]) -> list[Block]:
    box = _box(found)
    if found.kind == "table":
        rows = [[_plain(cell.text) for cell in row] for row in [*([found.header] if found.header else []), *(found.rows or [])]]
        table = make_table(rows, page=page, box=box)
        return [table] if table else []
    if found.kind in ("code", "grid_fallback"):
        text = "\n".join(line.rstrip() for line in found.lines or [])
        return [Block(_kind_of_lines(text.split("\n")), text, page, None, box)]
    text = " ".join(_plain(found.text or "").split())
    if found.kind == "heading":
        return [Block("heading", text, page, found.level or 1, box)]
    if found.kind == "paragraph":
        return _paragraphs(text, page, box, words)
    return []  # rules and figures hold no text


def _paragraphs(text: str, page: int, box: Box | None, words: Sequence[Word]) -> list[Block]:
    """Split what was run together, where the lines can be told for sure: when they give the text back."""
    lines = _lines([word for word in words if box and _inside(word.box, box)])
    if len(lines) < 2 or "".join(_join(lines).split()) != "".join(text.split()):
        return [Block("paragraph", text, page, None, box)]
    made = []
    for group in _groups(lines):
        around = group[0].box
        for line in group[1:]:
            around = around.union(line.box)
        kind = _kind_of_lines([line.text for line in group])
        joined = "\n".join(line.text for line in group) if kind == "key_value" else _join(group)
        cells = tuple(_key_and_value(line.text) for line in group) if kind == "key_value" else None
        made.append(Block(kind, joined, page, None, around, cells=cells))
    return made


_KEY = re.compile(r"[^\s:][^:]{0,40}:\s+\S")


def _kind_of_lines(lines: Sequence[str]) -> Any:
    return "key_value" if len(lines) > 1 and all(_KEY.match(line) for line in lines) else "paragraph"


def _key_and_value(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return f"{key}:", value.strip()


def _lines(words: Sequence[Word]) -> list[_Line]:
    """Group words whose middles are on one height."""
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda each: (each.box.y0 + each.box.y1, each.box.x0)):
        middle = (word.box.y0 + word.box.y1) / 2
        if rows and rows[-1][0].box.y0 <= middle <= rows[-1][0].box.y1:
            rows[-1].append(word)
        else:
            rows.append([word])
    lines = []
    for row in rows:
        row.sort(key=lambda each: each.box.x0)
        box = row[0].box
        for word in row[1:]:
            box = box.union(word.box)
        lines.append(_Line(" ".join(word.text for word in row), box))
    return lines


def _join(lines: Sequence[_Line]) -> str:
    """Join lines into running text; a word parted by a hyphen at the end of a line is made whole."""
    text = lines[0].text
    for line in lines[1:]:
        if len(text) > 1 and text.endswith("-") and text[-2].isalpha():
            text = text[:-1] + line.text if line.text[:1].islower() else text + line.text
        else:
            text += " " + line.text
    return text


def _groups(lines: Sequence[_Line]) -> list[list[_Line]]:
    """Part lines where the gap is wider than usual, where a line is indented, and where keys with values begin or end."""
    pitches = [after.box.y0 - before.box.y0 for before, after in pairwise(lines)]
    usual = min(median(pitches), 1.6 * median(line.box.y1 - line.box.y0 for line in lines))
    left = min(line.box.x0 for line in lines)
    em = median(line.box.y1 - line.box.y0 for line in lines)
    indented = [line.box.x0 - left > 0.8 * em for line in lines]
    shows_indents = sum(indented) <= 0.4 * len(lines)
    keyed = [bool(_KEY.match(line.text)) for line in lines]
    keyed = [key and (keyed[at - 1 : at] == [True] or keyed[at + 1 : at + 2] == [True]) for at, key in enumerate(keyed)]
    groups = [[lines[0]]]
    for at, pitch in enumerate(pitches, start=1):
        opens = pitch > 1.3 * usual or keyed[at] != keyed[at - 1] or (shows_indents and indented[at] and not indented[at - 1])
        if opens:
            groups.append([lines[at]])
        else:
            groups[-1].append(lines[at])
    return groups


def _list(items: Sequence[LayoutBlock], page: int) -> list[Block]:
    if not items:
        return []
    lines, box = [], _box(items[0])
    for item in items:
        marker = item.marker or "-"
        lines.append("  " * (item.level or 0) + f"{marker} " + " ".join(_plain(item.text or "").split()))
        other = _box(item)
        box = box.union(other) if box and other else box or other
    return [Block("list", "\n".join(lines), page, None, box)]


def _box(found: LayoutBlock) -> Box | None:
    at = found.bbox
    return Box(at.x, at.y, at.x + at.width, at.y + at.height) if at else None


def _plain(text: str) -> str:
    """Undo the escapes of Markdown: liteparse's blocks are what it makes its Markdown of."""
    return re.sub(r"\\([\\*_])", r"\1", text)


def _inside(inner: Box, outer: Box, margin: float = 0.0) -> bool:
    """Whether a word's middle is in a box, or as near to it as the margin."""
    x, y = (inner.x0 + inner.x1) / 2, (inner.y0 + inner.y1) / 2
    return outer.x0 - margin <= x <= outer.x1 + margin and outer.y0 - margin <= y <= outer.y1 + margin


def _confidence_in(box: Box | None, words: Sequence[Word]) -> float:
    held = [word for word in words if box is None or _inside(word.box, box)] or words
    return sum(word.confidence * len(word.text) for word in held) / sum(len(word.text) for word in held)
