"""Starts the processes of a run and follows them until the last one has ended.

They are started by torchrun, never by `accelerate launch`, which on a CPU starts one process where several were asked for and says nothing. The
processes tell what they do on their standard output (`told.py`); what else they say goes to a log file. Their standard
input is a pipe from this process: when it closes, because SIGTERM came or this process was killed, they finish the running step, save it
and end. Nothing here knows what the processes do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.launch.settings import LaunchSection
from tunesmith.told import FOLLOWS_PARENT, heard

_SHOWN_LINES = 3


@dataclass(frozen=True)
class Ended:
    """How a run's processes ended.

    Attributes:
        exit_code: That of the process that was started: 0, or negative for a signal.
        was_stopped: Whether SIGTERM came here and was handed on.
        last_words: The last lines of the log.
    """

    exit_code: int
    was_stopped: bool
    last_words: str


def torchrun_command(section: LaunchSection, module: Sequence[str], *, name: str) -> list[str]:
    """Return the command that starts this machine's processes.

    Args:
        section: The section `launch`.
        module: A Python module and its arguments.
        name: Name under which the machines meet: the same on each, another one for another run.
    """
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", section.rdzv_endpoint, "--rdzv-id", name] if section.rdzv_endpoint else ["--standalone"]
    # A rank that died ends the others: the command that started them continues from the checkpoint, and a person has seen it.
    sizes = ["--nnodes", str(section.nnodes), "--nproc-per-node", str(section.nproc_per_node), "--max-restarts", "0"]
    return [sys.executable, "-m", "torch.distributed.run", *sizes, *meeting, "-m", *module]


def follow(command: Sequence[str], log: Path, on_line: Callable[[dict[str, Any]], None], *, n_local: int = 1) -> Ended:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        log: File that takes what the processes say besides.
        on_line: Receives what they tell, as it comes.
        n_local: Processes on this machine, which share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {**os.environ, FOLLOWS_PARENT: "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // n_local)))
    with log.open("wb") as file:
        # A session of its own: Ctrl-C and the SIGTERM of a whole group reach this process, which hands them on once.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes were asked for
    try:
        with sigterm_handed_on(process.stdin.close) as stopped:
            for line in process.stdout:
                if (told := heard(line.decode(errors="replace"))) is not None:
                    on_line(told)
            process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        process.stdout.close()
        if not process.stdin.closed:
            process.stdin.close()
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return Ended(process.returncode, stopped.is_set(), "\n".join(said[-_SHOWN_LINES:]))


@contextmanager
def sigterm_handed_on(hand_on: Callable[[], None]) -> Iterator[threading.Event]:
    """Call a function when SIGTERM comes, and go on; yield the event that says so. Outside of the main thread, which signals reach alone, nothing is done."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: object) -> None:
        stopped.set()
        hand_on()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)
