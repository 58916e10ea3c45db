"""What a run will do and cost, before it does it.

Rows that do not fit are named, the stop token and the chat template are checked, and peak memory, time and disk are
predicted with an interval. A prediction is never a promise: the run prints it again beside what was measured, and a
finished run on the same base and machine replaces the probe of the processor by its own speed.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig

from tunesmith.errors import DataError, RefusedError
from tunesmith.models.batch import packed
from tunesmith.models.footprint import Footprint, measure_footprint
from tunesmith.models.memory import resident_bytes
from tunesmith.models.processor import matmul_flops_per_second, n_workers
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt
from tunesmith.train.batches import Rows, Step, encode_rows, schedule
from tunesmith.train.dry_run import dry_run
from tunesmith.train.learner import pack_width, rows_batch
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy
from tunesmith.train.trunk import trunk_bytes

# Measured on a Llama of 135 million parameters, batches of 4 to 16; low, expected, high.
# Share of the probed matrix speed that a whole training step reaches.
_EFFICIENCY = {
    ("fast", "bfloat16"): (0.15, 0.26, 0.45),
    ("fast", "float32"): (0.3, 0.5, 0.8),
    ("plain", "bfloat16"): (0.07, 0.15, 0.3),
    ("plain", "float32"): (0.2, 0.4, 0.7),
}
# Of a GPU the share falls with the model's size: a Llama of a billion parameters reached .43 and .18 on an H100, a small one is bound by its launches.
_EFFICIENCY_OF_GPU = {"fast": (0.1, 0.35, 0.6), "plain": (0.05, 0.15, 0.3)}
# What a step takes whatever its rows: weights read from memory, adapters copied and updated; on a GPU kernels launched.
_STEP_SECONDS, _STEP_SECONDS_OF_GPU = (0.1, 0.3, 0.6), (0.03, 0.1, 0.3)
_OWN_HISTORY = (0.7, 1.0, 1.25)
# Fitted by benchmarks/memory.py, on the settings that its table marks; the others were held out. Libraries that are loaded after the plan;
# what oneDNN and ideep keep for each shape of a bfloat16 product, until the caches that `processor.py` bounds are full; and what the heap
# holds for each byte that is live in the largest pass, which was not the first one: what a batch frees does not always fit the next. Of the
# plain pass it depends on how small and large, float32 and bfloat16 follow each other, so each strategy has its own. That of encoders, whose passes run
# side by side, was fitted on two runs of one setting (examples/complaints/encoder.yaml) and held out nothing.
#
# The fast pass's were fitted anew on eight runs of the complaints example in the program itself (lengths 180 and 240, batches of 8 and 16, adapters in 20
# and 30 layers): there 90 MB and a sixth of what is live come on top of what the benchmark's processes hold, whose table they keep within 10 %. Whole runs of
# the example took up to 1.19 times their planned own share (docs/log.md), which the upper end holds.
#
# On a GPU torch keeps account of tensors itself, products keep nothing, and what it holds beyond them was 5 to 8 % (benchmarks/gpu.py: a Llama of a billion
# parameters with and without recomputation; held out were the other rows of its table).
_LATER_BYTES = {"fast": 0.12e9, "plain": 0.03e9, "gpu": 0.12e9}
_PRODUCT_BYTES, _PRODUCTS_KEPT = 0.97e6, 370
_HEAP = {"fast": 1.21, "encoder": 2.13, "lora": 1.39, "full": 1.34, "prefix": 1.26, "qlora": 1.52, "gpu": 1.06}
_HEAP_OF_OTHERS = 1.39
# What passes side by side make the heap grow by in the first 80 steps. Of the plain pass no longer run was measured.
_GROWTH_BYTES, _GROWTH_STEPS = {"fast": 0.21e9, "plain": 0.0, "gpu": 0.0}, 80
_MEMORY_SPREAD = {"fast": (0.9, 1.0, 1.2), "plain": (0.9, 1.0, 1.2), "gpu": (0.9, 1.0, 1.15)}
# How far runs of the same base, strategy and machine are from each other.
_OWN_MEMORY_SPREAD = (0.95, 1.0, 1.05)
_RECENT_RUNS = 5
_SHOWN = 5
_ROUND_TRIP_SAMPLE = 200


class Estimate(BaseModel):
    """An expected value with a low and a high end."""

    model_config = ConfigDict(frozen=True)
    low: float
    expected: float
    high: float


class Plan(BaseModel):
    """What a run will do and cost.

    Attributes:
        rows: training rows; `records` may be fewer when texts are split.
        tokens: tokens that one epoch reads, without padding.
        supervised_tokens: tokens that the loss is taken at, one epoch.
        excess: ids of records whose text does not fit, with what happens to them in `excess_length_strategy`.
        peak_memory_bytes, seconds: estimates. disk_bytes: checkpoints and adapter at most.
        stop_token: None of an encoder, which writes nothing.
        resident_bytes: what the process held when it planned; the rest of the peak is the run's own.
        memory_scale: what earlier runs made of the prediction of the run's own memory.
    """

    model_config = ConfigDict(frozen=True)
    strategy: str
    forward: str
    dtype: str
    records: int
    rows: int
    steps: int
    tokens: int
    supervised_tokens: int
    shared_prefix_tokens: int
    padding_share: float
    excess: tuple[str, ...]
    excess_length_strategy: str
    stop_token: str | None
    stop_token_is_trained: bool
    pad_equals_stop: bool
    template_round_trips: bool
    trainable_parameters: int
    all_parameters: int
    peak_memory_bytes: Estimate
    seconds: Estimate
    disk_bytes: int
    resident_bytes: int = 0
    memory_scale: float = 1.0

    @property
    def trainable_share(self) -> float:
        """Trainable parameters as a ratio of all."""
        return self.trainable_parameters / self.all_parameters


def make_plan(
    records: pl.DataFrame,
    prompt: Prompt,
    base: Path,
    model: ModelSection,
    section: TrainSection,
    history: Sequence[float] = (),
    memory_ratios: Sequence[float] = (),
    *,
    rows: Rows | None = None,
) -> Plan:
    """Work out a run without loading weights or training.

    Args:
        records: The train split; columns id, text, label. None of a stage, whose rows are given.
        prompt: The task's prompts.
        base: Folder of the base model.
        model: The section `model`, resolved.
        section: The section `train`.
        history: Tokens a second of earlier runs of this base and strategy on this machine, oldest first.
        memory_ratios: What those runs measured of their own memory, as a multiple of what was planned without history.
        rows: The training rows, their prompts whole, where they are others than those of the records: of a stage, or with what is replayed of stages.

    Raises:
        DataError: texts do not fit and the strategy is `raise`, or the chat template cannot be trained on.
    """
    is_task, prefix = rows is None, prompt.prefix if rows is None else ()
    rows = rows or encode_rows(records, prompt, section)
    steps = schedule(rows, section)
    footprint = measure_footprint(base, model, load_strategy(section).prepare)
    parts = memory_parts(rows, steps, prefix, base, model, section)
    n_prefix = len(prefix)
    lengths = rows.lengths
    tokens = sum(lengths) + n_prefix * len(rows)
    width = pack_width(section, prefix)
    padded = sum(math.prod(_shape(step, lengths, width)) for step in steps if step.rows)
    own = sum(lengths[row] for step in steps for row in step.rows)
    stop = prompt.tokenizer.eos_token_id
    hidden_size = AutoConfig.from_pretrained(base).get_text_config().hidden_size
    kept = trunk_bytes(rows, n_prefix, hidden_size, getattr(torch, model.dtype).itemsize) if section.activation_cache else 0
    plan = Plan(
        strategy=section.strategy,
        forward=model.forward,
        dtype=model.dtype,
        records=len(records) or len(rows),
        rows=len(rows),
        steps=len(steps) // section.gradient_accumulation_steps,
        tokens=tokens,
        supervised_tokens=rows.supervised_tokens,
        shared_prefix_tokens=n_prefix,
        padding_share=1 - own / padded,
        excess=tuple(rows.excess),
        excess_length_strategy=section.excess_length_strategy,
        stop_token=None if model.num_labels else prompt.tokenizer.eos_token,
        stop_token_is_trained=bool(model.num_labels) or not is_task or all(answer[-1] == stop for answer in rows.answers),
        pad_equals_stop=prompt.tokenizer.pad_token_id == stop,
        template_round_trips=prompt.round_trips(records["text"].head(_ROUND_TRIP_SAMPLE).to_list()),
        trainable_parameters=footprint.trainable,
        all_parameters=footprint.parameters,
        peak_memory_bytes=predicted_memory(parts, model, memory_ratios),
        resident_bytes=parts.resident,
        memory_scale=statistics.median(memory_ratios[-_RECENT_RUNS:]) if memory_ratios else 1.0,
        seconds=_with_evaluations(_seconds(footprint, steps, lengths, n_prefix, model, width, history), steps, section),
        # Weights and two moments a checkpoint; the result; the best weights, and those that were the best before; the frozen trunk's states.
        disk_bytes=((section.save_total_limit + 1) * 3 + 1 + (2 if section.eval_steps else 0)) * footprint.trainable * 4 + kept,
    )
    if not plan.stop_token_is_trained:
        raise DataError(f"Every answer must end with the stop token {plan.stop_token}. Received answers that do not: the model would never stop.")
    return plan


@dataclass(frozen=True)
class MemoryParts:
    """What a run's peak memory is made of, in bytes.

    Attributes:
        resident: What the process holds already.
        held: Weights, their copies in the compute dtype, gradients that wait to be added, and the optimizer's two moments.
        live: The most that the passes of a batch hold together: activations, logits, gradients.
        products: Matrix products in bfloat16 of different shapes.
        heap: What the heap holds for each byte of `live`.
        growth: What it grows by over the steps, beside.
    """

    resident: int
    held: int
    live: int
    products: int
    heap: float
    growth: float


def memory_parts(rows: Rows, steps: Sequence[Step], prefix: Sequence[int], base: Path, model: ModelSection, section: TrainSection) -> MemoryParts:
    """Count what a run holds, by its largest batch."""
    resident, lengths, n_prefix, n_passes = resident_bytes(), rows.lengths, len(prefix), _passes(model)
    shapes = {(len(part), max(lengths[row] for row in part)) for step in steps for worker in range(n_passes) if (part := step.rows[worker::n_passes])}
    width = pack_width(section, prefix)
    largest = max(steps, key=lambda step: _tokens_computed(step, lengths, n_prefix, model, width))
    parts = [part for worker in range(n_passes) if (part := largest.rows[worker::n_passes])]
    strategy, heap = load_strategy(section), _HEAP.get(_kind(model, section), _HEAP_OF_OTHERS)
    batches = [partial(rows_batch, rows, part, prefix, width) for part in parts]
    learning = {"in_float32": strategy.in_float32, "is_chunked": section.chunked_loss, "recomputes": section.gradient_checkpointing}
    run = dry_run(base, model, strategy.prepare, batches, **learning)
    growth = _GROWTH_BYTES[_allocator(model)] * min(1.0, len(steps) / _GROWTH_STEPS)
    waiting = run.trained if section.gradient_accumulation_steps > 1 else 0
    copies = run.trained // 2 if strategy.in_float32 and model.dtype == "bfloat16" else 0
    return MemoryParts(resident, run.held + 2 * run.trained + waiting + copies, sum(run.passes), len(shapes) * run.products, heap, growth)


def predicted_memory(parts: MemoryParts, model: ModelSection, ratios: Sequence[float] = ()) -> Estimate:
    """Predict the peak in bytes: resident set size, or what torch takes from a GPU.

    Args:
        parts: What it is made of.
        model: The section `model`, resolved.
        ratios: What earlier runs measured of their own share of the peak, as a multiple of what was planned.
    """
    own = parts.held + _LATER_BYTES[_allocator(model)] + _PRODUCT_BYTES * min(parts.products, _PRODUCTS_KEPT) + parts.heap * parts.live + parts.growth
    scale = statistics.median(ratios[-_RECENT_RUNS:]) if ratios else 1.0
    low, expected, high = (parts.resident + own * scale * spread for spread in (_OWN_MEMORY_SPREAD if ratios else _MEMORY_SPREAD[_allocator(model)]))
    return Estimate(low=low, expected=expected, high=high)


def _allocator(model: ModelSection) -> str:
    """Say who hands out the memory of a pass: each was measured apart."""
    return "gpu" if torch.cuda.is_available() else model.forward


def _seconds(
    footprint: Footprint, steps: Sequence[Step], lengths: Sequence[int], n_prefix: int, model: ModelSection, width: int | None, history: Sequence[float]
) -> Estimate:
    """Predict the time of all steps: by the speed of the newest run, or by a probe of the processor."""
    if history:
        read = sum(lengths[row] + n_prefix for step in steps for row in step.rows)
        low, expected, high = (read / (history[-1] * factor) for factor in reversed(_OWN_HISTORY))
        return Estimate(low=low, expected=expected, high=high)
    computed = sum(_tokens_computed(step, lengths, n_prefix, model, width) for step in steps)
    ideal = computed * footprint.flops_per_token / (matmul_flops_per_second(getattr(torch, model.dtype)) * n_workers())
    on_gpu = _allocator(model) == "gpu"
    efficiencies = _EFFICIENCY_OF_GPU[model.forward] if on_gpu else _EFFICIENCY[model.forward, model.dtype]
    steps_take = _STEP_SECONDS_OF_GPU if on_gpu else _STEP_SECONDS
    low, expected, high = (ideal / share + len(steps) * fixed for share, fixed in zip(reversed(efficiencies), steps_take, strict=True))
    return Estimate(low=low, expected=expected, high=high)


def _with_evaluations(training: Estimate, steps: Sequence[Step], section: TrainSection) -> Estimate:
    """Add the time of evaluations at their largest: two passes forward a record, each a third of what a row takes to train."""
    if not section.eval_steps:
        return training
    count = -(-len(steps) // section.gradient_accumulation_steps // section.eval_steps)
    factor = 1 + 2 / 3 * count * section.max_eval_samples / sum(len(step.rows) for step in steps)
    return Estimate(low=training.low, expected=training.expected * factor, high=training.high * factor)


def _passes(model: ModelSection) -> int:
    """Return how many parts of a batch are computed side by side."""
    return n_workers() if model.forward == "fast" or model.num_labels else 1


def _kind(model: ModelSection, section: TrainSection) -> str:
    if _allocator(model) == "gpu":
        return "gpu"
    return "encoder" if model.num_labels else "fast" if model.forward == "fast" else section.strategy


def _shape(step: Step, lengths: Sequence[int], width: int | None) -> tuple[int, int]:
    """Return the rows and the columns, without the shared prefix, of one batch: a record a row, or packs of at most `width` tokens."""
    own = [lengths[row] for row in step.rows]
    sums = [sum(own[row] for row in pack) for pack in packed(own, width)] if width else own
    return len(sums), max(sums)


def _tokens_computed(step: Step, lengths: Sequence[int], n_prefix: int, model: ModelSection, width: int | None) -> int:
    """Return the tokens that one batch computes, padding included: the fast pass reads the prefix once a part, the plain one once a row."""
    if not step.rows:
        return 0
    n_rows, n_columns = _shape(step, lengths, width)
    return n_rows * n_columns + n_prefix * (min(_passes(model), n_rows) if model.forward == "fast" else n_rows)


def refuse_over_limits(plan: Plan, section: TrainSection, folder: Path) -> None:
    """Refuse a plan that passes a limit that was set, or that the disk cannot hold.

    Raises:
        RefusedError: names the limit, the prediction and a key to change.
    """
    checks = (
        ("train.max_memory_gb", section.max_memory_gb, plan.peak_memory_bytes.high / 1e9, "GB of peak memory", "per_device_train_batch_size"),
        ("train.max_hours", section.max_hours, plan.seconds.high / 3600, "hours", "num_train_epochs"),
        ("train.max_disk_gb", section.max_disk_gb, plan.disk_bytes / 1e9, "GB of disk", "save_total_limit"),
    )
    for key, limit, predicted, unit, lever in checks:
        if limit is not None and predicted > limit:
            raise RefusedError(
                f"The plan must stay within {key} = {limit:g}. Predicted: up to {predicted:.2f} {unit}.",
                hint=f"Lower train.{lever} or raise {key}, then: tunesmith plan",
            )
    free = shutil.disk_usage(folder).free
    if plan.disk_bytes > free:
        raise RefusedError(f"The run must fit the disk. Predicted: {plan.disk_bytes / 1e9:.2f} GB. Free: {free / 1e9:.2f} GB.", hint="Free disk space.")


def excess_in_words(plan: Plan) -> str:
    """Say which records do not fit and what happens to them."""
    if not plan.excess:
        return "none: every text fits"
    what = {"truncate": "are cut", "drop": "are left out", "split": "become several rows", "raise": "stop the run"}[plan.excess_length_strategy]
    named = ", ".join(plan.excess[:_SHOWN]) + (", ..." if len(plan.excess) > _SHOWN else "")
    return f"{len(plan.excess):,} of {plan.records:,} records {what}: {named}"
