"""Rows of token ids on disk: tokenised once, and mapped into the memory of whoever needs them.

A folder that is there is complete: it appears by rename. What the ids depend on must be in its name, or in that of a folder above.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from tunesmith.train.batches import Rows


class Ragged(Sequence[list[int]]):
    """Lists of token ids of any length, mapped from one flat array on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self._values = np.load(folder / f"{name}.npy", mmap_mode="r")
        self._ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self._values[self._ends[at] : self._ends[at + 1]].tolist()

    @staticmethod
    def write(folder: Path, name: str, lists: Sequence[Sequence[int]]) -> None:
        """Write lists of token ids."""
        np.save(folder / f"{name}.npy", np.fromiter((token for each in lists for token in each), dtype=np.int32))
        np.save(folder / f"{name}.ends.npy", np.cumsum([0, *map(len, lists)], dtype=np.int64))


def write_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Let a function write a folder that appears by rename, where it is not there yet."""
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    os.replace(partial, folder)


def write_rows(rows: Rows, folder: Path) -> None:
    """Write rows as numpy arrays."""
    Ragged.write(folder, "prompts", rows.prompts)
    Ragged.write(folder, "answers", rows.answers)
    np.save(folder / "weights.npy", np.array(rows.weights))
    np.save(folder / "record_ids.npy", np.array(rows.record_ids))
    np.save(folder / "excess.npy", np.array(rows.excess, dtype=np.str_))


def read_rows(folder: Path) -> Rows:
    """Return the rows that `write_rows` wrote; their token ids stay on disk until they are read."""
    ids, weights, excess = (np.load(folder / f"{name}.npy").tolist() for name in ("record_ids", "weights", "excess"))
    return Rows(ids, Ragged(folder, "prompts"), Ragged(folder, "answers"), excess, weights)  # type: ignore[arg-type]
