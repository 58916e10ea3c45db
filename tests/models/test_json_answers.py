import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.json_answers import AnswerRule, answer_values, check_schema, held_by, parse_answer, plain, stated_in, why_invalid, write_answer

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


spacings = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}])


@given(answers, spacings)
def test_what_an_answer_states_stands_where_it_says(answer, spacing):
    text = json.dumps(answer, **spacing)
    stated = stated_in(SCHEMA, text)
    assert sorted((one.field, one.value) for one in stated if one.value is not None) == sorted(answer_values(answer))
    empty = {name for name, value in answer.items() if not answer_values({name: value})}
    assert {one.field for one in stated if one.value is None} == empty
    for one in stated:
        held = json.loads(text[one.start : one.end])
        assert (held if isinstance(held, str) else json.dumps(held)) == one.value or (one.value is None and not any(held or []))
    assert all(first.end <= second.start for first, second in pairwise(stated))


@given(answers, answers)
def test_an_answer_holds_what_it_states_itself(answer, other):
    stated = stated_in(SCHEMA, write_answer(SCHEMA, answer))
    assert all(held_by(stated, answer))
    assert not any(held_by(stated, None))
    # As many as both have in common, each counted once.
    common = [set(), set()]
    for found, values in zip(common, (answer, other), strict=True):
        for name, value in answer_values(values):
            found |= {(name, plain(value), n) for n in range(sum((name, plain(value)) == (field, plain(each)) for field, each in answer_values(values)))}
    held = held_by(stated, other)
    assert sum(each for each, one in zip(held, stated, strict=True) if one.value is not None) >= len({key[:2] for key in common[0] & common[1]})
    empty = {one.field for one, each in zip(stated, held, strict=True) if one.value is None and each}
    assert empty == {one.field for one in stated if one.value is None} - {name for name, _ in answer_values(other)}


def test_a_value_that_is_stated_twice_must_be_held_twice():
    stated = stated_in(SCHEMA, '{"person": ["Ann", "ANN", "Bo"], "bank": null, "years": 7}')
    assert [(one.field, one.value) for one in stated] == [("person", "Ann"), ("person", "ANN"), ("person", "Bo"), ("bank", None), ("years", "7")]
    assert held_by(stated, {"person": [" ann"], "bank": "X", "years": 7}) == [True, False, False, False, True]
    assert held_by(stated, {"person": ["Bo", "Ann", "Ann"]}) == [True, True, True, True, False]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"other": 1}', '{"years": "x"}'])
def test_what_is_no_answer_states_nothing(text):
    assert stated_in(SCHEMA, text) == []


def test_of_a_field_that_stands_there_twice_the_last_counts():
    text = '{"bank": "A", "years": 1, "bank": "B"}'
    assert [(one.field, one.value, text[one.start : one.end]) for one in stated_in(SCHEMA, text)] == [("bank", "B", '"B"'), ("years", "1", "1")]
