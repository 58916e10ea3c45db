"""Where a run trains: in this process, or in processes of its own, where it is written as a job, started by torchrun and followed to its end.

The task's run, the stages before it and the children after it all come through here.

Only this process writes the store and the tracker; the first one of the run writes checkpoints, losses and weights. Where a process dies, torchrun ends the
others, and the same command continues from the newest checkpoint.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith import errors
from tunesmith.entities import DatasetVersion
from tunesmith.errors import BackendError, ConfigError, Terminated, TunesmithError
from tunesmith.flow.dataset import read
from tunesmith.launch.processes import Ended, follow, torchrun_command
from tunesmith.launch.settings import LaunchSection
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.train.batches import Rows
    from tunesmith.train.fit import Fitted, Report
    from tunesmith.train.job import Job
    from tunesmith.train.settings import TrainSection
    from tunesmith.train.validation import Validation

_WORKER = "tunesmith.train.worker"
_LOG = "processes.log"
_FAILURE = re.compile(r"rank\s*:\s*(\d+) \(.*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


def make_job(
    project: Project,
    folder: Path,
    train: TrainSection | None = None,
    *,
    base: Path | None = None,
    prefix: Sequence[int] | None = None,
    start: Path | None = None,
) -> Job:
    """Return what a process needs to train a run into a folder: that of the present settings, where nothing else is given.

    Args:
        project: The project.
        folder: Where to.
        train: The section `train` of the run.
        base: Folder of the base model, where a stage was merged into it.
        prefix: Token ids that every prompt starts with; the task's own when None.
        start: Weights that the run goes on with.

    Raises:
        ConfigError: `launch.fsdp` with a strategy that trains few weights.
    """
    with needs_extra("train"):
        from tunesmith.train.job import Job
    launch, train = project.config.launch, train or project.config.train
    if launch.fsdp and train.strategy != "full":
        raise ConfigError(f"launch.fsdp shares out what learns, which must be all weights: train.strategy full. Received: {train.strategy}.")
    shared = project.prompt.prefix if prefix is None else prefix
    n, fsdp = launch.n_processes, launch.fsdp
    return Job(folder, base or project.base.path, project.model_section, train, project.config.task, tuple(shared), n, fsdp, start)


def validation_of(project: Project, dataset: DatasetVersion) -> Validation | None:
    """Return the records that a run is evaluated on while it trains, or None where `train.eval_steps` is empty."""
    from tunesmith.train.validation import Validation

    if not project.config.train.eval_steps:
        return None
    return Validation.of(read(project, dataset).filter(pl.col("split") == "validation"), project.prompt, project.config.train)


def fit_job(project: Project, job: Job, rows: Rows, validation: Validation | None, report: Report) -> Fitted:
    """Train a run where the section `launch` says.

    Args:
        project: The project.
        job: The run.
        rows: Its training rows.
        validation: What it is evaluated on while it trains, or None.
        report: Receives the figures of logged steps and of evaluations.

    Raises:
        BackendError: a process died.
        Terminated: SIGTERM came, and the running step was saved.
        And what `fit` raises.
    """
    from tunesmith.train.fit import Fitted, fit
    from tunesmith.train.job import only_writer, remove_rows

    if project.config.launch.launcher == "local":
        with only_writer(job.folder):
            fitted = fit(rows, job.prefix, job.base, job.model, job.train, job.folder, report, validation=validation, start=job.start)
    else:
        save_job(job, rows, validation)
        fitted = Fitted(**_fit_in_processes(project, job.folder, report))
    remove_rows(job.folder)
    return fitted


def _fit_in_processes(project: Project, folder: Path, report: Report) -> dict[str, Any]:
    launch = project.config.launch
    if launch.nnodes > 1:
        with project.step("launch") as done:
            done(f"on each of the other {launch.nnodes - 1} machines: {shlex.join(_command(launch, folder))}")
    fitted = run_processes(folder, launch, report)
    if fitted is None:
        raise BackendError("The first process of a run must tell what came out. Received: nothing.", hint=f"Look into {folder / _LOG}")
    return fitted


def save_job(job: Job, rows: Rows, validation: Validation | None) -> None:
    """Write the job with its rows."""
    job.save(lambda: rows, (lambda: validation) if validation else None)


def run_processes(folder: Path, launch: LaunchSection, report: Report, *, kill_at: int | None = None) -> dict[str, Any] | None:
    """Run a job that was saved.

    Args:
        folder: The run's folder.
        launch: Where.
        report: Receives the figures of logged steps and of evaluations.
        kill_at: The step after which the first process gets SIGKILL.

    Returns:
        What `Fitted` holds, or None where it was killed as asked.

    Raises:
        BackendError: a process died, or said what `fit` raises.
        Terminated: SIGTERM came, and the running step was saved.
    """
    heard: dict[str, Any] = {}

    def on_line(told: dict[str, Any]) -> None:
        if "figures" in told:
            report(told["step"], told["steps"], told["figures"])
        else:
            heard.update({kind: value for kind, value in told.items() if kind not in heard})  # of equal errors the first

    ended = follow(_command(launch, folder, kill_at), folder / _LOG, on_line, n_local=launch.nproc_per_node)
    if "fitted" in heard and ended.exit_code == 0:
        return dict(heard["fitted"])
    if "error" in heard:
        raise _error(**heard["error"])
    if "terminated" in heard or ended.was_stopped:
        raise Terminated(heard.get("terminated", "SIGTERM came before the first step was done."))
    died = _who_died(ended, folder / _LOG)
    if kill_at is not None and died == (0, -signal.SIGKILL):
        return None
    raise BackendError(
        f"All processes of a run must end well. Received: {_in_words(died)}. The others were ended too.",
        hint=f"Type the same command: it continues from the newest checkpoint. What the processes said: {folder / _LOG}",
    )


def _command(launch: LaunchSection, folder: Path, kill_at: int | None = None) -> list[str]:
    module = [_WORKER, str(folder), *(["--kill-at", str(kill_at)] if kill_at is not None else [])]
    return torchrun_command(launch, module, name=folder.name) if launch.launcher == "torchrun" else [sys.executable, "-m", *module]


def _error(kind: str, message: str, hint: str) -> TunesmithError:
    found: Callable[..., TunesmithError] = getattr(errors, kind, BackendError)
    return (BackendError if kind == "MissingExtraError" else found)(message, hint=hint)


def _who_died(ended: Ended, log: Path) -> tuple[int, int]:
    """Return rank and exit code of the process that ended the others: one that was killed, else the one that torchrun names last, its root cause."""
    found = [(int(rank), int(code)) for rank, code in _FAILURE.findall(log.read_text(encoding="utf-8", errors="replace"))]
    killed = [(rank, code) for rank, code in found if code == -signal.SIGKILL]
    return (killed or found[-1:] or [(0, ended.exit_code)])[0]


def _in_words(died: tuple[int, int]) -> str:
    rank, code = died
    return f"process {rank} ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def with_settings(job: Job, folder: Path, **train: Any) -> Job:
    """Return a job in another folder, with other keys of the section `train`."""
    return replace(job, folder=folder, train=job.train.model_copy(update=train))
