"""One adapter per document type: what is trained, what is trained again, and what is refused."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tunesmith import flow
from tunesmith.entities import Prediction, Run
from tunesmith.errors import ConfigError, DataError, NotFoundError
from tunesmith.flow.adapters import routes_of, types_of
from tunesmith.lineage import walk
from tunesmith.models.artifact import open_artifact
from tunesmith.project import Progress, Project
from tunesmith.testing import tiny_typed_project, tiny_typed_rows
from tunesmith.train.settings import AdaptersSection

QUICK = ("train.report_to=[]", "data.dvc=false", "train.num_train_epochs=1")


@pytest.fixture
def typed(tmp_path):
    root = tiny_typed_project(tmp_path / "typed", n_rows=200)

    def load(*more):
        return Project.load(root, [*QUICK, "train.adapters.min_records=15", *more])

    return load


def test_the_parent_learns_all_records_and_each_child_those_of_its_type(typed):
    project = typed()
    dataset = flow.prepare(project)
    records = flow.read(project, dataset)
    assert set(records["document_type"]) == {"invoice", "letter", "memo"}
    parent = flow.train_adapters(project, dataset)
    children = flow.children_of(project, dataset, parent)
    assert [*children] == ["invoice", "letter"]  # of memos there are too few
    assert (parent.document_type, parent.parent) == ("", None)
    train = records.filter(split="train")
    for document_type, child in children.items():
        own = train.filter(document_type=document_type)
        assert child.supervised_tokens < parent.supervised_tokens
        assert child.steps == -(-len(own) // 8)
        assert (child.document_type, child.parent) == (document_type, parent.id)
        assert child.weights_sha256 != parent.weights_sha256
        assert parent.id in [node.id for node in walk(project.store, project.root, child.id).nodes]
    assert child.id in [node.id for node in walk(project.store, project.root, parent.id).made]


def files_of(project):
    return {file: file.stat().st_mtime_ns for folder in ("runs", "routers") for file in (project.state / folder).rglob("*.safetensors")}


def test_what_did_not_change_is_not_trained_again(typed):
    project = typed()
    dataset = flow.prepare(project)
    parent = flow.train_adapters(project, dataset)
    before = files_of(project)
    assert flow.train_adapters(typed(), dataset).id == parent.id
    assert files_of(project) == before

    # A key of one child trains that child alone; more types with enough records train theirs.
    other = typed("train.adapters.document_types={invoice: {learning_rate: 5e-3}}")
    assert flow.train_adapters(other, dataset).id == parent.id
    old, new = flow.children_of(project, dataset, parent), flow.children_of(other, dataset, parent)
    assert new["letter"] == old["letter"]
    assert new["invoice"].id != old["invoice"].id
    assert {file: at for file, at in files_of(project).items() if file in before} == before
    assert len(project.store.all(Run)) == 4


@pytest.mark.parametrize("start", ["parent", "base"])
def test_new_records_of_one_type_train_its_child_and_those_that_begin_at_the_parent(typed, start):
    project = typed(f"train.adapters.start_from={start}")
    dataset = flow.prepare(project)
    old = flow.children_of(project, dataset, flow.train_adapters(project, dataset))
    assert {child.parent is None for child in old.values()} == {start == "base"}
    with (project.root / "data" / "records.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"dear sir regards a new letter of number {number} about a mortgage and its escrow {number},mortgage,letter\n" for number in range(20))
    later = typed(f"train.adapters.start_from={start}")
    dataset = flow.prepare(later)
    new = flow.children_of(later, dataset, flow.train_adapters(later, dataset))
    assert new["letter"].id != old["letter"].id
    assert (new["invoice"] == old["invoice"]) == (start == "base")


def test_a_killed_command_continues_with_what_is_missing(typed, monkeypatch):
    project = typed()
    dataset = flow.prepare(project)
    flow.train(project, dataset)
    import tunesmith.flow.adapters as adapters

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adapters, "train_router", kill)
        with pytest.raises(KeyboardInterrupt):
            flow.train_adapters(project, dataset)
    before = files_of(project)
    parent = flow.train_adapters(project, dataset)
    assert len(flow.children_of(project, dataset, parent)) == 2
    after = files_of(project)
    assert {file: after[file] for file in before} == before
    assert any("routers" in str(file) for file in after.keys() - before.keys())


class Stops(Progress):
    """Stops the command in the middle of a child."""

    def advance(self, done, total, detail=""):
        if detail.startswith("letter, ") and done >= 3:
            raise KeyboardInterrupt


def test_a_child_that_was_killed_continues_to_equal_weights(typed):
    more = ("train.save_steps=2", "train.logging_steps=1")
    project = typed(*more)
    dataset = flow.prepare(project)
    twin = Project.load(shutil.copytree(project.root, project.root.with_name("twin")), project.overrides)
    with pytest.raises(KeyboardInterrupt):
        flow.train_adapters(replace(project, progress=Stops()), dataset)
    assert len(project.store.all(Run)) == 2  # the parent and the first child
    parent = flow.train_adapters(typed(*more), dataset)
    whole = flow.train_adapters(twin, dataset)
    for document_type, child in flow.children_of(project, dataset, parent).items():
        other = flow.children_of(twin, dataset, whole)[document_type]
        assert (child.id, child.weights_sha256) == (other.id, other.weights_sha256)


def test_document_types_added_later_reach_records_that_stand(typed):
    project = typed("train.adapters=null", "data.sources=[{path: data/records.csv}]")
    first = flow.prepare(project)
    assert set(flow.read(project, first)["document_type"]) == {""}
    second = flow.prepare(typed("train.adapters=null", "data.sources=[{path: data/records.csv, document_type: letter}]"))
    assert second.parent == first.id
    records = flow.read(project, second)
    assert set(records["document_type"]) == {"letter"}
    assert records["id"].to_list() == flow.read(project, first)["id"].to_list()


# Refusals


def typed_records(**counts):
    splits = ("train", "validation", "calibration", "test")
    rows = [(name, split) for name, of_split in counts.items() for split, count in zip(splits, of_split, strict=True) for _ in range(count)]
    return pl.DataFrame(rows, schema=["document_type", "split"], orient="row")


def test_types_with_enough_records_get_a_child_and_the_others_belong_to_the_parent():
    records = typed_records(b=(5, 1, 2, 1), a=(5, 1, 2, 1), small=(4, 0, 0, 0))
    assert types_of(records, AdaptersSection(min_records=5)) == ["a", "b"]
    assert set(routes_of(records, ["a", "b"])) == {"a", "b", "parent"}


def test_types_without_enough_records_are_told():
    with pytest.raises(DataError, match=r"at least train.adapters.min_records = 200 train records. Received: a: 5"):
        types_of(typed_records(a=(5, 1, 2, 1)), AdaptersSection())
    with pytest.raises(DataError, match=r"no record with a document type"):
        types_of(typed_records(**{"": (5, 1, 2, 1)}), AdaptersSection())
    with pytest.raises(DataError, match=r"needs 2 or more calibration records. Received: a: 1"):
        types_of(typed_records(a=(5, 1, 1, 1)), AdaptersSection(min_records=5))
    with pytest.raises(DataError, match=r"may be called 'parent'"):
        types_of(typed_records(parent=(5, 1, 2, 1)), AdaptersSection(min_records=5))


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["train.strategy=full"], "adapters need strategy lora or qlora"),
        (["train.adapters.train={strategy: full, max_length: 20}"], "max_length, strategy must be that of the section train"),
        (["train.adapters.document_types={invoice: {use_dora: true}}"], "use_dora must be that of the section train"),
        (["train.adapters.train={lora_r: 4}"], "lora_r must be that of the section train, since a child goes on with its parent's weights"),
        (["train.init_lora_weights=pissa"], "start_from: parent need init_lora_weights: default"),
        (["data.sources=[{path: a.csv, document_type: a, document_type_column: b}]"], "document_type and document_type_column exclude each other"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_done(typed, more, rule):
    with pytest.raises(ConfigError, match=rule):
        typed(*more)


def test_written_answers_are_refused_so_far(typed):
    dataset = flow.prepare(typed())
    with pytest.raises(ConfigError, match=r"for classifications only, so far. Received: task.type chat"):
        flow.child_types(typed("task.type=chat", "task.labels=[]"), dataset)


# What they are worth, and how they answer


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """A typed project that went through the whole loop, and what came out. Not to be changed."""
    root = tiny_typed_project(tmp_path_factory.mktemp("routed") / "typed", settings="  forgetting: false\n")
    project = Project.load(root, ["train.report_to=[]", "data.dvc=false"])
    return project, flow.run(project)


def test_children_beat_the_parent_where_rules_conflict_and_the_figures_agree(routed):
    outcome = routed[1]
    routing = outcome.calibration.report["routing"]
    assert [(child["document_type"], child["served"]) for child in routing["children"]] == [("invoice", True), ("letter", True)]
    for child in routing["children"]:
        assert child["child"] > 0.9 > child["parent"]
        assert child["p_value"] <= child["error_spent"] < 0.05
    ends = {name: figure["value"] for name, figure in routing["end_accuracy"].items()}
    assert ends["parent"] == outcome.evaluation.accuracy
    assert ends["true_routes"] >= ends["predicted_routes"] > ends["parent"] + 0.2
    assert routing["regret"]["difference"] == pytest.approx(ends["true_routes"] - ends["predicted_routes"])
    assert routing["gain"]["low"] > 0
    types = routing["document_types"]
    assert [row["document_type"] for row in types] == ["invoice", "letter", "memo"]
    for name in ends:
        assert sum(row[name] * row["n_test"] for row in types) == pytest.approx(ends[name] * routing["n_test"])
    assert outcome.verdict.passed
    assert outcome.verdict.n_test == routing["n_test"]


def test_every_adapter_has_a_calibrator_whose_error_before_and_after_is_shown(routed):
    report = routed[1].calibration.report
    for child in report["routing"]["children"]:
        own = child["calibration"]
        assert own["on_test"]["none"]["error"] == own["before"]
        assert own["on_test"][own["method"]]["error"] == own["after"]
        assert set(own["on_test"]) == {"none", "temperature", "platt", "beta", "isotonic"}
    assert report["routing"]["calibration_error_before"]["high"] > 0
    assert report["calibration"]["by"] == "document_type"
    assert [row["name"] for row in report["calibration"]["slices"] + report["calibration"]["few"]] == ["invoice", "letter", "memo"]
    page = routed[1].calibration.html.read_text(encoding="utf-8")
    assert "Calibration error as served, by all adapters" in page
    assert "By document type" in page


def test_the_gate_judges_what_the_adapters_answer_together_and_remembers_its_looks(routed):
    project, outcome = routed
    assert outcome.verdict.difference > outcome.calibration.report["paired"]["accuracy"]["difference"] + 0.2
    looks = len(project.store.looks_of(outcome.model_version.id))
    again = flow.run(project)
    assert again.model_version == outcome.model_version
    assert len(project.store.looks_of(outcome.model_version.id)) == looks == 1
    series = project.store.looks("tiny children", _digest(project, outcome))
    assert [look["opponent_id"] for look in series] == [outcome.run.id]


def _digest(project, outcome):
    from tunesmith.registry.gates import split_digest

    return split_digest(flow.read(project, outcome.dataset).filter(split="test")["id"].to_list())


def test_report_and_card_tell_of_the_adapters(routed):
    project, outcome = routed
    page = outcome.calibration.html.read_text(encoding="utf-8")
    assert "One adapter per document type" in page
    assert "Route right" in page
    card = (project.root / outcome.model_version.path / "README.md").read_text(encoding="utf-8")
    assert "| invoice |" in card


def test_a_prediction_is_that_of_the_evaluation_and_names_its_adapter(routed):
    from tunesmith.evaluate.predict_split import SplitScores
    from tunesmith.flow.routing import ROUTED_FILE

    project, outcome = routed
    scored = SplitScores.load(project.root / outcome.model_version.routing / ROUTED_FILE)
    texts = dict(flow.read(project, outcome.dataset).select("id", "text").iter_rows())
    answers = flow.predict(project, [texts[each] for each in scored.ids])
    assert [answer.label for answer in answers] == [scored.labels[row] for row in scored.logits.argmax(axis=1)]
    for answer, logits in zip(answers, scored.logits, strict=True):
        assert [answer.scores[label] for label in scored.labels] == pytest.approx(logits.tolist(), abs=1e-3)
    assert {answer.adapter for answer in answers} == {"invoice", "letter", "parent"}
    assert all(0 < answer.route_confidence <= 1 for answer in answers)
    alone = flow.predict(project, [texts[scored.ids[0]]])[0]  # whatever its neighbours were
    assert (alone.label, alone.adapter) == (answers[0].label, answers[0].adapter)

    # Each confidence is that of the calibrator of the adapter that answered, and lineage leads to its run.
    from tunesmith.evaluate.calibration import load_calibrator

    child = next(answer for answer in answers if answer.adapter == "invoice")
    logits = np.array([[child.scores[label] for label in scored.labels]], dtype=np.float32)
    calibrator = load_calibrator(outcome.calibration.routing.calibrators["invoice"])
    assert child.confidence == pytest.approx(calibrator.probabilities(logits).max())
    trace = walk(project.store, project.root, child.id)
    assert outcome.model_version.children["invoice"] in [node.id for node in trace.nodes]
    assert "by the adapter invoice" in trace.nodes[0].summary
    assert project.store.get(Prediction, child.id) == child


def test_a_changed_adapter_of_a_model_version_is_found(routed, tmp_path):
    project, outcome = routed
    folder = shutil.copytree(project.root / outcome.model_version.path, tmp_path / outcome.model_version.id)
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"routing.json", "router/router.safetensors", "children/1/adapter_model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pkl", ".pickle", ".joblib"))]
    open_artifact(folder, outcome.model_version.sha256)
    (folder / "routing.json").write_text((folder / "routing.json").read_text().replace('"threshold": 0', '"threshold": 1'))
    with pytest.raises(DataError, match=r"routing\.json"):
        open_artifact(folder, outcome.model_version.sha256)


def test_cli_and_http_name_the_adapter(routed, cli):
    from fastapi.testclient import TestClient

    from tunesmith.serve.http import create_app

    project = routed[0]
    text = next(text for text, _, document_type in tiny_typed_rows(430)[400:] if document_type == "invoice")
    told = cli("predict", text, "--project", project.root, "--json").json
    assert told["adapter"] == "invoice"
    assert 0.5 < told["route_confidence"] <= 1
    shown = cli("predict", text, "--project", project.root).out
    assert "adapter invoice, route " in shown
    client = TestClient(create_app(flow.load_predictor(project), project.store, project.config.serve, "tiny"))
    answer = client.post("/v1/classify", json={"text": text}).json()
    assert (answer["adapter"], answer["label"]) == ("invoice", told["label"])
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}]}).json()
    assert chat["tunesmith"]["adapter"] == "invoice"


def test_a_run_without_some_of_its_children_is_not_measured_as_if_it_had_them(routed):
    project, outcome = routed
    other = project.changed(["train.adapters.document_types={letter: {learning_rate: 5e-3}}"])
    with pytest.raises(NotFoundError, match=r"Every document type needs its child.*for: letter"):
        flow.calibrate(other, outcome.evaluation)
    alone = project.changed(["train.adapters=null"])
    assert flow.calibrate(alone, outcome.evaluation).routing is None


def test_the_next_turn_compares_with_all_adapters_of_the_champion_on_new_test_rows_too(routed, tmp_path):
    project, outcome = routed
    root = shutil.copytree(project.root, tmp_path / "typed")
    with (root / "data" / "records.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(tiny_typed_rows(480)[400:])
    later = Project.load(root, [*project.overrides, "train.num_train_epochs=2"])
    again = flow.run(later)
    assert again.verdict.opponent == outcome.model_version.id
    assert again.verdict.n_test > outcome.verdict.n_test
    # The champion answered the new rows with all of its adapters: its parent alone is right on six in ten.
    ours = again.calibration.report["routing"]["end_accuracy"]
    right = (ours if again.calibration.routing.children else {"predicted_routes": ours["parent"]})["predicted_routes"]["value"]
    assert right - again.verdict.difference > 0.85
