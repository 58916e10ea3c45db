"""HTML, mail and plain text -> blocks in reading order.

HTML is parsed by selectolax (Lexbor, as browsers do) and walked once; scripts, styles and templates hold no text, everything
else is kept, menus too: what a page's main content is, is a guess that its reader can make better. Mail is parsed by the
standard library: subject, the usual headers, the plain body (else the HTML one), and the names of its attachments, which
are not opened. None of them has pages: everything is on page 1, without boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

from tunesmith.data.blocks import Block, BlockKind, make_table
from tunesmith.data.formats import RefusedFileError, decode
from tunesmith.errors import MissingExtraError

_SILENT = {"-comment", "script", "style", "template", "noscript", "svg", "head", "iframe", "object", "math"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_INLINE = {
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "input", "ins", "kbd", "label", "mark",
    "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
}  # fmt: skip


def read_html(raw: bytes, declared: str = "") -> list[Block]:
    """Read an HTML page.

    Args:
        raw: The page.
        declared: Its encoding as a mail or a server says; else its own meta tag counts.

    Raises:
        RefusedFileError: unreadable.
        MissingExtraError: selectolax is not installed.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise MissingExtraError("selectolax", "documents") from None
    meta = re.search(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)", raw[:4096], re.IGNORECASE)
    text = decode(raw, declared or (meta[1].decode("ascii", "ignore") if meta else ""))
    body = LexborHTMLParser(text).body
    return [] if body is None else _Walk().blocks(body)


class _Walk:
    """Collects running text until a block element begins or ends. Without recursion: pages nest deeper than Python's stack."""

    def __init__(self) -> None:
        self._made: list[Block] = []
        self._running: list[str] = []

    def blocks(self, body: Any) -> list[Block]:
        for node, enters in _steps(body):
            tag = node.tag
            if tag == "-text":
                self._running.append(node.text_content or "")
            elif tag == "br":
                self._running.append("\n" if enters else "")
            elif tag in _HEADINGS and enters is None:
                self._add(Block("heading", " ".join(_inner(node).split()), level=_HEADINGS[tag]))
            elif enters is None:
                self._add(*_whole(node))
            elif tag not in _INLINE:
                self._flush()
        self._flush()
        return self._made

    def _add(self, *blocks: Block) -> None:
        self._flush()
        self._made += [block for block in blocks if block.text.strip()]

    def _flush(self) -> None:
        lines = [" ".join(line.split()) for line in "".join(_spaced(part) for part in self._running).split("\n")]
        text = "\n".join(line for line in lines if line)
        self._running = []
        if text:
            self._made.append(Block("paragraph", text))


def _spaced(part: str) -> str:
    """Make the line breaks of HTML source spaces; the break of a <br> is a part of its own."""
    return part if part == "\n" else re.sub(r"\s+", " ", part)


def _steps(root: Any) -> Iterator[tuple[Any, bool | None]]:
    """Yield each node when it is entered (True) and left (False), and once (None) where it is taken whole."""
    node: Any = root
    while node is not None:
        descends = False
        if node.tag in _SILENT:
            pass
        elif node is not root and _is_whole(node):
            yield node, None
        else:
            yield node, True
            descends = node.child is not None
        if descends:
            node = node.child
            continue
        while node is not None:
            if node.mem_id == root.mem_id:
                return
            if node.next is not None:
                node = node.next
                break
            node = node.parent
            if node is not None:
                yield node, False


def _is_whole(node: Any) -> bool:
    if node.tag == "table":  # one that holds headings, lists or tables lays out the page
        return all(each.mem_id == node.mem_id for each in node.css("table, h1, h2, h3, h4, h5, h6, ul, ol"))
    return node.tag in ("ul", "ol", "dl", "pre") or node.tag in _HEADINGS


def _whole(node: Any) -> list[Block]:
    if node.tag == "table":
        rows = [[_inner(cell) for cell in _spread(row)] for row in node.css("tr")]
        table = make_table(rows)
        return [table] if table else []
    if node.tag == "dl":
        return _definitions(node)
    if node.tag == "pre":
        return [Block("paragraph", _inner(node, keeps_space=True).strip("\n"))]
    lines: list[str] = []
    numbers: dict[int, int] = {}
    for item in node.css("li"):
        holder, depth = item.parent, 0
        while holder is not None and holder.mem_id != node.mem_id:
            depth += holder.tag in ("ul", "ol")
            holder = holder.parent
        parent = item.parent
        marker = "-"
        if parent is not None and parent.tag == "ol":
            numbers[parent.mem_id] = numbers.get(parent.mem_id, 0) + 1
            marker = f"{numbers[parent.mem_id]}."
        text = " ".join(_inner(item, without=("ul", "ol")).split())
        if text:
            lines.append(f"{'  ' * depth}{marker} {text}")
    return [Block("list", "\n".join(lines))] if lines else [Block("paragraph", " ".join(_inner(node).split()))]


def _spread(row: Any) -> Iterator[Any]:
    """Yield a row's cells, each followed by None for every further column that it spans."""
    for cell in row.iter():
        if cell.tag in ("td", "th"):
            yield cell
            span = cell.attributes.get("colspan") or "1"
            yield from [None] * (min(int(span), 100) - 1 if span.isdigit() else 0)


def _definitions(node: Any) -> list[Block]:
    pairs: list[list[str]] = []
    for part in node.css("dt, dd"):
        text = " ".join(_inner(part).split())
        if part.tag == "dt":
            pairs.append([text.rstrip(":") + ":", ""])
        elif pairs:
            pairs[-1][1] = f"{pairs[-1][1]} {text}".strip()
        else:
            pairs.append([":", text])
    table = make_table(pairs)
    return [table] if table else []


def _inner(node: Any, *, keeps_space: bool = False, without: tuple[str, ...] = ()) -> str:
    """Return the text under a node; block elements are parted by a space."""
    if node is None:
        return ""
    parts: list[str] = []
    for each, enters in _inner_steps(node, without):
        if each.tag == "-text":
            parts.append(each.text_content or "")
        elif each.tag == "br":
            parts.append("\n" if enters else "")
        elif each.tag not in _INLINE:
            parts.append("" if keeps_space else " ")
    text = "".join(parts)
    return text if keeps_space else re.sub(r"\s+", " ", text).strip()


def _inner_steps(root: Any, without: tuple[str, ...]) -> Iterator[tuple[Any, bool]]:
    node = root
    while node is not None:
        descends = node.tag not in _SILENT and (node.mem_id == root.mem_id or node.tag not in without)
        if descends:
            yield node, True
        if descends and node.child is not None:
            node = node.child
            continue
        while node is not None:
            if node.mem_id == root.mem_id:
                return
            if node.next is not None:
                node = node.next
                break
            node = node.parent
            if node is not None:
                yield node, False


def read_mail(raw: bytes) -> list[Block]:
    """Read a mail.

    Raises:
        RefusedFileError: unreadable.
    """
    try:
        message = BytesParser(policy=policy.default).parsebytes(raw)
        return _mail_blocks(message)
    except (RefusedFileError, MissingExtraError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001, RUF100 - the header parser raises nearly anything on broken headers
        raise RefusedFileError("unreadable", f"email: {type(error).__name__}: {str(error)[:200]}") from None


def _mail_blocks(message: EmailMessage) -> list[Block]:
    made: list[Block] = []
    if subject := " ".join(_header(message, "Subject").split()):
        made.append(Block("heading", subject, level=1))
    headers = make_table([[f"{name}:", value] for name in ("From", "To", "Cc", "Date") if (value := _header(message, name))])
    made += [headers] if headers else []
    body = message.get_body(("plain", "html"))
    if body is not None:
        content = body.get_payload(decode=True)
        encoding = body.get_content_charset("")
        if isinstance(content, bytes):
            made += read_html(content, encoding) if body.get_content_subtype() == "html" else read_text(decode(content, encoding))
    names = [f"- {part.get_filename() or 'without a name'} ({part.get_content_type()}, {_size(part)})" for part in message.iter_attachments()]
    return [*made, Block("heading", "Attachments", level=2), Block("list", "\n".join(names))] if names else made


def _header(message: EmailMessage, name: str) -> str:
    """Return a header decoded, or as it stands where it breaks the rules; empty where it is missing."""
    try:
        return str(message.get(name, ""))
    except Exception:  # noqa: BLE001, RUF100 - the header parser raises nearly anything
        return next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")


def _size(part: Any) -> str:
    content = part.get_payload(decode=True)
    return f"{len(content):,} bytes" if isinstance(content, bytes) else "a message"


_ITEM = re.compile(r"\s*(?:[-*\u2022]|\d{1,3}[.)])\s+\S")
_KEY = re.compile(r"[^\s:][^:\n]{0,40}:\s+\S")


def read_text(text: str, *, is_markdown: bool = False) -> list[Block]:
    """Cut plain text at its blank lines; line breaks inside a block stay.

    Args:
        text: Any text; line ends may be those of any system.
        is_markdown: Whether lines that begin with `#` are headings.
    """
    made: list[Block] = []
    for part in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = [line.rstrip() for line in part.strip("\n").split("\n") if line.strip()]
        while is_markdown and lines and (found := re.match(r"(#{1,6})\s+(.+)", lines[0])):
            made.append(Block("heading", found[2].rstrip(" #"), level=len(found[1])))
            lines = lines[1:]
        if lines:
            made.append(_text_block(lines))
    return made


def _text_block(lines: list[str]) -> Block:
    if all(_ITEM.match(line) for line in lines):
        return Block("list", "\n".join(lines))
    kind: BlockKind = "key_value" if len(lines) > 1 and all(_KEY.match(line) for line in lines) else "paragraph"
    if kind == "paragraph":
        return Block(kind, "\n".join(lines))
    pairs = [line.partition(":") for line in lines]
    return Block(kind, "\n".join(lines), cells=tuple((f"{key}:", value.strip()) for key, _, value in pairs))
