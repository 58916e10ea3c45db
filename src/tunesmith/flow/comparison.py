"""Which way to train is best on these data? Each candidate is trained with each seed and measured.

    candidate x seed -> run -> scores on validation, probes of forgetting -> table -> the best by the stated objective

Every run is an ordinary one (`train` finds it again) and is made in a process of its own: its peak memory is its own, and
a candidate that is refused, fails or is killed for memory leaves a line in the table, not a hole in the night. Such a process
ends with this one, by SIGTERM or SIGKILL, once its running step is saved. A killed comparison is called again and continues. The test
split is not looked at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tunesmith.config import Config
from tunesmith.entities import DatasetVersion, Run, content_id, utc_now
from tunesmith.errors import BackendError, Terminated, TunesmithError
from tunesmith.flow.objective import documents, objective
from tunesmith.flow.scoring import read_probe_texts, read_probes, score_validation
from tunesmith.flow.training import plan, run_id, run_plan, train
from tunesmith.launch.processes import sigterm_handed_on
from tunesmith.libraries import quiet_libraries
from tunesmith.project import Progress, Project, needs_extra
from tunesmith.train.settings import TrainSection

# Bump when the same runs would be compared otherwise.
STEP_VERSION = 2


@dataclass(frozen=True)
class Comparison:
    """What a comparison left.

    Attributes:
        id: Names the runs and the rule.
        report: What comparison.json holds; see `evaluate.candidates` and `_row`.
        html: The page for people.
    """

    id: str
    report: dict[str, Any]
    html: Path


def compare(project: Project, dataset: DatasetVersion) -> Comparison:
    """Train every candidate of `compare.candidates` with every seed, measure, and choose the best on validation.

    Raises:
        ConfigError: the objective is none of this kind of task, or needs costs that are not stated.
        BackendError: no candidate could be trained.
        Terminated: SIGTERM came, and the running step was saved.
    """
    with needs_extra("train"):
        from tunesmith.evaluate.candidates import compare_candidates
        from tunesmith.evaluate.comparison_report import write_comparison
    section, evaluated = project.config.compare, project.config.evaluate
    judged_by = objective(project, "compare.objective")  # first, so that what is wrong with it is told before anything is trained
    runs: dict[str, list[Run]] = {}
    refused: dict[str, str] = {}
    wanted = [(name, candidate.as_candidate(project.config.train, seed)) for name, candidate in section.candidates.items() for seed in section.seeds]
    for number, (name, settings) in enumerate(wanted, start=1):
        if name in refused:
            continue
        made = _run_of(project, dataset, settings, f"{name}, seed {settings.seed} ({number} of {len(wanted)})")
        if isinstance(made, str):
            refused[name] = made
            runs.pop(name, None)
        else:
            runs.setdefault(name, []).append(made)
    if not runs:
        raise BackendError("A comparison needs a candidate that can be trained. " + " ".join(f"{name}: {why}" for name, why in refused.items()))
    with project.step("compare") as done:
        of_candidate = {name: [run.id for run in own] for name, own in runs.items()}
        costs = evaluated.business.model_dump(mode="json") if judged_by.name == "business_cost" else None
        resolved = section.model_dump(mode="json") | {"objective": judged_by.name}
        identity = content_id("cmp", dataset.id, of_candidate, refused, resolved, costs, STEP_VERSION)
        rows = {name: _row(project, own) for name, own in runs.items()}
        eligible = [name for name, row in rows.items() if _may_be_chosen(row, section.memory_limit_gb, evaluated.max_forgetting)]
        compared = compare_candidates(
            {name: [judged_by.rows(project, dataset, run) for run in own] for name, own in runs.items()},
            judged_by.rows(project, dataset, None),
            judged_by.figure.of_sums,
            maximizes=judged_by.maximizes,
            eligible=eligible,
            groups=documents(project, dataset),
            level=evaluated.confidence_level,
            n_samples=evaluated.bootstrap_samples,
            seed=evaluated.seed,
        )
        for name, row in rows.items():
            hours = sum(row["seconds"]) / len(row["seconds"]) / 3600
            compared["candidates"][name] |= row | {"eligible": name in eligible, "cost": section.hourly_cost * hours or None}
        report = compared | {
            "metric": judged_by.name,
            "currency": evaluated.business.currency,
            "title": f"{project.config.project}: ways to train",
            "created_at": utc_now(),
            "confidence_level": evaluated.confidence_level,
            "n_train": dataset.rows["train"],
            "refused": refused,
            "memory_limit_gb": section.memory_limit_gb,
            "max_forgetting": evaluated.max_forgetting,
            "dataset_version": dataset.id,
            "base_model": project.base.name,
            "machine": next(iter(runs.values()))[0].machine,
        }
        html = write_comparison(project.state / "comparisons" / identity, report)
        _track(project, identity, runs, report, html)
        done(f"{identity}: best of {len(rows)} on validation is {report['best']}")
        return Comparison(identity, report, html)


def _run_of(project: Project, dataset: DatasetVersion, settings: TrainSection, what: str) -> Run | str:
    """Return the measured run of these settings, made in a process of its own where it is missing, or why there is none."""
    own = replace(project, config=project.config.model_copy(update={"train": settings}))
    try:
        found = project.store.find(Run, run_id(own, dataset))
    except TunesmithError as error:
        return error.message
    if found and _is_measured(own, dataset, found):
        with project.step("train") as done:
            done(f"{what}: {found.id}", skipped=True)
        return found
    with project.step("train") as done:
        context = multiprocessing.get_context("spawn")  # a forked child would inherit this process's memory, and its threads' locks
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_in_child, args=(str(project.root), own.config.model_dump(mode="json"), dataset.id, there), daemon=True)
        child.start()
        there.close()
        made: Run | str = ""
        last_words = ""
        with sigterm_handed_on(child.terminate) as stopped:
            while True:
                try:
                    kind, value = here.recv()
                except EOFError:
                    break
                if kind == "advance":
                    at, total, detail = value
                    project.progress.advance(at, total, f"{what}: {detail}")
                elif kind == "terminated":
                    last_words = value
                elif kind == "refused":
                    made = value
                else:
                    made = project.store.get(Run, value)
            child.join()
        if stopped.is_set() or last_words:
            raise Terminated(last_words or "SIGTERM came: what was done is saved.")
        if not made:
            made = f"its process ended with {child.exitcode}" + (", killed: too little memory, most likely" if child.exitcode == -9 else "")
        done(f"{what}: {made if isinstance(made, str) else made.id}")
        return made


class _Told(Progress):
    """Sends what happens in a child process to the one that shows it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def advance(self, done: int, total: int, detail: str = "") -> None:
        with suppress(BrokenPipeError):  # `_end_with_parent` ends this process, once it saved what it did
            self._connection.send(("advance", (done, total, detail)))


def _in_child(root: str, config: dict[str, Any], dataset_id: str, connection: Connection) -> None:
    """Train and measure one run; send how it goes, then the run's id or why there is none."""
    quiet_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    project = Project(Path(root), Config.model_validate(config), _Told(connection))
    told: tuple[str, str]
    try:
        dataset = project.store.get(DatasetVersion, dataset_id)
        run = train(project, dataset, plan(project, dataset))
        score_validation(project, dataset, run)
        if read_probe_texts(project) is not None:
            read_probes(project, run)
        told = "run", run.id
    except TunesmithError as error:
        told = "refused", error.message
    except Terminated as end:
        told = "terminated", str(end)
    with suppress(BrokenPipeError):
        connection.send(told)
    connection.close()


def _end_with_parent() -> None:
    """When the process that started this one has ended, finish the running step and save it; where nothing trains, end at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - this is a child
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _is_measured(project: Project, dataset: DatasetVersion, run: Run) -> bool:
    folder = project.root / run.path
    return (folder / "validation.parquet").exists() and ((folder / "probes.json").exists() or read_probe_texts(project) is None)


def _row(project: Project, runs: list[Run]) -> dict[str, Any]:
    """Return what was measured of a candidate's runs: a list entry a seed."""
    from tunesmith.evaluate.forgetting import ProbeScores, forgetting
    from tunesmith.models.weights import WEIGHTS_FOLDER

    evaluated = project.config.evaluate
    plans = [run_plan(project, run) for run in runs]
    row: dict[str, Any] = {
        "runs": [run.id for run in runs],
        "strategy": runs[0].strategy,
        "trainable_parameters": plans[0].trainable_parameters,
        "seconds": [run.seconds for run in runs],
        "peak_memory_bytes": [run.peak_memory_bytes for run in runs],
        "planned_memory_bytes": [made.peak_memory_bytes.expected for made in plans],
        "stored_bytes": sum(file.stat().st_size for file in (project.root / runs[0].path / WEIGHTS_FOLDER).rglob("*") if file.is_file()),
    }
    if read_probe_texts(project) is not None:
        before = read_probes(project, None)
        after = ProbeScores.mean([read_probes(project, run) for run in runs])
        row["forgetting"] = forgetting(before, after, level=evaluated.confidence_level, n_samples=evaluated.bootstrap_samples, seed=evaluated.seed)
    return row


def _may_be_chosen(row: dict[str, Any], memory_limit_gb: float | None, max_forgetting: float | None) -> bool:
    from tunesmith.evaluate.forgetting import within_budget

    fits = memory_limit_gb is None or max(row["peak_memory_bytes"]) <= memory_limit_gb * 1e9
    return fits and ("forgetting" not in row or within_budget(row["forgetting"], max_forgetting))


def _track(project: Project, identity: str, runs: dict[str, list[Run]], report: dict[str, Any], html: Path) -> None:
    """Show the comparison in the tracker: a parent run with the figures, its runs as children."""
    told, trackers = {"dataset_version": report["dataset_version"], "objective": report["metric"], "best": str(report["best"])}, project.trackers
    trackers.begin(identity, told)
    trackers.log_metrics(identity, {f"gain/{name}": row["gain"]["difference"] for name, row in report["candidates"].items()})
    for own in runs.values():
        for run in own:
            trackers.set_parent(run.id, identity)
    trackers.log_artifacts(identity, html.parent, "comparison")
    trackers.finish(identity)
