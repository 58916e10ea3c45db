"""What is left when a run ends at the wrong moment: killed, or with a full disk. Each run is a process of its own."""

import json
import multiprocessing
import os
import random
import resource
import signal
import threading
from pathlib import Path

import pytest
from test_fit import DEFAULTS, train

from tunesmith.errors import BackendError
from tunesmith.files import file_sha256
from tunesmith.models.engine import resolve
from tunesmith.models.weights import weights_file
from tunesmith.train.batches import encode_rows
from tunesmith.train.checkpoint import newest_checkpoint, step_of
from tunesmith.train.fit import fit
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy
from tunesmith.train.validation import Validation

# Saves are not at the logged steps, and a step accumulates: the state in between must not matter.
SETTINGS = {"save_steps": 3, "logging_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3, "lora_dropout": 0.1}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tunesmith.train.fit"])


def _kill_at(step, delay):
    def report(at, *_):
        if at >= step:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return report


def _train_and_die(arguments, step, delay):
    train(*arguments, _kill_at(step, delay), **SETTINGS)


def _train_on_a_full_disk(arguments, from_step, limit, connection):
    def report(at, *_):
        if at >= from_step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    try:
        train(*arguments, report, **SETTINGS)
    except BackendError as error:
        connection.send((error.exit_code, error.message))


def in_a_process(function, *arguments):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "still running"
    return process.exitcode


@pytest.fixture(scope="module")
def arguments(records, prompt, base, model):
    return records, prompt, base, model.model_copy(update={"forward": "plain"})  # which knows dropout: the generator's state counts too


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert in_a_process(_train_and_die, (folder, *arguments), 10_000, 0) == 0
    return folder


def figures(folder: Path):
    """Return the logged figures without the wall time."""
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(folder, expected):
    assert figures(folder) == figures(expected)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert file_sha256(folder / "weights" / name) == file_sha256(expected / "weights" / name), name


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_and_run_again_is_the_same_run(tmp_path, arguments, uninterrupted, seed):
    draw = random.Random(seed)
    folder = tmp_path / "run"
    for last in sorted(draw.sample(range(1, 18), 2)):
        assert in_a_process(_train_and_die, (folder, *arguments), last, draw.uniform(0, 0.1)) in (-signal.SIGKILL, 0)
    assert in_a_process(_train_and_die, (folder, *arguments), 10_000, 0) == 0
    assert_same_run(folder, uninterrupted)


def test_a_half_written_checkpoint_is_removed_and_does_not_count(tmp_path, arguments, uninterrupted):
    folder = tmp_path / "run"
    assert in_a_process(_train_and_die, (folder, *arguments), 10, 0) == -signal.SIGKILL
    kept = newest_checkpoint(folder)
    assert kept is not None
    half = folder / f".checkpoint-{step_of(kept) + 3}.safetensors.part"
    half.write_bytes(kept.read_bytes()[:1000])
    assert newest_checkpoint(folder) == kept
    assert not half.exists()
    assert in_a_process(_train_and_die, (folder, *arguments), 10_000, 0) == 0
    assert_same_run(folder, uninterrupted)


def test_a_torn_last_line_of_the_losses_is_logged_again(tmp_path, arguments, uninterrupted):
    folder = tmp_path / "run"
    assert in_a_process(_train_and_die, (folder, *arguments), 6, 0) == -signal.SIGKILL
    with (folder / "losses.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert in_a_process(_train_and_die, (folder, *arguments), 10_000, 0) == 0
    assert_same_run(folder, uninterrupted)


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_next_run_continues(tmp_path, arguments, uninterrupted):
    folder = tmp_path / "run"
    limit = newest_checkpoint(uninterrupted).stat().st_size * 9 // 10
    connection, child = PROCESSES.Pipe(duplex=False)
    assert in_a_process(_train_on_a_full_disk, (folder, *arguments), 4, limit, child) == 0
    assert connection.poll(), "the run did not fail"
    exit_code, message = connection.recv()
    assert exit_code == 6
    assert "could not be written" in message
    assert "The newest complete checkpoint, after step 3, is kept." in message
    assert newest_checkpoint(folder).name == "checkpoint-3.safetensors"
    assert in_a_process(_train_and_die, (folder, *arguments), 10_000, 0) == 0
    assert_same_run(folder, uninterrupted)


STRATEGIES = {
    "full": {"strategy": "full", "learning_rate": 1e-2},
    "lora": {"strategy": "lora", "learning_rate": 1e-2},
    "qlora": {"strategy": "qlora", "learning_rate": 1e-2},
    "prefix": {"strategy": "prefix", "learning_rate": 0.1},
}
MANY = {"save_steps": 2, "logging_steps": 1, "eval_steps": 5, "max_eval_samples": 12, "num_train_epochs": 6}


def _train_strategy_and_die(arguments, strategy, step, delay):
    folder, records, prompt, base, model = arguments
    chosen = STRATEGIES[strategy]
    section = TrainSection(**(DEFAULTS | MANY | chosen))
    made = load_strategy(section)
    model = resolve(model.model_copy(update={"forward": "auto", "load_in_4bit": made.load_in_4bit}), base, fits_fast_pass=made.fits_fast_pass)
    validation = Validation.of(records.tail(16), prompt, section)
    rows = encode_rows(records.head(32), prompt, section)
    fit(rows, prompt.prefix, base, model, section, folder, _kill_at(step, delay), validation=validation)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ten_kills_at_random_moments_change_no_bit(tmp_path, records, prompt, base, model, strategy):
    """24 steps with checkpoints, evaluations and the best step's weights; SIGKILL within 30 ms after each of ten drawn steps."""
    given = (records, prompt, base, model)
    assert in_a_process(_train_strategy_and_die, (tmp_path / "whole", *given), strategy, 10_000, 0) == 0
    draw = random.Random(f"kills of {strategy}")
    killed = 0
    for last in sorted(draw.sample(range(1, 24), 10)):
        killed += in_a_process(_train_strategy_and_die, (tmp_path / "killed", *given), strategy, last, draw.uniform(0, 0.03)) == -signal.SIGKILL
    assert killed >= 9, "the last one may come too late"
    assert in_a_process(_train_strategy_and_die, (tmp_path / "killed", *given), strategy, 10_000, 0) == 0
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert file_sha256(weights_file(tmp_path / "killed" / "weights")) == file_sha256(weights_file(tmp_path / "whole" / "weights"))
