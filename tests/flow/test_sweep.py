"""A sweep: ordinary runs, chosen on validation, that go on after a kill and never look at the test split."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tunesmith import flow
from tunesmith.entities import Evaluation, Run
from tunesmith.errors import ConfigError, DivergedError
from tunesmith.evaluate.predict_split import SplitScores
from tunesmith.project import Project

QUICK = ("train.num_train_epochs=1", "train.logging_steps=1", "train.save_steps=4", "sweep.n_trials=2")
SEARCHED = "sweep.parameters.train={learning_rate: {low: 1e-4, high: 2e-2, log: true}, lora_r: [2, 4]}"
WITHOUT = "train.report_to=[]"


def swept(root, *overrides):
    project = Project.load(root, [*QUICK, SEARCHED, *overrides])
    return project, flow.sweep(project, flow.prepare(project))


def test_trials_are_runs_chosen_on_validation(tiny):
    before = (tiny.store.all(Evaluation), tiny.store.looks("tiny", ""))
    project, found = swept(tiny.root, WITHOUT)
    assert [trial.state for trial in found.trials] == ["complete"] * 2
    assert found.best.score == max(trial.score for trial in found.trials)
    assert (found.looks, found.planned, found.n_validation) == (2, 2, flow.newest_dataset(tiny).rows["validation"])
    assert found.worth.low <= found.worth.value <= found.worth.high
    for trial in found.trials:
        run = project.store.get(Run, trial.run_id)
        own = Project.load(tiny.root, [*QUICK, WITHOUT, *(f"{key}={value}" for key, value in trial.values.items())])
        assert run.id == flow.run_id(own, flow.prepare(own)), "trained again with these settings, it is found"
        scores = SplitScores.load(project.root / run.path / "validation.parquet")
        assert len(scores.ids) == found.n_validation
    assert (tiny.store.all(Evaluation), tiny.store.looks("tiny", "")) == before, "nothing looked at test"


def test_run_again_it_is_done_and_more_trials_go_on(tiny):
    _, first = swept(tiny.root, WITHOUT)
    runs = len(tiny.store.all(Run))
    _, again = swept(tiny.root, WITHOUT)
    assert (again, len(tiny.store.all(Run))) == (first, runs)
    _, more = swept(tiny.root, WITHOUT, "sweep.n_trials=3")
    assert (more.id, more.trials[:2]) == (first.id, first.trials)
    assert len(more.trials) == 3


def test_the_time_may_be_up(tiny):
    _, found = swept(tiny.root, WITHOUT, "sweep.timeout_hours=1e-9")
    assert (len(found.trials), found.planned) == (1, 2)


def test_values_that_cannot_be_trained_fail_alone(tiny):
    values = "sweep.parameters.train={learning_rate: [1e-2, 1e30], seed: [0, 1, 2, 3], lora_r: [2, 4]}"
    project = Project.load(tiny.root, [*QUICK, WITHOUT, values, "sweep.n_trials=4"])
    found = flow.sweep(project, flow.prepare(project))
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert {trial.values["train.learning_rate"] for trial in failed} == {1e30}
    assert all("The loss must stay finite" in trial.reason for trial in failed)
    assert found.best.values["train.learning_rate"] == 1e-2
    assert list(project.state.glob("runs/*/checkpoint-*")) == []


def test_when_every_value_fails_the_sweep_ends_with_the_reason(tiny):
    project = Project.load(tiny.root, [*QUICK, WITHOUT, "sweep.parameters.train.learning_rate=[1e29, 1e30]", "sweep.n_trials=9"])
    with pytest.raises(DivergedError, match="The loss must stay finite"):
        flow.sweep(project, flow.prepare(project))


def test_a_bad_trial_is_stopped_early(tiny, monkeypatch):
    monkeypatch.setattr("tunesmith.train.sweep._PRUNER_STARTUP_TRIALS", 1)
    values = "sweep.parameters.train={learning_rate: [1e-2, 1e-8], seed: [0, 1, 2, 3, 4, 5, 6]}"
    project = Project.load(tiny.root, [*QUICK, WITHOUT, values, "sweep.n_trials=5", "sweep.seed=1"])
    found = flow.sweep(project, flow.prepare(project))
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert 1e-8 in {trial.values["train.learning_rate"] for trial in pruned}
    assert project.store.find(Run, pruned[0].run_id) is None
    assert found.looks < len(found.trials)


def test_nothing_to_search_says_how(tiny):
    with pytest.raises(ConfigError, match=r"sweep\.parameters must name what is searched") as raised:
        flow.sweep(tiny, flow.prepare(tiny))
    assert raised.value.hint.startswith("tunesmith sweep --set")


MOMENTS = (
    "after 1 tunesmith.train.sweep:Study._draw",  # the values are drawn, and nobody knows
    "after 1 tunesmith.train.sweep:Study.ask",  # the trial is open, its run is not
    "after 2 tunesmith.train.checkpoint:save_file",  # in its training, at a checkpoint that has no name yet
    "after 5 tunesmith.train.sweep:OpenTrial.report",
    "after 1 tunesmith.evaluate.predict_split:SplitScores.save",  # trained and scored, the trial still open
    "after 1 tunesmith.train.sweep:Study.tell",
)


def test_a_sweep_that_is_killed_ends_where_its_twin_does(tiny, tmp_path):
    settings = "sweep: {n_trials: 2, parameters: {train.learning_rate: {low: 1e-4, high: 2e-2, log: true}, train.lora_r: [2, 4]}}\n"
    file = tiny.root / "tunesmith.yaml"
    text = file.read_text().replace("num_train_epochs: 12", "num_train_epochs: 1\n  report_to: []").replace("save_steps: 20", "save_steps: 4")
    file.write_text(text.replace("logging_steps: 5", "logging_steps: 1") + settings)
    twin = Project.load(shutil.copytree(tiny.root, tmp_path / "twin"))
    driver = Path(__file__).with_name("kill_points.py")
    told = subprocess.run([sys.executable, driver, "sweep", tiny.root, *MOMENTS], capture_output=True, text=True, check=True, timeout=300)
    assert told.stdout.splitlines() == [f"{moment}: killed" for moment in MOMENTS], told.stderr

    project = Project.load(tiny.root)
    ours, theirs = (flow.sweep(each, flow.prepare(each)) for each in (project, twin))
    assert [(each.values, each.state, each.score, each.run_id) for each in ours.trials] == [
        (each.values, each.state, each.score, each.run_id) for each in theirs.trials
    ]
    assert ours.id == theirs.id
    for trial in ours.trials:
        assert project.store.get(Run, trial.run_id).weights_sha256 == twin.store.get(Run, trial.run_id).weights_sha256
    assert list(project.state.glob("runs/*/checkpoint-*")) == []


def test_mlflow_shows_trials_below_their_sweep(tiny):
    project, found = swept(tiny.root)
    client = MlflowClient(project.trackers["mlflow"].uri)
    parent = client.get_run(project.trackers["mlflow"].run(found.id))
    children = [client.get_run(project.trackers["mlflow"].run(trial.run_id)) for trial in found.trials]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert [child.data.metrics["validation/accuracy"] for child in children] == [trial.score for trial in found.trials]
    assert {each.info.status for each in (parent, *children)} == {"FINISHED"}
    assert [point.step for point in client.get_metric_history(parent.info.run_id, "validation/accuracy")] == [1, 2]
    assert parent.data.params["sweep.metric"] == "accuracy"


def test_the_command_tells_trials_the_luck_of_the_best_and_what_to_type(tiny, cli):
    options = [part for override in (*QUICK, SEARCHED, WITHOUT) for part in ("--set", override)]
    result = cli("sweep", "-C", tiny.root, *options)
    assert result.code == 0, result.err
    for words in ("complete", "is the best of 2: accuracy", "It was chosen among 2 runs", "The test split was not looked at.", "  train:\n    learning_rate: "):
        assert words in result.out, result.out
    assert result.out.splitlines()[-1].startswith("Next: tunesmith run --set train.learning_rate=")
    told = cli("sweep", "-C", tiny.root, *options, "--json").json
    assert len(told["trials"]) == 2
    assert {"id", "best", "worth", "looks", "importance", "overrides", "next"} <= told.keys()


def test_a_wrong_key_is_told_before_anything_is_tried(tiny, cli):
    runs = len(tiny.store.all(Run))
    result = cli("sweep", "-C", tiny.root, "--set", "sweep.parameters.train.lora_rr=[4, 8]", "--set", "sweep.parameters.train.lora_dropout=[0.1, 2]")
    assert result.code == 2
    assert "--set: sweep.parameters.train.lora_rr: unknown key. Did you mean 'train.lora_r'?" in result.err
    assert "--set: sweep.parameters.train.lora_dropout: input should be less than 1. Received: 2." in result.err
    assert len(tiny.store.all(Run)) == runs
