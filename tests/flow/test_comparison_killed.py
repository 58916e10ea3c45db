"""A comparison that is told to end, or killed, takes the run that it started with it: the running step is saved, and nothing trains on unseen."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

SETTINGS = """
compare:
  candidates: {lora: {strategy: lora, num_train_epochs: 200, save_steps: 100000, logging_steps: 1}}
  seeds: [0]
"""
COMPARE = "from tunesmith.app.cli import main; main()"


def steps(folder):
    """Return the steps that were logged."""
    files = list(folder.glob(".tunesmith/runs/*/losses.jsonl"))
    return [json.loads(line)["step"] for line in files[0].read_text().splitlines()] if files else []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_ends_with_the_comparison_that_started_it(fresh, tmp_path, sent, code):
    with (fresh / "tunesmith.yaml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    command = [sys.executable, "-c", COMPARE, "compare", "-C", str(fresh)]
    with (tmp_path / "said.txt").open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as parent:
        while len(steps(fresh)) < 5 and parent.poll() is None:
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(sent)
        assert parent.wait() == code, (tmp_path / "said.txt").read_text()
    assert children
    _, alive = psutil.wait_procs(children, timeout=120)  # one step
    assert not alive
    last = steps(fresh)[-1]
    assert [path.name for path in fresh.glob(".tunesmith/runs/*/checkpoint-*")] == [f"checkpoint-{last}.safetensors"]
    if sent == signal.SIGTERM:
        assert f"SIGTERM came: step {last} of" in (tmp_path / "said.txt").read_text()
