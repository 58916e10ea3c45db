"""A command that is killed, whenever, is run again, continues, and ends where an uninterrupted one does."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl

from tunesmith import flow
from tunesmith.data.freeze import read_records
from tunesmith.entities import DatasetVersion, ModelVersion, Run
from tunesmith.project import Project

MOMENTS = (
    "before 3 tunesmith.project:Progress.advance",  # prepare, between its steps
    "after 1 tunesmith.data.freeze:_write",  # prepare: the folder is there, its row is not
    "before 1 tunesmith.data.freeze:version_with_dvc",  # prepare: the row is there, DVC knows nothing
    "after 2 tunesmith.train.checkpoint:save_file",  # train: a checkpoint that has no name yet
    "after 12 tunesmith.project:Progress.advance",  # train, between checkpoints
    "after 1 tunesmith.tracking:Trackers.finish",  # train: MLflow says finished, the store does not
    "after 2 tunesmith.evaluate.predict_split:SplitScores.save",  # evaluate: some scores are there
    "after 1 tunesmith.evaluate.report:write_report",  # calibrate: the report is there, its calibrator is not
    "after 1 tunesmith.models.artifact:write_artifact",  # register: the folder is there, its row is not
    "after 1 tunesmith.store:Store.put_look",  # register: the store has a champion, MLflow has none
)


def losses(project, run):
    lines = [json.loads(line) for line in (project.root / run.path / "losses.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_a_run_that_is_killed_in_every_stage_ends_where_its_twin_does(fresh, finished):
    driver = Path(__file__).with_name("kill_points.py")
    told = subprocess.run([sys.executable, driver, "run", fresh, *MOMENTS], capture_output=True, text=True, check=True, timeout=300)
    assert told.stdout.splitlines() == [f"{moment}: killed" for moment in MOMENTS], told.stderr

    project, twin = Project.load(fresh), finished.project
    ours, theirs = flow.run(project), finished.outcome
    assert (ours.dataset.id, ours.dataset.sha256) == (theirs.dataset.id, theirs.dataset.sha256)
    assert (ours.run.id, ours.run.weights_sha256, ours.run.train_loss) == (theirs.run.id, theirs.run.weights_sha256, theirs.run.train_loss)
    assert losses(project, ours.run) == losses(twin, theirs.run)
    for name in ("tuned-validation", "tuned-calibration", "tuned-test", "classical-test"):
        mine, other = (pl.read_parquet(p.root / made.evaluation.path / f"{name}.parquet") for p, made in ((project, ours), (twin, theirs)))
        assert mine.equals(other), name
    assert ours.calibration.calibrator == theirs.calibration.calibrator
    assert ours.verdict == theirs.verdict

    # Nothing is there twice, and DVC and MLflow have followed the store.
    assert [len(project.store.all(kind)) for kind in (DatasetVersion, Run, ModelVersion)] == [1, 1, 1]
    assert len(project.store.looks_of(ours.model_version.id)) == 1
    assert project.trackers["mlflow"].alias("tiny", "champion") == project.store.alias("tiny", "champion") == ours.model_version.id
    log = subprocess.run(["git", "log", "--format=%s"], cwd=fresh, capture_output=True, text=True, check=True).stdout.splitlines()
    assert log == [f"tunesmith: dataset version {ours.dataset.id}"]
    assert len(read_records(fresh, ours.dataset)) == sum(ours.dataset.rows.values())
    assert list(fresh.glob(".tunesmith/runs/*/*checkpoint-*")) == []
