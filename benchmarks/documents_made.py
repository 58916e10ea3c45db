"""Pages made from a structure that is known: the truth of benchmarks/documents.py where documents bring none.

Sizes, fonts, rules, alignments and headings differ from document to document by its seed. The texts are real complaints.
"""

from __future__ import annotations

import csv
import io
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fpdf import FPDF
from PIL import Image, ImageFilter

COMPLAINTS = Path(__file__).parents[1] / "tests" / "fixtures" / "complaints.csv"
NEXT = {"new_x": "LMARGIN", "new_y": "NEXT"}


@dataclass
class Made:
    """A document and what is in it."""

    pdf: bytes = b""
    tables: list[list[list[str]]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    text: str = ""


def sentences() -> list[str]:
    """Return sentences of real complaints, without their redactions."""
    with COMPLAINTS.open(encoding="utf-8", newline="") as file:
        texts = [row[0] for row in csv.reader(file)][1:]
    found = [" ".join(part.split()) for text in texts for part in re.split(r"(?<=[.!?])\s+", text)]
    return [part for part in found if 30 <= len(part) <= 220 and "XX" not in part and part.isascii()]


def make_document(seed: int, pool: list[str]) -> Made:
    """Make one to three pages of headings, paragraphs, lists, keys with values, and tables."""
    draw, made = random.Random(seed), Made()
    family, size = draw.choice(("Helvetica", "Times")), draw.choice((9, 10, 11))
    grows, bold, numbered = draw.choice((1.0, 1.15, 1.3, 1.6)), draw.random() < 0.8, draw.random() < 0.5
    bold = bold or grows == 1.0  # a heading in the size and weight of the text cannot be told from it
    header = draw.choice(("", "Quarterly report"))
    pdf = FPDF(format=draw.choice(("letter", "a4")), unit="pt")
    pdf.set_margin(draw.choice((50, 60, 72)))
    pdf.set_auto_page_break(True, 60)
    pdf.add_page()
    if header:
        pdf.set_font(family, "", 8)
        pdf.cell(0, 14, header, align="R", **NEXT)
        pdf.ln(8)
    for number in range(1, draw.randint(4, 7)):
        text = " ".join(draw.choice(pool).split()[: draw.randint(1, 5)]).strip(".,;:!? ").capitalize()
        text = f"{number}. {text}" if numbered else text
        if pdf.get_y() > pdf.h - 160:
            pdf.add_page()
        pdf.set_font(family, "B" if bold else "", size * grows * (1.2 if number == 1 else 1))
        pdf.cell(0, 2 * size * grows, text, **NEXT)
        made.headings.append(text)
        for kind in draw.sample(("paragraph", "paragraph", "table", "list", "keys"), k=draw.randint(1, 3)):
            pdf.set_font(family, "", size)
            _KINDS[kind](pdf, made, draw, pool, family, size)
            pdf.ln(size)
    made.pdf = bytes(pdf.output())
    return made


def _paragraph(pdf: FPDF, made: Made, draw: random.Random, pool: list[str], family: str, size: float) -> None:
    pdf.multi_cell(0, 1.35 * size, " ".join(draw.sample(pool, draw.randint(3, 6))), align=draw.choice(("L", "J")), **NEXT)


def _list(pdf: FPDF, made: Made, draw: random.Random, pool: list[str], family: str, size: float) -> None:
    for number in range(draw.randint(2, 5)):
        marker = draw.choice(("-", f"{number + 1}."))
        pdf.cell(0, 1.4 * size, f"{marker} {' '.join(draw.choice(pool).split()[:7])}", **NEXT)


def _keys(pdf: FPDF, made: Made, draw: random.Random, pool: list[str], family: str, size: float) -> None:
    for key in draw.sample(("Account", "Opened on", "Branch", "Total due", "Reference", "Owner"), draw.randint(3, 5)):
        pdf.cell(110, 1.4 * size, f"{key}:")
        pdf.cell(0, 1.4 * size, str(draw.randint(1000, 99999)), **NEXT)


def _table(pdf: FPDF, made: Made, draw: random.Random, pool: list[str], family: str, size: float) -> None:
    n_columns, n_rows = draw.randint(3, 6), draw.randint(4, 10)
    rows = [["Name", *draw.sample(("Amount", "Rate", "Count", "Share", "Fee", "Year"), n_columns - 1)]]
    for _ in range(n_rows):
        name = " ".join(draw.choice(pool).split()[: draw.randint(1, 2)]).strip(".,;:()\"'") or "Name"
        rows.append([name, *(draw.choice((f"{draw.uniform(0, 9000):,.2f}", str(draw.randint(1, 2030)), f"{draw.uniform(0, 30):.1f}%")) for _ in rows[0][1:])])
    if pdf.get_y() + 1.6 * size * len(rows) > pdf.h - 70:
        pdf.add_page()
    borders, bold = draw.choice(("ALL", "HORIZONTAL_LINES", "NONE", "SINGLE_TOP_LINE")), draw.random() < 0.6
    align = ("LEFT", *([draw.choice(("RIGHT", "LEFT"))] * (n_columns - 1)))
    with pdf.table(borders_layout=borders, line_height=1.6 * size, text_align=align, first_row_as_headings=bold) as table:
        for cells in rows:
            row = table.row()
            for cell in cells:
                row.cell(cell)
    made.tables.append(rows)


_KINDS = {"paragraph": _paragraph, "list": _list, "keys": _keys, "table": _table}


def make_page(seed: int, pool: list[str]) -> Made:
    """Make a dense page of prose, for the OCR."""
    draw = random.Random(seed)
    pdf = FPDF(format="letter", unit="pt")
    pdf.set_margin(60)
    pdf.set_auto_page_break(False)
    pdf.add_page()
    size = draw.choice((10, 11, 12))
    pdf.set_font(draw.choice(("Helvetica", "Times")), "", size)
    said = []
    while pdf.get_y() < pdf.h - 160:
        text = " ".join(draw.sample(pool, 4))
        pdf.multi_cell(0, 1.35 * size, text, **NEXT)
        pdf.ln(size)
        said.append(text)
    return Made(pdf=bytes(pdf.output()), text=" ".join(said))


def scan(pdf: bytes, seed: int, quarters: int = 0, resolution: int = 200) -> bytes:
    """Return a JPEG of the first page as a scanner gives it: it leans by up to 2 degrees, is blurred, noisy and packed hard."""
    import pypdfium2

    draw = random.Random(seed)
    document = pypdfium2.PdfDocument(pdf)
    image = document[0].render(scale=resolution / 72).to_pil().convert("L")
    document.close()
    image = image.rotate(draw.uniform(-2, 2), resample=Image.Resampling.BICUBIC, fillcolor=255).filter(ImageFilter.GaussianBlur(draw.uniform(0.4, 0.9)))
    pixels = np.asarray(image, dtype=np.float32) + np.random.default_rng(seed).normal(0, draw.uniform(4, 16), (image.height, image.width))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).rotate(90 * quarters, expand=True)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=60, dpi=(resolution, resolution))
    return out.getvalue()
