"""Draws a page with its blocks over it, coloured by kind, for people to see what was read.

    heading red | paragraph blue | list green | table orange | key_value purple

Each block has its number in reading order. Page and boxes agree because the picture of a scan is turned as it was turned
for the OCR.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import polars as pl

from tunesmith.data.formats import find_format
from tunesmith.data.pdf import draw_page, frames, resolution_of
from tunesmith.data.scan import POINTS_PER_INCH, Turn, flat_grey
from tunesmith.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {"heading": (200, 30, 30), "paragraph": (40, 90, 200), "list": (20, 140, 60), "table": (220, 130, 0), "key_value": (140, 40, 160)}
"""Kind of block -> red, green, blue."""


def page_picture(raw: bytes, name: str, page: int, pages: pl.DataFrame, blocks: pl.DataFrame, *, width: int = 900) -> bytes:
    """Draw one page of a PDF or picture file.

    Args:
        raw: The file, as it was read.
        name: Its name.
        page: Its number, counted from 1.
        pages: Columns of `folder.PAGE_SCHEMA`, of this document.
        blocks: Columns of `blocks.block_schema()`, of this document.
        width: Of the picture, in pixels.

    Returns:
        A PNG.

    Raises:
        DataError: the document has no such page, or its format has no pages.
        MissingExtraError: Pillow or pypdfium2 is not installed.
    """
    row = pages.filter(page=page).to_dicts()
    if not row or not row[0]["width"]:
        raise DataError(
            f"{name}: page must be one that can be drawn. Received: {page}; pages with a size: {pages.filter(pl.col('width') > 0)['page'].to_list()}."
        )
    shown = row[0]
    image = Turn(shown["quarters"], shown["lean"]).apply(_page_image(raw, name, page)).convert("RGB")
    image = image.resize((width, max(1, round(width * image.height / image.width))))
    _draw(image, blocks.filter(page=page).sort("position"), width / shown["width"])
    out = io.BytesIO()
    image.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def _page_image(raw: bytes, name: str, page: int) -> Image:
    if find_format(raw, name) == "picture":
        frame = next(image for number, image in enumerate(frames(raw, page), start=1) if number == page)
        return _at_most(flat_grey(frame), resolution_of(frame))
    try:
        from pypdfium2 import PdfDocument
    except ImportError:
        raise MissingExtraError("pypdfium2", "documents") from None
    document = PdfDocument(raw)
    try:
        return draw_page(document[page - 1], 2 * POINTS_PER_INCH)
    finally:
        document.close()


def _at_most(image: Image, resolution: float) -> Image:
    """Shrink a scan to what a screen shows."""
    scale = min(1.0, 2 * POINTS_PER_INCH / resolution)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _draw(image: Image, blocks: pl.DataFrame, scale: float) -> None:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    veil = Pillow.new("RGBA", image.size)
    draw = ImageDraw.Draw(veil)
    for number, kind, *box in blocks.select("position", "kind", "x0", "y0", "x1", "y1").iter_rows():
        if None in box:
            continue
        x0, y0, x1, y1 = (scale * value for value in box)
        colour = COLOURS[kind]
        draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), fill=(*colour, 36), outline=(*colour, 255), width=2)
        label = str(number + 1)
        left = max(0, x0 - 9 - 7 * len(label))  # beside the block, so that it hides no letter
        draw.rectangle((left, y0 - 2, left + 6 + 7 * len(label), y0 + 11), fill=(*colour, 255))
        draw.text((left + 3, y0 - 2), label, fill="white")
    image.paste(Pillow.alpha_composite(image.convert("RGBA"), veil).convert("RGB"))
