"""Records -> rows of token ids -> the order of batches.

What does not fit max_length is handled as `excess_length_strategy` says and is always named. The order of all batches is
fixed by the seed before the first step, so that a resumed run sees exactly the batches that it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tunesmith.errors import DataError
from tunesmith.models.batch import length_grouped, shuffled
from tunesmith.models.tokens import Prompt
from tunesmith.train.settings import TrainSection


@dataclass(frozen=True)
class Rows:
    """Training rows as token ids.

    Attributes:
        record_ids: per row, the record it comes from.
        prompts: per row, the token ids after the shared prefix and before the answer.
        answers: per row, the answer's token ids, the stop token last.
        excess: ids of the records whose text does not fit.
        weights: per row, what it counts in the loss, in (0, 1].
    """

    record_ids: list[str]
    prompts: list[list[int]]
    answers: list[tuple[int, ...]]
    excess: list[str]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Tokens per row without the shared prefix."""
        return [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    @property
    def supervised_tokens(self) -> int:
        """Tokens that the loss is taken at."""
        return sum(map(len, self.answers))


def encode_rows(records: pl.DataFrame, prompt: Prompt, section: TrainSection) -> Rows:
    """Tokenise the train split.

    Args:
        records: Frame of records; its columns id, text, label and weight are read.
        prompt: The task's prompts.
        section: Says what happens to texts that do not fit.

    Raises:
        DataError: there is nothing to train on, or texts do not fit and the strategy is `raise`.
    """
    texts = prompt.encode(records["text"].to_list())
    rows = Rows([], [], [], [record for record, ids in zip(records["id"], texts, strict=True) if len(ids) > prompt.text_budget], [])
    if rows.excess and section.excess_length_strategy == "raise":
        raise DataError(
            f"Every record must fit train.max_length = {section.max_length} tokens, which leaves {prompt.text_budget} for the text. "
            f"Received {len(rows.excess):,} of {len(records):,} that do not: {', '.join(rows.excess[:5])}{', ...' if len(rows.excess) > 5 else ''}.",
            hint="Set train.excess_length_strategy to truncate, split or drop, or raise train.max_length.",
        )
    answers = prompt.answers_of(records["label"].to_list())
    longest = max(map(len, prompt.answers)) if prompt.answers else prompt.task.max_answer_tokens
    too_long = [record for record, answer in zip(records["id"], answers, strict=True) if len(answer) > longest]
    if too_long and section.excess_length_strategy != "drop":
        raise DataError(
            f"Every answer must fit task.max_answer_tokens = {longest} with its stop token. "
            f"Received {len(too_long):,} of {len(records):,} that do not: {', '.join(too_long[:5])}{', ...' if len(too_long) > 5 else ''}.",
            hint=f"tunesmith plan --set task.max_answer_tokens={max(map(len, answers))}, or train.excess_length_strategy=drop",
        )
    rows.excess.extend(too_long)
    for record, answer, weight, ids in zip(records["id"], answers, records["weight"], texts, strict=True):
        if len(answer) > longest:
            continue
        fits = len(ids) <= prompt.text_budget
        if not fits and section.excess_length_strategy == "drop":
            continue
        pieces = prompt.split(ids) if not fits and section.excess_length_strategy == "split" else [prompt.cut(ids)]
        for piece in pieces:
            rows.record_ids.append(record)
            rows.prompts.append(piece + prompt.suffix)
            rows.answers.append(answer)
            rows.weights.append(weight)
    if not rows.prompts:
        raise DataError("The train split must hold at least one record that fits. Received none.", hint="tunesmith plan")
    return rows


@dataclass(frozen=True)
class Step:
    """One forward pass: the rows it reads, and the supervised tokens of the whole optimizer step it belongs to, each times its row's weight."""

    rows: list[int]
    supervised_weight: float


def schedule(rows: Rows, section: TrainSection) -> list[Step]:
    """Fix the order of every forward pass of a run.

    Returns:
        n_steps * gradient_accumulation_steps entries. The loss of each is divided by the weight of the supervised tokens
        of its whole step, so that accumulated gradients are exactly those of the full batch.
    """
    accumulate = section.gradient_accumulation_steps
    groups: list[list[list[int]]] = []
    for epoch in range(section.num_train_epochs):
        batches = _epoch(rows.lengths, section, seed=section.seed * 1_000_003 + epoch)
        groups += [batches[at : at + accumulate] for at in range(0, len(batches), accumulate)]
    if section.max_steps > 0:
        groups = groups[: section.max_steps]
    # An epoch's last group may be short, which would end a step early: its rows are spread over as many passes.
    weight = [len(answer) * count for answer, count in zip(rows.answers, rows.weights, strict=True)]
    return [Step(batch, sum(weight[row] for part in group for row in part)) for group in groups for batch in _filled(group, accumulate)]


def _epoch(lengths: Sequence[int], section: TrainSection, *, seed: int) -> list[list[int]]:
    size = section.per_device_train_batch_size
    return length_grouped(lengths, size, seed=seed) if section.group_by_length else shuffled(len(lengths), size, seed=seed)


def _filled(group: list[list[int]], count: int) -> list[list[int]]:
    """Return `count` batches with the rows of a group; empty ones where there are fewer rows than batches."""
    if len(group) == count:
        return group
    rows = [row for batch in group for row in batch]
    return [rows[part::count] for part in range(count)]
