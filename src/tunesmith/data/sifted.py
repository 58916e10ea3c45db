"""What every data step returns: the rows that go on, and the rows that do not, each with its reason.

Nothing is filtered silently. The dropped rows of all steps end in one table of the dataset version, dropped.parquet,
with the columns of `DROPPED_SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from tunesmith.entities import Document

DROPPED_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **Document.frame_schema(),
    "reason": pl.String,  # a fixed word, to be counted: too_short, exact_duplicate, ...
    "evidence": pl.String,  # one sentence for people
    "kept_id": pl.String,  # what was kept in its place; null where nothing was
    "similarity": pl.Float64,  # to it, or to what the evidence names, in [0, 1]; null where there is none
}
"""Column -> type. `id` and `kept_id` are ids of documents, or of records where the row was a record already."""


@dataclass(frozen=True)
class Sifted:
    """The outcome of one data step; together the two frames hold each row of its input once.

    Attributes:
        kept: The rows that go on.
        dropped: The rows that do not, with the columns of `DROPPED_SCHEMA`.
    """

    kept: pl.DataFrame
    dropped: pl.DataFrame


def as_dropped(rows: pl.DataFrame) -> pl.DataFrame:
    """Bring rows to the columns of `DROPPED_SCHEMA`; those that they lack become null, others are left out."""
    columns = [pl.col(name) if name in rows.columns else pl.lit(None).alias(name) for name in DROPPED_SCHEMA]
    return rows.select(columns).cast(pl.Schema(DROPPED_SCHEMA))


def no_rows(schema: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """Return an empty frame of a schema."""
    return pl.DataFrame(schema=schema)


def count_reasons(dropped: pl.DataFrame) -> dict[str, int]:
    """Return reason -> number of rows, most frequent first."""
    counts = dropped.group_by("reason").len().sort("len", "reason", descending=[True, False])
    return dict(counts.iter_rows())
