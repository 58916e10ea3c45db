import io

import numpy as np
import polars as pl
import pytest
from known_documents import as_html, as_pdf, as_scan
from ocr_stand_in import analysis, ocr_service
from PIL import Image

from tunesmith.data.folder import read_folder
from tunesmith.data.page_picture import COLOURS, page_picture
from tunesmith.data.settings import OcrSection
from tunesmith.errors import DataError


def drawn(raw, name, folder, section=None, page=1):
    (folder / name).write_bytes(raw)
    found = read_folder(name, section or OcrSection(engine="none"), root=folder)
    picture = page_picture(raw, name, page, found.pages, found.blocks)
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int), found


def near(pixels, colour):
    return np.abs(pixels - np.array(colour)).sum(axis=2) < 60


def test_each_kind_of_block_is_framed_in_its_colour_where_it_stands(tmp_path):
    pixels, found = drawn(as_pdf(), "a.pdf", tmp_path)
    assert pixels.shape == (1165, 900, 3)
    scale = 900 / 612
    for kind, x0, x1, y1 in found.blocks.select("kind", "x0", "x1", "y1").iter_rows():
        frame = near(pixels, COLOURS[kind])
        row = frame[round(y1 * scale + 2) - 1 : round(y1 * scale + 2) + 2, round(x0 * scale) : round(x1 * scale)].any(axis=0)
        assert row.mean() > 0.9, kind


def test_the_picture_of_a_scan_is_turned_as_its_boxes_are(tmp_path):
    scan = as_scan(as_pdf(), quarters=1, lean=0, noise=0, resolution=100)
    with ocr_service([(200, analysis([("Yearly", 100, 100, 300, 150, 0.9)], 1000, 1300), {})]) as (url, _):
        pixels, found = drawn(scan, "a.jpg", tmp_path, OcrSection(engine="http", url=url))
    (page,) = found.pages.to_dicts()
    assert page["quarters"] in (1, 3)
    assert page["height"] > page["width"]
    assert pixels.shape[0] > pixels.shape[1]
    assert near(pixels, COLOURS["paragraph"]).any() or near(pixels, COLOURS["heading"]).any()


def test_a_page_that_is_not_there_or_has_no_size(tmp_path):
    with pytest.raises(DataError, match=r"page must be one that can be drawn. Received: 2; pages with a size: \[1\]"):
        drawn(as_pdf(), "a.pdf", tmp_path, page=2)
    with pytest.raises(DataError, match=r"a\.html: page must be one that can be drawn"):
        drawn(as_html(), "a.html", tmp_path)


def test_blocks_of_other_pages_are_not_drawn(tmp_path):
    (tmp_path / "a.pdf").write_bytes(as_pdf())
    found = read_folder("a.pdf", OcrSection(engine="none"), root=tmp_path)
    moved = found.blocks.with_columns(page=pl.lit(2, dtype=pl.Int64))
    plain = np.asarray(Image.open(io.BytesIO(page_picture(as_pdf(), "a.pdf", 1, found.pages, moved))).convert("RGB")).astype(int)
    assert not any(near(plain, colour).any() for colour in COLOURS.values())
