import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_documents import STRUCTURE, as_pdf, prose, two_columns_pdf

from tunesmith.data.blocks import Box, Rule, Word
from tunesmith.data.layout import lay_out, parse_pdf
from tunesmith.data.pdf import read_pdf
from tunesmith.data.settings import OcrSection
from tunesmith.data.typeset import _WIDTHS, typeset

WORD = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=8)


def words_of(pdf, confidence=1.0):
    """The words of a PDF as an OCR would give them: boxes end where letters end."""
    import pypdfium2

    document = pypdfium2.PdfDocument(pdf)
    page = document[0]
    height = page.get_height()
    text_page = page.get_textpage()
    words, letters, boxes = [], "", []
    for at in range(text_page.count_chars() + 1):
        letter = text_page.get_text_range(at, 1) if at < text_page.count_chars() else " "
        if letter.isspace() or not letter:
            if letters:
                x0, y0, x1, y1 = (edge(values) for edge, values in zip((min, min, max, max), zip(*boxes, strict=True), strict=True))
                words.append(Word(letters, Box(x0, height - y1, x1, height - y0), confidence))
            letters, boxes = "", []
        else:
            letters += letter
            boxes.append(text_page.get_charbox(at))
    document.close()
    return words


def described(blocks):
    return [(block.kind, block.level, block.text) for block in blocks]


def test_words_alone_give_the_same_blocks_as_the_text_layer_where_lines_are_not_needed():
    structure = [part for part in STRUCTURE if part[0] != "table"]
    _, blocks = read_pdf(as_pdf(structure), None, OcrSection())
    assert described(lay_out(words_of(as_pdf(structure)), [], 612, 792)) == described(blocks)


def test_words_in_two_columns_are_read_one_after_the_other():
    columns = [[prose(10 * column + number, 4) for number in range(3)] for column in range(2)]
    blocks = lay_out(words_of(two_columns_pdf(columns)), [], 612, 792)
    assert [block.text for block in blocks] == [text for column in columns for text in column]


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.1, 0.15, 0.3])
def test_words_that_stand_close_stay_apart(gap):
    said, size, x, words = "record the first track will play in perfect sync", 10.0, 60.0, []
    for text in said.split():
        width = size * sum(_WIDTHS[ord(letter) - 33] for letter in text) / 1000
        words.append(Word(text, Box(x, 60, x + width, 60 + (0.93 if "p" in text else 0.72) * size)))
        x += width + gap * size
    (block,) = lay_out(words, [], 612, 792)
    assert block.text == said


def test_words_between_ruled_lines_are_a_table():
    words = [Word(f"c{row}{column}", Box(60 + 150 * column, 60 + 30 * row, 90 + 150 * column, 70 + 30 * row)) for row in range(4) for column in range(3)]
    rules = [Rule(50, 50 + 30 * row, 500, 50 + 30 * row) for row in range(5)] + [Rule(50 + 150 * column, 50, 50 + 150 * column, 170) for column in range(4)]
    (table,) = lay_out(words, rules, 612, 792)
    assert table.cells == tuple(tuple(f"c{row}{column}" for column in range(3)) for row in range(4))


def test_a_block_has_the_confidence_of_its_words_by_length():
    words = [Word("sure", Box(60, 60, 90, 70), 1.0), Word("unsure", Box(100, 60, 140, 70), 0.5), Word("far", Box(60, 400, 90, 410), 0.1)]
    near, far = lay_out(words, [], 612, 792)
    assert near.confidence == pytest.approx((4 * 1.0 + 6 * 0.5) / 10)
    assert far.confidence == pytest.approx(0.1)


def test_no_words_no_blocks():
    assert lay_out([], [Rule(0, 0, 100, 0)], 612, 792) == []


@given(st.lists(WORD, min_size=1, max_size=20))
@settings(deadline=None, max_examples=60)
def test_each_character_of_any_script_comes_through(texts):
    words = [Word(text, Box(60, 60 + 30 * row, 60 + 6 * len(text), 70 + 30 * row), 0.9) for row, text in enumerate(texts)]
    blocks = lay_out(words, [], 612, 792)
    found, wanted = (Counter("".join("".join(parts).split())) for parts in ([block.text for block in blocks], texts))
    # liteparse writes dashes and quotation marks as ASCII has them; brackets turn round in right-to-left text, whose letters
    # with marks may be taken apart; a dash at the end of a line may go.
    assert {letter: count for letter, count in ((wanted - found) + (found - wanted)).items() if not may_differ(letter)} == {}
    assert all(0 <= block.confidence <= 1 for block in blocks)


def may_differ(letter):
    is_mark = unicodedata.category(letter) in ("Pd", "Pi", "Pf") or letter in "'\",\u201a\u201e\u2032\u2212"
    return is_mark or unicodedata.mirrored(letter) or unicodedata.bidirectional(letter) in ("AL", "NSM")


@pytest.mark.parametrize(
    "text", ["\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u65e5\u672c\u8a9e", "\ufb01nd", "\U00010000a", "\u2163", "e\u0301", "\ue000x"]
)
def test_words_of_other_scripts_keep_their_letters_in_order(text):
    assert [block.text for block in lay_out([Word(text, Box(60, 60, 60 + 8 * len(text), 70))], [], 612, 792)] == [text]


def test_the_page_is_a_pdf_of_its_size():
    (page,) = parse_pdf(typeset([], [], 300, 500)[0]).pages
    assert (page.width, page.height, page.text.strip()) == (300, 500, "")
