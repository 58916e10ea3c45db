"""The circle: answers of a champion are judged over HTTP, and the judgements teach the next one."""

import subprocess

import nouns
import polars as pl
import pytest
from fastapi.testclient import TestClient

from tunesmith import flow
from tunesmith.data.freeze import read_records
from tunesmith.entities import DatasetVersion, Prediction
from tunesmith.errors import RefusedError
from tunesmith.lineage import walk
from tunesmith.project import Project
from tunesmith.serve.http import create_app
from tunesmith.testing import tiny_rows

QUICK = ("train.num_train_epochs=2", "train.report_to=[]")
HELD_BACK = tiny_rows(300)[240:]  # the project has the first 240


@pytest.fixture
def judged(tiny):
    """A project whose champion answered 60 texts over HTTP, and was told the right answers."""
    with TestClient(create_app(flow.load_predictor(tiny), tiny.store, tiny.config.serve, tiny.config.model_name)) as client:
        for number, (text, label) in enumerate(HELD_BACK):
            answer = client.post("/v1/classify", json={"text": text}).raise_for_status().json()
            said = {"prediction_id": answer["prediction_id"], "event_id": f"event-{number}", "kind": "demonstration", "value": label}
            client.post("/v1/feedback", json=said).raise_for_status()
    return Project.load(tiny.root, QUICK)


def test_judgements_over_http_become_the_next_dataset_version_and_the_gate_decides(judged):
    parent = flow.newest_dataset(judged)
    champion = judged.store.alias("tiny", "champion")
    outcome = flow.renew(judged)

    made = outcome.dataset
    assert (made.parent, made.reason) == (parent.id, "60 judgements")
    assert set(made.feedback) == {said.id for said in judged.store.feedback()}
    old, new = read_records(judged.root, parent), read_records(judged.root, made)
    for split in ("validation", "calibration", "test"):
        assert new.filter(split=split).equals(old.filter(split=split)), split
    taught = new.join(old, on="id", how="anti")
    assert set(taught["split"]) == {"train"}
    assert dict(taught.select("text", "label").iter_rows()) == dict(HELD_BACK)

    verdict = outcome.verdict
    assert (verdict.challenger, verdict.opponent) == (outcome.model_version.id, champion)
    assert verdict.look == 2
    assert judged.store.looks_of(outcome.model_version.id)[0]["verdict"] == verdict.model_dump()
    assert judged.store.alias("tiny", "champion") == (verdict.challenger if verdict.passed else champion)

    said = judged.store.get(Prediction, judged.store.feedback()[0].prediction_id)
    above = {node.id for node in walk(judged.store, judged.root, outcome.model_version.id).nodes}
    assert {made.id, parent.id, said.id, champion} <= above
    below = {node.id for node in walk(judged.store, judged.root, judged.store.feedback()[0].id).made}
    assert {outcome.model_version.id, *taught.filter(feedback_id=judged.store.feedback()[0].id)["id"]} <= below


def test_without_new_judgements_there_is_nothing_to_renew(judged):
    flow.renew(judged)
    n_versions = len(judged.store.all(DatasetVersion))
    with pytest.raises(RefusedError, match=r"at least review\.min_feedback = 1 new judgements with a right answer\. Received: 0\."):
        flow.renew(judged)
    assert len(judged.store.all(DatasetVersion)) == n_versions


def test_judgements_without_a_right_answer_renew_nothing_and_do_no_harm(tiny):
    (answer,) = flow.predict(tiny, [HELD_BACK[0][0]])
    tiny.store.put_feedback(nouns.judgement(answer.id, "comment", "hm"))
    tiny.store.put_feedback(nouns.judgement("prd_later", "boolean", True))
    for _ in range(2):
        with pytest.raises(RefusedError, match="Received: 0"):
            flow.renew(tiny)
    assert len(tiny.store.all(DatasetVersion)) == 1


def test_an_early_judgement_joins_the_renewal_after_its_prediction(tiny):
    project = Project.load(tiny.root, QUICK)
    first, later = flow.predict(project, [text for text, _ in HELD_BACK[:2]])
    early = project.store.put_feedback(nouns.judgement("prd_later", "demonstration", HELD_BACK[2][1]))
    project.store.put_feedback(nouns.judgement(first.id, "demonstration", HELD_BACK[0][1]))
    assert early.id not in flow.renew(project).dataset.feedback
    project.store.put(later.model_copy(update={"id": "prd_later"}))
    assert flow.renew(project).dataset.feedback == (early.id,)


def test_fewer_judgements_than_asked_for_wait(judged):
    with pytest.raises(RefusedError, match=r"review\.min_feedback = 61 new judgements .* Received: 60"):
        flow.renew(Project.load(judged.root, [*QUICK, "review.min_feedback=61"]))


def test_a_judgement_on_a_text_of_the_test_split_teaches_nothing(tiny):
    project = Project.load(tiny.root, QUICK)
    before = read_records(project.root, flow.newest_dataset(project))
    row = before.filter(split="test").row(0, named=True)
    wrong = next(label for label in nouns.LABELS if label != row["label"])
    (answer,) = flow.predict(project, [row["text"]])
    project.store.put_feedback(nouns.judgement(answer.id, "demonstration", wrong))
    made = flow.renew(project).dataset
    assert read_records(project.root, made).equals(before)
    dropped = pl.read_parquet(project.root / made.path / "dropped.parquet")
    assert dropped.filter(pl.col("source") == f"prediction/{answer.id}")["reason"].to_list() == ["bridges_splits"]


@pytest.mark.parametrize("moment", ["train", "evaluate", "register"])
def test_a_renewal_that_stopped_after_its_dataset_version_goes_on(judged, monkeypatch, moment):
    def stop(*_, **__):
        raise RuntimeError("stopped")

    place = {"train": "tunesmith.flow.loop.train_adapters", "evaluate": "tunesmith.flow.loop.evaluate", "register": "tunesmith.store.Store.put_look"}[moment]
    with monkeypatch.context() as patched:
        patched.setattr(place, stop)
        with pytest.raises(RuntimeError, match="stopped"):
            flow.renew(judged)
    interrupted = flow.newest_dataset(judged)
    outcome = flow.renew(judged)
    assert outcome.dataset.id == interrupted.id
    assert outcome.verdict.look == 2
    assert len(judged.store.all(DatasetVersion)) == 2


def test_a_renewal_that_stopped_before_dvc_is_versioned_by_the_next_command(judged, monkeypatch):
    def stop(*_):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.data.freeze.version_with_dvc", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            flow.renew(judged)
    made = flow.renew(judged).dataset
    log = subprocess.run(["git", "log", "-1", "--format=%s"], cwd=judged.root, capture_output=True, text=True, check=True).stdout
    assert log.strip() == f"tunesmith: dataset version {made.id}"
