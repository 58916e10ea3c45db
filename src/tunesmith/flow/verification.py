"""Does a killed run continue as if nothing had happened? Proved on the run's own settings, before it is trusted with days.

Two twins start from nothing. One runs until some steps after its first checkpoint. The other gets SIGKILL one step after that checkpoint,
is started again, and continues to the same step. Loss, gradient norm, learning rate and evaluations of the steps after the checkpoint must
be equal to the last bit.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import polars as pl

from tunesmith.entities import DatasetVersion
from tunesmith.errors import BackendError
from tunesmith.flow.dataset import read
from tunesmith.flow.processes import make_job, run_processes, save_job, validation_of, with_settings
from tunesmith.project import Project, needs_extra

_STEPS_COMPARED = 5


@dataclass(frozen=True)
class Verified:
    """What was compared and found equal.

    Attributes:
        checkpoint: The step after which the checkpoint was written that the killed twin continued from.
        steps: The steps that were compared, first and last.
        lines: Their logged figures, the same in both twins.
    """

    checkpoint: int
    steps: tuple[int, int]
    lines: list[dict[str, float]]


def verify_resume(project: Project, dataset: DatasetVersion) -> Verified:
    """Kill a twin of the present run at its first checkpoint and compare what it does next with a twin that was not killed.

    Raises:
        BackendError: the twins differ; the message names the first step and figure.
    """
    with needs_extra("train"):
        from tunesmith.train.batches import encode_rows, schedule
    with project.step("verify") as done:
        folder = project.state / "verify-resume"
        shutil.rmtree(folder, ignore_errors=True)
        rows = encode_rows(read(project, dataset).filter(pl.col("split") == "train"), project.prompt, project.config.train)
        n_steps = len(schedule(rows, project.config.train)) // project.config.train.gradient_accumulation_steps
        checkpoint = max(1, min(project.config.train.save_steps, n_steps // 2))
        last = min(checkpoint + _STEPS_COMPARED, n_steps)
        job = make_job(project, folder)
        launch = project.config.launch
        logged: dict[str, list[dict[str, float]]] = {}
        for name, kills in (("uninterrupted", (last,)), ("killed", (checkpoint + 1, last))):
            twin = with_settings(job, folder / name, save_steps=checkpoint, logging_steps=1)
            save_job(twin, rows, validation_of(project, dataset))
            for kill_at in kills:
                run_processes(twin.folder, launch, lambda step, _, figures: project.progress.advance(step, last, ""), kill_at=kill_at)
            found = [json.loads(line) for line in (twin.folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
            logged[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in found if checkpoint < line["step"] <= last]
        _refuse_difference(logged["uninterrupted"], logged["killed"], checkpoint)
        shutil.rmtree(folder)
        done(f"steps {checkpoint + 1} to {last} are equal to the last bit after SIGKILL and a start from the checkpoint of step {checkpoint}")
    return Verified(checkpoint, (checkpoint + 1, last), logged["killed"])


def _refuse_difference(uninterrupted: list[dict[str, float]], killed: list[dict[str, float]], checkpoint: int) -> None:
    for ours, theirs in zip(uninterrupted, killed, strict=False):
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise BackendError(
                    f"A run that is killed after its checkpoint of step {checkpoint} must continue with the same figures. "
                    f"Received at step {ours['step']:.0f}: {name} {value!r} uninterrupted, {theirs.get(name)!r} after the kill.",
                    hint="Train without interruption, or look for what is drawn without a seed on this machine.",
                )
    if len(uninterrupted) != len(killed) or not killed:
        raise BackendError(f"Both twins must log the same steps. Received: {len(uninterrupted)} and {len(killed)} lines after step {checkpoint}.")
