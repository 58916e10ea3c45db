"""What changed between two dataset versions?

Records are matched by id first, then by `supersedes`, then by document. What is left on one side was added or removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from tunesmith.entities import SPLITS


@dataclass(frozen=True)
class Difference:
    """The outcome of a comparison; each record of either side that is not the same in both stands in one frame, once.

    Attributes:
        added: Rows of the new records, columns of `Record`.
        removed: Rows of the old records, columns of `Record`.
        changed: Columns `cause` (`superseded`, `relabelled` or `moved` to another split), `old_id`, `new_id`, `old_label`,
            `new_label`, `old_split`, `new_split`.
        counts: Columns `split`, `old`, `new`: number of records, a row for each split.
    """

    added: pl.DataFrame
    removed: pl.DataFrame
    changed: pl.DataFrame
    counts: pl.DataFrame


def diff(old_records: pl.DataFrame, new_records: pl.DataFrame) -> Difference:
    """Compare the records of two dataset versions; both frames have the columns of `Record`."""
    same = old_records.select("id", old_split="split").join(new_records.select("id", new_split="split"), on="id")
    moved_ids = same.filter(pl.col("old_split") != pl.col("new_split"))["id"]
    gone = old_records.join(new_records, on="id", how="anti")
    come = new_records.join(old_records, on="id", how="anti")

    moved = _match(old_records.filter(pl.col("id").is_in(moved_ids)), new_records.filter(pl.col("id").is_in(moved_ids)), "id", "id", "moved")
    superseded = _match(gone, come, "id", "supersedes", "superseded")
    rest_gone = gone.filter(~pl.col("id").is_in(superseded["old_id"].implode()))
    rest_come = come.filter(~pl.col("id").is_in(superseded["new_id"].implode()))
    relabelled = _match(rest_gone, rest_come, "document_id", "document_id", "relabelled")
    return Difference(
        added=rest_come.filter(~pl.col("id").is_in(relabelled["new_id"].implode())).sort("id"),
        removed=rest_gone.filter(~pl.col("id").is_in(relabelled["old_id"].implode())).sort("id"),
        changed=pl.concat([superseded, relabelled, moved]).sort("cause", "new_id"),
        counts=pl.DataFrame(
            {"split": SPLITS, "old": [len(old_records.filter(split=name)) for name in SPLITS], "new": [len(new_records.filter(split=name)) for name in SPLITS]}
        ),
    )


def _match(old: pl.DataFrame, new: pl.DataFrame, old_key: str, new_key: str, cause: str) -> pl.DataFrame:
    left = old.select(key=old_key, old_id="id", old_label="label", old_split="split").unique("key", keep="first", maintain_order=True)
    right = new.select(key=new_key, new_id="id", new_label="label", new_split="split").unique("key", keep="first", maintain_order=True)
    columns = ["old_id", "new_id", "old_label", "new_label", "old_split", "new_split"]
    return left.join(right, on="key").select(pl.lit(cause).alias("cause"), *columns)
