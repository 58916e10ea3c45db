import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_documents import as_pdf, picture_of, prose, two_columns_pdf
from PIL import Image, ImageDraw

from tunesmith.data.blocks import Box, Word
from tunesmith.data.scan import Turn, find_rules, find_turn, flat_grey, read_scan


@pytest.fixture(scope="module")
def page():
    return picture_of(as_pdf(), resolution=100)


@given(lean=st.floats(-6, 6), quarters=st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_the_turn_that_makes_a_page_upright_is_found(page, lean, quarters):
    turned = page.rotate(lean, resample=Image.Resampling.BICUBIC, fillcolor=255, expand=True).rotate(90 * quarters, expand=True)
    turn = find_turn(turned)
    assert turn.lean == pytest.approx(-lean, abs=0.3)
    assert (turn.quarters + quarters) % 2 == 0


@pytest.mark.parametrize("quarters", range(4))
def test_prose_upside_down_is_seen_by_the_sharper_edge_of_its_lines(quarters):
    image = picture_of(as_pdf([("paragraph", prose(number, 8)) for number in range(4)]), resolution=100)
    assert find_turn(image.rotate(90 * quarters, expand=True)).quarters == (4 - quarters) % 4


def test_a_page_of_columns_is_not_taken_for_one_on_its_side():
    text = "some words that fill a narrow column of a page with more lines than columns are wide " * 8
    assert find_turn(picture_of(two_columns_pdf([[text], [text]]), resolution=100)).quarters == 0


def test_a_blank_page_is_left_alone():
    assert find_turn(Image.new("L", (400, 500), 255)) == Turn(0, 0.0)


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert np.asarray(flat_grey(image)).tolist() == [[255, 0]]


def test_ruled_lines_are_found_and_letters_are_not():
    image = Image.new("L", (600, 400), 255)
    draw = ImageDraw.Draw(image)
    draw.line((50, 100, 550, 100), 0, 2)
    draw.line((300, 50, 300, 350), 0, 3)
    draw.text((100, 200), "letters are not lines", 0)
    rules = find_rules(np.asarray(image) < 128, 100)
    assert len(rules) == 2
    assert rules[0] == pytest.approx((50, 100, 550, 100), abs=4)
    assert rules[1] == pytest.approx((300, 50, 300, 350), abs=4)


class Reads:
    """An engine that reads one way up only: the picture whose top left corner is dark."""

    def __init__(self):
        self.calls = 0

    def recognise(self, image):
        self.calls += 1
        is_upright = np.asarray(image)[:40, :40].mean() < 128
        return [Word("upright", Box(10, 20, 30, 40), 0.95 if is_upright else 0.3)]


def marked(page):
    copy = page.copy()
    ImageDraw.Draw(copy).rectangle((0, 0, 60, 60), fill=0)
    return copy


@pytest.mark.parametrize("quarters", range(4))
def test_a_page_is_turned_until_the_engine_is_sure(page, quarters):
    engine = Reads()
    scan = read_scan(marked(page).rotate(90 * quarters, expand=True), 100, engine)
    assert scan.words[0].confidence == 0.95
    assert scan.turn.quarters == (4 - quarters) % 4
    assert engine.calls <= 2


def test_words_come_in_points_of_the_upright_page(page):
    scan = read_scan(marked(page), 100, Reads())
    assert scan.words[0].box == pytest.approx((7.2, 14.4, 21.6, 28.8))
    assert (scan.width, scan.height) == pytest.approx((612, 792), abs=1)
