import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.json_answers import AnswerRule, answer_values, check_schema, parse_answer, plain, why_invalid, write_answer

SCHEMA = {
    "type": "object",
    "properties": {
        "person": {"type": "array", "items": {"type": "string"}},
        "bank": {"type": "string"},
        "amount": {"type": "number"},
        "years": {"type": "integer"},
        "secured": {"type": "boolean"},
        "kind": {"type": "string", "enum": ["term", "revolving"]},
    },
}

answers = st.fixed_dictionaries(
    {},
    optional={
        "person": st.lists(st.text(max_size=8), max_size=3),
        "bank": st.text(max_size=8),
        "amount": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "years": st.integers(),
        "secured": st.booleans(),
        "kind": st.sampled_from(["term", "revolving"]),
    },
)


@given(answers)
def test_what_is_written_is_read_again(answer):
    written = write_answer(SCHEMA, answer)
    read = parse_answer(SCHEMA, written)
    assert read is not None
    assert list(read) == list(SCHEMA["properties"])
    assert write_answer(SCHEMA, read) == written
    assert {name: value for name, value in read.items() if value not in (None, [])} == {name: value for name, value in answer.items() if value != []}
    assert why_invalid(SCHEMA, written) == ""


@given(st.text(max_size=40))
def test_any_text_is_judged_without_an_error(text):
    assert (parse_answer(SCHEMA, text) is None) == bool(why_invalid(SCHEMA, text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"person": "Ann"}',
        '{"amount": "12"}',
        '{"years": 1.5}',
        '{"secured": 1}',
        '{"years": true}',
        '{"kind": "other"}',
        '{"name": "x"}',
        "{" * 99_999,
    ],
)
def test_what_is_no_answer_of_the_schema_is_none(text):
    assert parse_answer(SCHEMA, text) is None


def test_every_element_of_a_list_is_a_value_and_empty_ones_are_none():
    answer = parse_answer(SCHEMA, json.dumps({"person": ["Ann", ""], "years": 3, "bank": ""}))
    assert answer_values(answer) == [("person", "Ann"), ("years", "3")]


def test_only_words_are_looked_for_in_the_source():
    assert AnswerRule(SCHEMA).values('{"person": ["Ann"], "amount": 1000, "kind": "term", "bank": "SVB"}') == ["Ann", "SVB"]


def test_case_white_space_and_quotes_make_no_difference():
    assert plain("  Ann\u2019s\n BANK ") == plain("ann's bank")


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ({}, "must be an object with properties"),
        ({"type": "object", "properties": {}}, "must be an object with properties"),
        ({"type": "object", "properties": {"a": {"type": "object"}}}, "property a of json_schema"),
        ({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}}, "property a of json_schema"),
        ({"type": "object", "properties": {"a": "string"}}, "property a of json_schema"),
    ],
)
def test_a_schema_that_answers_cannot_be_written_for_is_refused(schema, rule):
    with pytest.raises(ValueError, match=rule):
        check_schema(schema)
