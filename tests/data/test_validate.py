import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import documents, same_rows, section

from tunesmith.data.sifted import DROPPED_SCHEMA, count_reasons
from tunesmith.data.validate import REASONS, drop_invalid, validate
from tunesmith.errors import DataError
from tunesmith.models.json_answers import AnswerRule

LIMITS = section(min_characters=3, max_characters=6)


@settings(deadline=None)  # the first frame of a process takes longer
@given(st.lists(st.tuples(st.just("a.csv"), st.text(max_size=9), st.sampled_from(["yes", "no", "", " ", "maybe"]))))
def test_kept_and_dropped_are_the_input_and_no_kept_row_breaks_a_rule(rows):
    whole = documents(*rows)
    sifted = drop_invalid(whole, ("yes", "no"), LIMITS)
    assert same_rows(sifted, whole)
    assert sifted.dropped.schema == pl.Schema(DROPPED_SCHEMA)
    assert set(sifted.dropped["reason"]) <= set(REASONS)
    assert (sifted.dropped["evidence"].str.len_chars() > 0).all()
    assert drop_invalid(sifted.kept, ("yes", "no"), LIMITS).dropped.is_empty()


def test_each_reason_with_its_evidence():
    rows = [(" ", "yes"), ("ab", "yes"), ("abcdefg", "yes"), ("abcd", ""), ("abcd", "yess"), ("abcd", "yes")]
    sifted = drop_invalid(documents(*(("a.csv", *row) for row in rows)), ("yes", "no"), LIMITS)
    assert tuple(sifted.dropped["reason"]) == REASONS[:-1]
    assert sifted.dropped["evidence"].to_list() == [
        "0 characters; 3 to 6 are used",
        "2 characters; 3 to 6 are used",
        "7 characters; 3 to 6 are used",
        "the label is empty",
        "'yess' is not in task.labels; the nearest is 'yes'",
    ]


def test_an_answer_that_is_no_json_of_the_schema_is_invalid_and_any_other_label_may_be_right():
    rule = AnswerRule({"type": "object", "properties": {"name": {"type": "string"}}})
    rows = documents(("a.csv", "Ann", '{"name": "Ann"}'), ("a.csv", "Bob", "Bob"), ("a.csv", "Carl", '{"age": 3}'), ("a.csv", "Dora", ""))
    sifted = drop_invalid(rows, (), section(), rule)
    assert sifted.kept["text"].to_list() == ["Ann"]
    assert sifted.dropped["reason"].to_list() == [REASONS[-1], REASONS[-1], "missing_label"]
    assert "not JSON" in sifted.dropped["evidence"][0]
    assert "whose properties are name" in sifted.dropped["evidence"][1]
    assert drop_invalid(rows, (), section()).dropped["reason"].to_list() == ["missing_label"]


def test_too_many_dropped_rows_of_one_source_stop_the_command():
    rows = [("a.csv", f"text {number}", "yes") for number in range(20)] + [("b.csv", "text", "0"), ("b.csv", "", "yes"), ("b.csv", "text 1", "yes")]
    with pytest.raises(DataError, match=r"(?s)b\.csv: at most 50% .* Received: 2 of 3\..*unknown_label: 1, for example line 22: '0' is not in task\.labels"):
        validate(documents(*rows), ("yes",), section())
    assert len(validate(documents(*rows), ("yes",), section(max_dropped_share=0.7)).kept) == 21


def test_reasons_are_counted_most_frequent_first():
    dropped = drop_invalid(documents(("a.csv", "", "yes"), ("a.csv", "text", "x"), ("a.csv", "text", "y")), ("yes",), section()).dropped
    assert list(count_reasons(dropped).items()) == [("unknown_label", 2), ("empty", 1)]
