"""The whole loop of an extraction on the tiny model: documents to a model version that answers, is judged and learns again."""

import json

import pytest
from fastapi.testclient import TestClient

from tunesmith import flow
from tunesmith.models.json_answers import parse_answer
from tunesmith.project import Project
from tunesmith.serve.http import create_app
from tunesmith.testing import tiny_extraction_project

QUICK = ["train.report_to=[]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project.load(tiny_extraction_project(tmp_path_factory.mktemp("extraction") / "tiny"), QUICK)


@pytest.fixture(scope="module")
def outcome(project):
    return flow.run(project)


@pytest.fixture(scope="module")
def report(outcome):
    return outcome.calibration.report


def test_the_report_holds_the_figures_of_an_extraction(report, project):
    assert report["headline"] == "micro_f1"
    assert {"micro_f1", "hallucination_rate", "valid_json_rate", "recall", "exact_match"} <= report["metrics"].keys()
    for name in ("base", "classical", "tuned"):
        figure = report["metrics"]["micro_f1"][name]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert [row["label"] for row in report["per_class"]] == ["product", "urgent"]
    assert report["forgetting"]["n_texts"] > 0
    assert report["calibration"]["method"] in ("likelihood", "none")


def test_training_makes_valid_json_likelier(report):
    assert report["metrics"]["valid_json_rate"]["tuned"]["value"] > report["metrics"]["valid_json_rate"]["base"]["value"]


def test_a_second_run_finds_everything_done(project, outcome):
    again = flow.run(project)
    assert again.evaluation.id == outcome.evaluation.id
    assert again.model_version.id == outcome.model_version.id


def test_an_answer_over_http_is_json_of_the_schema_and_can_be_corrected(project, outcome):
    assert outcome.verdict.passed, outcome.verdict.reason
    client = TestClient(create_app(flow.load_predictor(project), project.store, project.config.serve, "tiny"))
    asked = {"messages": [{"role": "user", "content": "my credit card was charged by a merchant"}]}
    answer = client.post("/v1/chat/completions", json=asked).json()
    assert 0 <= answer["tunesmith"]["confidence"] <= 1
    content = answer["choices"][0]["message"]["content"]
    assert parse_answer(project.config.task.json_schema, content) is not None or not content.endswith("}")
    refused = client.post("/v1/classify", json={"text": "my card"})
    assert refused.status_code == 422
    assert "chat/completions" in refused.json()["error"]["hint"]
    right = json.dumps({"product": "card", "urgent": True})
    judged = {"prediction_id": answer["id"], "event_id": "e1", "kind": "demonstration", "value": right}
    assert client.post("/v1/feedback", json=judged).status_code == 200


def test_rows_whose_answer_is_no_json_of_the_schema_are_dropped_with_the_reason(project, tmp_path):
    root = tiny_extraction_project(tmp_path / "bad")
    with (root / "data" / "records.csv").open("a", encoding="utf-8") as file:
        file.write('a letter about nothing at all,"{""product"": ""house""}"\nanother letter about nothing,card\n')
    opened = Project.load(root, QUICK)
    version = flow.prepare(opened)
    assert version.dropped["invalid_answer"] == 2
    assert version.labels == ()
