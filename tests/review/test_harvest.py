"""Which judgements become records, and of what."""

import nouns
import polars as pl
import pytest

from tunesmith.entities import Record
from tunesmith.review.harvest import harvest_records
from tunesmith.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.at(tmp_path / "store.db")


@pytest.fixture
def answer(store):
    answer = nouns.prediction("a text", "card")
    store.put(answer)
    return answer


def records(*rows):
    facts = {"document_id": "doc_1", "source": "a.csv", "source_line": 2, "origin": "source", "feedback_id": "", "supersedes": ""}
    facts |= {"label": "card", "block_ids": "", "weight": 1.0, "document_type": ""}
    return pl.DataFrame([facts | row for row in rows], schema=Record.frame_schema())


def harvest(store, *, known=None):
    return harvest_records(store, store.feedback(), records() if known is None else known)


def labels(harvested):
    return harvested.records["label"].to_list()


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ([("demonstration", "loan")], ["loan"]),
        ([("boolean", True)], ["card"]),
        ([("boolean", False)], []),
        ([("float", 0.5), ("comment", "loan")], []),
        ([("demonstration", "loan"), ("demonstration", "mortgage")], ["mortgage"]),
        ([("boolean", True), ("demonstration", "loan")], ["loan"]),
        ([("demonstration", "loan"), ("boolean", True)], ["card"]),
        ([("boolean", True), ("boolean", False)], []),
        ([("boolean", False), ("boolean", True)], ["card"]),
        ([("demonstration", "loan"), ("boolean", False)], ["loan"]),
        ([("demonstration", "loan"), ("comment", "sure?")], ["loan"]),
    ],
)
def test_the_newest_judgement_of_what_is_right_counts(store, answer, judgements, expected):
    said = [store.put_feedback(nouns.judgement(answer.id, kind, value)) for kind, value in judgements]
    harvested = harvest(store)
    assert labels(harvested) == expected
    assert harvested.feedback == tuple(each.id for each in said)


def test_a_record_leads_back_to_its_judgement_and_goes_to_train(store, answer):
    said = store.put_feedback(nouns.judgement(answer.id, "demonstration", "loan"))
    (row,) = harvest(store).records.to_dicts()
    assert (row["feedback_id"], row["origin"], row["split"]) == (said.id, "feedback", "train")
    assert (row["text"], row["source"], row["supersedes"]) == ("a text", f"prediction/{answer.id}", "")
    assert list(row) == list(Record.model_fields)


def test_two_answers_to_one_text_give_one_record(store, answer):
    other = nouns.prediction("a text", "loan")
    store.put(other)
    store.put_feedback(nouns.judgement(answer.id, "demonstration", "mortgage"))
    store.put_feedback(nouns.judgement(other.id, "boolean", True))
    assert labels(harvest(store)) == ["loan"]


def test_only_a_train_record_of_the_same_text_is_superseded(store, answer):
    store.put_feedback(nouns.judgement(answer.id, "demonstration", "loan"))
    known = records({"id": "rec_1", "text": "a text", "split": "train"}, {"id": "rec_2", "text": "another", "split": "train"})
    assert harvest(store, known=known).records["supersedes"].to_list() == ["rec_1"]
    frozen = records({"id": "rec_1", "text": "a text", "split": "test"})
    assert harvest(store, known=frozen).records["supersedes"].to_list() == [""]


def test_a_judgement_before_its_prediction_waits_for_it(store):
    answer = nouns.prediction("a text", "card")
    said = store.put_feedback(nouns.judgement(answer.id, "boolean", True))
    early = harvest(store)
    assert (labels(early), early.feedback) == ([], ())
    store.put(answer)
    assert (labels(harvest(store)), harvest(store).feedback) == (["card"], (said.id,))


def test_a_record_has_the_type_of_the_one_that_it_corrects_else_of_the_adapter_that_answered(store):
    for text, adapter in (("known", "invoice"), ("new", "invoice"), ("unsure", "parent"), ("alone", "")):
        answer = nouns.prediction(text, "card", adapter=adapter)
        store.put(answer)
        store.put_feedback(nouns.judgement(answer.id, "demonstration", "loan"))
    known = records({"id": "rec_1", "text": "known", "split": "train", "document_type": "letter"})
    found = harvest(store, known=known).records
    assert dict(found.select("text", "document_type").iter_rows()) == {"known": "letter", "new": "invoice", "unsure": "", "alone": ""}
