"""What one model says about one split: a logit for each record and label.

Logits are kept, not answers, so that a new calibrator or metric needs no new inference. They are saved as Parquet: the
column `id`, then one float32 column a label, named `logit LABEL` so that a label may be called `id`. Files appear by
write-then-rename; a file that exists is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.errors import DataError, NotFoundError

Progress = Callable[[int, int], None]
"""Called with records done and records in all."""

_PREFIX = "logit "


class Scorer(Protocol):
    """What scoring asks of an engine."""

    def score(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return a logit for each text and label, shape (n, n_labels), in the order of the texts and of the label space."""


@dataclass(frozen=True)
class SplitScores:
    """The logits of one model on one split.

    Args:
        ids: Record ids, n of them.
        labels: The label space, n_labels names.
        logits: shape (n, n_labels).

    Raises:
        DataError: the shapes do not fit each other, or a logit is NaN or infinite.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    logits: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.logits.shape != (len(self.ids), len(self.labels)):
            raise DataError(f"Logits must have shape {(len(self.ids), len(self.labels))}, one a record and label. Received: {self.logits.shape}.")
        if not np.isfinite(self.logits).all():
            raise DataError(f"Logits must be finite. Received: {int((~np.isfinite(self.logits)).sum())} that are not.")

    def save(self, path: Path) -> None:
        """Write the Parquet file, then rename it into place."""
        columns = {"id": pl.Series(self.ids, dtype=pl.String)}
        columns |= {f"{_PREFIX}{label}": pl.Series(self.logits[:, index], dtype=pl.Float32) for index, label in enumerate(self.labels)}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        pl.DataFrame(columns).write_parquet(unfinished)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> SplitScores:
        """Read what `save` wrote.

        Raises:
            NotFoundError: there is no such file.
        """
        if not path.exists():
            raise NotFoundError(f"No scores at {path}.", hint="tunesmith evaluate")
        frame = pl.read_parquet(path)
        labels = tuple(name.removeprefix(_PREFIX) for name in frame.columns[1:])
        return cls(tuple(frame["id"]), labels, np.ascontiguousarray(frame.drop("id").to_numpy().astype(np.float32)))


def score_split(engine: Scorer, records: pl.DataFrame, labels: Sequence[str], progress: Progress | None = None) -> SplitScores:
    """Score every record of a split.

    Args:
        engine: The model.
        records: Columns `id` and `text`, a record a row.
        labels: The label space, in the engine's order.
        progress: Called as records are done.

    Raises:
        DataError: the engine returns another shape, or a logit that is not finite.
    """
    logits = engine.score(records["text"].to_list(), progress=progress)
    return SplitScores(tuple(records["id"]), tuple(labels), np.asarray(logits, dtype=np.float32))


def label_indices(records: pl.DataFrame, labels: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each record's label in the label space, shape (n,).

    Args:
        records: Column `label`.
        labels: The label space.

    Raises:
        DataError: a record has a label outside of it.
    """
    position = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(records["label"]) - position.keys())
    if unknown:
        raise DataError(f"Every record's label must be in the label space. Received: {'; '.join(unknown)}.", hint="tunesmith prepare --fresh")
    return np.array([position[label] for label in records["label"]], dtype=np.int64)
