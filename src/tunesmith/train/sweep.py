"""What a sweep tries and remembers, with Optuna: the values of each trial, and whether it goes on.

A trial's values depend on the seed, its number and the trials before it, never on how often the sweep was started: a kill
leaves a trial open, and the next start goes on with that one, with the same values. Trials are kept in SQLite. While a
trial runs it reports its loss at each tenth of its steps; tenths, since trials of different batch sizes have
different numbers of steps. Nothing here trains or reads data.

Sources: Akiba et al. 2019 (Optuna); Bergstra et al. 2011 (TPE); Li et al. 2018 (Hyperband).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from tunesmith.train.settings import SweepSection, SweptValues

TENTHS = 10
# Trials that finish before any is stopped, and tenths that each may run: before them a loss says little.
_PRUNER_STARTUP_TRIALS, _PRUNER_WARMUP_TENTHS = 4, 3
_STARTUP_TRIALS = 8
_IMPORTANCE_TRIALS = 16

State = Literal["complete", "pruned", "failed"]
_STATES: dict[TrialState, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Pruned(Exception):  # noqa: N818 - no error: it ends a run from inside
    """Raised in a run that is worse than the others at the same point."""


@dataclass(frozen=True)
class Trial:
    """A trial that ended.

    Attributes:
        number: From 1, in the order of their start.
        state: `complete` has a score; `pruned` was stopped early; `failed` could not be trained with these values.
        values: Key -> value.
        score: The sweep's metric on validation; None where it was not scored.
        run_id: Id of its run; empty where the values do not even give one.
        seconds: Time it took, over all its starts but those that were killed.
        reason: Why it was stopped or failed, else empty.
    """

    number: int
    state: State
    values: dict[str, Any]
    score: float | None
    run_id: str
    seconds: float
    reason: str


class OpenTrial:
    """A trial that runs."""

    def __init__(self, trial: optuna.Trial, values: dict[str, Any]) -> None:
        self._trial = trial
        self.number, self.values = trial.number + 1, values

    @property
    def last_tenth(self) -> int:
        """The last tenth that was reported, also before a kill; 0 before the first."""
        return max(self._reported, default=0)

    @property
    def _reported(self) -> dict[int, float]:
        return dict(self._trial.storage.get_trial(self._trial._trial_id).intermediate_values)

    def report(self, tenth: int, value: float) -> None:
        """Keep how well it does after a tenth of its steps.

        Args:
            tenth: 1 to 10.
            value: In the direction of the sweep's metric.

        Raises:
            Pruned: it is to be stopped.
        """
        self._trial.report(value, tenth)
        self.check()

    def check(self) -> None:
        """Stop where the last report, perhaps one before a kill, says so.

        Raises:
            Pruned: it is to be stopped.
        """
        if self._reported and self._trial.should_prune():
            raise Pruned(f"worse than the others after {self.last_tenth} of {TENTHS} parts")


class Study:
    """The trials of one sweep.

    Args:
        file: The SQLite file that holds all sweeps of a project.
        name: Id of the sweep.
        section: The section `sweep`.
        whole: Keys that take whole numbers only.
    """

    def __init__(self, file: Path, name: str, section: SweepSection, whole: Collection[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._section = section
        self._distributions = {key: _distribution(values, is_whole=key in whole) for key, values in section.parameters.items()}
        self._study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name=name,
            direction="maximize" if section.maximizes else "minimize",
            pruner=_pruner(section),
            load_if_exists=True,
        )

    @property
    def trials(self) -> list[Trial]:
        """Those that ended, in the order of their start."""
        return [_ended(trial) for trial in self._study.get_trials(deepcopy=False) if trial.state in _STATES]

    def ask(self) -> OpenTrial:
        """Return the trial that a kill left open, or a new one."""
        left = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        if left:
            trial = optuna.Trial(self._study, left[0]._trial_id)
        else:
            if not any(trial.state == TrialState.WAITING for trial in self._study.get_trials(deepcopy=False)):
                self._study.enqueue_trial(self._draw())
            trial = self._study.ask()
        values = {key: trial._suggest(key, distribution) for key, distribution in self._distributions.items()}
        return OpenTrial(trial, {key: json.loads(value) if isinstance(value, str) else value for key, value in values.items()})

    def _draw(self) -> dict[str, Any]:
        """Draw the next trial's values, all at once and in memory: what a kill leaves on disk is a whole trial or none."""
        before = self._study.get_trials()
        seed = zlib.crc32(f"{self._section.seed} {len(before)}".encode())
        sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP_TRIALS, seed=seed)
        copy = optuna.create_study(direction=self._study.direction, sampler=sampler)
        copy.add_trials(before)
        return dict(copy.ask(self._distributions).params)

    def tell(self, trial: OpenTrial, state: State, *, score: float | None, run_id: str, seconds: float, reason: str = "") -> Trial:
        """End a trial and keep what came out."""
        for name, value in (("run_id", run_id), ("seconds", seconds), ("reason", reason)):
            trial._trial.set_user_attr(name, value)
        to = next(known for known, name in _STATES.items() if name == state)
        return _ended(self._study.tell(trial._trial, score, state=to))

    def importance(self) -> dict[str, float]:
        """Return each key's share in the differences between scores, the largest first; empty where there are too few trials to tell.

        Source:
            Hutter, Hoos and Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance (fANOVA).
        """
        scored = [trial.value for trial in self._study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        if len(scored) < _IMPORTANCE_TRIALS or len(set(scored)) < 2 or len(self._distributions) < 2:
            return {}
        shares = get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=self._section.seed))
        return {key: float(share) for key, share in shares.items()}


def _distribution(values: SweptValues, *, is_whole: bool) -> BaseDistribution:
    if values.choices:  # as JSON, since Optuna keeps no lists or mappings
        return CategoricalDistribution([json.dumps(choice) for choice in values.choices])
    low, high = values.ends
    if is_whole:
        return IntDistribution(low, high, log=values.log, step=int(values.step or 1))
    return FloatDistribution(float(low), float(high), log=values.log, step=values.step)


def _pruner(section: SweepSection) -> optuna.pruners.BasePruner:
    match section.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=_PRUNER_STARTUP_TRIALS, n_warmup_steps=_PRUNER_WARMUP_TENTHS)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=_PRUNER_WARMUP_TENTHS, max_resource=TENTHS)
        case "none":
            return optuna.pruners.NopPruner()


def _ended(trial: FrozenTrial) -> Trial:
    values = {key: json.loads(value) if isinstance(value, str) else value for key, value in trial.params.items()}
    told = trial.user_attrs
    score = trial.value if trial.state == TrialState.COMPLETE else None
    return Trial(trial.number + 1, _STATES[trial.state], values, score, told["run_id"], told["seconds"], told["reason"])
