"""The store: acknowledged means on disk, twice means once, and old and newer databases are told apart."""

import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nouns
import pytest

from tunesmith.entities import DatasetVersion, Noun, Prediction, Run
from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.store import SCHEMA_VERSION, Store


@pytest.fixture
def store(tmp_path):
    return Store.at(tmp_path / "store.db")


def test_a_noun_comes_back_as_it_was_and_writing_it_again_changes_nothing(store):
    first = nouns.dataset(reason="first")
    store.put(first)
    store.put(nouns.dataset(reason="second"))
    assert store.get(DatasetVersion, "dsv_1") == first
    assert store.all(DatasetVersion) == [first]


def test_nouns_are_found_by_kind(store):
    store.put(nouns.dataset(), answer := nouns.prediction())
    assert store.find(Noun, "dsv_1") == store.get(DatasetVersion, "dsv_1")
    assert store.find(Prediction, answer.id) == answer
    assert store.find(Run, "dsv_1") is None
    assert store.find(Noun, "nonsense") is None
    with pytest.raises(NotFoundError, match="No Run has the id 'run_9'"):
        store.get(Run, "run_9")


def test_children_are_what_was_made_from_a_noun(store):
    store.put(nouns.dataset(), nouns.run(), nouns.evaluation(), nouns.model_version(), nouns.deployment(), answer := nouns.prediction())
    said = store.put_feedback(nouns.judgement(answer.id, "boolean", True))
    assert store.children("dsv_1") == ["evl_1", "run_1"]
    assert store.children("run_1") == ["evl_1", "mdl_1"]
    assert store.children("mdl_1") == ["dep_1", answer.id]
    assert store.children(answer.id) == [said.id]


# Feedback


def test_feedback_is_stored_once_for_its_event_id(store):
    first = store.put_feedback(nouns.judgement("prd_1", "demonstration", "loan", "event"))
    again = store.put_feedback(nouns.judgement("prd_1", "demonstration", "loan", "event"))
    assert again == first
    assert store.feedback() == [first]


@pytest.mark.parametrize("other", [("prd_1", "demonstration", "card"), ("prd_2", "demonstration", "loan"), ("prd_1", "comment", "loan")])
def test_an_event_id_names_one_judgement(store, other):
    store.put_feedback(nouns.judgement("prd_1", "demonstration", "loan", "event"))
    with pytest.raises(DataError, match="Received 'event' again with another content"):
        store.put_feedback(nouns.judgement(*other, "event"))
    assert [said.value for said in store.feedback()] == ["loan"]


def test_values_keep_their_type(store):
    for value, kind in ((True, "boolean"), (False, "boolean"), (1.0, "float"), ("true", "comment")):
        stored = store.put_feedback(nouns.judgement("prd_1", kind, value))
        assert stored.value == value
        assert type(stored.value) is type(value)


def test_feedback_after_some_leaves_those_out(store):
    first, second = (store.put_feedback(nouns.judgement("prd_1", "boolean", True, event)) for event in ("a", "b"))
    assert store.feedback(after=[first.id]) == [second]


# The review queue


def test_the_least_certain_prediction_that_nobody_saw_comes_next(store):
    answers = {confidence: nouns.prediction(confidence=confidence) for confidence in (0.9, 0.4, 0.6, 0.5)}
    store.put(*answers.values())
    assert store.next_for_review() == answers[0.4]
    store.put_feedback(nouns.judgement(answers[0.4].id, "comment", "hm"))
    assert store.next_for_review() == answers[0.5]
    store.skip_review(answers[0.5].id, "tester")
    store.skip_review(answers[0.5].id, "tester")
    assert store.next_for_review() == answers[0.6]
    for confidence in (0.6, 0.9):
        store.put_feedback(nouns.judgement(answers[confidence].id, "boolean", True))
    assert store.next_for_review() is None


# The alias


def look(store, model_version_id, alias):
    row = {"name": "letters", "test_sha256": "t", "model_version_id": model_version_id, "opponent_id": "base", "error_spent": 0.01, "verdict": {}}
    store.put_look(moves_alias=alias, **row)


def test_a_look_moves_the_alias_it_grants_and_no_other(store):
    look(store, "mdl_1", "champion")
    look(store, "mdl_2", None)
    assert store.alias("letters", "champion") == "mdl_1"
    look(store, "mdl_3", "champion")
    assert store.alias("letters", "champion") == "mdl_3"
    assert store.alias("others", "champion") is None
    assert [row["model_version_id"] for row in store.looks("letters", "t")] == ["mdl_1", "mdl_2", "mdl_3"]


# Crashes, versions and company

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import nouns
from tunesmith.store import Store
store = Store.at(Path(sys.argv[1]))
while True:
    answer = nouns.prediction()
    store.put(answer)
    print(answer.id, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, path, os.path.dirname(__file__)], stdout=subprocess.PIPE, text=True) as writer:
        acknowledged = [writer.stdout.readline().strip() for _ in range(20)]
        writer.kill()
        acknowledged += writer.stdout.read().split()
    store = Store.at(path)
    assert all(store.find(Prediction, each) for each in acknowledged if len(each) == 36)
    store.put(nouns.prediction())


def test_a_kill_while_the_schema_is_made_leaves_none_of_it(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt("killed")

    path = tmp_path / "store.db"
    with monkeypatch.context() as patched:
        patched.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", fail)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            Store.at(path)
    assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == []
    Store.at(path).put(nouns.dataset())


def test_a_known_database_is_opened_and_a_newer_one_refused(tmp_path):
    path = tmp_path / "store.db"
    Store.at(path).put(nouns.dataset())
    assert Store.at(path).get(DatasetVersion, "dsv_1")
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (SCHEMA_VERSION,)
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BackendError, match="schema 9999, newer than the") as raised:
        Store.at(path)
    assert raised.value.hint == "pip install --upgrade tunesmith"


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "store.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(BackendError, match="cannot be opened: file is not a database"):
        Store.at(tmp_path / "store.db")


def test_many_open_a_new_database_and_write_at_once(tmp_path):
    path, answers = tmp_path / "store.db", [nouns.prediction() for _ in range(64)]

    def write(part):
        store = Store.at(path)
        for answer in part:
            store.put(answer)
            store.put_feedback(nouns.judgement(answer.id, "boolean", True))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [answers[at::8] for at in range(8)]))
    store = Store.at(path)
    assert {said.prediction_id for said in store.feedback()} == {answer.id for answer in answers}
    assert all(store.find(Prediction, answer.id) == answer for answer in answers)


def go_back(connection, version):
    """Make the tables what they were in an older schema, before 0005."""
    for column in ("adapter", "route_confidence", "accepted", "fields"):
        connection.execute(f"ALTER TABLE prediction DROP COLUMN {column}")
    connection.execute("UPDATE alembic_version SET version_num = ?", (version,))


def test_a_run_of_an_older_schema_keeps_its_digest(tmp_path):
    """Schema 0003 calls `adapter_sha256` of a run `weights_sha256`."""
    run = nouns.run().model_copy(update={"weights_sha256": "abc"})
    Store.at(tmp_path / "store.db").put(nouns.dataset(), run)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        body = connection.execute("SELECT body FROM noun WHERE id = ?", (run.id,)).fetchone()[0]
        connection.execute("UPDATE noun SET body = ? WHERE id = ?", (body.replace("weights_sha256", "adapter_sha256"), run.id))
        go_back(connection, "0002")
    assert Store.at(tmp_path / "store.db").get(Run, run.id) == run


def test_a_run_of_an_older_schema_started_from_its_base_model(tmp_path):
    """Schema 0004 gives runs `parent` and `feedback`."""
    run = nouns.run()
    Store.at(tmp_path / "store.db").put(nouns.dataset(), run)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        body = json.loads(connection.execute("SELECT body FROM noun WHERE id = ?", (run.id,)).fetchone()[0])
        del body["parent"], body["feedback"]
        connection.execute("UPDATE noun SET body = ? WHERE id = ?", (json.dumps(body), run.id))
        go_back(connection, "0003")
    assert Store.at(tmp_path / "store.db").get(Run, run.id) == run
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert json.loads(connection.execute("SELECT body FROM noun WHERE id = ?", (run.id,)).fetchone()[0])["parent"] is None


def test_a_prediction_of_an_older_schema_had_one_adapter_and_no_router(tmp_path):
    """Schema 0005 gives predictions `adapter` and `route_confidence`."""
    prediction = nouns.prediction()
    Store.at(tmp_path / "store.db").put(prediction)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        go_back(connection, "0004")
    found = Store.at(tmp_path / "store.db").get(Prediction, prediction.id)
    assert found == prediction
    assert (found.adapter, found.route_confidence, found.accepted, found.fields) == ("", None, None, ())  # came with 0006 and 0007
