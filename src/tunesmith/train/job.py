"""A run on disk: all that a process needs to train it, without the store, the dataset or a tokenised text of its own.

    job.json   the base model, the sections `model`, `train` and `task`, and how many processes train together
    rows/      the training rows as token ids, and those of the validation split: numpy arrays that all processes map into their memory

The rows are tokenised once, by the command that starts the processes; a rows folder that is there is complete and is used again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.files import write_json
from tunesmith.models.engine import load_prompt
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.train.batches import Rows
from tunesmith.train.settings import TrainSection
from tunesmith.train.token_cache import read_rows, write_once, write_rows
from tunesmith.train.validation import Validation

JOB_FILE = "job.json"
_ROWS, _VALIDATION = "rows", "validation"


@dataclass(frozen=True)
class Job:
    """What one process of a run is told.

    Attributes:
        folder: The run's folder, the same for all processes.
        base: Folder of the base model.
        model, train, task: Sections, resolved.
        prefix: Token ids that every prompt starts with.
        n_processes: How many train together.
        fsdp: Whether weights, gradients and optimizer state are shared out among them.
        start: Weights that the run goes on with, of an earlier stage or of a parent; None begins as the strategy does.
    """

    folder: Path
    base: Path
    model: ModelSection
    train: TrainSection
    task: TaskSection
    prefix: tuple[int, ...]
    n_processes: int = 1
    fsdp: bool = False
    start: Path | None = None

    def save(self, rows: Callable[[], Rows], validation: Callable[[], Validation] | None) -> None:
        """Write the job, and the rows where they are not there yet.

        Args:
            rows: Tokenises the training rows.
            validation: Tokenises the validation split, or None.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_once(self.folder / _ROWS, lambda into: write_rows(rows(), into))
        if validation:
            write_once(self.folder / _VALIDATION, lambda into: _write_validation(validation(), into))
        values = {"base": str(self.base), "prefix": list(self.prefix), "n_processes": self.n_processes, "fsdp": self.fsdp}
        values |= {"start": str(self.start) if self.start else None}
        sections = {name: getattr(self, name).model_dump(mode="json") for name in ("model", "train", "task")}
        write_json(self.folder / JOB_FILE, {**values, **sections})

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read what `save` wrote."""
        told = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        sections = {name: kind.model_validate(told[name]) for name, kind in (("model", ModelSection), ("train", TrainSection), ("task", TaskSection))}
        start = Path(told["start"]) if told["start"] else None
        return cls(folder, Path(told["base"]), prefix=tuple(told["prefix"]), n_processes=told["n_processes"], fsdp=told["fsdp"], start=start, **sections)  # type: ignore[arg-type]

    def rows(self) -> Rows:
        """Return the training rows; their token ids stay on disk until they are read."""
        return read_rows(self.folder / _ROWS)

    def validation(self) -> Validation | None:
        """Return the validation split, or None where the run does not evaluate."""
        folder = self.folder / _VALIDATION
        if not self.train.eval_steps or not folder.exists():
            return None
        prompt = load_prompt(self.base, self.task, self.train.max_length, self.train.truncate_keep)
        return Validation(prompt, read_rows(folder), np.load(folder / "truth.npy"))


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Wait until no earlier process of a run, whose parent was killed, still writes to its folder."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".training").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_validation(validation: Validation, folder: Path) -> None:
    write_rows(validation.rows, folder)
    np.save(folder / "truth.npy", validation.truth)


def remove_rows(folder: Path) -> None:
    """Remove the token ids of a run that has ended."""
    for name in (_ROWS, _VALIDATION):
        shutil.rmtree(folder / name, ignore_errors=True)
