"""What the frozen lower layers make of every training row, computed once and kept in a file for all epochs.

With `train.lora_layers` the layers below the adapters never change, nor does what they make of a row. Before the first step each row
goes through them once, in batches of like length; every later pass starts above them. In the file stand, one behind the other, the
states of the shared prefix and those of the rows, each (n_tokens, D) in the compute dtype. It belongs to one run, is complete or not there
(write-then-rename), and is removed at the run's end. A row's states depend on its batch by rounding only, and batches are always the
same: a resumed run reads the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ConfigError
from tunesmith.models.batch import Batch, training_batch
from tunesmith.models.engine import Forward, Workers
from tunesmith.models.fast_llama import FastLlama
from tunesmith.train.batches import Rows

TRUNK_FILE = "trunk.bin"
_BATCH_SIZE = 16


def trunk_bytes(rows: Rows, n_prefix: int, hidden_size: int, item_bytes: int) -> int:
    """Return the size of the file."""
    return (n_prefix + sum(rows.lengths) - len(rows)) * hidden_size * item_bytes


class Trunk:
    """The states of all rows below the lowest adapter.

    Args:
        path: The file; made where it is not there.
        forward: The forward pass.
        workers: What passes run on.
        rows: The training rows.
        prefix: Token ids that every prompt starts with.

    Raises:
        ConfigError: no layer is frozen below the adapters, or the pass is not the fast one.
    """

    def __init__(self, path: Path, forward: Forward, workers: Workers, rows: Rows, prefix: Sequence[int]) -> None:
        if not isinstance(forward, FastLlama) or forward.n_frozen == 0:
            raise ConfigError(
                "train.activation_cache needs the fast pass, and layers without adapters below those that have them. "
                f"Received: {'no such layer' if isinstance(forward, FastLlama) else 'the plain pass'}.",
                hint="Set train.lora_layers, or train.activation_cache to false.",
            )
        self._forward, self._rows, self._prefix = forward, rows, prefix
        # The last token of an answer is never read.
        self._tokens = [length - 1 for length in rows.lengths]
        self._starts = list(accumulate(self._tokens, initial=len(prefix)))
        if not path.exists():
            self._make(path, workers)
        self._file = os.open(path, os.O_RDONLY)
        self._kept_prefix = self._read(0, len(prefix))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def above(self, batch: Batch, chosen: Sequence[int]) -> Batch:
        """Return the batch of some rows, to start above the trunk."""
        n_columns, n_prefix = batch.input_ids.shape[1], len(batch.prefix)
        states = self._kept_prefix.new_zeros(n_prefix + batch.input_ids.numel(), self._forward.width)  # of padding nothing is read
        states[:n_prefix] = self._kept_prefix
        for number, row in enumerate(chosen):
            at = n_prefix + number * n_columns
            states[at : at + self._tokens[row]] = self._read(self._starts[row], self._tokens[row])
        return replace(batch, trunk=states)

    def _read(self, first: int, n_tokens: int) -> Tensor:
        if n_tokens == 0:
            return torch.empty(0, self._forward.width, dtype=self._forward.dtype)
        read = os.pread(self._file, n_tokens * self._token_bytes, first * self._token_bytes)
        return torch.frombuffer(bytearray(read), dtype=self._forward.dtype).view(n_tokens, -1)

    @property
    def _token_bytes(self) -> int:
        return self._forward.width * self._forward.dtype.itemsize

    def _make(self, path: Path, workers: Workers) -> None:
        rows, n_prefix = self._rows, len(self._prefix)
        order = sorted(range(len(rows)), key=lambda row: self._tokens[row])
        batches = [order[at : at + _BATCH_SIZE] for at in range(0, len(order), _BATCH_SIZE)]

        def states(chosen: Sequence[int]) -> Tensor:
            return self._forward.trunk(training_batch(self._prefix, [rows.prompts[row] for row in chosen], [rows.answers[row] for row in chosen]))

        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as file:
            for number, (chosen, found) in enumerate(zip(batches, workers.map(states, batches), strict=True)):
                if number == 0:
                    file.write(_bytes(found[:n_prefix]))
                own = found[n_prefix:].view(len(chosen), -1, self._forward.width)
                for row, kept in zip(chosen, own, strict=True):
                    file.seek(self._starts[row] * self._token_bytes)
                    file.write(_bytes(kept[: self._tokens[row]]))
        os.replace(partial, path)


def _bytes(states: Tensor) -> bytes:
    return states.contiguous().cpu().view(torch.uint8).numpy().tobytes()
