"""Fits a strategy on rows: the steps of a run, what is logged, checked, evaluated and kept on the way.

A killed run continues from its newest checkpoint to the same losses, bit for bit on the CPU: batches are fixed in advance, what is
drawn at random in a pass is drawn from the seed and the number of the pass, and a checkpoint holds all the rest. After a step
comes the checkpoint, and only then what else may fail: evaluation, the best weights, the end of the run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import Terminated
from tunesmith.files import write_text
from tunesmith.models.kernels import fuse
from tunesmith.models.memory import PeakMemory, trim_heap
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import WEIGHTS_FOLDER, load_model
from tunesmith.train.alarms import Alarms
from tunesmith.train.batches import Rows, Step, schedule
from tunesmith.train.checkpoint import (
    checkpoint_path,
    newest_checkpoint,
    read_best,
    read_tensors,
    remove_checkpoints,
    step_of,
    write_best,
    write_checkpoint,
    writing,
)
from tunesmith.train.learner import Learner
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.processes import Processes
from tunesmith.train.settings import TrainSection
from tunesmith.train.stages import begin_with
from tunesmith.train.strategies import Strategy, load_strategy
from tunesmith.train.trunk import TRUNK_FILE
from tunesmith.train.validation import Validation

LOSSES_FILE = "losses.jsonl"

_TRIM_STEPS = 32

Report = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the steps in all, and figures: of a logged step loss, learning_rate and grad_norm; of an evaluation those of `Validation`."""


@dataclass(frozen=True)
class Fitted:
    """What a finished fit leaves.

    Attributes:
        steps: Optimizer steps that were done; fewer than planned after an early stop.
        train_loss: Mean loss over the last tenth of the logged steps, nats a supervised token.
        seconds: Wall time of steps and evaluations, over all starts of the run.
        peak_memory_bytes: Largest resident set size seen; on a GPU the most memory of it.
        tokens: Tokens of all rows read, without padding and with the shared prefix once a row.
        best_step: The step whose weights are the result, where an evaluation chose it; otherwise the last one.
    """

    steps: int
    train_loss: float
    seconds: float
    peak_memory_bytes: int
    tokens: int
    best_step: int


@dataclass
class _State:
    """Where a run stands: with the tensors, all that a checkpoint holds.

    Attributes:
        step: Steps done.
        seconds: Wall time that they took.
        unlogged: Losses since the last logged step.
        seen: The losses that `Alarms` compares with.
        best: The best value of the chosen metric, None before the first evaluation. best_step: when.
        waited: Evaluations since then.
    """

    step: int = 0
    seconds: float = 0.0
    unlogged: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    waited: int = 0


def fit(
    rows: Rows,
    prefix: Sequence[int],
    base: Path,
    model: ModelSection,
    section: TrainSection,
    folder: Path,
    report: Report,
    *,
    validation: Validation | None = None,
    processes: Processes | None = None,
    fsdp: bool = False,
    start: Path | None = None,
) -> Fitted:
    """Train and write what was learnt to `folder/weights`.

    Args:
        rows: The training rows.
        prefix: Token ids that every prompt starts with.
        base: Folder of the base model.
        model: The section `model`, resolved.
        section: The section `train`.
        folder: The run's folder: checkpoints, losses and in the end the weights.
        report: Receives the figures of logged steps and of evaluations, in each process.
        validation: What `train.eval_steps` evaluates on; nothing is evaluated without.
        processes: Who trains beside this process; each calls this function with the same arguments, and the first one writes. None: nobody.
        fsdp: Whether weights, gradients and optimizer state are shared out among the processes.
        start: Weights of an earlier stage that this run goes on with; None begins as the strategy does.

    Raises:
        ConfigError: the weights of an earlier stage do not fit.
        DivergedError: the loss is not finite or explodes.
        BackendError: a checkpoint cannot be written, or several processes would each train alone.
        Terminated: SIGTERM came; a checkpoint of the last whole step was written.
    """
    processes = processes or Processes().checked(1)
    folder.mkdir(parents=True, exist_ok=True)
    if section.resume_from_checkpoint == "never" and processes.is_first:
        remove_checkpoints(folder)
        (folder / TRUNK_FILE).unlink(missing_ok=True)
    strategy = load_strategy(section)

    def prepared() -> Any:
        torch.manual_seed(section.seed)  # an encoder's head is drawn when the model is loaded
        loaded = load_model(base, model.model_copy(update={"dtype": "float32"}) if strategy.in_float32 else model)
        if section.use_liger_kernel:
            fuse(loaded)
        model_to_train = strategy.prepare(loaded, prefix)
        if start is not None:
            begin_with(model_to_train, start)
        return model_to_train

    with PeakMemory() as memory:
        learner = _kind_of_learner(fsdp)(prepared(), model, section, rows, prefix, processes)
        run = _Run(learner, rows, base, model, section, folder, report, validation)
        run.to_the_end()
        learnt = learner.tensors() if fsdp else {}
        if processes.is_first:
            if fsdp:
                learner = Learner(prepared(), model, section, rows, prefix, processes)
                learner.load(learnt)
            with writing(folder):
                _save(strategy, learner.model, folder, getattr(torch, model.dtype))
            (folder / TRUNK_FILE).unlink(missing_ok=True)
        peak = int(processes.largest(memory.bytes))  # also waits for the first one to have written
    state = run.state
    tokens = sum(len(rows.prompts[row]) + len(rows.answers[row]) + len(prefix) for step in run.passes(0, state.step) for row in step.rows)
    is_best = section.load_best_model_at_end and state.best is not None
    return Fitted(state.step, run.log.last_mean(), state.seconds, peak, tokens, state.best_step if is_best else state.step)


def _kind_of_learner(fsdp: bool) -> type[Learner]:
    if not fsdp:
        return Learner
    from tunesmith.train.sharding import ShardedLearner

    return ShardedLearner


def _save(strategy: Strategy, learner: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write what was learnt by write-then-rename."""
    partial, final = folder / f".{WEIGHTS_FOLDER}", folder / WEIGHTS_FOLDER
    strategy.save(learner, partial, dtype)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; ours is written at registration
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


class _Run:
    """The steps of one run, from its newest checkpoint to its end."""

    def __init__(
        self,
        learner: Learner,
        rows: Rows,
        base: Path,
        model: ModelSection,
        section: TrainSection,
        folder: Path,
        report: Report,
        validation: Validation | None,
    ) -> None:
        self._learner, self._rows, self._base, self._model, self._section, self._folder = learner, rows, base, model, section, folder
        self._validation = validation if section.eval_steps else None
        self._steps = schedule(rows, section)
        self.n_steps = len(self._steps) // section.gradient_accumulation_steps
        self._optimizer = Optimizer(learner.parameters, section, self.n_steps)
        self.state = _State()
        self._processes = learner.processes
        # The first process clears away what is half written, and says which checkpoint is the newest.
        newest = newest_checkpoint(folder) if self._processes.is_first else None
        step = round(self._processes.sum([step_of(newest) if newest else 0])[0])
        if step:
            tensors, state = read_tensors(checkpoint_path(folder, step))
            learner.load(tensors)
            self._optimizer.load(tensors)
            self.state = _State(**state)
        self._alarms = Alarms(model.num_labels or learner.model.config.vocab_size, section.learning_rate, self.state.seen)
        self.log = _LossLog(folder / LOSSES_FILE, report, self.n_steps, from_step=self.state.step, writes=self._processes.is_first)
        self._saved_step = self.state.step
        self._before, self._started = self.state.seconds, time.monotonic()

    def to_the_end(self) -> None:
        """Do what is left, and leave the learner with the weights that are the result."""
        state, section = self.state, self._section
        if section.activation_cache:
            with writing(self._folder):
                self._learner.keep_trunk(self._folder / TRUNK_FILE)
        with _termination() as terminated:
            while True:
                if self._validation and self._is_evaluated():
                    self._evaluate(self._validation)
                if state.step == self.n_steps or self._has_enough():
                    break
                self._step()
                is_terminated = self._processes.any(terminated.is_set())
                if state.step % section.save_steps == 0 or state.step == self.n_steps or is_terminated:
                    self._checkpoint()
                if is_terminated:
                    raise Terminated(f"SIGTERM came: step {state.step} of {self.n_steps} was finished and saved.")
        if self._validation and section.load_best_model_at_end and state.best_step != state.step:
            self._processes.any(False)  # waits for the first one to have written it
            self._learner.load(read_best(self._folder, state.best_step))

    def passes(self, first: int, after: int) -> list[Step]:
        """Return the passes of steps `first` to `after`, which is not among them."""
        n = self._section.gradient_accumulation_steps
        return self._steps[first * n : after * n]

    def _step(self) -> None:
        state, section = self.state, self._section
        losses: list[float] = []
        passes = self.passes(state.step, state.step + 1)
        for position, step in enumerate(passes):
            number = (state.step * section.gradient_accumulation_steps + position) * self._processes.size + self._processes.rank
            torch.manual_seed(section.seed * 1_000_003 + number)  # dropout
            losses.append(self._learner.backward(step))
        losses = self._processes.sum(losses)
        for step, loss in zip(passes, losses, strict=True):
            self._alarms.check_finite("The loss", loss, state.step + 1, self._records([step]))
        self._learner.combine()
        loss, records = math.fsum(losses), self._records(passes)
        rate, norm = self._optimizer.step(state.step)
        state.step += 1
        self._alarms.check_finite("The gradient's norm", norm, state.step, records)
        self._alarms.check_loss(loss, state.step, records)
        state.unlogged.append(loss)
        state.seen = self._alarms.losses
        state.seconds = self._before + time.monotonic() - self._started
        if state.step == 1 or state.step % section.logging_steps == 0 or state.step == self.n_steps:
            figures = {"loss": math.fsum(state.unlogged) / len(state.unlogged), "learning_rate": rate, "grad_norm": norm}
            state.unlogged = []
            self.log.add(state.step, figures, state.seconds)
        if state.step % _TRIM_STEPS == 0:
            trim_heap()

    def _records(self, steps: Sequence[Step]) -> list[str]:
        return [self._rows.record_ids[row] for step in steps for row in step.rows]

    def _checkpoint(self) -> None:
        if self._saved_step == self.state.step:
            return
        tensors = self._learner.tensors() | self._optimizer.tensors()
        if self._processes.is_first:
            keep = self._section.save_total_limit
            write_checkpoint(self._folder, self.state.step, tensors, asdict(self.state), keep=keep, best_step=self.state.best_step)
        self._saved_step = self.state.step

    def _is_evaluated(self) -> bool:
        """Whether the weights after this step are evaluated: every so many steps, and at the end."""
        step = self.state.step
        return step > 0 and (step % (self._section.eval_steps or 1) == 0 or step == self.n_steps)

    def _evaluate(self, validation: Validation) -> None:
        self._checkpoint()  # an evaluation may fail, and is done again when the run continues
        state, section = self.state, self._section
        figures = validation.figures(self._learner, self._base, self._model, section.per_device_train_batch_size)
        metric = section.metric_for_best_model
        value = -figures[f"eval_{metric}"] if metric == "loss" else figures[f"eval_{metric}"]
        if state.best is None or value > state.best:
            state.best, state.best_step, state.waited = value, state.step, 0
            tensors = self._learner.tensors()
            if self._processes.is_first:
                write_best(self._folder, state.step, tensors)
        else:
            state.waited += 1
        state.seconds = self._before + time.monotonic() - self._started
        self.log.add(state.step, figures, state.seconds)

    def _has_enough(self) -> bool:
        patience = self._section.early_stopping_patience
        return patience is not None and self.state.waited >= patience


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets: clouds send it some time before they take a machine away."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class _LossLog:
    """Keeps figures in a file, a JSON object a line, and hands them on. A resumed run drops what it will log again."""

    def __init__(self, path: Path, report: Report, n_steps: int, *, from_step: int, writes: bool) -> None:
        self._path, self._report, self._n_steps, self._writes = path, report, n_steps, writes
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one is torn where the disk was full
        # A checkpoint is written before the evaluation of its step, which comes again.
        self._lines: list[dict[str, float]] = [line for line in whole if line["step"] < from_step + ("loss" in line)]
        if writes:
            write_text(path, "".join(f"{json.dumps(line)}\n" for line in self._lines))

    def last_mean(self) -> float:
        losses = [line["loss"] for line in self._lines if "loss" in line]
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / max(1, len(tail))

    def add(self, step: int, figures: dict[str, float], seconds: float) -> None:
        line: dict[str, float] = {"step": step, **figures, "seconds": round(seconds, 3)}
        self._lines.append(line)
        if self._writes:
            with writing(self._path.parent), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._report(step, self._n_steps, figures)
