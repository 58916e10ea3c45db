"""Stages before the task on the tiny model: domain text, then instructions, then the task."""

import pytest

from tunesmith import flow
from tunesmith.entities import Run
from tunesmith.errors import ConfigError, NotFoundError, RefusedError
from tunesmith.flow import stages
from tunesmith.project import Project
from tunesmith.testing import tiny_rows

STAGES = """
  stages:
    - name: domain
      path: data/domain.txt
      train: {max_steps: 8, learning_rate: 5e-3}
    - name: manners
      path: data/manners.csv
      objective: instruction
      train: {max_steps: 4, start: START, replay_ratio: 0.5}
"""


def staged(root, start="continue", more=()):
    with (root / "data" / "domain.txt").open("w", encoding="utf-8") as file:
        file.write("\n\n".join(f"{text} and so on" for text, _ in tiny_rows(150)[60:]))
    with (root / "data" / "manners.csv").open("w", encoding="utf-8") as file:
        file.write("text,label\n" + "".join(f"question {number} of my account,answer {number}\n" for number in range(80)))
    file = root / "tunesmith.yaml"
    text = file.read_text(encoding="utf-8")
    if "stages:" not in text:
        file.write_text(text.replace("\nevaluate:", STAGES.replace("START", start) + "\nevaluate:"), encoding="utf-8")
    return Project.load(root, ["train.report_to=[]", "train.num_train_epochs=2", *more])


@pytest.mark.parametrize("start", ["continue", "merge"])
def test_each_stage_is_measured_on_itself_and_on_all_before_it(fresh, start, monkeypatch):
    project, tokenised, read = staged(fresh, start), [], stages._records
    monkeypatch.setattr(stages, "_records", lambda project, stage: tokenised.append(stage.name) or read(project, stage))
    dataset = flow.prepare(project)
    run = flow.train(project, dataset)
    table = flow.stage_table(project, run.path)
    assert [(row["stage"], row["probe"]) for row in table] == [
        ("domain", "general"), ("domain", "domain"),
        ("manners", "general"), ("manners", "domain"), ("manners", "manners"),
        ("task", "general"), ("task", "domain"), ("task", "manners"),
    ]  # fmt: skip
    own = next(row for row in table if row["stage"] == row["probe"] == "domain")
    assert own["high"] < 0  # it learnt its own text
    for row in table:
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
    whole = (project.root / run.path / "weights" / "model.safetensors").exists()
    assert whole == (start == "merge")

    # Each file was tokenised once, though the plan, the stages and the task need it.
    assert len(tokenised) == len(set(tokenised)) == 2

    # All is found again; another last stage trains the first one not again.
    trained = {file: file.stat().st_mtime_ns for file in (project.state / "stages").rglob("weights/*")}
    assert flow.train(project, dataset).id == run.id
    other = staged(fresh, more=["train.learning_rate=3e-3"])
    second = flow.train(other, dataset)
    assert second.id != run.id
    assert {file: file.stat().st_mtime_ns for file in trained} == trained
    assert len(tokenised) == 2  # another rate cuts no text otherwise
    evaluation = flow.evaluate(project, run)
    assert evaluation.n_test > 0


def test_a_stage_that_breaks_its_budget_stops_the_run_offers_replay_and_is_not_trained_again(fresh):
    project = staged(fresh, more=["evaluate.max_forgetting=0"])
    dataset = flow.prepare(project)
    with pytest.raises(RefusedError, match=r"may rise by at most 0 nats a token in the stage task") as raised:
        flow.train(project, dataset)
    assert "train.replay_ratio to 0.2" in raised.value.hint
    assert project.store.all(Run) == []
    weights = {file: file.stat().st_mtime_ns for file in project.state.rglob("weights/*.safetensors")}
    allowed = staged(fresh, more=["evaluate.max_forgetting=9"])
    assert flow.train(allowed, dataset).steps > 0
    assert {file: file.stat().st_mtime_ns for file in weights} == weights


def test_a_budget_counts_in_its_own_stage_and_never_for_the_stage_itself():
    rows = [
        {"stage": "domain", "probe": "general", "difference": 0.3, "low": 0.2, "high": 0.4},
        {"stage": "domain", "probe": "domain", "difference": 9.0, "low": 8.0, "high": 10.0},
        {"stage": "task", "probe": "general", "difference": 5.0, "low": 4.0, "high": 6.0},
    ]
    stages._refuse_over_budget(rows, "domain", 0.3)
    with pytest.raises(RefusedError, match=r"general may rise by at most 0.2 nats a token in the stage domain.*\+0.300 \[\+0.200, \+0.400\]") as raised:
        stages._refuse_over_budget(rows, "domain", 0.2)
    assert "replay_ratio under train of the stage domain" in raised.value.hint


def test_a_stage_without_its_file_says_so(fresh):
    project = staged(fresh)
    (fresh / "data" / "domain.txt").unlink()
    with pytest.raises(NotFoundError, match=r"file of the stage domain must exist. Received: data/domain.txt"):
        flow.train(project, flow.prepare(project))


def test_two_stages_of_one_name_are_refused(fresh):
    file = fresh / "tunesmith.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("\nevaluate:", "\n  stages: [{name: a, path: x}, {name: a, path: y}]\n\nevaluate:"), encoding="utf-8")
    with pytest.raises(ConfigError, match="name of its own"):
        Project.load(fresh)
