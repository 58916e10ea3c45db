"""Decided review items -> what changes in the next dataset version.

A decision confirms the label that was proposed, corrects it, or discards the text (`DISCARD`). A correction is a record of
its own that supersedes the one it corrects. Only train records change: the other splits stay as they were frozen, so that
figures of today and tomorrow compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tunesmith.entities import Record, content_id
from tunesmith.review.exchange import DISCARD, ReviewItem


@dataclass(frozen=True)
class Corrections:
    """What decisions change.

    Attributes:
        records: Columns of `Record`, origin `review`; each supersedes a standing train record.
        discarded: Id of a record -> why it goes; of records that went before, too, so that their source brings none back.
        pending: Number of standing records that change.
    """

    records: pl.DataFrame
    discarded: dict[str, str]
    pending: int


def corrections_of(decided: Sequence[tuple[ReviewItem, str]], records: pl.DataFrame) -> Corrections:
    """Say what decisions change.

    Args:
        decided: Items with the label that stands, or `DISCARD`. Of several items about one record the last one counts.
        records: The standing records, columns of `Record`.
    """
    discarded = {item.target_id: f"discarded in review item {item.id} ({item.reason})" for item, label in decided if label == DISCARD}
    right = {item.target_id: (item.id, label) for item, label in decided if label != DISCARD}
    standing = records.filter(split="train")
    corrected = standing.filter(pl.col("id").is_in(list(right)), ~pl.col("id").is_in(list(discarded)))
    rows = []
    for row in corrected.iter_rows(named=True):
        item_id, label = right[row["id"]]
        if label != row["label"]:
            identity = content_id("rec", row["document_id"], label, item_id, row["id"])
            rows.append(row | {"id": identity, "label": label, "origin": "review", "feedback_id": item_id, "supersedes": row["id"]})
    frame = pl.DataFrame(rows, schema=Record.frame_schema())
    return Corrections(frame, discarded, len(frame) + len(standing.filter(pl.col("id").is_in(list(discarded)))))
