"""Agreement beyond chance, against worked examples that were published, and who decides."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.review.agreement import Decision, decide, krippendorff_alpha, measure_agreement


def table(*reviewers):
    """Rows are reviewers, characters are items; a dot is a missing label."""
    n_items = len(reviewers[0])
    return {str(item): {str(who): row[item] for who, row in enumerate(reviewers) if row[item] != "."} for item in range(n_items)}


@pytest.mark.parametrize(
    ("reviewers", "alpha"),
    [
        # Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: section A (binary), B (nominal), C (four observers, missing data)
        (("0100000010", "1110010000"), 0.095),
        (("aabbdcccedda", "babbbccceddd"), 0.692),
        (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
    ],
)
def test_published_worked_examples(reviewers, alpha):
    assert krippendorff_alpha(table(*reviewers)) == pytest.approx(alpha, abs=0.0005)


def test_perfect_agreement_is_one_and_one_label_only_is_undefined():
    assert krippendorff_alpha(table("abab", "abab")) == 1
    assert math.isnan(krippendorff_alpha(table("aaaa", "aaaa")))
    assert krippendorff_alpha(table("ab", "ba")) < 0


def test_items_with_one_label_say_nothing():
    with_single = table("abba", "abbb") | {"x": {"0": "c"}, "y": {}}
    assert krippendorff_alpha(with_single) == krippendorff_alpha(table("abba", "abbb"))
    assert (measure_agreement(with_single).n_items, measure_agreement(with_single).n_labels) == (4, 8)
    with pytest.raises(DataError, match="the labels of two reviewers"):
        krippendorff_alpha({"x": {"ann": "a"}})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from("abc.")), min_size=2, max_size=12), st.randoms())
def test_names_and_order_make_no_difference(rows, draw):
    labels = {str(item): {f"r{who}": label for who, label in enumerate(row) if label != "."} for item, row in enumerate(rows)}
    renamed = {f"x{item}": {f"q{who}": {"a": "z", "b": "y", "c": "x"}[label] for who, label in given.items()} for item, given in labels.items()}
    shuffled = list(renamed.items())
    draw.shuffle(shuffled)
    assert krippendorff_alpha(dict(shuffled)) == pytest.approx(krippendorff_alpha(labels), nan_ok=True)
    assert not krippendorff_alpha(labels) > 1


def test_the_interval_holds_the_value_and_narrows_with_more_items():
    widths = []
    for times in (1, 4, 16):
        found = measure_agreement(table("aabbabcabc" * times, "aabbabcacb" * times))
        assert found.low <= found.alpha <= found.high <= 1
        widths.append(found.high - found.low)
    assert all(before > after for before, after in pairwise(widths))
    assert measure_agreement(table("aab", "abb"), seed=1) == measure_agreement(table("aab", "abb"), seed=1)


@pytest.mark.parametrize(
    ("given_labels", "reviewers", "expected"),
    [
        ([], 1, Decision(None, "open", 1)),
        ([("ann", "x")], 1, Decision("x", "agreement", 0)),
        ([("ann", "x")], 2, Decision(None, "open", 1)),
        ([("ann", "x"), ("bob", "x")], 2, Decision("x", "agreement", 0)),
        ([("ann", "x"), ("bob", "y")], 2, Decision(None, "open", 1)),
        ([("ann", "x"), ("bob", "y"), ("eve", "y")], 2, Decision("y", "majority", 0)),
        ([("ann", "x"), ("bob", "y"), ("eve", "z")], 2, Decision(None, "open", 1)),
        ([("ann", "x"), ("bob", "y"), ("ann", "y")], 2, Decision("y", "agreement", 0)),
        ([("ann", "x"), ("bob", "x"), ("judge", "y")], 2, Decision("y", "adjudicator", 0)),
        ([("judge", "y"), ("ann", "x"), ("judge", "z")], 2, Decision("z", "adjudicator", 0)),
    ],
)
def test_a_third_is_asked_where_two_differ(given_labels, reviewers, expected):
    assert decide(given_labels, reviewers, frozenset({"judge"})) == expected
