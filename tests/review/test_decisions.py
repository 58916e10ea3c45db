import polars as pl

from tunesmith.entities import Record
from tunesmith.review.decisions import corrections_of
from tunesmith.review.exchange import DISCARD, ReviewItem


def record(number, label="card", split="train"):
    empty = dict.fromkeys(("feedback_id", "supersedes", "block_ids", "document_type"), "")
    fixed = {"source": "a.csv", "source_line": number, "origin": "source", "weight": 1.0, **empty}
    return {"id": f"rec_{number}", "document_id": f"doc_{number}", "text": f"text {number}", "label": label, "split": split, **fixed}


RECORDS = pl.DataFrame([record(1), record(2), record(3), record(4, split="test")], schema=Record.frame_schema())


def item(number, reason="label_error"):
    return ReviewItem.ask(f"rec_{number}", f"text {number}", "card", reason, 0.9)


def test_a_correction_supersedes_its_record_and_a_confirmation_changes_nothing():
    found = corrections_of([(item(1), "loan"), (item(2), "card")], RECORDS)
    (row,) = found.records.to_dicts()
    assert (row["label"], row["supersedes"], row["origin"], row["feedback_id"]) == ("loan", "rec_1", "review", item(1).id)
    assert (row["document_id"], row["text"], row["split"]) == ("doc_1", "text 1", "train")
    assert row["id"] not in set(RECORDS["id"])
    assert found.pending == 1
    assert found.discarded == {}


def test_discarded_records_go_and_stay_known_when_they_are_gone():
    found = corrections_of([(item(1, "garbage"), DISCARD), (item(9), DISCARD)], RECORDS)
    assert found.records.is_empty()
    assert set(found.discarded) == {"rec_1", "rec_9"}
    assert found.pending == 1


def test_frozen_splits_are_left_alone_and_the_last_decision_of_a_record_counts():
    found = corrections_of([(item(4), "loan"), (item(3), "loan"), (item(3, "outlier"), "mortgage")], RECORDS)
    assert found.records.select("supersedes", "label").rows() == [("rec_3", "mortgage")]
    assert corrections_of([(item(4), DISCARD)], RECORDS).pending == 0
