"""Preference tuning through TRL, on the very tokens that are served: DPO on pairs, KTO on single answers.

TRL would render and tokenise prompts by itself. Here it gets token ids: a prompt is what `models/tokens.py` makes of a text in
training, evaluation and serving, an answer ends with its stop token, and nothing is cut afterwards. Its trainers' own preparation
of data is therefore replaced, and so is the loop that asks the reference, which would show a bar of its own.

The reference is the model that the tuning starts from. It is asked about every row once, before the first step: afterwards only
one model is in memory, and a step needs one forward pass less. Of an adapter TRL makes a frozen copy for that, which is removed
again. A run that was killed asks the same reference again, then continues from its newest checkpoint (Trainer's) to the same
weights, bit for bit on the CPU.

Passes are those of transformers, one after the other; the fast pass answers afterwards where the weights fit it.

Sources: Rafailov et al. 2023 (DPO); Ethayarajh et al. 2024 (KTO), equation 8 for its weights.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from tunesmith.errors import BackendError
from tunesmith.files import write_text
from tunesmith.models.memory import PeakMemory
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import WEIGHTS_FOLDER, load_model, load_tuned, weights_file
from tunesmith.train.fit import LOSSES_FILE, Fitted, Report
from tunesmith.train.preference_settings import PreferSection

Columns = dict[str, list[Any]]
"""Token ids a row: `prompt_ids` and `chosen_ids`, `rejected_ids`, or `completion_ids`, `label` and `KL_completion_ids`."""

Tell = Callable[[int, int], None]
"""Called with rows that the reference has read, and rows in all."""


def encode_pairs(texts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], prompt: Prompt) -> Columns:
    """Tokenise pairs for DPO.

    Args:
        texts: n texts, cut where they are cut in serving.
        chosen: n answers as the data hold them, each preferred to the one in `rejected`.
        rejected: n answers.
        prompt: The task's prompts.
    """
    return {"prompt_ids": _prompts(texts, prompt), "chosen_ids": _answers(chosen, prompt), "rejected_ids": _answers(rejected, prompt)}


def encode_answers(texts: Sequence[str], answers: Sequence[str], are_right: Sequence[bool], prompt: Prompt, section: PreferSection) -> Columns:
    """Tokenise single answers for KTO, in the order in which they are learnt.

    Each batch holds for every row another row's answer too: how the model's view of those has moved is KTO's reference point.
    The order is drawn once, since a row must keep its batch.
    """
    order = np.random.default_rng(section.seed).permutation(len(texts))
    completions = _answers([answers[row] for row in order], prompt)
    size = section.per_device_train_batch_size
    batches = [completions[at : at + size] for at in range(0, len(completions), size)]
    return {
        "prompt_ids": _prompts([texts[row] for row in order], prompt),
        "completion_ids": completions,
        "KL_completion_ids": [answer for batch in batches for answer in (batch[-1], *batch[:-1])],
        "label": [are_right[row] for row in order],
    }


def _prompts(texts: Sequence[str], prompt: Prompt) -> list[list[int]]:
    return [prompt.prefix + row for row in prompt.rows(texts)]


def _answers(answers: Sequence[str], prompt: Prompt) -> list[list[int]]:
    return [list(ids) for ids in prompt.answers_of(answers)]


def prefer(
    columns: Columns, tokenizer: Any, base: Path, model: ModelSection, weights: Path, section: PreferSection, folder: Path, report: Report, tell: Tell
) -> Fitted:
    """Go on from a run's weights with preferences, and write what came out to `folder/weights`.

    Args:
        columns: What `encode_pairs` or `encode_answers` made, as `section.method` asks.
        tokenizer: The base model's, for its pad token; it may be changed.
        base: Folder of the base model.
        model: The section `model`, resolved.
        weights: Folder of the weights to start from, which are the reference too.
        section: The section `prefer`.
        folder: The run's folder: checkpoints, losses and in the end the weights.
        report: Receives the figures of every step.
        tell: Hears how far the reference is.

    Raises:
        NotFoundError: the weights are gone.
        BackendError: the loss is not finite, or a checkpoint cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    is_whole = weights_file(weights).name == "model.safetensors"
    with PeakMemory() as memory, _writing(folder):
        # Weights that learn are float32; their products are in the model's precision.
        start = load_model(weights, model.model_copy(update={"dtype": "float32"})) if is_whole else load_tuned(base, model, weights, is_trainable=True)
        trainer = make_trainer(start, columns, tokenizer, model, section, folder, report, tell)
        checkpoint = newest_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _save(trainer.model, folder, getattr(torch, model.dtype))
    losses = [line for line in trainer.state.log_history if "loss" in line]
    write_text(folder / LOSSES_FILE, "".join(f"{json.dumps(line)}\n" for line in losses))
    for old in _checkpoints(folder):
        shutil.rmtree(old)
    tail = [line["loss"] for line in losses[-max(1, len(losses) // 10) :]]
    tokens = round(n_tokens(columns) * (trainer.state.epoch or 0))
    return Fitted(trainer.state.global_step, sum(tail) / max(1, len(tail)), losses[-1]["seconds"], memory.bytes, tokens, trainer.state.global_step)


def n_tokens(columns: Columns) -> int:
    """Return the tokens of all rows in one epoch, a prompt once for each of its answers."""
    answers = [name for name in columns if name.endswith("_ids") and name != "prompt_ids"]
    return sum(len(prompt) + len(answer) for name in answers for prompt, answer in zip(columns["prompt_ids"], columns[name], strict=True))


def n_supervised_tokens(columns: Columns) -> int:
    """Return the tokens that one epoch's loss is taken at."""
    return sum(len(answer) for name in columns if name in ("chosen_ids", "rejected_ids", "completion_ids") for answer in columns[name])


def make_trainer(model: Any, columns: Columns, tokenizer: Any, section: ModelSection, settings: PreferSection, folder: Path, report: Report, tell: Tell) -> Any:
    """Return TRL's trainer for these rows; the reference has read them all. Arguments as in `prefer`."""
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "beta": settings.beta,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "num_train_epochs": settings.num_train_epochs,
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "max_length": None,  # texts are cut already, where they are cut in serving
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "bf16": section.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": True,
    }
    callback = _Told(report)
    common: dict[str, Any] = {"model": model, "train_dataset": Dataset.from_dict(columns), "processing_class": tokenizer, "callbacks": [callback]}
    if settings.method == "kto":
        right, wrong = max(1, sum(columns["label"])), max(1, len(columns["label"]) - sum(columns["label"]))
        weighed = {"desirable_weight": max(1.0, wrong / right), "undesirable_weight": max(1.0, right / wrong)} if len(set(columns["label"])) > 1 else {}
        trainer = _Kto(tell, args=KTOConfig(**arguments, **weighed), **common)
    else:
        trainer = _Dpo(tell, args=DPOConfig(**arguments), **common)
    trainer.remove_callback(PrinterCallback)
    return trainer


class _OwnTokens:
    """What TRL's trainers leave to us: rows are tokenised already, and the reference is asked with progress and without a cache on disk."""

    _told_columns: tuple[str, ...]

    def __init__(self, tell: Tell, **arguments: Any) -> None:
        self._tell = tell
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self: Any, dataset: Dataset, _name: str, size: int) -> Dataset:
        told: Columns = {name: [] for name in self._told_columns}
        for at in range(0, len(dataset), size):
            batch = self._prepare_inputs(self.data_collator([dataset[row] for row in range(at, min(at + size, len(dataset)))]))
            for name, nats in zip(self._told_columns, self.compute_ref_log_probs(self.ref_model or self.model, batch), strict=True):
                told[name] += nats.tolist()
            self._tell(min(at + size, len(dataset)), len(dataset))
        if isinstance(self.model, PeftModel):
            self.model.delete_adapter("ref")
            self.model.set_adapter("default")
        for name, values in told.items():
            dataset = dataset.add_column(name, values)
        return dataset

    def _load_from_checkpoint(self: Any, folder: str, model: Any = None) -> None:
        model = model or self.model
        if isinstance(model, PeftModel):  # Trainer asks PEFT to load it for training, which it refuses for a prefix
            set_peft_model_state_dict(model, load_file(Path(folder) / "adapter_model.safetensors"))
        else:
            super()._load_from_checkpoint(folder, model)  # type: ignore[misc]

    def create_model_card(self, **_: Any) -> None:
        """Write none: ours is written at registration."""


class _Dpo(_OwnTokens, DPOTrainer):  # type: ignore[misc]
    _told_columns = ("ref_chosen_logps", "ref_rejected_logps")


class _Kto(_OwnTokens, KTOTrainer):  # type: ignore[misc]
    _told_columns = ("ref_logps", "ref_KL_logps")


class _Told(TrainerCallback):  # type: ignore[misc]
    """Hands the figures of each step on, keeps the time with them over all starts of the run, and stops where the loss is not finite."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Go on from the time that a killed run had taken."""
        self._before = max((line.get("seconds", 0.0) for line in state.log_history), default=0.0)
        self._started = time.monotonic()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Hand on one step's figures."""
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise BackendError(f"The loss must be a finite number. Received {logs['loss']} at step {state.global_step}.", hint="Lower prefer.learning_rate.")
        state.log_history[-1]["seconds"] = round(self._before + time.monotonic() - self._started, 3)
        self._report(state.global_step, state.max_steps, {name: value for name, value in logs.items() if isinstance(value, float) and math.isfinite(value)})


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a preference run; what a kill left half written is removed.

    Trainer writes its state last.
    """
    for found in sorted(_checkpoints(folder), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(found)
            continue
        return found
    return None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what is kept."""
    try:
        yield
    except OSError as error:
        kept = newest_checkpoint(folder)
        state = f"{kept.name} is kept" if kept else "no checkpoint was complete yet"
        raise BackendError(
            f"A file of the run could not be written to {folder}: {error}; {state}.", hint="Free disk space, then type the same command."
        ) from error


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.is_dir()]


def _save(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write the weights in the layout of a supervised run, by write-then-rename."""
    partial, final = folder / f".{WEIGHTS_FOLDER}", folder / WEIGHTS_FOLDER
    shutil.rmtree(partial, ignore_errors=True)
    (model if isinstance(model, PeftModel) else model.to(dtype)).save_pretrained(partial)
    (partial / "README.md").unlink(missing_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
