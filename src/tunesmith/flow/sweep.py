"""dataset version -> many runs -> the best settings, chosen on validation.

A trial is an ordinary run with a few keys overridden, scored on the validation split. The test split is never looked at:
what a sweep chooses is trained, evaluated and registered like any other run.
"""

from __future__ import annotations

import gc
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import field_of
from tunesmith.entities import DatasetVersion, Run, content_id
from tunesmith.errors import ConfigError, DataError, DivergedError, RefusedError
from tunesmith.flow.objective import Objective, objective
from tunesmith.flow.training import Watch, run_id, train
from tunesmith.project import Project, needs_extra
from tunesmith.train.settings import NOT_LEARNT

if TYPE_CHECKING:
    from tunesmith.evaluate.intervals import Interval
    from tunesmith.train.sweep import OpenTrial, Study, Trial

# Bump when the same trials would score otherwise.
STEP_VERSION = 1

# What is wrong with a trial's own values; anything else is wrong with the sweep.
_OWN_FAULT = (ConfigError, DataError, DivergedError, RefusedError)
# So many trials may fail before one succeeds.
_PATIENCE = 3


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        id: Depends on the dataset version, the base model, what is searched, and every setting that is not.
        metric: What was sought on validation; `maximizes` says whether more of it is better.
        trials: All that ended, in the order of their start.
        best: The one with the best score.
        worth: What the best is expected to score on new records: its own score without the luck of having been chosen.
        looks: Different runs that were scored on validation.
        n_validation: Records of that split.
        importance: Key -> its share in the differences between scores; empty where there are too few trials to tell.
        planned: Trials that were asked for; fewer ended where the time was up.
    """

    id: str
    metric: str
    maximizes: bool
    trials: tuple[Trial, ...]
    best: Trial
    worth: Interval
    looks: int
    n_validation: int
    importance: dict[str, float]
    planned: int

    @property
    def overrides(self) -> list[str]:
        """The best values as `KEY=VALUE`, for `--set`."""
        return as_overrides(self.best.values)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"overrides": self.overrides}


def sweep(project: Project, dataset: DatasetVersion) -> Sweep:
    """Try settings until `sweep.n_trials` have ended, or go on with a sweep that was killed.

    Args:
        project: The project; its section `sweep` says what is searched.
        dataset: What all trials learn, and are scored on.

    Raises:
        ConfigError: nothing is searched, the metric is none of this kind of task, or every value tried breaks a rule.
        RefusedError, DataError, DivergedError: no trial could be trained; the last one's error.
        BackendError: a program below us failed; the trial is tried again by the next call.
    """
    section = project.config.sweep
    if not section.parameters:
        raise ConfigError(
            "sweep.parameters must name what is searched. Received: nothing.",
            hint="tunesmith sweep --set 'sweep.parameters.train.learning_rate={low: 1e-4, high: 1e-2, log: true}'",
        )
    with needs_extra("train"):
        from tunesmith.train.sweep import Study
    judged_by = objective(project, "sweep.metric")
    identity = sweep_id(project, dataset)
    with project.step("sweep") as done:
        study = Study(project.state / "sweeps.db", identity, section, [key for key in section.parameters if _takes_whole_numbers(key)])
        searched = {f"sweep.{key}": value for key, value in (section.model_dump(mode="json") | {"metric": judged_by.name}).items()}
        project.trackers.begin(identity, {"dataset_version": dataset.id, **searched}, dataset)
        ended = study.trials
        while len(ended) < section.n_trials and not _is_time_up(ended, section.timeout_hours):
            project.progress.advance(len(ended), section.n_trials, _so_far(ended, section.maximizes, section.n_trials))
            ended = [*ended, _one_trial(project, dataset, study, judged_by, identity)]
        project.trackers.finish(identity)
        found = _found(project, dataset, study, judged_by, identity)
        done(f"{identity}: trial {found.best.number} of {len(found.trials)}, {found.metric} {found.best.score:.3f} on validation")
        return found


def sweep_id(project: Project, dataset: DatasetVersion) -> str:
    """Return the id of a sweep: with more trials, or more time, it stays the same."""
    section = project.config.sweep
    searched = section.model_dump(mode="json", include={"parameters", "pruner", "seed"}) | {"metric": objective(project, "sweep.metric").name}
    fixed = {
        "task": project.config.task.model_dump(mode="json"),
        "model": project.config.model.model_dump(mode="json"),
        "train": project.config.train.model_dump(mode="json", exclude=set(NOT_LEARNT)),
    }
    for key in section.parameters:  # what the file says of a searched key does not count
        part, _, name = key.partition(".")
        fixed[part].pop(name, None)
    return content_id("swp", dataset.id, searched, fixed, STEP_VERSION)


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Return `KEY=VALUE` strings as `--set` takes them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _takes_whole_numbers(key: str) -> bool:
    field = field_of(key)
    kinds = str(field.annotation.__name__ if isinstance(field.annotation, type) else field.annotation) if field else ""
    return "int" in kinds and "float" not in kinds


def _is_time_up(ended: list[Trial], hours: float | None) -> bool:
    return hours is not None and sum(trial.seconds for trial in ended) > 3600 * hours


def _so_far(ended: list[Trial], maximizes: bool, n_trials: int) -> str:
    scores = [trial.score for trial in ended if trial.score is not None]
    if not scores:
        return "trials"
    minutes = sum(trial.seconds for trial in ended) / len(ended) * (n_trials - len(ended)) / 60
    return f"trials, best {max(scores) if maximizes else min(scores):.3f}, some {minutes:.0f} min left"


def _one_trial(project: Project, dataset: DatasetVersion, study: Study, judged_by: Objective, identity: str) -> Trial:
    from tunesmith.models.memory import trim_heap
    from tunesmith.train.sweep import Pruned

    started, trial, trained = time.monotonic(), study.ask(), ""
    try:
        own = project.changed(as_overrides(trial.values))
        trained = run_id(own, dataset)
        project.trackers.set_parent(trained, identity)
        if own.store.find(Run, trained) is None:
            trial.check()
        run = train(own, dataset, watch=_pruning(own, trained, trial, maximizes=judged_by.maximizes))
        score = judged_by.score(judged_by.rows(own, dataset, run))
        ended = study.tell(trial, "complete", score=score, run_id=trained, seconds=time.monotonic() - started)
        for shown, step in ((trained, run.steps), (identity, trial.number)):
            project.trackers.log_metrics(shown, {f"validation/{judged_by.name}": score}, step)
    except Pruned as reason:
        ended = study.tell(trial, "pruned", score=None, run_id=trained, seconds=time.monotonic() - started, reason=str(reason))
        _leave(project, trained, "KILLED")
    except _OWN_FAULT as error:
        ended = study.tell(trial, "failed", score=None, run_id=trained, seconds=time.monotonic() - started, reason=error.message)
        _leave(project, trained, "FAILED")
        if len(study.trials) >= _PATIENCE and all(each.state == "failed" for each in study.trials):
            raise
    gc.collect()
    trim_heap()
    return ended


def _leave(project: Project, trained: str, status: Any) -> None:
    """Close a run that will not be finished, and free its checkpoints."""
    from tunesmith.train.checkpoint import remove_checkpoints

    if trained:
        remove_checkpoints(_run_folder(project, trained))
        project.trackers.finish(trained, status)


def _run_folder(project: Project, identity: str) -> Path:
    return project.state / "runs" / identity


def _pruning(project: Project, trained: str, trial: OpenTrial, *, maximizes: bool) -> Watch:
    """Report a run's loss at each tenth of its steps, on validation where `train.eval_steps` evaluates; the last one decides nothing any more."""
    from tunesmith.train.fit import LOSSES_FILE
    from tunesmith.train.sweep import TENTHS

    def watch(step: int, steps: int, figures: dict[str, float]) -> None:
        last, tenth = trial.last_tenth, TENTHS * step // steps
        if not last < tenth < TENTHS or (project.config.train.eval_steps and "eval_loss" not in figures):
            return
        # From the file, which also knows what was logged before a kill.
        lines = [json.loads(line) for line in (_run_folder(project, trained) / LOSSES_FILE).read_text(encoding="utf-8").splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line and last < TENTHS * line["step"] / steps and line["step"] <= step]
        loss = figures["eval_loss"] if "eval_loss" in figures else sum(losses) / len(losses)
        trial.report(tenth, -loss if maximizes else loss)

    return watch


def _found(project: Project, dataset: DatasetVersion, study: Study, judged_by: Objective, identity: str) -> Sweep:
    from tunesmith.evaluate.selection import worth_of_best

    section, trials = project.config.sweep, study.trials
    scored = {trial.run_id: trial for trial in trials if trial.score is not None}
    if not scored:
        reasons = "; ".join(sorted({trial.reason for trial in trials})[:3])
        raise RefusedError(f"A sweep needs a trial that can be scored. Received {len(trials)} that ended otherwise: {reasons}.", hint="tunesmith plan")
    top = (max if section.maximizes else min)(trial.score for trial in trials if trial.score is not None)
    best = next(trial for trial in trials if trial.score == top)
    rows = [judged_by.rows(project, dataset, project.store.get(Run, trained)) for trained in scored]
    settings = project.config.evaluate
    worth = worth_of_best(
        judged_by.figure.of_sums, rows, maximize=judged_by.maximizes,
        n_samples=settings.bootstrap_samples, level=settings.confidence_level, seed=settings.seed,
    )  # fmt: skip
    return Sweep(identity, judged_by.name, judged_by.maximizes, tuple(trials), best, worth, len(scored), len(rows[0]), study.importance(), section.n_trials)
