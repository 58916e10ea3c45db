"""One process of a run: `python -m tunesmith.train.worker FOLDER [--kill-at STEP]`.

It reads a job, meets the other processes, trains its share, and tells what happens on its standard output, a JSON object a line behind a
prefix: logged figures, in the end what `Fitted` holds, or the error. Only the first process writes to the run's folder; none touches the store.
`--kill-at` sends it SIGKILL after that step was logged, which is how `tunesmith train --verify-resume` proves what it says.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from tunesmith.errors import Terminated, TunesmithError
from tunesmith.libraries import quiet_libraries
from tunesmith.told import FOLLOWS_PARENT, tell
from tunesmith.train.fit import fit
from tunesmith.train.job import Job, only_writer
from tunesmith.train.processes import Processes


def main() -> None:
    """Train what the job says and exit with the code of its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    arguments = parser.parse_args()
    quiet_libraries()
    if os.environ.get(FOLLOWS_PARENT):
        threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        job = Job.load(arguments.folder)
        processes = Processes.join(job.n_processes)
        tells = os.environ.get("LOCAL_RANK", "0") == "0"  # one on each machine: torchrun decides where the first of all is

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            if tells:
                tell({"step": step, "steps": steps, "figures": figures})
            if step == arguments.kill_at and processes.is_first:
                os.kill(os.getpid(), signal.SIGKILL)

        with only_writer(job.folder) if processes.is_first else nullcontext():
            fitted = fit(
                job.rows(),
                job.prefix,
                job.base,
                job.model,
                job.train,
                job.folder,
                report,
                validation=job.validation(),
                processes=processes,
                fsdp=job.fsdp,
                start=job.start,
            )
        if tells:
            tell({"fitted": asdict(fitted)})
    except TunesmithError as error:
        tell({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}})
        _end(error.exit_code)
    except Terminated as end:
        tell({"terminated": str(end)})
        _end(end.exit_code)


def _end(code: int) -> None:
    sys.stderr.flush()
    os._exit(code)  # at once: leaving a process group in good order waits for the others


def _follow_parent() -> None:
    """When the process that started this run ends or wants it to, finish the running step and save it."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock would be held when this process ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
