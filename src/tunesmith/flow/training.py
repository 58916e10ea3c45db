"""dataset version -> plan -> run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith.entities import DatasetVersion, Run, content_id, utc_now
from tunesmith.errors import NotFoundError
from tunesmith.files import file_sha256, write_json
from tunesmith.flow.dataset import read, refuse_leaked_examples
from tunesmith.flow.parts import FITTED_FILE, Part, base_bytes, read_plan, save_plan
from tunesmith.flow.processes import fit_job, make_job, validation_of
from tunesmith.flow.stages import data_of_stages, finish_task, stages_id, task_rows, train_stages
from tunesmith.project import Project, needs_extra
from tunesmith.train.settings import NOT_LEARNT, TrainSection, named_in_id

if TYPE_CHECKING:
    from tunesmith.train.batches import Rows
    from tunesmith.train.fit import Fitted
    from tunesmith.train.plan import Plan

# Bump when the same inputs would learn something else, or write it elsewhere.
STEP_VERSION = 3

_OF_EVALUATIONS = {"eval_steps", "max_eval_samples", "metric_for_best_model", "load_best_model_at_end", "early_stopping_patience"}


def plan(project: Project, dataset: DatasetVersion) -> Plan:
    """Say what a run on a dataset version will do and cost, without training; of a finished run, what was said.

    Raises:
        DataError: texts do not fit and `train.excess_length_strategy` is `raise`, or an example of the prompt stands in a held-out split or was withdrawn.
        RefusedError: a limit of the section `train` would be passed.
    """
    with needs_extra("train"):
        from tunesmith.train.plan import refuse_over_limits
    refuse_missing_kernels(project)
    with project.step("plan") as done:
        finished = project.store.find(Run, run_id(project, dataset))
        if finished:
            done(finished.id, skipped=True)
            return run_plan(project, finished)
        refuse_leaked_examples(project, dataset)
        made = plan_run(project, read(project, dataset).filter(split="train"), project.config.train)
        refuse_over_limits(made, project.config.train, project.root)
        done(f"{made.rows:,} rows, {made.tokens:,} tokens, {made.steps:,} steps")
        return made


def refuse_missing_kernels(project: Project) -> None:
    """Refuse fused kernels that this machine has not, before anything is read, loaded or trained.

    Raises:
        ConfigError, BackendError: name the key and what is missing.
    """
    with needs_extra("train"):
        from tunesmith.models.kernels import refuse_missing_attention, refuse_missing_liger
    refuse_missing_attention(project.config.model)
    train = project.config.train
    children = (train.adapters.train, *train.adapters.document_types.values()) if train.adapters else ()
    if any(keys.use_liger_kernel for keys in (train, *(stage.train for stage in train.stages), *children)):
        refuse_missing_liger()  # before the base model is fetched
        refuse_missing_liger(project.base.path)


def plan_run(project: Project, records: pl.DataFrame, settings: TrainSection) -> Plan:
    """Say what a run will do and cost, by what earlier ones of its kind did.

    Args:
        project: The project.
        records: Those that it learns.
        settings: Its section `train`.
    """
    from tunesmith.train.batches import encode_rows
    from tunesmith.train.plan import make_plan

    _ = project.trackers  # one that cannot be reached is found now, and what it holds counts into the run's memory
    rows = task_rows(project, data_of_stages(project), encode_rows(records, project.prompt, settings)) if settings.stages else None
    like = _like(project)
    speeds, memory = [run.tokens / run.seconds for run in like], _memory_ratios(project, like)
    return make_plan(records, project.prompt, project.base.path, project.model_section, settings, speeds, memory, rows=rows)


def run_part(project: Project, dataset: DatasetVersion) -> Part:
    """Return the run of the present settings as a part of the training: its plan, or what it took."""
    settings = project.config.train
    found = project.store.find(Run, run_id(project, dataset))
    if found:
        return Part.trained("run", project.root / found.path, found.model_dump())
    refuse_leaked_examples(project, dataset)
    # The last stage is merged into a new base model where the task begins so; after any merge the result is a whole model too.
    begins = [*(settings.of_stage(stage).start for stage in settings.stages[1:]), settings.start] if settings.stages else []
    merged = base_bytes(project) * ((begins[-1:] == ["merge"]) + ("merge" in begins))
    return Part("run", plan_run(project, read(project, dataset).filter(split="train"), settings), merged)


def _like(project: Project) -> list[Run]:
    """Return earlier runs with the same base, strategy, passes and cores: what their time and memory were, this run's may be."""
    wanted = (project.base.sha256, project.config.train.strategy, machine(project))
    return [run for run in project.store.all(Run) if (run.base_sha256, run.strategy, run.machine) == wanted]


def _memory_ratios(project: Project, runs: list[Run]) -> list[float]:
    """Return what runs measured of their own memory, as a multiple of what their plan said before it knew of any earlier run."""
    ratios = []
    for run in runs:
        made = read_plan(project.root / run.path)
        if made and made.resident_bytes:
            planned = (made.peak_memory_bytes.expected - made.resident_bytes) / made.memory_scale
            ratios.append((run.peak_memory_bytes - made.resident_bytes) / planned)
    return ratios


def fitted_run(project: Project, identity: str, dataset: DatasetVersion, settings: TrainSection, rows: Rows, fitted: Fitted, folder: Path) -> Run:
    """Return the run that a training made, whose weights lie in its folder."""
    from tunesmith.models.weights import WEIGHTS_FOLDER, weights_file

    return Run(
        id=identity,
        dataset_version_id=dataset.id,
        path=str(folder.relative_to(project.root)),
        base_model=project.base.name,
        base_sha256=project.base.sha256,
        strategy=settings.strategy,
        seed=settings.seed,
        steps=fitted.steps,
        train_loss=fitted.train_loss,
        seconds=fitted.seconds,
        peak_memory_bytes=fitted.peak_memory_bytes,
        supervised_tokens=rows.supervised_tokens,
        tokens=fitted.tokens,
        machine=machine(project),
        weights_sha256=file_sha256(weights_file(folder / WEIGHTS_FOLDER)),
        created_at=utc_now(),
    )


def machine(project: Project) -> str:
    """Say what the speed of a run is comparable with: passes side by side, forward pass, precision and processes."""
    from tunesmith.models.processor import what_computes

    launch = project.config.launch
    processes = f", {launch.n_processes} processes" if launch.n_processes > 1 else ""
    return f"{what_computes()}, {project.model_section.forward}, {project.model_section.dtype}{processes}"


def run_id(project: Project, dataset: DatasetVersion) -> str:
    """Return the id that a run of these settings on a dataset version has."""
    train = project.config.train
    learnt = what_is_learnt(train)
    model = project.model_section.computing()
    before = [stages_id(project)] if train.stages else []
    return content_id("run", dataset.id, project.base.sha256, project.config.task.model_dump(mode="json"), model, learnt, *before, STEP_VERSION)


def what_is_learnt(train: TrainSection) -> dict[str, Any]:
    """Return the keys of the section `train` that change what one run learns."""
    left_out = {*NOT_LEARNT, "adapters", *(() if train.eval_steps else _OF_EVALUATIONS)}
    return named_in_id(train.model_dump(mode="json", exclude=left_out))


Watch = Callable[[int, int, dict[str, float]], None]
"""Called after each logged step with the step, the steps in all and the figures. What it raises ends the run."""


def train(project: Project, dataset: DatasetVersion, made: Plan | None = None, watch: Watch | None = None) -> Run:
    """Fine-tune the base model on a dataset version, or continue where a killed run stopped.

    Args:
        project: The project.
        dataset: What is learnt.
        made: The plan, where `plan` was called already.
        watch: Looks at the run while it goes on.

    Raises:
        RefusedError: the plan passes a limit, or a stage broke its budget of forgetting.
        DataError: the rows cannot be trained on as they are.
        DivergedError: the loss is not finite.
        BackendError: a checkpoint cannot be written.
    """
    found = project.store.find(Run, run_id(project, dataset))
    if found:
        with project.step("train") as done:
            done(f"{found.id}: {found.steps:,} steps, loss {found.train_loss:.3f}", skipped=True)
        return found
    with needs_extra("train"):
        from tunesmith.train.batches import encode_rows
        from tunesmith.train.checkpoint import remove_checkpoints
        from tunesmith.train.fit import Fitted
    made = made or plan(project, dataset)
    begun = train_stages(project)
    with project.step("train") as done:
        identity = run_id(project, dataset)
        folder = project.state / "runs" / identity
        folder.mkdir(parents=True, exist_ok=True)
        settings = project.config.train
        (folder / "config.json").write_text(project.config.model_dump_json(indent=2), encoding="utf-8")
        save_plan(made, folder)
        rows = encode_rows(read(project, dataset).filter(pl.col("split") == "train"), project.prompt, settings)
        params = {f"train.{key}": value for key, value in settings.model_dump(mode="json").items()}
        about = {"dataset_version": dataset.id, "base_model": project.base.name, "base_sha256": project.base.sha256}
        project.trackers.begin(identity, about | params, dataset)

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            told.update({name: value for name, value in figures.items() if name in ("loss", "eval_loss", "eval_accuracy")})
            project.progress.advance(step, steps, ", ".join(f"{name} {value:.3f}" for name, value in told.items()))
            named = {name.replace("eval_", "eval/") if name.startswith("eval_") else f"train/{name}": value for name, value in figures.items()}
            project.trackers.log_metrics(identity, named, step)
            if watch:
                watch(step, steps, figures)

        told: dict[str, float] = {}
        validation = validation_of(project, dataset)
        if begun is None:
            fitted = fit_job(project, make_job(project, folder), rows, validation, report)
        else:
            # A run that was refused is not trained again, only measured.
            kept = folder / FITTED_FILE
            if not kept.exists():
                job = make_job(project, folder, base=begun.base, prefix=(), start=begun.weights)
                write_json(kept, asdict(fit_job(project, job, task_rows(project, begun.data, rows), validation, report)))
            fitted = Fitted(**json.loads(kept.read_text(encoding="utf-8")))
            finish_task(project, begun, folder)
        run = fitted_run(project, identity, dataset, settings, rows, fitted, folder)
        # The trackers first: a kill between the two leaves a run that the next command finishes again, in both.
        project.trackers.finish(run.id)
        project.store.put(run)
        remove_checkpoints(folder)
        done(f"{run.id}: {run.steps:,} steps, loss {run.train_loss:.3f}, {run.tokens / run.seconds:,.0f} tokens a second")
        return run


def run_plan(project: Project, run: Run) -> Plan:
    """Return the plan that a run was started with.

    Raises:
        NotFoundError: it was started without one, as preference tuning is.
    """
    made = read_plan(project.root / run.path)
    if made is None:
        raise NotFoundError(f"{run.id} was started without a plan.")
    return made
