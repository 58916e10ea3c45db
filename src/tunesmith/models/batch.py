"""Rows of token ids -> the tensors of one forward pass.

A batch holds the shared prefix once, the rows padded on the right to the longest, and the places where something is
predicted. Right padding needs no mask under causal attention: no real token looks to its right. Padding is told by the
positions, never by a token id, so a pad token that equals the stop token is harmless.

A packed batch holds several records in a row, one after the other. Each sees the shared prefix and itself, never another, and
its positions start again behind the prefix (Krell et al. 2021, Efficient Sequence Packing without Cross-contamination).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        prefix: shape (n_prefix,). Token ids that every row starts with; may be empty.
        input_ids: shape (n_rows, n_columns). Token ids after the prefix, padded on the right with 0. A row is a record, or a pack of them.
        positions: shape (n_positions,). Places in the flattened `input_ids` whose next token is asked for.
        targets: shape (n_positions,). The right next tokens; empty when only scoring.
        weights: shape (n_positions,), float32. What each target counts in the loss; empty when only scoring.
        first_column: The first column of `input_ids` that has one of the positions.
        records: shape (n_rows, n_columns). Of packs: the number of the record that a token belongs to, -1 of padding. None where a row is a record.
        trunk: shape (n_prefix + n_rows * n_columns, D). What the frozen lower layers make of the tokens, where that is known already (fast pass).
    """

    prefix: Tensor
    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    first_column: int = 0
    records: Tensor | None = None
    trunk: Tensor | None = None


def training_batch(prefix: Sequence[int], prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], weights: Sequence[float] | None = None) -> Batch:
    """Build a batch that supervises every answer token, the stop token included.

    Args:
        prefix: Token ids shared by all rows.
        prompts: Per row, the token ids after the prefix and before the answer; at least one.
        answers: Per row, the answer's token ids with the stop token last.
        weights: Per row, what its tokens count in the loss; 1 when None.
    """
    input_ids = _pad([[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)])
    width = input_ids.shape[1]
    starts = [row * width + len(prompt) - 1 for row, prompt in enumerate(prompts)]
    positions = [start + step for start, answer in zip(starts, answers, strict=True) for step in range(len(answer))]
    targets = torch.tensor([token for answer in answers for token in answer])
    counts = torch.tensor([weight for weight, answer in zip(weights or [1.0] * len(answers), answers, strict=True) for _ in answer])
    return _batch(prefix, input_ids, positions, targets, counts)


def packed_batch(prefix: Sequence[int], prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], weights: Sequence[float], width: int) -> Batch:
    """Build a batch like `training_batch`, with several records in a row where they fit.

    Args:
        prefix: Token ids shared by all records.
        prompts: Per record, the token ids after the prefix and before the answer; at least one.
        answers: Per record, the answer's token ids with the stop token last.
        weights: Per record, what its tokens count in the loss.
        width: Most tokens of a row after the prefix; a longer record has a row of its own.
    """
    records = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    packs = packed([len(record) for record in records], width)
    rows = [[token for record in pack for token in records[record]] for pack in packs]
    input_ids, owners = _pad(rows), _pad([[record + 1 for record in pack for _ in records[record]] for pack in packs]) - 1
    positions: list[int] = []
    order: list[int] = []
    for row, pack in enumerate(packs):
        at = row * input_ids.shape[1]
        for record in pack:
            start = at + len(prompts[record]) - 1
            positions += range(start, start + len(answers[record]))
            at += len(records[record])
            order.append(record)
    targets = torch.tensor([token for record in order for token in answers[record]])
    counts = torch.tensor([weights[record] for record in order for _ in answers[record]])
    return _batch(prefix, input_ids, positions, targets, counts, owners)


def packed(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Share out indices over packs of at most `width` tokens: the longest first, each where it leaves the least room (best fit, decreasing)."""
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [pack for pack in range(len(packs)) if room[pack] >= lengths[index]]
        pack = min(fitting, key=lambda pack: room[pack], default=len(packs))
        if pack == len(packs):
            packs.append([])
            room.append(width)
        packs[pack].append(index)
        room[pack] -= lengths[index]
    return packs


def scoring_batch(prefix: Sequence[int], rows: Sequence[Sequence[int]]) -> Batch:
    """Build a batch that asks for the token after the last one of each row."""
    input_ids = _pad(rows)
    positions = [row * input_ids.shape[1] + len(ids) - 1 for row, ids in enumerate(rows)]
    return _batch(prefix, input_ids, positions, torch.empty(0, dtype=torch.long), torch.empty(0))


def _batch(prefix: Sequence[int], input_ids: Tensor, positions: Sequence[int], targets: Tensor, weights: Tensor, records: Tensor | None = None) -> Batch:
    first_column = min(position % input_ids.shape[1] for position in positions)
    return Batch(torch.tensor(prefix, dtype=torch.long), input_ids, torch.tensor(positions), targets, weights, first_column, records)


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = torch.tensor(ids)
    return padded


def length_grouped(lengths: Sequence[int], batch_size: int, *, seed: int) -> list[list[int]]:
    """Shuffle row indices into batches of rows of like length, in random order.

    Rows are shuffled, sorted by length within blocks of 50 batches, cut into batches, and the batches are shuffled: as in
    `group_by_length` of transformers. The same seed gives the same batches on any machine.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    block = 50 * batch_size
    ordered = [index for at in range(0, len(shuffled), block) for index in sorted(shuffled[at : at + block], key=lambda row: lengths[row])]
    batches = [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]


def shuffled(n_rows: int, batch_size: int, *, seed: int) -> list[list[int]]:
    """Shuffle row indices into batches, lengths mixed."""
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[at : at + batch_size] for at in range(0, n_rows, batch_size)]
