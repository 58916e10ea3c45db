"""Review items and labels in the store, and an old database that gets their tables."""

import sqlite3

import nouns
import pytest
from alembic import command

from tunesmith import store as store_module
from tunesmith.entities import DatasetVersion
from tunesmith.review.exchange import ReviewItem, ReviewLabel
from tunesmith.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.at(tmp_path / "store.db")


def label(who="ann", said="card", at="2026-01-01T00:00:00"):
    return ReviewLabel(item_id="rvi_1", reviewer=who, labelled_at=at, label=said, created_at="now").model_dump()


def test_items_come_back_the_most_urgent_first_and_once(store):
    items = [ReviewItem.ask("rec_1", "text", "card", "outlier", score, evidence={"near": ["rec_2"]}) for score in (0.1,)]
    items += [ReviewItem.ask("rec_2", "text", "card", "ocr", 0.9)]
    assert store.put_review_items(each.model_dump() for each in items) == 2
    assert store.put_review_items(each.model_dump() for each in items) == 0
    assert [ReviewItem.model_validate(row) for row in store.review_items()] == items[::-1]


def test_a_label_is_stored_once_and_a_changed_mind_is_another_one(store):
    assert store.put_review_labels([label()]) == 1
    assert store.put_review_labels([label(), label(at="2026-01-02T00:00:00"), label("bob")]) == 1
    assert store.put_review_labels([label(said="loan", at="2026-01-03T00:00:00")]) == 1
    assert [(row["reviewer"], row["label"]) for row in store.review_labels()] == [("ann", "card"), ("bob", "card"), ("ann", "loan")]
    assert ReviewLabel.model_validate(store.review_labels()[0]) == ReviewLabel.model_validate(label())


def test_an_old_database_is_upgraded_with_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "old.db"

    def first_schema(settings, _):
        upgrade(settings, "0001")

    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "SCHEMA_VERSION", "0001")
        patched.setattr(store_module.command, "upgrade", first_schema)
        with pytest.raises(KeyError, match="review_item"):  # today's store, yesterday's tables
            Store.at(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        version = nouns.dataset()
        raw.execute("INSERT INTO noun VALUES (?, 'dsv', ?, ?)", (version.id, version.model_dump_json(), version.created_at))
    store = Store.at(path)
    assert store.get(DatasetVersion, version.id) == version
    assert store.put_review_labels([label()]) == 1
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (store_module.SCHEMA_VERSION,)
