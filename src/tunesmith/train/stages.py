"""General -> domain -> task: the rows of the stages before the task, and how one stage begins where another ended.

A `text` stage goes on with pre-training: texts, each ended by the stop token, are packed one after the other into rows of
`max_length` tokens whose every token but the first is supervised. An `instruction` stage learns answers as the task does.
A twentieth of the records, chosen by a hash of the text, is held out: it measures the stage, and later what is forgotten
of it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from tunesmith.errors import ConfigError
from tunesmith.files import write_json
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import load_tuned, weights_file
from tunesmith.train.batches import Rows, encode_rows
from tunesmith.train.settings import StageSection, TrainSection
from tunesmith.train.token_cache import read_rows, write_once, write_rows

_HELD_OUT = 20
"""One text in so many is held out."""

_MOST_HELD_OUT = 60
"""Held-out texts that are read to measure a stage."""

_HELD_OUT_CHARACTERS = 2000
_HELD_OUT_FILE = "held_out.json"


@dataclass(frozen=True)
class StageData:
    """What a stage learns and what measures it.

    Attributes:
        rows: Training rows. Their prompts are whole: they share no prefix.
        contexts: What stands before each held-out text; empty of a text stage.
        continuations: The held-out texts, or answers.
    """

    rows: Rows
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]

    @classmethod
    def cached(cls, folder: Path, make: Callable[[], StageData]) -> StageData:
        """Return what a folder holds, and let `make` tokenise it first where there is none.

        Args:
            folder: Its name says what the token ids depend on.
            make: Reads the stage's file and tokenises it.
        """
        write_once(folder, lambda into: make()._write(into))
        held_out = json.loads((folder / _HELD_OUT_FILE).read_text(encoding="utf-8"))
        return cls(read_rows(folder), tuple(held_out["contexts"]), tuple(held_out["continuations"]))

    def _write(self, folder: Path) -> None:
        write_rows(self.rows, folder)
        write_json(folder / _HELD_OUT_FILE, {"contexts": self.contexts, "continuations": self.continuations})


def stage_data(records: pl.DataFrame, stage: StageSection, section: TrainSection, tokenizer: Any) -> StageData:
    """Make the rows of a stage and what is held out.

    Args:
        records: Columns text and label; of a text stage the label is not read.
        stage: The stage.
        section: `train` with what the stage sets.
        tokenizer: The base model's.

    Raises:
        ConfigError: too few records to learn from and to hold out.
        DataError: an instruction does not fit, and `excess_length_strategy` is `raise`.
    """
    records = records.filter(pl.col("text").str.strip_chars() != "").unique("text", maintain_order=True)
    is_held = pl.Series([int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % _HELD_OUT == 0 for text in records["text"]], dtype=pl.Boolean)
    learnt, held = records.filter(~is_held), records.filter(is_held).head(_MOST_HELD_OUT)
    if learnt.is_empty() or held.is_empty():
        raise ConfigError(f"The stage {stage.name} needs some 20 texts or more, one in {_HELD_OUT} of which is held out. Received: {len(records)}.")
    if stage.objective == "text":
        rows = pack_texts(learnt["text"].to_list(), tokenizer, section.max_length)
        return StageData(rows, ("",) * len(held), tuple(text[:_HELD_OUT_CHARACTERS] for text in held["text"]))
    prompt = Prompt(tokenizer, TaskSection(type="chat", instruction=stage.instruction, max_answer_tokens=section.max_length // 2), section.max_length)
    numbered = learnt.with_columns(id=pl.format("{}_{}", pl.lit(stage.name), pl.int_range(pl.len())), weight=pl.lit(1.0))
    encoded = encode_rows(numbered, prompt, section)
    return StageData(with_prefix(encoded, prompt.prefix), tuple(prompt.render(text) for text in held["text"]), tuple(held["label"]))


def pack_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> Rows:
    """Pack texts into rows of `max_length` tokens; every token of the texts is supervised once, but the first of each row.

    Args:
        texts: Raw texts.
        tokenizer: The base model's; its stop token ends each text.
        max_length: Tokens a row; the last row may be shorter.
    """
    stream = [token for text in texts for token in (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)]
    rows = Rows([], [], [], [], [])
    # Neighbours overlap by one token, which is the context of the next row's first.
    for number, at in enumerate(range(0, len(stream) - 1, max_length - 1)):
        window = stream[at : at + max_length]
        rows.record_ids.append(f"text_{number}")
        rows.prompts.append(window[:1])
        rows.answers.append(tuple(window[1:]))
        rows.weights.append(1.0)
    return rows


def with_prefix(rows: Rows, prefix: Sequence[int]) -> Rows:
    """Put a shared prefix in front of every row's own prompt, so that rows of several stages can stand in one batch."""
    return Rows(rows.record_ids, [[*prefix, *prompt] for prompt in rows.prompts], rows.answers, rows.excess, rows.weights)


def mix_replay(rows: Rows, before: Sequence[Rows], ratio: float, seed: int) -> Rows:
    """Add rows of the stages before.

    Args:
        rows: The stage's own rows, prefix and all.
        before: Rows of each earlier stage; each gives the same number where it has as many.
        ratio: Rows to add as a share of the stage's own.
        seed: Seed of which are taken.
    """
    wanted = round(ratio * len(rows))
    if not before or not wanted:
        return rows
    mixed = Rows(*([*column] for column in (rows.record_ids, rows.prompts, rows.answers, rows.excess, rows.weights)))
    draw = random.Random(seed)  # noqa: S311 - no secret
    for number, source in enumerate(before):
        share = wanted * (number + 1) // len(before) - wanted * number // len(before)
        for row in draw.sample(range(len(source)), min(share, len(source))):
            mixed.record_ids.append(source.record_ids[row])
            mixed.prompts.append(source.prompts[row])
            mixed.answers.append(source.answers[row])
            mixed.weights.append(source.weights[row])
    return mixed


def merge(base: Path, section: ModelSection, weights: Path, folder: Path) -> Path:
    """Write the base model with what was learnt merged into its weights, as a whole model that can be a base itself.

    Merged in float32 and rounded once to the precision of the section.

    Returns:
        The folder, which appears by rename.
    """
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns("*.safetensors*", "*.gguf"))
    model = load_tuned(base, section.model_copy(update={"dtype": "float32", "load_in_4bit": False}), weights)
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    whole.to(getattr(torch, section.dtype)).save_pretrained(partial)
    partial.replace(folder)
    return folder


def begin_with(model: Any, weights: Path) -> None:
    """Give a prepared model the weights that an earlier stage learnt.

    Raises:
        ConfigError: they are of another strategy or shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = weights_file(weights)
    tensors = load_file(file)
    try:
        if file.name == "adapter_model.safetensors":
            outcome = set_peft_model_state_dict(model, tensors)
            wrong = list(outcome.unexpected_keys) + [name for name in outcome.missing_keys if "lora_" in name or "prompt_encoder" in name]
        else:
            wrong = list(model.load_state_dict(tensors, strict=False).unexpected_keys)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        wrong = [str(error).splitlines()[0]]
    if wrong:
        raise ConfigError(
            f"A stage that continues needs the strategy and shape of the one before. Received: weights that do not fit, {wrong[0]}.",
            hint="Set start: merge for this stage.",
        )
