"""The plan of all that a training does: stages, run and children, and what each took afterwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import flow
from tunesmith.errors import RefusedError
from tunesmith.project import Project
from tunesmith.testing import tiny_project, tiny_rows, tiny_typed_project
from tunesmith.train.plan import Estimate, Plan

QUICK = ("train.report_to=[]", "data.dvc=false", "train.num_train_epochs=1")
STAGES = """train.stages=[
  {name: domain, path: data/domain.txt, train: {max_steps: 1}},
  {name: more, path: data/domain.txt, train: {replay_ratio: 1.0, start: merge}}]"""


def a_plan(low, spread, disk, trainable):
    estimate = Estimate(low=low, expected=low + spread, high=low + 2 * spread)
    return Plan.model_construct(peak_memory_bytes=estimate, seconds=estimate, disk_bytes=disk, trainable_parameters=trainable)


plans = st.builds(a_plan, st.floats(1, 1e6), st.floats(0, 1e6), st.integers(0, 10**9), st.integers(1, 10**6))
several_parts = st.lists(st.builds(flow.Part, st.sampled_from(["stage a", "run", "child b"]), plans, st.integers(0, 10**6), st.booleans()), min_size=1)


@given(several_parts)
def test_the_sum_holds_what_is_yet_to_be_trained_and_nothing_else(parts):
    whole, ahead = flow.total(parts), [part for part in parts if not part.is_trained]
    if not ahead:
        assert whole is None
        return
    for end in ("low", "expected", "high"):
        assert getattr(whole.seconds, end) == pytest.approx(sum(getattr(part.plan.seconds, end) for part in ahead))
        assert getattr(whole.peak_memory_bytes, end) == max(getattr(part.plan.peak_memory_bytes, end) for part in ahead)
    kept = sum(part.merged_bytes + 4 * part.plan.trainable_parameters for part in ahead[:-1])
    assert whole.disk_bytes >= kept + ahead[-1].plan.disk_bytes + ahead[-1].merged_bytes
    assert whole.disk_bytes >= max(part.plan.disk_bytes + part.merged_bytes for part in ahead)
    assert whole.disk_bytes <= kept + ahead[-1].merged_bytes + max(part.plan.disk_bytes for part in ahead)


@pytest.fixture
def typed(tmp_path):
    root = tiny_typed_project(tmp_path / "typed", n_rows=160)
    return lambda *more: Project.load(root, [*QUICK, "train.adapters.min_records=15", *more])


def test_each_child_has_its_line_before_and_what_it_took_after(typed, cli):
    project = typed()
    sets = [f"--set={each}" for each in project.overrides]
    told = cli("plan", "--project", project.root, *sets, "--json").json
    assert [part["name"] for part in told["parts"]] == ["run", "child invoice", "child letter"]
    assert [part["measured"] for part in told["parts"]] == [None] * 3
    assert told["total"]["seconds"]["expected"] == pytest.approx(sum(part["planned"]["seconds"]["expected"] for part in told["parts"]))
    shown = cli("plan", "--project", project.root, *sets).out
    assert "child letter" in shown
    assert "all that is trained now" in shown

    trained = cli("train", "--project", project.root, *sets, "--json").json
    assert trained["total"] is None
    for part, planned in zip(trained["parts"], told["parts"], strict=True):
        assert part["planned"]["steps"] == planned["planned"]["steps"]
        assert part["measured"]["seconds"] > 0
        assert part["measured"]["peak_memory_bytes"] > 0
    again = cli("train", "--project", project.root, *sets).out
    assert "memory, child invoice" in again
    assert "trained already" in cli("plan", "--project", project.root, *sets).out


def test_a_limit_is_one_of_all_parts_together_and_of_none_that_is_trained(typed):
    project = typed()
    dataset = flow.prepare(project)
    planned = flow.plan_parts(project, dataset)
    most, whole = max(part.plan.disk_bytes for part in planned), flow.total(planned).disk_bytes
    assert most < whole
    limit = f"train.max_disk_gb={(most + whole) / 2 / 1e9}"
    with pytest.raises(RefusedError, match=r"must stay within train.max_disk_gb"):
        flow.train_adapters(typed(limit), dataset)
    assert not (project.state / "runs").exists()
    flow.train_adapters(project, dataset)
    flow.train_adapters(typed(limit), dataset)


def test_stages_are_planned_with_what_they_replay_and_kept_with_what_they_took(tmp_path):
    root = tiny_project(tmp_path / "staged", n_rows=120)
    (root / "data" / "domain.txt").write_text("\n\n".join(f"{text} and so on" for text, _ in tiny_rows(150)[60:]), encoding="utf-8")
    project = Project.load(root, [*QUICK, STAGES, "train.replay_ratio=0.5"])
    dataset = flow.prepare(project)
    planned = flow.plan_parts(project, dataset)
    assert [part.name for part in planned] == ["stage domain", "stage more", "run"]
    assert [part.merged_bytes > 0 for part in planned] == [False, True, True]
    assert planned[-1].plan.records == dataset.rows["train"]
    assert planned[-1].plan.rows > dataset.rows["train"]
    run = flow.train_adapters(project, dataset, planned)
    assert planned[-1].plan.steps == run.steps
    measured = flow.measured_parts(project, dataset)
    assert [part.plan.steps for part in measured] == [part.plan.steps for part in planned]
    assert all(part.is_trained and part.seconds > 0 and part.peak_memory_bytes > 0 for part in measured)
    assert planned[0].plan.steps == 1
    assert planned[0].plan.shared_prefix_tokens == 0
