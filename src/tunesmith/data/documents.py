"""One file of any format -> its pages and blocks, or the reason why it is refused.

    pdf, picture   pdf.py      text layer, or the OCR
    docx           office.py
    html, eml, text   markup.py

`read_document` reads bytes in this process and raises only for what concerns every file (a missing package, an OCR that
fails). `folder.py` calls it in processes with limits, for files that nobody vouches for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from tunesmith.data.blocks import Block, join_texts, mean_confidence
from tunesmith.data.formats import FileFormat, Page, Reason, RefusedFileError, decode, find_format
from tunesmith.data.markup import read_html, read_mail, read_text
from tunesmith.data.ocr import Ocr
from tunesmith.data.office import read_docx
from tunesmith.data.pdf import read_pdf, read_picture
from tunesmith.data.settings import OcrSection

STEP_VERSION = 1
"""Raised when the same file would give other blocks."""


@dataclass(frozen=True)
class ReadDocument:
    """What a file held.

    Attributes:
        name: As it was given.
        content_sha256: Of its bytes.
        format: Found by content.
        pages: In order; one page for formats without pages, of size 0.
        blocks: In reading order.
    """

    name: str
    content_sha256: str
    format: FileFormat
    pages: tuple[Page, ...]
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        """The blocks' texts, joined as `blocks.text_of` joins them."""
        return join_texts([""] * len(self.blocks), [block.text for block in self.blocks]).text

    @property
    def confidence(self) -> float:
        """Mean confidence of the text, in [0, 1]; 1.0 without OCR."""
        return mean_confidence(self.blocks)


@dataclass(frozen=True)
class Refused:
    """A file that was not read.

    Attributes:
        name: As it was given.
        content_sha256: Of its bytes; empty where it was too large to be read at all.
        reason: A fixed word, one of `formats.REASONS`.
        evidence: One sentence for people.
    """

    name: str
    content_sha256: str
    reason: Reason
    evidence: str


def read_document(
    raw: bytes, name: str, ocr: Ocr | None = None, section: OcrSection | None = None, told: Callable[[], None] = lambda: None
) -> ReadDocument | Refused:
    """Read one file.

    Args:
        raw: The whole file.
        name: Its name or address. Its suffix is a promise that is checked, and tells HTML, mail and text apart.
        ocr: The engine for pages that are pictures; None refuses a file that has one.
        section: Limits; the defaults where None.
        told: Called after each page, to show that the work goes on.

    Returns:
        What it held, or why it was refused. A file without any text is read, with no block.

    Raises:
        BackendError: the OCR failed.
        MissingExtraError: a package that the format needs is not installed.
    """
    section = section or OcrSection()
    digest = hashlib.sha256(raw).hexdigest()
    try:
        if len(raw) > section.max_file_mib * 2**20:
            raise RefusedFileError("too_large", f"{len(raw):,} bytes; data.ocr.max_file_mib is {section.max_file_mib}.")
        found = find_format(raw, name)
        pages, blocks = _read(raw, name, found, ocr, section, told)
    except RefusedFileError as refusal:
        return Refused(name, digest, refusal.reason, _sound(refusal.evidence))
    except MemoryError:
        return Refused(name, digest, "out_of_memory", "Reading it needs more memory than is allowed.")
    except RecursionError:
        return Refused(name, digest, "unreadable", "It nests too deep.")
    return ReadDocument(name, digest, found, tuple(pages), tuple(_clean(block) for block in blocks))


def _read(raw: bytes, name: str, found: FileFormat, ocr: Ocr | None, section: OcrSection, told: Callable[[], None]) -> tuple[list[Page], list[Block]]:
    if found == "pdf":
        return read_pdf(raw, ocr, section, told)
    if found == "picture":
        return read_picture(raw, ocr, section, told)
    if found == "docx":
        blocks = read_docx(raw)
    elif found == "html":
        blocks = read_html(raw)
    elif found == "eml":
        blocks = read_mail(raw)
    else:
        blocks = read_text(decode(raw), is_markdown=PurePosixPath(name).suffix.lower() == ".md")
    return [Page(1, 0.0, 0.0)], blocks


def _clean(block: Block) -> Block:
    cells = None if block.cells is None else tuple(tuple(_sound(cell) for cell in row) for row in block.cells)
    return block._replace(text=_sound(block.text), cells=cells)


def _sound(text: str) -> str:
    """Replace what UTF-8 cannot hold (halves of surrogate pairs), and zero characters, which databases refuse."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")
