"""SIGTERM, as clouds send it before they take a machine away: the running step is finished and saved, and the same command continues."""

import json
import os
import signal

from tunesmith.entities import Run
from tunesmith.project import Project
from tunesmith.train.fit import _LossLog


def losses(folder):
    return [(line["step"], line["loss"]) for line in map(json.loads, next(folder.glob(".tunesmith/runs/*/losses.jsonl")).read_text().splitlines())]


def test_sigterm_saves_the_running_step_and_the_same_command_continues(fresh, finished, cli, monkeypatch):
    add, before = _LossLog.add, signal.getsignal(signal.SIGTERM)  # other tests' libraries (Ray) may have set one

    def add_and_be_terminated(self, step, *figures):
        add(self, step, *figures)
        if step == 35:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(_LossLog, "add", add_and_be_terminated)
        ended = cli("train", "-C", fresh)
    assert ended.code == 143
    assert "SIGTERM came: step 35 of" in ended.err
    assert "The same command continues." in ended.err
    assert sorted(path.name for path in fresh.glob(".tunesmith/runs/*/checkpoint-*")) == ["checkpoint-20.safetensors", "checkpoint-35.safetensors"]
    assert signal.getsignal(signal.SIGTERM) == before

    assert cli("train", "-C", fresh).code == 0
    assert losses(fresh) == losses(finished.project.root)
    assert Project.load(fresh).store.all(Run)[0].weights_sha256 == finished.outcome.run.weights_sha256
