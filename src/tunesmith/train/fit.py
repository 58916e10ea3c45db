"""Fits a strategy on rows: transformers.Trainer with our batches, our loss and our forward pass.

The loss is the cross-entropy of the answer's tokens, stop token included, times their record's weight, summed and divided by
the weights in the whole step, so that accumulation changes nothing. Language-model logits are computed at those positions only. A killed run
continues from its newest complete checkpoint to the same losses, bit for bit on the CPU: batches are fixed in advance and
gradients of side-by-side passes are added in a fixed order.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from tunesmith.errors import BackendError
from tunesmith.files import write_text
from tunesmith.models.batch import Batch, training_batch
from tunesmith.models.engine import Forward, Workers, forward_pass
from tunesmith.models.memory import PeakMemory, trim_heap
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import WEIGHTS_FOLDER, load_model
from tunesmith.train.batches import Rows, Step, schedule
from tunesmith.train.checkpoint import MarkComplete, newest_complete, remove_checkpoints, step_of, writing
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import Strategy, load_strategy

LOSSES_FILE = "losses.jsonl"

_TRIM_STEPS = 32

Report = Callable[[int, int, dict[str, float]], None]
"""Called after each logged step with the step, the steps in all, and the figures: loss, learning_rate, grad_norm."""


@dataclass(frozen=True)
class Fitted:
    """What a finished fit leaves.

    Attributes:
        steps: Optimizer steps.
        train_loss: Mean loss over the last tenth of the logged steps, nats a supervised token.
        seconds: Wall time of the steps, over all starts of the run.
        peak_memory_bytes: Largest resident set size seen.
        tokens: Tokens of all rows read, without padding and with the shared prefix once a row.
    """

    steps: int
    train_loss: float
    seconds: float
    peak_memory_bytes: int
    tokens: int


def answer_loss(forward: Forward, batch: Batch) -> Tensor:
    """Return the weighted sum of the cross-entropy at a batch's supervised positions, in nats."""
    logits = forward.logits(batch)
    losses = torch.nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="none")
    return losses @ batch.weights.to(logits.device)


def fit(rows: Rows, prefix: Sequence[int], base: Path, model: ModelSection, section: TrainSection, folder: Path, report: Report) -> Fitted:
    """Train and write what was learnt to `folder/weights`.

    Args:
        rows: The training rows.
        prefix: Token ids that every prompt starts with.
        base: Folder of the base model.
        model: The section `model`, resolved.
        section: The section `train`.
        folder: The run's folder: checkpoints, losses and in the end the weights.
        report: Receives the figures of logged steps.

    Raises:
        BackendError: the loss is not finite, or a checkpoint cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if section.resume_from_checkpoint == "never":
        remove_checkpoints(folder)
    checkpoint = newest_complete(folder)
    steps = schedule(rows, section)
    log = _LossLog(folder / LOSSES_FILE, report, from_step=step_of(checkpoint) if checkpoint else 0)
    strategy = load_strategy(section)
    learner = strategy.prepare(load_model(base, model.model_copy(update={"dtype": "float32"}) if strategy.in_float32 else model), prefix)
    trainer = _AnswerTrainer(
        model=learner,
        args=_arguments(section, folder, len(steps) // section.gradient_accumulation_steps),
        callbacks=[log, MarkComplete(folder, section.save_total_limit)],
        rows=rows,
        prefix=prefix,
        steps=steps,
        model_section=model,
        lr_ratio=section.loraplus_lr_ratio,
    )
    for callback in ("PrinterCallback", "ProgressCallback"):
        trainer.callback_handler.callbacks = [found for found in trainer.callback_handler.callbacks if type(found).__name__ != callback]
    with PeakMemory() as memory:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with writing(folder):
            _save(strategy, learner, folder, getattr(torch, model.dtype))
    passes = sum(len(rows.prompts[row]) + len(rows.answers[row]) + len(prefix) for step in steps for row in step.rows)
    return Fitted(trainer.state.global_step, log.last_mean(), log.seconds, memory.bytes, passes)


def _arguments(section: TrainSection, folder: Path, n_steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=n_steps,
        per_device_train_batch_size=section.per_device_train_batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.lr_scheduler_type if section.lr_scheduler_type != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(section.warmup_ratio * n_steps),
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch_fused",
        seed=section.seed,
        logging_steps=section.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=section.save_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )


def _save(strategy: Strategy, learner: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write what was learnt by write-then-rename."""
    partial, final = folder / f".{WEIGHTS_FOLDER}", folder / WEIGHTS_FOLDER
    strategy.save(learner, partial, dtype)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; ours is written at registration
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


class _AnswerTrainer(Trainer):  # type: ignore[misc]
    """Feeds our schedule and computes the gradients of one pass in parts, side by side."""

    def __init__(self, *, rows: Rows, prefix: Sequence[int], steps: Sequence[Step], model_section: ModelSection, lr_ratio: float, **kwargs: Any) -> None:
        super().__init__(train_dataset=range(len(steps)), **kwargs)
        self._rows, self._prefix, self._steps, self._section, self._lr_ratio = rows, prefix, steps, model_section, lr_ratio

    # Made by the first step: only then are a checkpoint's weights in place.

    @cached_property
    def _forward(self) -> Forward:
        return forward_pass(self.model.train(), self._section)

    @cached_property
    def _workers(self) -> Workers:
        return Workers(self._forward)

    @cached_property
    def _parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Give LoRA's B its own learning rate where it is another one (LoRA+, Hayou et al. 2024)."""
        if self._lr_ratio == 1:
            return super().create_optimizer(*args, **kwargs)
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        groups = [
            {"params": [each for name, each in named if ("lora_B" in name) == is_b], "lr": self.args.learning_rate * (self._lr_ratio if is_b else 1)}
            for is_b in (False, True)
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.args.weight_decay, fused=True)
        self.optimizer = optimizer
        return optimizer

    def get_train_dataloader(self) -> DataLoader[dict[str, Step]]:
        """Yield the schedule in its order, one pass at a time."""
        return DataLoader(self._steps, batch_size=1, shuffle=False, collate_fn=lambda steps: {"step": steps[0]})  # type: ignore[arg-type]

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def training_step(self, model: Any, inputs: dict[str, Step], num_items_in_batch: Any = None) -> Tensor:
        """Add the gradients of one pass; return its share of the step's mean loss."""
        step = inputs["step"]
        # Rows are sorted by length: dealing them out in turn gives every worker the same amount of work.
        parts = [step.rows[worker :: self._workers.n] for worker in range(self._workers.n)]
        results = list(self._workers.map(lambda part: self._part(part, step.supervised_weight), [part for part in parts if part]))
        loss = torch.stack([part_loss for part_loss, _ in results]).sum() if results else torch.zeros(())
        if not torch.isfinite(loss):
            rows = ", ".join(sorted({self._rows.record_ids[row] for row in step.rows})[:5])
            raise BackendError(
                f"The loss must stay finite. Received {loss.item()} at step {self.state.global_step + 1}, in the batch of {rows}, ...",
                hint=f"tunesmith train --set train.learning_rate={self.args.learning_rate / 3:.1e}",
            )
        for _, gradients in results:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        if self.state.global_step % _TRIM_STEPS == 0:
            trim_heap()
        return loss

    def _part(self, part: Sequence[int], supervised_weight: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = self._rows
        prompts, answers, weights = ([column[row] for row in part] for column in (rows.prompts, rows.answers, rows.weights))
        batch = training_batch(self._prefix, prompts, answers, weights)  # type: ignore[arg-type]
        loss = answer_loss(self._forward, batch) / supervised_weight
        return loss.detach(), torch.autograd.grad(loss, self._parameters)


class _LossLog(TrainerCallback):  # type: ignore[misc]
    """Keeps logged figures in a file, a JSON object a line, and hands them on. A resumed run drops what it will log again."""

    def __init__(self, path: Path, report: Report, *, from_step: int) -> None:
        self._path, self._report = path, report
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one is torn where the disk was full
        self._lines: list[dict[str, float]] = [line for line in whole if line["step"] <= from_step]
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in self._lines))
        self._seconds_before = self._lines[-1]["seconds"] if self._lines else 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def last_mean(self) -> float:
        tail = self._lines[-max(1, len(self._lines) // 10) :]
        return sum(line["loss"] for line in tail) / max(1, len(tail))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A logged loss is a mean since the last logged step. A checkpoint starts a new one, so that a resumed run has the same means.
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        figures: dict[str, float] = {name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        line: dict[str, float] = {"step": state.global_step, **figures, "seconds": round(self.seconds, 3)}
        self._lines.append(line)
        with writing(self._path.parent), self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._report(state.global_step, state.max_steps, figures)
