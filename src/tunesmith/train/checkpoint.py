"""Checkpoints: one safetensors file each, whole or absent.

    checkpoint-120.safetensors   learnt weights, the optimizer's state and, as its metadata, the state of the run after step 120
    best-100.safetensors         learnt weights of the best evaluation so far

A file is flushed to disk before it gets its name, so that whatever has a name is complete; what a kill left half written is
removed when the run continues. No pickle is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith.errors import BackendError


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run and remove what a kill left half written."""
    for partial in folder.glob(".*.safetensors.part"):
        partial.unlink()
    return max(_checkpoints(folder), key=step_of, default=None)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint of a run, so that it starts again."""
    for path in (*_checkpoints(folder), *folder.glob("best-*.safetensors")):
        path.unlink()


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint after a step is, or would be."""
    return folder / f"checkpoint-{step}.safetensors"


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was written, or best weights."""
    return int(path.stem.rpartition("-")[2])


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int, best_step: int = 0) -> None:
    """Write a checkpoint, then remove older ones beyond the limit and best weights that are no longer the best.

    Args:
        folder: The run's folder.
        step: The step that is done.
        tensors: What is kept, on any device.
        state: JSON values; floats come back to the bit.
        keep: Checkpoints to keep, this one included.
        best_step: The best step so far.

    Raises:
        BackendError: see `writing`.
    """
    with writing(folder):
        write_tensors(checkpoint_path(folder, step), tensors, state)
        for old in sorted(_checkpoints(folder), key=step_of)[:-keep]:
            old.unlink()
        for best in folder.glob("best-*.safetensors"):
            if step_of(best) != best_step:
                best.unlink()


def write_best(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the learnt weights of the best step so far. The one before stays until a checkpoint knows of this one.

    Raises:
        BackendError: see `writing`.
    """
    with writing(folder):
        write_tensors(folder / f"best-{step}.safetensors", tensors, {})


def read_best(folder: Path, step: int) -> dict[str, Tensor]:
    """Return the learnt weights of the best step."""
    return read_tensors(folder / f"best-{step}.safetensors")[0]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON values to one safetensors file, by write-then-rename."""
    partial = path.with_name(f".{path.name}.part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata={"state": json.dumps(state)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write_tensors` wrote; the tensors are on the CPU."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118 - not a dict


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failed write of a run's files into an error that says which checkpoint is kept.

    torch and safetensors report a full disk in errors and words of their own, so every error of a write counts.

    Raises:
        BackendError: the disk is full, or refuses to be written for another reason.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        kept = newest_checkpoint(folder)
        state = f"The newest complete checkpoint, after step {step_of(kept)}, is kept." if kept else "No checkpoint was complete yet."
        raise BackendError(
            f"A checkpoint could not be written to {folder}: {error}. {state}", hint="Free disk space and run the same command again: it continues."
        ) from error


def _checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoint-*.safetensors"))
