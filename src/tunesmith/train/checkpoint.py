"""Checkpoints that are complete or do not count.

transformers writes a checkpoint file by file; a kill in between leaves a folder that looks like one. A checkpoint counts
once it holds the file COMPLETE, which is written last; the others are removed before a run continues.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from tunesmith.errors import BackendError

_MARKER = "COMPLETE"


def newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run and remove what a kill left half written."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _MARKER).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=step_of, default=None)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint of a run, so that it starts again."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


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
        kept = newest_complete(folder)
        state = f"The newest complete checkpoint, after step {step_of(kept)}, is kept." if kept else "No checkpoint was complete yet."
        raise BackendError(
            f"A checkpoint could not be written to {folder}: {error}. {state}", hint="Free disk space and run the same command again: it continues."
        ) from error


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint after its last file is on disk, then removes older ones beyond the limit.

    The Trainer's own `save_total_limit` removes the old one first; here it goes only when the new one is complete.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint of this step."""
        with writing(self._folder):
            checkpoint = self._folder / f"checkpoint-{state.global_step}"
            for path in checkpoint.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            with (checkpoint / _MARKER).open("w") as file:
                file.write(f"{state.global_step}\n")
                file.flush()
                os.fsync(file.fileno())
            complete = sorted((path for path in self._folder.glob("checkpoint-*") if (path / _MARKER).exists()), key=step_of)
            for old in complete[: -self._keep]:
                shutil.rmtree(old)
