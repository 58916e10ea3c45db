"""PDF and pictures -> pages and blocks.

A page with a text layer is read by liteparse, and its layout found there (`layout.py`). A page without one, or whose text
layer is mostly characters without a meaning, is drawn by PDFium and goes to the OCR (`scan.py`); a blank page has no block.
A picture file (PNG, JPEG, TIFF with many pages, ...) is a document of pages without a text layer. Lengths are PDF points
from the top left of the page as it is shown, after its own rotation.

What this does not do: decrypt, fill in forms, or repair a broken file beyond what PDFium does by itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tunesmith.data.blocks import Block
from tunesmith.data.formats import Page, Reason, RefusedFileError
from tunesmith.data.layout import lay_out, page_blocks, parse_pdf
from tunesmith.data.scan import POINTS_PER_INCH, flat_grey, read_scan
from tunesmith.data.settings import OcrSection
from tunesmith.errors import MissingExtraError

if TYPE_CHECKING:
    from liteparse import ParsedPage
    from PIL.Image import Image
    from pypdfium2 import PdfDocument, PdfPage

    from tunesmith.data.ocr import Ocr

MOST_PIXELS = 120_000_000
"""Of a picture; A0 at 300 pixels an inch has 139 million, A1 has 70."""
_FEWEST_LETTERS = 4  # a page number alone, or dust, is no text layer for a page that holds a picture

Told = Callable[[], None]
"""Called after each page, to show that the work goes on."""


def read_pdf(raw: bytes, ocr: Ocr | None, section: OcrSection, told: Told = lambda: None) -> tuple[list[Page], list[Block]]:
    """Read a PDF.

    Args:
        raw: The whole file.
        ocr: The engine for pages without text; None where there is none.
        section: Limits, and the resolution for drawing.
        told: Called after each page.

    Returns:
        All pages, and the blocks of the document in reading order.

    Raises:
        RefusedFileError: encrypted, truncated, no_pages, too_large, needs_ocr or unreadable.
        BackendError: the OCR failed.
        MissingExtraError: pypdfium2 or liteparse is not installed.
    """
    if b"%%EOF" not in raw[-2048:]:
        raise RefusedFileError("truncated", f"A PDF ends with %%EOF; this one, of {len(raw):,} bytes, does not.")
    document = _open(raw)
    try:
        if not len(document):
            raise RefusedFileError("no_pages", "The PDF has no pages.")
        if len(document) > section.max_pages:
            raise RefusedFileError("too_large", f"{len(document):,} pages; data.ocr.max_pages is {section.max_pages:,}.")
        try:
            parsed = {page.page_num: page for page in parse_pdf(raw).pages}
        except ValueError as error:
            raise RefusedFileError("unreadable", f"liteparse: {str(error)[:200]}") from None
        pages, blocks = [], []
        for number in range(1, len(document) + 1):
            page, found = _read_page(document, number, parsed.get(number), ocr, section)
            pages.append(page)
            blocks += found
            told()
        return pages, blocks
    finally:
        document.close()


def _open(raw: bytes) -> PdfDocument:
    try:
        from pypdfium2 import PdfDocument, PdfiumError
    except ImportError:
        raise MissingExtraError("pypdfium2", "documents") from None
    try:
        document = PdfDocument(raw)
        len(document)
    except PdfiumError as error:
        raise _why_not(raw, str(error)) from None
    return document


def _why_not(raw: bytes, said: str) -> RefusedFileError:
    """Tell why a PDF does not open. PDFium's last error may be that of the file before; liteparse's is its own."""
    try:
        if parse_pdf(raw, 1, 1).total_pages == 0:
            return RefusedFileError("no_pages", "The PDF has no pages.")
    except ValueError as error:
        said = str(error)
    if "password" in said.lower():
        return RefusedFileError("encrypted", "The PDF opens with a password only.")
    return RefusedFileError("unreadable", f"PDFium: {said[:200]}")


def _read_page(document: PdfDocument, number: int, parsed: ParsedPage | None, ocr: Ocr | None, section: OcrSection) -> tuple[Page, list[Block]]:
    from pypdfium2 import PdfiumError

    text = "" if parsed is None else "".join(item.text for item in parsed.text_items)
    try:
        page = document[number - 1]
        width, height = page.get_size()
        if _is_text(text) and parsed is not None and not (_letters(text) < _FEWEST_LETTERS and _has_picture(page)):
            return Page(number, width, height), page_blocks(parsed, number)
        if not _has_picture(page) and not _is_garbled(text) and not _has_drawing(page):
            return Page(number, width, height), [] if parsed is None else page_blocks(parsed, number)
        if ocr is None:
            raise RefusedFileError("needs_ocr", f"Page {number} has no text layer, and data.ocr.engine is none.")
        return read_picture_page(draw_page(page, section.resolution), section.resolution, number, ocr)
    except PdfiumError as error:
        raise RefusedFileError("unreadable", f"PDFium, page {number}: {error}") from None


def draw_page(page: PdfPage, resolution: float) -> Image:
    """Draw a page, at fewer pixels an inch where it would pass `MOST_PIXELS`."""
    width, height = page.get_size()
    scale = resolution / POINTS_PER_INCH
    scale = min(scale, (MOST_PIXELS / max(width * height, 1.0)) ** 0.5)
    image: Image = page.render(scale=scale, grayscale=True).to_pil()
    return image


def read_picture_page(image: Image, resolution: float, number: int, ocr: Ocr) -> tuple[Page, list[Block]]:
    """Recognise one page that is a picture.

    Raises:
        BackendError: the OCR failed.
    """
    if image.getextrema() == (255, 255):
        return Page(number, image.width * POINTS_PER_INCH / resolution, image.height * POINTS_PER_INCH / resolution), []
    scan = read_scan(image, resolution, ocr)
    page = Page(number, scan.width, scan.height, is_scan=True, quarters=scan.turn.quarters, lean=scan.turn.lean)
    return page, lay_out(scan.words, scan.rules, scan.width, scan.height, number)


def read_picture(raw: bytes, ocr: Ocr | None, section: OcrSection, told: Told = lambda: None) -> tuple[list[Page], list[Block]]:
    """Read a picture file, a page for each frame of it.

    Raises:
        RefusedFileError: needs_ocr, truncated, too_large, no_pages or unreadable.
        BackendError: the OCR failed.
        MissingExtraError: Pillow is not installed.
    """
    if ocr is None:
        raise RefusedFileError("needs_ocr", "A picture has no text layer, and data.ocr.engine is none.")
    pages: list[Page] = []
    blocks: list[Block] = []
    for number, image in enumerate(frames(raw, section.max_pages), start=1):
        page, found = read_picture_page(flat_grey(image), resolution_of(image), number, ocr)
        pages.append(page)
        blocks += found
        told()
    return pages, blocks


def frames(raw: bytes, most: int) -> Iterator[Image]:
    """Yield the pictures in a picture file.

    Raises:
        RefusedFileError: truncated, too_large, no_pages or unreadable.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image as Pillow
        from PIL import ImageSequence
    except ImportError:
        raise MissingExtraError("pillow", "documents") from None
    Pillow.MAX_IMAGE_PIXELS = None  # ours is told apart from other errors
    try:
        with Pillow.open(io.BytesIO(raw)) as image:
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                if frame.width * frame.height > MOST_PIXELS:
                    raise RefusedFileError("too_large", f"{frame.width:,} x {frame.height:,} pixels; the most is {MOST_PIXELS:,}.")
                if number >= most:
                    raise RefusedFileError("too_large", f"More than {most:,} pictures in one file; data.ocr.max_pages is {most:,}.")
                if frame.width * frame.height == 0:
                    raise RefusedFileError("no_pages", "A picture without pixels.")
                frame.load()
                yield frame
    except RefusedFileError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001, RUF100 - a broken file raises nearly anything from its decoder
        reason: Reason = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "unreadable"
        raise RefusedFileError(reason, f"Pillow: {type(error).__name__}: {str(error)[:200]}") from None


def resolution_of(image: Image) -> float:
    """Return pixels an inch: what the picture says where that gives a page of 3 to 40 inches, else as if it were 8.27 wide (A4)."""
    said = image.info.get("dpi", (0, 0))[0]
    short = min(image.size)
    if said and 3 <= short / float(said) <= 40:
        return float(said)
    return max(short / 8.27, 1.0)


def _letters(text: str) -> int:
    return sum(not each.isspace() for each in text)


def _is_text(text: str) -> bool:
    return _letters(text) > 0 and not _is_garbled(text)


def _is_garbled(text: str) -> bool:
    """Whether more than a third of the letters have no meaning: private use, control or replacement characters."""
    letters = _letters(text)
    odd = sum(each == "\ufffd" or "\ue000" <= each <= "\uf8ff" or (each < " " and not each.isspace()) for each in text)
    return letters > 0 and odd > letters / 3


def _has_picture(page: PdfPage) -> bool:
    """Whether pictures cover more than a twentieth of the page."""
    import pypdfium2.raw as pdfium

    width, height = page.get_size()
    covered = 0.0
    for found in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=4):
        left, bottom, right, top = found.get_bounds()
        covered += abs(right - left) * abs(top - bottom)
    return bool(covered > 0.05 * width * height)


def _has_drawing(page: PdfPage) -> bool:
    """Whether the page has so many drawn shapes that they may be letters."""
    import pypdfium2.raw as pdfium

    return sum(1 for _ in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_PATH], max_depth=4)) > 200
