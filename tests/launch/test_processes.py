"""A run in several processes: what they learn together, what stops them, and how they continue."""

import json
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.app.cli.progress import TerminalProgress
from tunesmith.config import load_config
from tunesmith.errors import BackendError, ConfigError
from tunesmith.launch.processes import follow, torchrun_command
from tunesmith.launch.settings import LaunchSection
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.testing import tiny_base
from tunesmith.told import FOLLOWS_PARENT, heard
from tunesmith.train.batches import Rows
from tunesmith.train.fit import fit
from tunesmith.train.job import Job
from tunesmith.train.processes import Processes
from tunesmith.train.settings import TrainSection

TASK = TaskSection(instruction="Sort the letter.", labels=("card", "loan", "mortgage"))
# Measured: 5e-8 (lora), 1.2e-7 (full) and 2.1e-7 (FSDP2) after 18 steps in float32; sums in another order differ by more on other machines.
TOLERANCE = 1e-5


def figures(folder, *names):
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in names if name in line]


def test_two_processes_learn_what_one_learns_and_read_the_rows_from_one_place(tmp_path):
    """Rows do not divide by two processes, passes are accumulated, and no tokenizer is left for them to use."""
    base = tiny_base(tmp_path / "base")
    for tokenizer in base.glob("token*"):
        tokenizer.unlink()
    texts = [[7 + (row * 13 + at) % 250 for at in range(5 + row % 9)] for row in range(21)]
    rows = Rows([f"rec_{row}" for row in range(21)], texts, [(20 + row % 3, 2) for row in range(21)], [], [1.0, 0.5, 1.0] * 7)
    train = TrainSection(max_length=160, per_device_train_batch_size=3, gradient_accumulation_steps=2, num_train_epochs=3, logging_steps=1, save_steps=50)
    model = ModelSection(model_name_or_path=str(base), dtype="float32", forward="fast")
    job = Job(tmp_path / "two", base, model, train, TASK, (1, 5, 9), n_processes=2)
    job.save(lambda: rows, None)
    command = torchrun_command(LaunchSection(launcher="torchrun", nproc_per_node=2), ["tunesmith.train.worker", str(job.folder)], name="two")
    told = []
    ended = follow(command, tmp_path / "log", told.append, n_local=2)
    assert ended.exit_code == 0, (tmp_path / "log").read_text()
    alone = fit(rows, job.prefix, base, model, train, tmp_path / "one", lambda *_: None)
    assert [line["step"] for line in told[:-1]] == list(range(1, 13)), "one of them tells"
    assert told[-1]["fitted"]["tokens"] == alone.tokens
    for name in ("loss", "grad_norm"):
        assert figures(tmp_path / "two", name) == pytest.approx(figures(tmp_path / "one", name), rel=TOLERANCE)
    one, two = (load_file(tmp_path / name / "weights" / "adapter_model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_rows_come_back_from_the_disk_as_they_were(tmp_path):
    rows = Rows(["rec_a", "rec_b"], [[1, 2, 3], []], [(4, 5), (6,)], ["rec_c"], [0.25, 1.0])
    job = Job(tmp_path, tmp_path, ModelSection(model_name_or_path="x"), TrainSection(), TASK, (1,))
    job.save(lambda: rows, None)
    read = Job.load(tmp_path).rows()
    assert (list(read.prompts), [tuple(answer) for answer in read.answers]) == (rows.prompts, rows.answers)
    assert (read.record_ids, read.excess, read.weights, read.lengths) == (rows.record_ids, rows.excess, rows.weights, rows.lengths)

    def tokenised_again():
        raise AssertionError

    job.save(tokenised_again, None)


def test_a_process_that_believes_it_is_alone_stops(tmp_path):
    """As `accelerate launch` and a forgotten torchrun do: each would train a copy of the run."""
    Job(tmp_path, tmp_path, ModelSection(model_name_or_path="x"), TrainSection(), TASK, (1,), n_processes=2).save(lambda: Rows([], [], [], [], []), None)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", FOLLOWS_PARENT)}
    ended = subprocess.run(
        [sys.executable, "-m", "tunesmith.train.worker", tmp_path], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    told = heard(ended.stdout.splitlines()[-1])
    assert ended.returncode == BackendError.exit_code
    assert "2 processes must train this run together" in told["error"]["message"]
    assert "Received: 1 that met" in told["error"]["message"]


def test_a_whole_command_under_torchrun_stops_before_it_trains_copies(fresh, cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = cli("train", "-C", fresh)
    assert result.code == BackendError.exit_code
    assert "1 process must train this run together" in result.err
    assert "WORLD_SIZE 2" in result.err
    with pytest.raises(BackendError, match="must train this run together"):
        Processes().checked(1)


def worker(folder, rank):
    """Return the process of a rank that trains into a folder."""
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        is_one = "tunesmith.train.worker" in arguments and "torch.distributed.run" not in arguments and any(str(folder) in each for each in arguments)
        if is_one and process.environ().get("RANK") == str(rank):
            return process
    return None


def test_a_killed_process_ends_the_others_and_the_same_command_continues(fresh, tmp_path, cli, monkeypatch):
    """FSDP2 on two processes that recompute layers: rank 1 is killed, then SIGTERM comes, then the run ends; against one process that nothing happened to."""
    settings = ["train.strategy=full", "train.learning_rate=3e-3", "train.num_train_epochs=3", "train.save_steps=6", "train.eval_steps=7", "train.report_to=[]"]
    settings += ["train.logging_steps=1"]
    together = ["launch.launcher=torchrun", "launch.nproc_per_node=2", "launch.fsdp=true", "train.gradient_checkpointing=true"]
    twin = shutil.copytree(fresh, tmp_path / "twin")
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert cli("train", "-C", twin, *arguments).code == 0
    arguments += [part for setting in together for part in ("--set", setting)]

    def at(step, what):
        def advance(self, done, total, detail=""):
            if total == 33 and done == step:
                what()

        monkeypatch.setattr(TerminalProgress, "advance", advance)

    at(8, lambda: worker(fresh, 1).kill())
    killed = cli("train", "-C", fresh, *arguments)
    assert killed.code == BackendError.exit_code
    assert "process 1 ended with SIGKILL. The others were ended too." in killed.err
    assert worker(fresh, 0) is None
    at(15, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = cli("train", "-C", fresh, *arguments)
    assert stopped.code == 143, stopped.err
    assert "was finished and saved" in stopped.err
    at(0, lambda: None)
    assert cli("train", "-C", fresh, *arguments).code == 0

    ours, theirs = (next(folder.glob(".tunesmith/runs/*")) for folder in (fresh, twin))
    for name in ("loss", "eval_loss"):
        assert figures(ours, name) == pytest.approx(figures(theirs, name), rel=1e-4)
    assert [file.name for file in (ours / "weights").glob("*.safetensors")] == ["model.safetensors"]
    whole, alone = (load_file(run / "weights" / "model.safetensors") for run in (ours, theirs))
    assert whole.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["launch.nproc_per_node=2"], "need launcher: torchrun"),
        (["launch.fsdp=true"], "need launcher: torchrun"),
        (["launch.launcher=torchrun", "launch.nnodes=2"], "needs rdzv_endpoint: HOST:PORT"),
        (["launch.launcher=accelerate"], "'local' or 'torchrun'"),
    ],
)
def test_what_does_not_go_together_is_refused(unused, settings, words):
    with pytest.raises(ConfigError, match=words):
        load_config(unused / "tunesmith.yaml", settings)


def test_fsdp_is_for_runs_that_train_all_weights(fresh, cli):
    result = cli("train", "-C", fresh, "--set", "launch.launcher=torchrun", "--set", "launch.fsdp=true")
    assert result.code == ConfigError.exit_code
    assert "train.strategy full. Received: lora" in result.err


def test_machines_meet_at_the_endpoint():
    section = LaunchSection(launcher="torchrun", nproc_per_node=4, nnodes=2, rdzv_endpoint="trainer-0:29500")
    command = " ".join(torchrun_command(section, ["tunesmith.train.worker", "/shared/run_1"], name="run_1"))
    sizes = "--nnodes 2 --nproc-per-node 4 --max-restarts 0"
    assert command.endswith(f"{sizes} --rdzv-backend c10d --rdzv-endpoint trainer-0:29500 --rdzv-id run_1 -m tunesmith.train.worker /shared/run_1")
