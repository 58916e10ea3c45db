"""Stages before the task and children after it in two processes: they learn what one process learns."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tunesmith import flow
from tunesmith.errors import ConfigError
from tunesmith.project import Project
from tunesmith.testing import tiny_rows, tiny_typed_project

QUICK = ("train.report_to=[]", "data.dvc=false", "train.num_train_epochs=1", "train.logging_steps=1")
TOGETHER = ("launch.launcher=torchrun", "launch.nproc_per_node=2")
# Measured: 5e-8 of the losses in float32; sums in another order differ by more on other machines.
TOLERANCE = 1e-5


def losses(folder):
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "eval_loss", "grad_norm") if name in line]


def assert_equal_runs(alone, together):
    assert losses(together) == pytest.approx(losses(alone), rel=TOLERANCE)
    one, two = (load_file(folder / "weights" / "adapter_model.safetensors") for folder in (alone, together))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert (together / "processes.log").exists(), "it was trained in processes of its own"
    assert not (together / "rows").exists()


def test_a_child_learns_in_two_processes_what_it_learns_in_one(tmp_path):
    root = tiny_typed_project(tmp_path / "alone", n_rows=160)
    project = Project.load(root, [*QUICK, "train.adapters={}"])
    dataset = flow.prepare(project)
    flow.train(project, dataset)
    # The type with the most records alone gets a child, which is evaluated while it learns.
    most = flow.read(project, dataset).filter(split="train")["document_type"].value_counts()["count"].max()
    more = f"train.adapters={{min_records: {most}, train: {{eval_steps: 3}}}}"
    twin = shutil.copytree(root, tmp_path / "together")
    runs = []
    for folder, launch in ((root, ()), (twin, TOGETHER)):
        opened = Project.load(folder, [*QUICK, more, *launch])
        parent = flow.train_adapters(opened, dataset)
        runs.append({each: opened.root / child.path for each, child in flow.children_of(opened, dataset, parent).items()})
    assert runs[0].keys() == runs[1].keys() != set()
    for alone, together in zip(runs[0].values(), runs[1].values(), strict=True):
        assert_equal_runs(alone, together)


def test_a_stage_and_the_task_after_it_learn_in_two_processes_what_they_learn_in_one(fresh, tmp_path):
    (fresh / "data" / "domain.txt").write_text("\n\n".join(f"{text} and so on" for text, _ in tiny_rows(150)[60:]), encoding="utf-8")
    more = ["train.stages=[{name: domain, path: data/domain.txt, train: {max_steps: 4, learning_rate: 5e-3}}]", "train.replay_ratio=0.3", "train.max_steps=6"]
    folders = []
    for root, launch in ((fresh, ()), (shutil.copytree(fresh, tmp_path / "together"), TOGETHER)):
        project = Project.load(root, [*QUICK, *more, *launch])
        run = flow.train(project, flow.prepare(project))
        folders.append([next((project.state / "stages").iterdir()), project.root / run.path])
        assert [row["stage"] for row in flow.stage_table(project, run.path)] == ["domain"] * 2 + ["task"] * 2
    for alone, together in zip(*folders, strict=True):
        assert alone.name == together.name, "where a run trains is not part of its id"
        assert_equal_runs(alone, together)


def test_a_stage_that_cannot_be_shared_out_is_told_before_anything_is_trained(fresh):
    (fresh / "data" / "domain.txt").write_text("\n\n".join(text for text, _ in tiny_rows(90)), encoding="utf-8")
    stages = "train.stages=[{name: domain, path: data/domain.txt}, {name: more, path: data/domain.txt, train: {strategy: lora, start: merge}}]"
    project = Project.load(fresh, [*QUICK, stages, "train.strategy=full", *TOGETHER, "launch.fsdp=true"])
    with pytest.raises(ConfigError, match=r"train.strategy full. Received: lora"):
        flow.train(project, flow.prepare(project))
    assert not (project.state / "stages").exists()
