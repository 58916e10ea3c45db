"""What judgements come to: at most one right answer to a text, and the newest judgement counts."""

import nouns
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import DataError, NotFoundError
from tunesmith.review.preferences import Answer, Pair, as_answers, as_pairs, judged_answers, read_preferences
from tunesmith.store import Store

SAID = st.one_of(st.tuples(st.just("boolean"), st.booleans()), st.tuples(st.just("demonstration"), st.sampled_from(nouns.LABELS)))
EVENTS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(nouns.LABELS), SAID), max_size=6)


def judged(store, events):
    for text, answered, (kind, value) in events:
        made = nouns.prediction(text, answered)
        store.put(made)
        store.put_feedback(nouns.judgement(made.id, kind, value))
    return judged_answers(store)


@settings(max_examples=15, deadline=None)
@given(events=EVENTS)
def test_a_text_has_at_most_one_right_answer_and_the_last_word_stands(events, tmp_path_factory):
    answers, heard = judged(Store.at(tmp_path_factory.mktemp("s") / "store.db"), events)
    assert len(heard) == len(events)
    assert len({(each.text, each.answer) for each in answers}) == len(answers)
    for text in "ab":
        own = [each for each in answers if each.text == text]
        assert sum(each.is_right for each in own) <= 1
        last = [event for event in events if event[0] == text][-1:]
        for _, answered, (kind, value) in last:
            right = value if kind == "demonstration" else answered
            assert Answer(text, right, value is not False) in own
    for pair in as_pairs(answers):
        assert Answer(pair.text, pair.chosen, True) in answers
        assert Answer(pair.text, pair.rejected, False) in answers


@pytest.mark.parametrize(
    ("said", "pairs"),
    [
        ([("demonstration", "loan")], [Pair("t", "loan", "card")]),
        ([("demonstration", "card")], []),
        ([("boolean", False)], []),
        ([("boolean", False), ("demonstration", "loan"), ("demonstration", "mortgage")], [Pair("t", "mortgage", "card")]),
        ([("demonstration", "loan"), ("boolean", True)], []),
        ([("float", 0.1), ("comment", "bad")], []),
    ],
)
def test_pairs_are_demonstrations_beside_what_the_model_had_said(tmp_path, said, pairs):
    store = Store.at(tmp_path / "store.db")
    answers, _ = judged(store, [("t", "card", each) for each in said])
    assert as_pairs(answers) == pairs


def test_a_judgement_without_its_prediction_says_nothing_yet(tmp_path):
    store = Store.at(tmp_path / "store.db")
    store.put_feedback(nouns.judgement("prd_later", "demonstration", "loan"))
    assert judged_answers(store) == ([], ())


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_have_the_columns_of_trl(tmp_path, suffix):
    pairs = pl.DataFrame({"prompt": ["a", "b"], "chosen": ["x", "y"], "rejected": ["y", "x"], "source": ["s", "s"]})
    single = pl.DataFrame({"prompt": ["a", "b"], "completion": ["x", "y"], "label": [True, False]})
    for name, frame in (("pairs", pairs), ("single", single)):
        write = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[suffix]
        write(tmp_path / f"{name}.{suffix}")
    assert read_preferences(tmp_path / f"pairs.{suffix}") == [Pair("a", "x", "y"), Pair("b", "y", "x")]
    assert read_preferences(tmp_path / f"single.{suffix}") == [Answer("a", "x", True), Answer("b", "y", False)]
    assert as_answers([Pair("a", "x", "y")]) == [Answer("a", "x", True), Answer("a", "y", False)]


def test_files_that_cannot_be_used_say_why(tmp_path):
    (tmp_path / "chat.jsonl").write_text('{"prompt": [{"role": "user", "content": "a"}], "chosen": "x", "rejected": "y"}\n')
    (tmp_path / "columns.csv").write_text("text,label\na,b\n")
    (tmp_path / "label.csv").write_text("prompt,completion,label\na,b,good\n")
    for name, message in (
        ("chat.jsonl", "every prompt must be text, not a list of messages"),
        ("columns.csv", r"must have the columns prompt, chosen, rejected or prompt, completion, label\. Received: text, label"),
        ("label.csv", "every label must be true or false"),
        ("pairs.txt", r"must name a file that ends in \.csv, \.jsonl, \.parquet"),
    ):
        with pytest.raises(DataError, match=message):
            read_preferences(tmp_path / name)
    with pytest.raises(NotFoundError, match=r"There is none at"):
        read_preferences(tmp_path / "none.csv")
