"""Judging: once a reviewer and prediction, the least certain first."""

import nouns
import pytest

from tunesmith.errors import DataError
from tunesmith.review import queue
from tunesmith.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store.at(tmp_path / "store.db")
    store.put(*(nouns.prediction(text=str(confidence), confidence=confidence) for confidence in (0.9, 0.3, 0.6)))
    return store


def test_the_queue_empties_in_order_of_certainty(store):
    seen = []
    for act in (
        lambda each: queue.accept(store, each, "ann"),
        lambda each: queue.skip(store, each, "ann"),
        lambda each: queue.correct(store, each, "loan", nouns.LABELS, "ann"),
    ):
        seen.append(store.next_for_review())
        act(seen[-1])
    assert [each.confidence for each in seen] == [0.3, 0.6, 0.9]
    assert store.next_for_review() is None
    assert [(said.kind, said.value, said.actor) for said in store.feedback()] == [("boolean", True, "ann"), ("demonstration", "loan", "ann")]


def test_judging_again_after_a_lost_connection_changes_nothing(store):
    prediction = store.next_for_review()
    assert queue.accept(store, prediction, "ann") == queue.accept(store, prediction, "ann")
    queue.accept(store, prediction, "bob")
    assert [said.actor for said in store.feedback()] == ["ann", "bob"]
    with pytest.raises(DataError, match="event_id must name one judgement"):
        queue.correct(store, prediction, "loan", nouns.LABELS, "ann")


def test_a_correction_must_be_a_label(store):
    with pytest.raises(DataError, match="Received: 'car'"):
        queue.correct(store, store.next_for_review(), "car", nouns.LABELS, "ann")
    assert store.feedback() == []
