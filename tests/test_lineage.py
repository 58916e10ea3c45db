"""From an answer back to its data, and from a document forward to all that it touched."""

import nouns
import polars as pl
import pytest

from tunesmith import flow
from tunesmith.data.freeze import read_records
from tunesmith.entities import DatasetVersion, Document, ModelVersion, Prediction, Record
from tunesmith.errors import NotFoundError
from tunesmith.lineage import walk
from tunesmith.review import queue


@pytest.fixture
def answered(tiny):
    """A project with one answer and one judgement on it."""
    (answer,) = flow.predict(tiny, ["my student tuition payment"])
    return tiny, answer, queue.correct(tiny.store, answer, "loan", tiny.config.task.names, "tester")


def kinds(nodes):
    return [type(node.noun).__name__ for node in nodes]


def test_from_a_judgement_back_to_the_dataset_version(answered):
    project, answer, said = answered
    trace = walk(project.store, project.root, said.id)
    assert kinds(trace.nodes) == ["Feedback", "Prediction", "Deployment", "ModelVersion", "Run", "DatasetVersion", "Evaluation"]
    assert trace.nodes[1].id == answer.id
    assert [node.depth for node in trace.nodes] == [0, 1, 2, 3, 4, 5, 4]


def test_from_any_judgement_every_document_behind_it_is_reached(answered):
    project, _, said = answered
    (dataset,) = (node.noun for node in walk(project.store, project.root, said.id).nodes if isinstance(node.noun, DatasetVersion))
    lines = (project.root / "data" / "records.csv").read_text().splitlines()
    for row in read_records(project.root, dataset).sample(5, seed=0).iter_rows(named=True):
        record, document = (node.noun for node in walk(project.store, project.root, row["id"]).nodes)
        assert isinstance(record, Record)
        assert isinstance(document, Document)
        assert lines[document.source_line - 1] == f"{row['text']},{row['label']}"


def test_from_a_document_forward_to_the_models_and_answers_that_it_touched(answered):
    project, answer, said = answered
    row = read_records(project.root, flow.newest_dataset(project)).filter(pl.col("split") == "train").row(0, named=True)
    made = walk(project.store, project.root, row["document_id"]).made
    ids = {node.id for node in made}
    assert {row["id"], answer.id, said.id, project.store.alias("tiny", "champion")} <= ids
    assert {Record, DatasetVersion, ModelVersion, Prediction} <= {type(node.noun) for node in made}
    assert len(ids) == len(made)


def test_a_judgement_before_its_prediction_is_shown_as_such(tiny):
    said = tiny.store.put_feedback(nouns.judgement("prd_later", "boolean", True))
    start, missing = walk(tiny.store, tiny.root, said.id).nodes
    assert (start.id, missing.id) == (said.id, "prd_later")
    assert missing.summary == "not in this project's store"


@pytest.mark.parametrize("unknown", ["prd_0", "rec_0", "doc_0", "nonsense"])
def test_an_unknown_id(finished, unknown):
    with pytest.raises(NotFoundError, match=f"Nothing has the id '{unknown}'"):
        walk(finished.project.store, finished.project.root, unknown)


def test_every_noun_sums_itself_up_in_a_line(answered):
    project, _, said = answered
    trace = walk(project.store, project.root, said.id)
    assert all(node.summary and "\n" not in node.summary and node.summary != "not in this project's store" for node in trace.nodes)
    assert all(node.to_dict()["noun"]["id"] == node.id for node in trace.nodes)
