"""Trackers follow a run and never decide about it: W&B offline on disk, one that fails, and what may not be shown."""

import json
import struct
import sys
from pathlib import Path

import pytest

from tunesmith import flow
from tunesmith.entities import Run
from tunesmith.errors import BackendError, ConfigError, MissingExtraError
from tunesmith.project import Progress, Project
from tunesmith.tracking import Trackers, open_trackers, without_secrets

QUICK = ("train.max_steps=6", "train.logging_steps=2")


class Warned(Progress):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def history(folder: Path, noun_id: str):
    """Read the figures of a W&B run from its files, which are LevelDB logs of protobuf records; the files are small: one block each."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for file in sorted(folder.glob(f"wandb/offline-run-*-{noun_id}/run-{noun_id}.wandb")):
        data, at = file.read_bytes(), 7
        whole = b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # the rest of a block
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # full, or the last part
                record, whole = Record.FromString(whole), b""
                if record.WhichOneof("record_type") == "history":
                    rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    return rows


def test_wandb_offline_keeps_what_mlflow_shows(tiny, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    project = Project.load(tiny.root, [*QUICK, "train.report_to=[mlflow, wandb]"])
    run = flow.train(project, flow.prepare(project))
    mlflow = project.trackers["mlflow"]
    shown = [(point.step, point.value) for point in mlflow._client.get_metric_history(mlflow.run(run.id), "train/loss")]
    kept = [(row["_step"], row["train/loss"]) for row in history(project.state, run.id)]
    assert [step for step, _ in kept] == [step for step, _ in shown] == [1, 2, 4, 6]
    assert [loss for _, loss in kept] == pytest.approx([loss for _, loss in shown])
    flow.calibrate(project, flow.evaluate(project, run))
    assert any("test/accuracy" in row for row in history(project.state, run.id)), "a run that ended is opened again"


def test_one_name_is_a_list_of_one_and_unknown_ones_are_refused(tiny):
    assert Project.load(tiny.root, ["train.report_to=wandb"]).config.train.report_to == ("wandb",)
    with pytest.raises(ConfigError, match=r"train\.report_to: must be a list of mlflow, wandb; received 'tensorboard'"):
        Project.load(tiny.root, ["train.report_to=[mlflow, tensorboard]"])


def test_a_missing_wandb_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="needs the package 'wandb'") as raised:
        open_trackers(("wandb",), tmp_path, "letters", print)
    assert raised.value.hint == "pip install 'tunesmith[wandb]'"


class Broken:
    """A tracker that fails after some calls."""

    def __init__(self, good_calls):
        self.left = good_calls

    def _call(self, *_):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("https://user:hunter22@tracker.example is gone")

    begin = log_metrics = log_artifacts = set_parent = finish = _call


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tiny):
    heard = Warned()
    project = Project.load(tiny.root, [*QUICK, "train.report_to=[]"], heard)
    vars(project)["trackers"] = Trackers({"broken": Broken(2)}, heard.warn)
    run = flow.train(project, flow.prepare(project))
    assert project.store.find(Run, run.id) == run
    (told,) = heard.warnings
    assert told == "broken failed and is left out until the next command; nothing else is: https://***@tracker.example is gone"


def test_one_that_cannot_begin_stops_the_run_before_it_trains(tiny):
    project = Project.load(tiny.root, [*QUICK, "train.report_to=[]"])
    vars(project)["trackers"] = Trackers({"broken": Broken(0), "other": Broken(9)}, print)
    with pytest.raises(BackendError, match=r"broken must be able to show a run before it starts\. Received: https://\*\*\*@tracker\.example") as raised:
        flow.train(project, flow.prepare(project))
    assert raised.value.hint == "Set train.report_to: [other]."
    assert not list(project.state.glob("runs/*/losses.jsonl")) or len(list(project.state.glob("runs/*/losses.jsonl"))) == 1


def test_passwords_and_keys_are_not_shown(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert without_secrets("key 0123456789abcdef at postgresql://me:pass@host/db") == "key *** at postgresql://***@host/db"
    assert without_secrets("https://host/path, mail a@b.example") == "https://host/path, mail a@b.example"


def test_an_address_with_a_password_is_not_shown_when_it_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://me:hunter22@nowhere")
    with pytest.raises(BackendError, match=r"MLflow at nonsense://\*\*\*@nowhere cannot be used") as raised:
        open_trackers(("mlflow",), tmp_path, "letters", print)
    assert "hunter22" not in str(raised.value)


def test_mlflow_has_the_dataset_the_machine_and_the_plots(finished):
    mlflow, run = finished.project.trackers["mlflow"], finished.outcome.run
    shown = mlflow._client.get_run(mlflow.run(run.id))
    (used,) = shown.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (finished.outcome.dataset.id, finished.outcome.dataset.sha256[:36])
    assert json.loads(used.dataset.profile)["rows"] == finished.outcome.dataset.rows
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
    artifacts = {each.path for each in mlflow._client.list_artifacts(mlflow.run(run.id), "report")}
    assert artifacts == {"report/report.html", *(f"report/{plot}.svg" for plot in ("intervals", "confusion", "reliability", "coverage_risk"))}


def test_mlflow_watches_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    from time import sleep

    trackers = open_trackers(("mlflow",), tmp_path, "letters", print)
    trackers.begin("run_a", {"train.seed": 0})
    for _ in range(100):
        sleep(0.1)
        mlflow = trackers["mlflow"]
        if watched := [name for name in mlflow._client.get_run(mlflow.run("run_a")).data.metrics if name.startswith("system/")]:
            break
    trackers.finish("run_a")
    assert "system/cpu_utilization_percentage" in watched
