"""Ids: equal content, equal id; what happens later sorts later."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.entities import NOUNS, Document, Feedback, Record, content_id, new_id
from tunesmith.errors import DataError

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(JSON)
def test_equal_content_gives_an_equal_id_in_any_order_of_keys(value):
    def turned(node):
        if isinstance(node, dict):
            return {key: turned(node[key]) for key in reversed(node)}
        return [turned(item) for item in node] if isinstance(node, list) else node

    assert content_id("rec", value) == content_id("rec", turned(value))


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_other_content_gives_another_id(left, right):
    assert (content_id("rec", *left) == content_id("rec", *right)) == (left == right)


def test_the_parts_of_an_id_do_not_run_together():
    assert content_id("rec", "ab", "c") != content_id("rec", "a", "bc") != content_id("doc", "a", "bc")


def test_ids_of_what_happens_sort_by_time_and_are_version_7():
    ids = []
    for _ in range(5):
        ids += [new_id("prd") for _ in range(50)]
        time.sleep(0.002)
    milliseconds = [int(each.removeprefix("prd_")[:12], 16) for each in ids]
    assert milliseconds == sorted(milliseconds)
    assert abs(milliseconds[-1] - time.time() * 1000) < 1000
    assert all(each[16] == "7" and each[20] in "89ab" for each in ids)
    assert len(set(ids)) == len(ids)


def test_prefixes_are_distinct_and_nouns_are_frozen():
    assert len({noun.prefix for noun in NOUNS}) == len(NOUNS)
    document = Document(id="doc_1", source="a.csv", source_line=1, content_sha256="", text="t", label="l")
    with pytest.raises(ValidationError, match="frozen"):
        document.text = "other"


def test_frames_have_the_columns_of_their_noun():
    assert list(Record.frame_schema()) == list(Record.model_fields)
    assert str(Record.frame_schema()["source_line"]) == "Int64"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("boolean", "yes", "The value of a boolean must be a boolean. Received: 'yes'."),
        ("boolean", 1, "The value of a boolean must be a boolean. Received: 1."),
        ("float", True, "The value of a float must be a float. Received: True."),
        ("comment", 0.5, "The value of a comment must be text. Received: 0.5."),
        ("demonstration", "car", "A demonstration must be one of the labels: card; loan. Received: 'car'."),
    ],
)
def test_a_judgement_must_fit_its_kind(kind, value, message):
    with pytest.raises(DataError, match=message):
        Feedback.judge(("card", "loan"), prediction_id="prd_1", event_id="e", kind=kind, value=value, actor="")
