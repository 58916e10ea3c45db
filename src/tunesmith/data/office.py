"""DOCX -> blocks in reading order: headings by style or outline level, lists with their numbers, tables with their cells.

python-docx opens the package and resolves styles; the body is walked here, because content controls, tracked insertions and
text boxes hold text that its own iteration leaves out. Deleted text (tracked) is not read; nor are page headers, footers,
footnotes and comments. DOCX has no pages until it is printed: everything is on page 1, without boxes.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunesmith.data.blocks import Block, make_table
from tunesmith.data.formats import RefusedFileError
from tunesmith.errors import MissingExtraError

if TYPE_CHECKING:
    from docx.document import Document

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # the same content again, for old programs


def read_docx(raw: bytes) -> list[Block]:
    """Read a DOCX file.

    Raises:
        RefusedFileError: unreadable.
        MissingExtraError: python-docx is not installed.
    """
    try:
        import docx
    except ImportError:
        raise MissingExtraError("python-docx", "documents") from None
    try:
        document = docx.Document(io.BytesIO(raw))
        return _Body(document).blocks()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001, RUF100 - a broken package raises nearly anything
        raise RefusedFileError("unreadable", f"python-docx: {type(error).__name__}: {str(error)[:200]}") from None


class _Body:
    """Walks the body of one document."""

    def __init__(self, document: Document) -> None:
        self._body = document.element.body
        self._styles = {style.style_id: style for style in document.styles}
        self._formats = _number_formats(document)
        self._counts: Counter[tuple[str, int]] = Counter()

    def blocks(self) -> list[Block]:
        made: list[Block] = []
        items: list[str] = []
        for element in _children(self._body):
            item = self._item(element) if element.tag == f"{_W}p" else None
            if item is not None:
                items += [item] if item.strip() else []
                continue
            if items and (element.tag != f"{_W}p" or _text(element).strip()):
                made.append(Block("list", "\n".join(items)))
                items = []
            made += self._block(element)
        return [*made, Block("list", "\n".join(items))] if items else made

    def _block(self, element: Any) -> list[Block]:
        if element.tag == f"{_W}tbl":
            table = make_table([_cells(row) for row in element.iter(f"{_W}tr") if _owner(row) is element])
            return [table] if table else []
        text = _text(element).strip()
        if not text:
            return []
        level = self._level(element)
        return [Block("paragraph", text)] if level is None else [Block("heading", " ".join(text.split()), level=level)]

    def _style_chain(self, element: Any) -> Iterator[Any]:
        named = element.find(f"{_W}pPr/{_W}pStyle")
        style = self._styles.get(named.get(f"{_W}val")) if named is not None else None
        for _ in range(20):  # a broken file may name styles in a circle
            if style is None:
                return
            yield style
            style = getattr(style, "base_style", None)

    def _level(self, element: Any) -> int | None:
        own = element.find(f"{_W}pPr/{_W}outlineLvl")
        if own is not None and own.get(f"{_W}val", "9").isdigit() and int(own.get(f"{_W}val")) < 6:
            return int(own.get(f"{_W}val")) + 1
        for style in self._style_chain(element):
            name = (style.name or "").lower()
            if found := re.fullmatch(r"heading (\d)", name):
                return min(max(int(found[1]), 1), 6)
            if name in ("title", "subtitle"):
                return 1 if name == "title" else 2
            outline = style.element.find(f"{_W}pPr/{_W}outlineLvl")
            if outline is not None and outline.get(f"{_W}val", "9").isdigit() and int(outline.get(f"{_W}val")) < 6:
                return int(outline.get(f"{_W}val")) + 1
        return None

    def _item(self, element: Any) -> str | None:
        """Return the line of a list item with its marker, None for what is not in a list."""
        if self._level(element) is not None:
            return None  # a numbered heading
        styles = list(self._style_chain(element))
        numbered = [element.find(f"{_W}pPr/{_W}numPr"), *(style.element.find(f"{_W}pPr/{_W}numPr") for style in styles)]
        number = next((found for found in numbered if found is not None), None)
        by_name = any((style.name or "").lower().startswith(("list bullet", "list number")) for style in styles)
        if number is None and not by_name:
            return None
        list_id, level = _value(number, "numId"), _value(number, "ilvl")
        text = " ".join(_text(element).split())
        if list_id == "0" or not text:  # 0 takes a paragraph out of its style's list
            return None if list_id == "0" else ""
        depth = int(level) if level.isdigit() else 0
        format_ = self._formats.get((list_id, depth), "bullet" if number is not None or "bullet" in (styles[0].name or "").lower() else "decimal")
        if format_ in ("bullet", "none"):
            return f"{'  ' * depth}- {text}"
        self._counts[list_id, depth] += 1
        for key in [key for key in self._counts if key[0] == list_id and key[1] > depth]:
            del self._counts[key]
        return f"{'  ' * depth}{self._counts[list_id, depth]}. {text}"


def _number_formats(document: Document) -> dict[tuple[str, int], str]:
    """Return (list, level) -> bullet, decimal, ..."""
    try:
        numbering = document.part.numbering_part.element
    except (KeyError, NotImplementedError, AttributeError):
        return {}
    levels: dict[str, list[tuple[int, str]]] = {}
    for abstract in numbering.iter(f"{_W}abstractNum"):
        found = [(level.get(f"{_W}ilvl", "0"), _value(level, "numFmt")) for level in abstract.iter(f"{_W}lvl")]
        levels[abstract.get(f"{_W}abstractNumId")] = [(int(at), name) for at, name in found if at.isdigit()]
    return {(num.get(f"{_W}numId"), at): name for num in numbering.iter(f"{_W}num") for at, name in levels.get(_value(num, "abstractNumId"), [])}


def _value(element: Any, child: str) -> str:
    found = None if element is None else element.find(f"{_W}{child}")
    return "" if found is None else str(found.get(f"{_W}val", ""))


def _children(element: Any) -> Iterator[Any]:
    """Yield the paragraphs and tables of a body in order, those in content controls and insertions too."""
    for child in element:
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml"):
            yield from _children(child)


def _owner(row: Any) -> Any:
    """Return the table that a row is in."""
    return next(row.iterancestors(f"{_W}tbl"))


def _cells(row: Any) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{_W}tc"):
        if next(cell.iterancestors(f"{_W}tr")) is not row:
            continue  # of a table in a cell, which is that cell's text
        continued = cell.find(f"{_W}tcPr/{_W}vMerge")
        is_continued = continued is not None and continued.get(f"{_W}val", "continue") == "continue"
        cells.append("" if is_continued else _text(cell))
        span = _value(cell.find(f"{_W}tcPr"), "gridSpan")
        cells += [""] * (min(int(span), 100) - 1 if span.isdigit() else 0)
    return cells


def _text(element: Any) -> str:
    """Join the text under an element; paragraphs in it (a text box, a cell) are parted by line breaks."""
    parts: list[str] = []
    skipped: list[Any] = []
    for each in element.iter():
        if each.tag == _FALLBACK:
            skipped.append(each)
        if skipped and any(ancestor in skipped for ancestor in each.iterancestors(_FALLBACK)):
            continue
        if each.tag == f"{_W}t":
            parts.append(each.text or "")
        elif each.tag in (f"{_W}tab", f"{_W}ptab") and each.getparent().tag == f"{_W}r":
            parts.append("\t")
        elif each.tag in (f"{_W}br", f"{_W}cr") or (each.tag == f"{_W}p" and each is not element and parts):
            parts.append("\n")
        elif each.tag == f"{_W}noBreakHyphen":
            parts.append("-")
    return "".join(parts)
