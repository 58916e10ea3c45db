"""Sources, the records of the parent version and new judgements -> the records of the next dataset version.

    read -> validate -> exact duplicates -> split -> records

Records of the parent version stand: they keep their split, and win over any new copy of them, even when their row has
left its source. Three things remove one: it breaks a rule of today (say, its label is gone from the task), a judgement
corrects it, or the caller does not pass it. Judged records join the train split, and only that: one whose text is, or
nearly is, in another split would turn the frozen splits into training data, and is dropped as `bridges_splits`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import polars as pl

from tunesmith.data.dedup import drop_exact_duplicates
from tunesmith.data.read import address, read_documents
from tunesmith.data.settings import DataSection
from tunesmith.data.sifted import Sifted, as_dropped, count_reasons, no_rows
from tunesmith.data.split import split
from tunesmith.data.validate import drop_invalid, validate
from tunesmith.entities import SPLITS, Document, Record, content_id
from tunesmith.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done and how many there are."""


def prepare_records(
    section: DataSection,
    labels: tuple[str, ...],
    root: Path,
    previous: pl.DataFrame | None = None,
    judged: pl.DataFrame | None = None,
    progress: Progress | None = None,
) -> Sifted:
    """Make the records of a dataset version.

    Args:
        section: Sources and rules.
        labels: The label space.
        root: Folder of the project.
        previous: Records of the parent version, columns of `Record`; None for a first version.
        judged: Records made from feedback, columns of `Record`, with the split train. `supersedes` names the record that
            one corrects; it goes only when its correction stays.
        progress: Told about each step before it starts, and at the end.

    Returns:
        Kept records, columns of `Record`, sorted by id. Dropped rows: every document read is in one of the frames (as a
        record of its own or of the parent version), and so is every record passed. Reasons are those of `validate`,
        `drop_exact_duplicates` and `split`, and `superseded`.

    Raises:
        NotFoundError: a source does not exist.
        DataError: a source cannot be read or used, a file is listed twice, or a split would be empty.
    """
    standing = no_rows(Record.frame_schema()) if previous is None else previous
    judged = no_rows(Record.frame_schema()) if judged is None else judged
    names = [address(source) for source in section.sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"data.sources must list each file once. Received twice: {', '.join(twice)}.", hint="tunesmith config explain data.sources")
    steps = [*(f"read {name}" for name in names), "validate", "drop exact duplicates", "split"]

    def tell(step: int, what: str = "") -> None:
        if progress:
            progress(what or steps[step], step, len(steps))

    documents = []
    for position, source in enumerate(section.sources):
        tell(position)
        documents.append(read_documents(source, root))

    tell(len(names))
    valid = validate(as_rows(pl.concat(documents)), labels, section)
    valid_standing = drop_invalid(_as_documents(standing), labels, section)
    valid_judged = drop_invalid(_as_documents(judged), labels, section)

    tell(len(names) + 1)
    # A judgement may repeat the text that it corrects. Its copies in other splits are left to `split`, which calls them by their name.
    corrected = pl.col("id").is_in(judged["supersedes"].implode())
    old = valid_standing.kept
    unique_judged = drop_exact_duplicates(valid_judged.kept, old.filter((pl.col("split") == "train") & ~corrected))
    new = valid.kept.join(standing, on="document_id", how="anti")
    unique_new = drop_exact_duplicates(new, pl.concat([old, unique_judged.kept]))

    tell(len(names) + 2)
    parted = split(pl.concat([unique_judged.kept, unique_new.kept], how="diagonal"), section, old)
    kept_judged = judged.join(parted.kept, on="id", how="semi")
    stays, superseded = _supersede(old, kept_judged)
    records = pl.concat([
        standing.join(stays, on="id", how="semi"),
        kept_judged,
        make_records(parted.kept.join(judged, on="id", how="anti")),
    ]).sort("id")  # fmt: skip
    steps_dropped = (valid, valid_standing, valid_judged, unique_judged, unique_new, parted)
    dropped = pl.concat([*(step.dropped for step in steps_dropped), superseded]).sort("source", "source_line", "id", "reason")
    empty = [name for name in SPLITS if records.filter(split=name).is_empty()]
    if empty:
        raise DataError(
            f"Each split must hold at least one record. Received none for {', '.join(empty)}: "
            f"{len(records)} records kept, dropped {count_reasons(dropped) or 0}.",
            hint="Add rows, or give these splits a larger share in data.sources[].splits.",
        )
    tell(len(steps), "records ready")
    return Sifted(kept=records, dropped=dropped)


def make_records(documents: pl.DataFrame) -> pl.DataFrame:
    """Make one record of each document, or of each chunk of one.

    Args:
        documents: Columns of `Document` and `split`; where a row is a chunk, also `document_id` and `block_ids`.

    Returns:
        A frame with the columns of `Record`, in the same order, of origin `source`.
    """
    documents = as_rows(documents)
    ids = [content_id("rec", *row, "") for row in documents.select("id", "content_sha256", "label").iter_rows()]
    empty = pl.lit("")
    made = documents.select(
        *("text", "label", "split", "source", "source_line", "document_id", "block_ids"),
        weight=pl.col("confidence").clip(0.01),
        feedback_id=empty,
        supersedes=empty,
        origin=pl.lit("source"),
    )
    return made.with_columns(id=pl.Series(ids, dtype=pl.String)).select(list(Record.frame_schema()))


def as_rows(documents: pl.DataFrame) -> pl.DataFrame:
    """Add the columns that tell a chunk's document and blocks, where a row is a whole document."""
    missing = {name: expression for name, expression in (("document_id", pl.col("id")), ("block_ids", pl.lit(""))) if name not in documents.columns}
    return documents.with_columns(**missing)


def _as_documents(records: pl.DataFrame) -> pl.DataFrame:
    """Give records the columns of `Document`, and `split`, so that they pass the same steps. They keep their own ids."""
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in records["text"]]
    return records.with_columns(content_sha256=pl.Series(digests, dtype=pl.String), confidence="weight").select(
        [*Document.frame_schema(), "split", "document_id", "block_ids"]
    )


def _supersede(old: pl.DataFrame, judged: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the old rows that stay, and those that a judged record corrects, as dropped rows."""
    corrections = judged.filter(pl.col("supersedes") != "").unique("supersedes", keep="first", maintain_order=True)
    corrections = corrections.select(pl.col("supersedes"), "feedback_id", kept_id="id", right_label="label")
    gone = old.join(corrections, left_on="id", right_on="supersedes", maintain_order="left").with_columns(
        reason=pl.lit("superseded"),
        evidence=pl.format("corrected to '{}' by {}", "right_label", "feedback_id"),
    )
    return old.join(gone, on="id", how="anti", maintain_order="left"), as_dropped(gone)
