import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evaluate.robustness import RATE, disturb, disturbances, robustness

TEXT = "The mortgage servicer lost two of my payments, and nobody at the office could tell me where they went. " * 5
KINDS = disturbances("classification", ["Mortgage", "Card"])


@given(st.text(min_size=1).filter(str.strip), st.sampled_from(sorted(KINDS)), st.integers(0, 5))
def test_a_disturbed_text_is_a_text_and_always_the_same(text, kind, seed):
    once, twice = disturb([text, text], KINDS[kind], seed)
    assert once == twice
    assert once.strip()


@pytest.mark.parametrize("kind", ["typos", "ocr_noise"])
def test_one_letter_in_twenty_is_disturbed(kind):
    disturbed = disturb([TEXT + str(number) for number in range(50)], KINDS[kind], 0)
    assert all(text != TEXT for text in disturbed)
    edits = np.mean([sum(a != b for a, b in zip(TEXT.split(), text.split(), strict=False)) / len(TEXT.split()) for text in disturbed])
    letters = np.mean([len(word) for word in TEXT.split()])
    assert 0 < edits < 1.2 * (1 - (1 - RATE) ** letters)


def test_each_disturbance_does_what_it_says():
    typed = {kind: disturb([TEXT], how, 0)[0] for kind, how in KINDS.items()}
    assert typed["case"] == TEXT.upper()
    assert typed["whitespace"].split() == TEXT.split()
    assert typed["whitespace"] != TEXT
    assert typed["injection"].startswith(TEXT)
    assert typed["injection"].endswith(("Mortgage", "Card"))
    assert typed["long"].endswith(TEXT)
    assert typed["short"].split() == TEXT.split()[:12]


def test_the_values_of_an_extraction_stay_in_the_text():
    for kind, how in disturbances("extraction", []).items():
        assert "mortgage" in disturb([TEXT], how, 0)[0], kind


def test_a_fall_is_measured_record_by_record():
    draw = np.random.default_rng(0)
    right = draw.random(400) < 0.8
    worse = right & (draw.random(400) < 0.7)
    answers = np.where(right, "a", "b")
    found = robustness((list(answers), right), {"typos": (list(np.where(worse, "a", "b")), worse), "case": (list(answers), right)})
    typos, case = found["disturbances"]["typos"], found["disturbances"]["case"]
    assert typos["change"]["difference"] == pytest.approx(worse.mean() - right.mean())
    assert typos["change"]["high"] < 0
    assert typos["change"]["p_value"] < 0.01
    assert typos["changed"]["value"] == pytest.approx((right != worse).mean())
    assert (case["change"]["difference"], case["change"]["p_value"], case["changed"]["value"]) == (0, 1, 0)


def test_other_records_are_refused():
    with pytest.raises(DataError, match="same records"):
        robustness((["a"], [1.0]), {"case": (["a", "b"], [1.0, 0.0])})
