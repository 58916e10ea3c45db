"""Compare on the tiny model: one way that learns and one that cannot be trained."""

import json

import pytest

from tunesmith import flow
from tunesmith.entities import Evaluation, Run
from tunesmith.errors import ConfigError
from tunesmith.project import Project

SETTINGS = """
compare:
  candidates:
    lora: {strategy: lora}
    impossible: {excess_length_strategy: raise, max_length: 60}
  seeds: [0, 1]
  objective: accuracy
  hourly_cost: 2.0
"""


@pytest.fixture(scope="module")
def compared(unused, tmp_path_factory):
    import shutil

    root = shutil.copytree(unused, tmp_path_factory.mktemp("compare") / "tiny")
    with (root / "tunesmith.yaml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    project = Project.load(root, [])
    return project, flow.compare(project, flow.prepare(project))


def test_the_one_that_learns_is_best_and_what_cannot_be_trained_says_why(compared):
    _, comparison = compared
    report = comparison.report
    assert report["best"] == "lora"
    assert report["candidates"]["lora"]["gain"]["low"] > 0
    assert "Received: 60" in report["refused"]["impossible"]
    assert set(report["candidates"]) == {"lora"}


def test_each_run_is_measured_in_a_process_of_its_own(compared):
    project, comparison = compared
    for row in comparison.report["candidates"].values():
        assert len(row["runs"]) == len(row["peak_memory_bytes"]) == len(row["seconds"]) == 2
        assert row["stored_bytes"] > 1000
        assert row["cost"] == pytest.approx(2.0 * sum(row["seconds"]) / 2 / 3600)
        assert row["forgetting"]["n_texts"] >= 30
        assert {project.store.get(Run, run).seed for run in row["runs"]} == {0, 1}


def test_the_test_split_is_not_looked_at(compared):
    project, _ = compared
    assert project.store.all(Evaluation) == []
    assert not list((project.state / "evaluations").glob("*")) if (project.state / "evaluations").exists() else True


def test_a_second_comparison_trains_nothing_again(compared):
    project, comparison = compared
    before = {file: file.stat().st_mtime_ns for file in (project.state / "runs").rglob("*") if file.is_file()}
    again = flow.compare(project, flow.prepare(project))
    assert again.id == comparison.id
    assert {file: file.stat().st_mtime_ns for file in (project.state / "runs").rglob("*") if file.is_file()} == before


def test_mlflow_shows_the_runs_as_children(compared):
    project, comparison = compared
    client = project.trackers["mlflow"]._client
    parent = project.trackers["mlflow"].run(comparison.id)
    for run in comparison.report["candidates"]["lora"]["runs"]:
        assert client.get_run(project.trackers["mlflow"].run(run)).data.tags["mlflow.parentRunId"] == parent


def test_a_limit_on_memory_leaves_none_to_choose(compared):
    project, _ = compared
    strict = Project.load(project.root, ["compare.memory_limit_gb=0.000001"])
    report = flow.compare(strict, flow.prepare(strict)).report
    assert report["best"] is None
    assert not any(row["eligible"] for row in report["candidates"].values())


def test_the_page_names_every_candidate_and_is_what_the_json_says(compared):
    _, comparison = compared
    page = comparison.html.read_text(encoding="utf-8")
    assert json.loads((comparison.html.parent / "comparison.json").read_text(encoding="utf-8"))["best"] == "lora"
    for name in ("lora", "impossible"):
        assert name in page
    assert "<script" not in page


def test_an_unknown_key_of_a_candidate_is_told_at_its_place(fresh):
    file = fresh / "tunesmith.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "compare:\n  candidates:\n    fast: {learning_rat: 0.1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"candidates\.fast\.learning_rat.*\n?.*learning_rate"):
        Project.load(fresh)
