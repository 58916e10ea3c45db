"""The whole loop of an extraction on the tiny model: documents to a model version that answers, is judged and learns again."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient

from tunesmith import flow
from tunesmith.entities import Evaluation, Prediction, Run
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.calibration import load_calibrator
from tunesmith.evaluate.comparison_report import comparison_verdict
from tunesmith.evaluate.score_written import WrittenScores
from tunesmith.files import file_sha256
from tunesmith.flow.fields import Fields, calibrate_fields
from tunesmith.flow.scoring import base_scores_file, in_order
from tunesmith.lineage import Node
from tunesmith.models.artifact import open_artifact
from tunesmith.models.confidence import EVERY_FIELD
from tunesmith.models.json_answers import parse_answer
from tunesmith.project import Project
from tunesmith.serve.http import create_app
from tunesmith.serve.predictor import Predictor
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
    assert report["calibration"]["method"] in ("logistic", "none")


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


def test_each_field_has_a_confidence_that_is_reported_served_and_explained(project, outcome, report, cli):
    rows, names = report["fields"]["rows"], set(project.config.task.json_schema["properties"])
    assert [row["field"] for row in rows] == ["", *sorted(names)]
    assert report["fields"]["n"] == sum(row["n"] for row in rows[1:])
    page = outcome.calibration.html.read_text(encoding="utf-8")
    assert "Field by field" in page
    version = outcome.model_version
    assert EVERY_FIELD in open_artifact(project.root / version.path, version.sha256).fields
    text = "my credit card was charged by a merchant"
    prediction = flow.load_predictor(project).predict([text])[0]
    stated = parse_answer(project.config.task.json_schema, prediction.label)
    assert {field.field for field in prediction.fields} == names
    for field in prediction.fields:
        assert field.value == (None if stated[field.field] is None else stated[field.field] if field.field == "product" else json.dumps(stated[field.field]))
    assert project.store.get(Prediction, prediction.id) == prediction
    assert str(prediction.fields[0]) in Node(prediction.id, prediction).summary
    client = TestClient(create_app(flow.load_predictor(project), project.store, project.config.serve, "tiny"))
    asked = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}]}).json()
    assert asked["tunesmith"]["fields"] == [field.model_dump(mode="json") for field in prediction.fields]
    assert cli("predict", text, "-C", project.root, "--json").json["fields"] == asked["tunesmith"]["fields"]
    shown = cli("predict", text, "-C", project.root).out
    assert all(f"\n  {field}" in shown for field in prediction.fields)


def test_a_model_version_from_before_fields_had_a_confidence_still_answers(project, outcome, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(project.root / outcome.model_version.path, folder)
    (folder / "fields.json").unlink()
    digests = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del digests["fields.json"]
    (folder / "manifest.json").write_text(json.dumps(digests), encoding="utf-8")
    artifact = open_artifact(folder, file_sha256(folder / "manifest.json"))
    assert artifact.fields == {}
    predictor = Predictor(artifact.engine(project.root), load_calibrator(artifact.calibrator), flow.deploy(project), "champion", project.store)
    assert predictor.predict(["my credit card"])[0].fields == ()


def test_answers_from_before_fields_had_a_confidence_are_still_reported(project, outcome, tmp_path):
    kept = project.root / outcome.evaluation.path
    for split in ("calibration", "test"):
        pl.read_parquet(kept / f"tuned-{split}.parquet").drop("fields").write_parquet(tmp_path / f"tuned-{split}.parquet")
    assert calibrate_fields(project, outcome.dataset, tmp_path) == Fields()


def test_rows_whose_answer_is_no_json_of_the_schema_are_dropped_with_the_reason(project, tmp_path):
    root = tiny_extraction_project(tmp_path / "bad")
    with (root / "data" / "records.csv").open("a", encoding="utf-8") as file:
        file.write('a letter about nothing at all,"{""product"": ""house""}"\nanother letter about nothing,card\n')
    opened = Project.load(root, QUICK)
    version = flow.prepare(opened)
    assert version.dropped["invalid_answer"] == 2
    assert version.labels == ()


@pytest.mark.parametrize(("method", "words"), [("margin", "the odds of a written token"), ("agreement", "how much of it 3 sampled answers say again")])
def test_a_model_version_is_as_sure_as_it_was_when_it_was_evaluated(project, outcome, method, words):
    asked = Project.load(project.root, [*QUICK, f"evaluate.confidence={{method: {method}, samples: 3}}"])
    evaluation = flow.evaluate(asked, outcome.run)
    assert evaluation.id not in (outcome.evaluation.id, None)
    calibration = flow.calibrate(asked, evaluation)
    assert calibration.report["metrics"]["micro_f1"] == outcome.calibration.report["metrics"]["micro_f1"], "the answers are the same"
    assert words in calibration.html.read_text(encoding="utf-8")
    tells_apart = calibration.report["acceptance"]["auroc"]
    assert tells_apart is None or 0 <= tells_apart["low"] <= tells_apart["value"] <= tells_apart["high"] <= 1
    # The settings of today say likelihood: what counts is how it was evaluated.
    version, _ = flow.register(project, outcome.run, evaluation, calibration)
    artifact = open_artifact(project.root / version.path, version.sha256)
    assert artifact.model.confidence.method == method
    assert words in (artifact.folder / "README.md").read_text(encoding="utf-8")
    scores = WrittenScores.load(project.root / evaluation.path / "tuned-test.parquet")
    served = artifact.engine(project.root).answer(in_order(project, outcome.dataset, scores.ids)["text"].to_list())
    assert served.answers == scores.answers
    assert (served.logits[:, 0] == scores.logit.astype(np.float32)).all()
    assert served.fields == scores.fields


MONEY = [
    "evaluate.business={error_cost: 10, values: {wrong: 4, hallucinated: 20, missing: 1}, minute_cost: 1, review_minutes: 2, documents_per_month: 1000,"
    " setup_cost: 500, current: {accuracy: 0.9, minutes: 5}}"
]


def test_money_stands_beside_the_other_figures_without_a_new_answer(project, outcome):
    priced = Project.load(project.root, [*QUICK, *MONEY])
    calibration = flow.calibrate(priced, flow.evaluate(priced, outcome.run))
    case = calibration.report["business"]
    assert set(case["per_1000"]) == {"current", "base", "classical", "tuned", "tuned_with_review"}
    assert case["per_1000"]["tuned"]["value"] <= case["per_1000"]["base"]["value"]
    saving = case["saving_per_year"]["tuned_with_review"]
    assert saving["low"] <= saving["value"] <= saving["high"]
    assert "What is it worth?" in calibration.html.read_text(encoding="utf-8")
    assert calibration.report["metrics"] == outcome.calibration.report["metrics"]


def test_the_threshold_of_an_extraction_may_follow_from_costs(project, outcome):
    priced = Project.load(project.root, [*QUICK, *MONEY, "calibrate.accept=cost"])
    report = flow.calibrate(priced, flow.evaluate(priced, outcome.run)).report
    assert report["acceptance"]["rule"] == "cost"


WIDE = "train.max_length=400"


def with_example(project, split):
    """Return the project with the first record of a split as an example of its prompt."""
    record = flow.read(project, flow.prepare(project)).filter(split=split).sort("id").row(0, named=True)
    example = json.dumps([{"text": f"  {record['text'].upper()}", "label": json.loads(record["label"])}])
    return Project.load(project.root, [*QUICK, WIDE, f"task.examples={example}"]), record


def test_an_example_of_the_prompt_is_shown_to_base_and_tuned_model_alike(project, outcome):
    (shown, record), bare = with_example(project, "train"), Project.load(project.root, [*QUICK, WIDE])
    assert record["text"].upper() in shown.prompt.render("x")
    dataset = flow.prepare(shown)
    assert dataset.id == outcome.dataset.id, "an example changes no record"
    assert flow.run_id(shown, dataset) != flow.run_id(bare, dataset)
    test = flow.read(shown, dataset).filter(split="test")
    assert base_scores_file(shown, dataset, test) != base_scores_file(bare, dataset, test)
    assert len(shown.prompt.prefix) > len(bare.prompt.prefix) + 20
    assert flow.plan(shown, dataset).tokens > flow.plan(bare, dataset).tokens


@pytest.mark.parametrize("split", ["validation", "calibration", "test"])
def test_an_example_that_will_be_asked_for_is_refused(project, split):
    shown, record = with_example(project, split)
    with pytest.raises(DataError, match=rf"task\.examples\[0\], which is {record['id']} of {split}") as raised:
        flow.plan(shown, flow.prepare(shown))
    assert raised.value.hint.startswith("Take a record of train, as '")


CANDIDATES = """
compare:
  candidates:
    full: {num_train_epochs: 20}
    hardly: {num_train_epochs: 1, learning_rate: 1e-6}
    impossible: {excess_length_strategy: raise, max_length: 100}
  seeds: [0]
sweep:
  parameters: {train.learning_rate: [1e-6, 1e-2], train.seed: [0, 1]}
  n_trials: 2
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tiny_extraction_project(tmp_path_factory.mktemp("compared") / "tiny", n_rows=240, settings=CANDIDATES)
    project = Project.load(root, QUICK)
    return project, flow.compare(project, flow.prepare(project))


def test_ways_to_train_an_extraction_are_compared_by_micro_f1(compared):
    project, comparison = compared
    report = comparison.report
    assert (report["metric"], report["best"]) == ("micro_f1", "full")
    assert report["n"] == flow.newest_dataset(project).rows["validation"]
    assert report["candidates"]["full"]["gain"]["low"] > 0
    assert report["candidates"]["hardly"]["behind_best"]["p_value"] <= 1
    assert "Received: 100" in report["refused"]["impossible"]
    for row in report["candidates"].values():
        assert row["forgetting"]["n_texts"] > 0
        assert row["peak_memory_bytes"][0] > 0
    assert "points of micro f1" in comparison_verdict(report)
    assert project.store.all(Evaluation) == [], "nobody looked at test"


def test_a_comparison_by_another_figure_trains_nothing_again(compared):
    project, comparison = compared
    runs = len(project.store.all(Run))
    other = Project.load(project.root, [*QUICK, "compare.objective=exact_match"])
    report = flow.compare(other, flow.prepare(other)).report
    assert (report["metric"], len(project.store.all(Run))) == ("exact_match", runs)
    assert report["candidates"]["full"]["score"]["value"] <= comparison.report["candidates"]["full"]["score"]["value"]


def test_the_best_way_to_train_may_be_the_one_whose_mistakes_cost_least(compared):
    project, _ = compared
    priced = Project.load(project.root, [*QUICK, *MONEY, "compare.objective=business_cost"])
    report = flow.compare(priced, flow.prepare(priced)).report
    assert (report["metric"], report["best"]) == ("business_cost", "full")
    assert report["candidates"]["full"]["gain"]["difference"] == pytest.approx(report["base"]["value"] - report["candidates"]["full"]["score"]["value"])
    assert "USD a document cheaper" in comparison_verdict(report)


@pytest.mark.parametrize(("key", "given"), [("compare.objective", "macro_f1"), ("sweep.metric", "log_loss"), ("sweep.metric", "token_f1")])
def test_a_figure_of_another_kind_of_task_is_refused_before_anything_is_trained(compared, key, given):
    project, _ = compared
    other = Project.load(project.root, [*QUICK, f"{key}={given}"])
    with pytest.raises(ConfigError, match=rf"{key} of an extraction must be micro_f1, .*Received: {given}") as raised:
        (flow.compare if key.startswith("compare") else flow.sweep)(other, flow.prepare(other))
    assert raised.value.hint == f"tunesmith {key.partition('.')[0]} --set {key}=auto"


def test_settings_of_a_chat_are_sought_by_token_f1(tmp_path):
    root = tiny_extraction_project(tmp_path / "chat", settings=CANDIDATES)
    file = root / "tunesmith.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text[: text.index('  json_schema:')]}{text[text.index('  max_answer_tokens:') :]}".replace("extraction", "chat"), encoding="utf-8")
    project = Project.load(root, [*QUICK, "train.num_train_epochs=2"])
    found = flow.sweep(project, flow.prepare(project))
    assert (found.metric, found.maximizes, len(found.trials)) == ("token_f1", True, 2)
    assert found.best.score == max(trial.score for trial in found.trials)
    assert 0 <= found.worth.low <= found.worth.value <= found.worth.high <= 1
