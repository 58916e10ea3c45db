import io
import json
import zipfile

import pytest
from known_documents import STRUCTURE, as_docx, as_html, as_mail, as_pdf, as_text, new_pdf, png, prose, two_columns_pdf
from PIL import Image

from tunesmith.data.blocks import BLOCK_KINDS
from tunesmith.data.documents import ReadDocument, Refused, read_document
from tunesmith.data.formats import REASONS, SUFFIXES
from tunesmith.data.settings import OcrSection


def blocks_of(raw, name):
    read = read_document(raw, name)
    assert isinstance(read, ReadDocument), read
    return read.blocks


def found_structure(blocks):
    """Blocks in the form of STRUCTURE."""
    made = []
    for block in blocks:
        if block.kind == "heading":
            made.append(("heading", (block.level, block.text)))
        elif block.kind == "list":
            made.append(("list", [line.lstrip("- ") for line in block.text.split("\n")]))
        elif block.kind == "table":
            made.append(("table", [list(row) for row in block.cells]))
        elif block.kind == "key_value":
            made.append(("key_value", [(key.rstrip(":"), value) for key, value in block.cells]))
        else:
            made.append(("paragraph", block.text))
    return made


@pytest.mark.parametrize(("make", "name"), [(as_pdf, "a.pdf"), (as_docx, "a.docx"), (as_html, "a.html")])
def test_a_known_structure_is_found_again_in_reading_order(make, name):
    assert found_structure(blocks_of(make(), name)) == STRUCTURE


def test_markdown_text_keeps_its_structure_without_tables():
    assert found_structure(blocks_of(as_text(), "a.md")) == [part for part in STRUCTURE if part[0] != "table"]


def test_pdf_blocks_have_boxes_on_the_page_one_below_the_other_and_full_confidence():
    read = read_document(as_pdf(), "a.pdf")
    (page,) = read.pages
    assert (page.number, page.width, page.height, page.is_scan) == (1, 612, 792, False)
    for block in read.blocks:
        assert 0 <= block.box.x0 < block.box.x1 <= page.width
        assert 0 <= block.box.y0 < block.box.y1 <= page.height
        assert (block.page, block.confidence) == (1, 1.0)
    tops = [block.box.y0 for block in read.blocks]
    assert tops == sorted(tops)
    assert read.confidence == 1.0


@pytest.mark.parametrize(("make", "name"), [(as_docx, "a.docx"), (as_html, "a.html"), (as_mail, "a.eml"), (as_text, "a.txt")])
def test_formats_without_pages_have_no_boxes(make, name):
    read = read_document(make(), name)
    assert len(read.pages) == 1
    assert {(block.page, block.box) for block in read.blocks} == {(1, None)}


def test_two_columns_are_read_one_after_the_other():
    columns = [[prose(10 * column + number, 4) for number in range(3)] for column in range(2)]
    assert [block.text for block in blocks_of(two_columns_pdf(columns), "a.pdf")] == [text for column in columns for text in column]


def test_characters_that_mean_something_in_markdown_come_through():
    text = "Stars *a* and **b**, under_scores_, a back\\slash, pipes | and [links](x) & <tags>, 5 * 3 = 15."
    assert [block.text for block in blocks_of(as_pdf([("paragraph", text)]), "a.pdf")] == [text]


def test_words_parted_at_the_end_of_a_line_are_made_whole():
    text = "The inter-\nnational bank paid a co-\nOperation and went on to do many other things."
    assert blocks_of(as_pdf([("paragraph", text)]), "a.pdf")[0].text.startswith("The international bank paid a co-Operation and")


def test_pages_are_counted_from_one():
    pdf = new_pdf()
    pdf.set_font("Helvetica", "", 10)
    for number in range(3):
        pdf.multi_cell(0, 14, f"Page {number} says this.")
        pdf.add_page()
    read = read_document(bytes(pdf.output()), "a.pdf")
    assert [page.number for page in read.pages] == [1, 2, 3, 4]
    assert [block.page for block in read.blocks] == [1, 2, 3]


def test_what_was_filled_in_a_form_is_read_as_keys_with_values():
    (form,) = [block for block in blocks_of(filled_form(), "a.pdf") if block.kind == "key_value"]
    assert form.cells == (("Holder of the account:", "Ann Lee"), ("married:", "yes"))


def filled_form():
    """A PDF with one text field and two boxes, the second of which is ticked; written by hand, as no library here does it."""
    field = "<</Type/Annot/Subtype/Widget/Rect[100 {0} 300 {1}]/P 3 0 R{2}>>"
    objects = [
        "<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R 5 0 R 6 0 R]>>>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Annots[4 0 R 5 0 R 6 0 R]>>",
        field.format(700, 720, "/FT/Tx/T(page.holder[0])/TU(Holder of the account)/V(Ann Lee)"),
        field.format(660, 680, "/FT/Btn/T(retired)/V/Off/AS/Off/AP<</N<</Yes 7 0 R/Off 7 0 R>>>>"),
        field.format(620, 640, "/FT/Btn/T(page.married[0])/V/Yes/AS/Yes/AP<</N<</Yes 7 0 R/Off 7 0 R>>>>"),
        "<</Type/XObject/Subtype/Form/BBox[0 0 20 20]/Length 0>>stream\n\nendstream",
    ]
    body, offsets = "%PDF-1.7\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    return (body + f"xref\n0 8\n0000000000 65535 f \n{table}trailer\n<</Size 8/Root 1 0 R>>\nstartxref\n{len(body)}\n%%EOF\n").encode()


def test_html_keeps_loose_text_nested_lists_and_spans_and_leaves_out_scripts():
    page = b"""<html><body>loose <!-- no -->text<div>in <span>a</span> div</div><ul><li>a<ul><li>b</ul><li>c</ul><ol><li>x<li>y</ol>
    <table><tr><td colspan=2>wide<td>z<tr><td>1<td>2<td>3</table><pre>a
  b</pre><script>bad()</script><p>line<br>break</body></html>"""
    blocks = blocks_of(page, "a.html")
    assert [block.text for block in blocks] == ["loose text", "in a div", "- a\n  - b\n- c", "1. x\n2. y", "wide |  | z\n1 | 2 | 3", "a\n  b", "line\nbreak"]
    assert blocks[4].cells == (("wide", "", "z"), ("1", "2", "3"))


def test_a_table_that_lays_out_a_page_is_no_table():
    page = b"<table><tr><td><h2>Head</h2><p>text</td><td><table><tr><td>1<td>2</table></td></tr></table>"
    assert [block.kind for block in blocks_of(page, "a.html")] == ["heading", "paragraph", "table"]


def test_html_that_nests_very_deep_is_read():
    assert blocks_of(b"<html>" + b"<div>" * 5_000 + b"deep", "a.html")[0].text == "deep"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("caf\u00e9".encode("cp1252"), "caf\u00e9"),
        ("caf\u00e9".encode(), "caf\u00e9"),
        ("\ufeffcaf\u00e9".encode(), "caf\u00e9"),
        (b"\xff\xfe" + "caf\u00e9".encode("utf-16-le"), "caf\u00e9"),
    ],
)
def test_text_is_decoded(raw, text):
    assert [block.text for block in blocks_of(raw, "a.txt")] == [text]


def test_html_is_decoded_as_it_says():
    page = '<html><head><meta charset="iso-8859-2"></head><body><p>\u0142\u00f3d\u017a</p></body></html>'
    assert blocks_of(page.encode("iso-8859-2"), "a.html")[0].text == "\u0142\u00f3d\u017a"


def test_mail_gives_subject_headers_body_and_the_names_of_attachments():
    blocks = blocks_of(as_mail(attachments=[("terms.pdf", b"123")]), "a.eml")
    assert [(block.kind, block.text) for block in blocks] == [
        ("heading", "A question about the charge"),
        ("key_value", "From: Ann <ann@example.org>\nTo: bo@example.org\nDate: Mon, 02 Mar 2026 10:00:00 +0000"),
        ("paragraph", "One paragraph."),
        ("paragraph", "Another one."),
        ("heading", "Attachments"),
        ("list", "- terms.pdf (application/octet-stream, 3 bytes)"),
    ]


def test_mail_prefers_the_plain_body_and_reads_html_where_there_is_no_other():
    both = blocks_of(as_mail(body="plain", html_body="<p>rich</p>"), "a.eml")
    assert [block.text for block in both][2:] == ["plain"]
    only = blocks_of(as_mail(body=None, html_body="<h2>Rich</h2><p>caf\u00e9"), "a.eml")
    assert [(block.kind, block.text) for block in only][2:] == [("heading", "Rich"), ("paragraph", "caf\u00e9")]


def test_docx_keeps_merged_cells_numbers_insertions_and_drops_deletions():
    import docx
    from docx.oxml import parse_xml

    document = docx.Document()
    for text in ("one", "two"):
        document.add_paragraph(text, style="List Number")
    table = document.add_table(2, 3)
    for row in range(2):
        for column in range(3):
            table.cell(row, column).text = f"{row}{column}"
    table.cell(0, 1).merge(table.cell(0, 2))
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    tracked = f"<w:p {w}><w:ins><w:r><w:t>new </w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del><w:r><w:t>text</w:t></w:r></w:p>"
    document.element.body.insert(-1, parse_xml(tracked))
    control = f"<w:sdt {w}><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(-1, parse_xml(control))
    out = io.BytesIO()
    document.save(out)
    blocks = blocks_of(out.getvalue(), "a.docx")
    assert [block.text for block in blocks] == ["1. one\n2. two", "00 | 01 02 | \n10 | 11 | 12", "new text", "in a control"]


def test_halves_of_surrogate_pairs_and_zero_characters_are_replaced():
    read = read_document(b"Subject: =?unicode_escape?q?=5Cud800?=\nFrom: a@b\nTo: c@d\n\nbody", "a.eml")
    read.text.encode("utf-8")
    assert "\x00" not in read_document("\ufeffa\x00b".encode("utf-16-le"), "a.txt").text


# --- refusals ---------------------------------------------------------------------------------------------------------


def zip_of(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def pdf_without_pages():
    return as_pdf().replace(b"/Kids [3 0 R]", b"/Kids []     ").replace(b"/Count 1", b"/Count 0")


OFFICE_ENCRYPTED = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le") + bytes(600)
REFUSALS = [
    ("encrypted", "a.pdf", lambda: as_pdf(encrypted=True)),
    ("encrypted", "a.docx", lambda: OFFICE_ENCRYPTED),
    ("truncated", "a.pdf", lambda: as_pdf()[:-900]),
    ("truncated", "a.docx", lambda: as_docx()[:-900]),
    ("truncated", "a.png", lambda: png(Image.effect_noise((300, 300), 50))[:-900]),
    ("no_pages", "a.pdf", pdf_without_pages),
    ("no_pages", "a.txt", lambda: b""),
    ("zip_bomb", "a.docx", lambda: zip_of({"word/document.xml": bytes(40_000_000)})),
    ("mislabelled", "a.pdf", lambda: b"Just some text, not a PDF at all."),
    ("mislabelled", "a.docx", as_pdf),
    ("mislabelled", "a.txt", as_pdf),
    ("mislabelled", "a.docx", lambda: zip_of({"xl/workbook.xml": "<x/>"})),
    ("too_large", "a.pdf", lambda: as_pdf() + bytes(2**20)),
    ("unreadable", "a.pdf", lambda: b"%PDF-1.7\nrubbish\n%%EOF"),
    ("unreadable", "a.docx", lambda: zip_of({"word/document.xml": "<x"})),
    ("unreadable", "a.png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100)),
    ("unknown_format", "a.xyz", lambda: bytes(range(256))),
    ("rows_file", "a.csv", lambda: b"text,label\na,b\n"),
    ("needs_ocr", "a.png", lambda: png(Image.new("L", (100, 100)))),
]  # fmt: skip


class Silent:
    """An OCR that finds nothing."""

    def recognise(self, image):
        return []


@pytest.mark.parametrize(("reason", "name", "make"), REFUSALS)
def test_a_bad_file_is_refused_with_its_reason(reason, name, make):
    ocr = None if reason == "needs_ocr" else Silent()
    refused = read_document(make(), name, ocr, OcrSection(max_file_mib=1))
    assert isinstance(refused, Refused)
    assert refused.reason == reason
    assert refused.evidence


def test_every_reason_that_one_process_can_find_is_tested_here():
    assert {reason for reason, *_ in REFUSALS} == set(REASONS) - {"timed_out", "out_of_memory", "crashed"}


def test_a_name_decides_between_texts_only():
    assert read_document(as_html(), "a.txt").format == "text"
    assert read_document(as_html(), "no_suffix").format == "html"
    assert read_document(as_mail(), "no_suffix").format == "eml"
    assert read_document(as_pdf(), "no_suffix").format == "pdf"
    assert read_document(as_docx(), "no_suffix").format == "docx"
    assert set(SUFFIXES.values()) == {"pdf", "docx", "picture", "html", "eml", "text"}


def test_a_file_without_text_is_read_and_has_no_block():
    assert read_document(as_pdf([]), "a.pdf").blocks == ()
    assert read_document(b"<html></html>", "a.html").text == ""


def test_too_many_pages_are_refused():
    pdf = new_pdf()
    for _ in range(3):
        pdf.add_page()
    assert read_document(bytes(pdf.output()), "a.pdf", None, OcrSection(max_pages=3)).reason == "too_large"


def test_cells_and_kinds_are_what_the_schema_says():
    for block in blocks_of(as_pdf(), "a.pdf"):
        assert block.kind in BLOCK_KINDS
        assert (block.cells is not None) == (block.kind in ("table", "key_value"))
        assert (block.level is not None) == (block.kind == "heading")
        json.dumps(block.cells)
