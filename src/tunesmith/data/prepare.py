"""Sources, the records of the parent version and new judgements -> the records of the next dataset version.

    read -> redact -> validate -> exact duplicates -> split -> near and semantic duplicates -> leaks of benchmarks -> records

Records of the parent version stand: they keep their split, and win over any new copy of them, even when their row has
left its source. Four things remove one: it breaks a rule of today (say, its label is gone from the task), a judgement
corrects it, a benchmark text leaked into it, or the caller does not pass it. Judged records join the train split, and only that: one whose text is, or
nearly is, in another split would turn the frozen splits into training data, and is dropped as `bridges_splits`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.checks import Report, check_records
from tunesmith.data.contamination import drop_contaminated, read_benchmarks
from tunesmith.data.dedup import by_preference, drop_exact_duplicates, drop_near_duplicates
from tunesmith.data.engine import DataEngine, load_engine
from tunesmith.data.redact import Vault, read_key, redact
from tunesmith.data.semantic import drop_semantic_duplicates
from tunesmith.data.settings import DataSection
from tunesmith.data.sifted import DROPPED_SCHEMA, Sifted, as_dropped, count_reasons, no_rows
from tunesmith.data.sources import ROW_SCHEMA, Gathered, Tools, as_rows, gather, require_rank_columns
from tunesmith.data.split import cap, split
from tunesmith.data.validate import drop_invalid, validate
from tunesmith.data.withdrawn import Withdrawal, drop_withdrawn
from tunesmith.entities import SPLITS, Record, content_id
from tunesmith.errors import ConfigError, DataError
from tunesmith.models.json_answers import AnswerRule

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done and how many there are."""

STEPS = ("read", "validate", "drop exact duplicates", "split", "drop near duplicates", "find leaks of benchmarks")


@dataclass(frozen=True)
class Prepared(Sifted):
    """What `prepare_records` makes.

    Attributes:
        kept: Columns of `Record`, sorted by id.
        dropped: Columns of `DROPPED_SCHEMA`: every document read, and every record passed, is in one of the two frames.
        blocks: Columns of `block_schema()`, of the documents that were read from folders.
        pages: Columns of `PAGE_SCHEMA`, of the same documents.
        redacted: Kind of personal data -> how often it was replaced.
        checks: What is to be said of the rows of the sources that can be used.
        benchmarks: File of benchmark texts -> `texts` that it holds, and how many of them `leaked` into train rows.
    """

    blocks: pl.DataFrame
    pages: pl.DataFrame
    redacted: dict[str, int]
    checks: Report
    benchmarks: dict[str, dict[str, int]]


def prepare_records(
    section: DataSection,
    labels: tuple[str, ...],
    root: Path,
    previous: pl.DataFrame | None = None,
    judged: pl.DataFrame | None = None,
    progress: Progress | None = None,
    tools: Tools | None = None,
    project: str = "",
    withdrawals: Sequence[Withdrawal] = (),
    discarded: Mapping[str, str] | None = None,
    rule: AnswerRule | None = None,
) -> Prepared:
    """Make the records of a dataset version.

    Args:
        section: Sources and rules.
        labels: The label space.
        root: Folder of the project.
        previous: Records of the parent version, columns of `Record`; None for a first version.
        judged: Records made from feedback, columns of `Record`, with the split train. `supersedes` names the record that
            one corrects; it goes only when its correction stays.
        progress: Told about each step before it starts, and at the end.
        tools: What reads tokens and meaning, where the section asks for that.
        project: Name of the project; another one gets other pseudonyms.
        withdrawals: Documents that were taken back; they and their records go as `withdrawn`.
        discarded: Id of a record -> why reviewers discarded it; it goes as `discarded`.
        rule: Judges labels that are free answers; None where any is right, or the label space is closed.

    Returns:
        Records and dropped rows. Reasons are those of `read_folder`, `validate`, `drop_exact_duplicates`, `split`,
        `drop_near_duplicates`, `drop_contaminated` and `cap`, and `superseded`, `withdrawn` and `discarded`.

    Raises:
        NotFoundError: a source or a benchmark does not exist.
        DataError: a source cannot be read or used, a file is listed twice, a check is an error, or a split would be empty.
        BackendError: the OCR or the Ray cluster failed.
        ConfigError: personal data shall be redacted, and there is no key; the engine is unknown; or `section.dedup.keep` needs a column
            that a source does not name.
    """
    with load_engine(section.engine, section.ray_address) as engine:
        given = dataclasses.replace(tools or Tools(), engine=engine)
        return _prepare(section, labels, root, previous, judged, progress, given, project, withdrawals, discarded or {}, rule)


def _prepare(
    section: DataSection,
    labels: tuple[str, ...],
    root: Path,
    previous: pl.DataFrame | None,
    judged: pl.DataFrame | None,
    progress: Progress | None,
    tools: Tools,
    project: str,
    withdrawals: Sequence[Withdrawal],
    discarded: Mapping[str, str],
    rule: AnswerRule | None,
) -> Prepared:
    standing = no_rows(Record.frame_schema()) if previous is None else previous
    judged = no_rows(Record.frame_schema()) if judged is None else judged

    def tell(step: int) -> None:
        if progress:
            progress(STEPS[step] if step < len(STEPS) else "records ready", step, len(STEPS))

    require_rank_columns(section)
    if section.redact.enabled:
        read_key(section.redact)  # says what is missing before anything is read
    benchmarks = read_benchmarks(section.contamination, root)
    gathered = gather(section, root, tools, progress)
    gathered, standing, judged, gone = _withdraw(gathered, standing, judged, withdrawals)
    gathered, judged, redacted = _redact(gathered, judged, section, root, project, tools.engine)

    standing = _with_types_of(gathered.rows, standing)

    tell(1)
    valid = validate(gathered.rows, labels, section, rule)
    valid_standing = drop_invalid(_as_documents(standing), labels, section, rule)
    valid_judged = drop_invalid(_as_documents(judged), labels, section, rule)
    checks = check_records(valid.kept, section.checks, labels, rule)
    checks.stop()
    new = valid.kept.join(standing, on="document_id", how="anti")

    tell(2)
    # A judgement may repeat the text that it corrects. Its copies in other splits are left to `split`, which calls them by their name.
    corrected = pl.col("id").is_in(judged["supersedes"].implode())
    old = valid_standing.kept
    unique_judged = drop_exact_duplicates(valid_judged.kept, old.filter((pl.col("split") == "train") & ~corrected))
    ranked = new if section.dedup.keep == "longest" else by_preference(new, section.dedup.keep)
    unique_new = drop_exact_duplicates(ranked, pl.concat([old, unique_judged.kept]))

    tell(3)
    parted = split(pl.concat([unique_judged.kept, unique_new.kept], how="diagonal"), section, old)
    kept_judged = judged.join(parted.kept, on="id", how="semi")

    tell(4)
    # Within each split, once it is known: across splits the clusters decide. What stood before, or a person judged, stays.
    stays = pl.concat([old, parted.kept.join(judged, on="id", how="semi").select(old.columns)])
    near = drop_within_splits(parted.kept.join(judged, on="id", how="anti"), stays, section, tools)

    tell(5)
    if section.redact.enabled:  # leaked texts were redacted
        benchmarks = redact(benchmarks, section.redact, read_key(section.redact), project, engine=tools.engine).frame
    train = pl.concat([stays, near.kept.select(stays.columns)]).filter(split="train")
    clean = drop_contaminated(train, benchmarks, section.contamination.false_positive_rate, tools.embed_static if len(benchmarks) else None)
    new, old, kept_judged = (frame.join(clean.dropped, on="id", how="anti", maintain_order="left") for frame in (near.kept, old, kept_judged))
    capped = cap(new, pl.concat([old, stays.join(kept_judged, on="id", how="semi")]), section)

    uncorrected, superseded = _supersede(old, kept_judged)
    together = pl.concat([standing.join(uncorrected, on="id", how="semi"), kept_judged, make_records(capped.kept)]).sort("id")
    reviewed = _discard(together, discarded)
    records = reviewed.kept
    steps_dropped = (gathered, valid, valid_standing, valid_judged, unique_judged, unique_new, parted, near, clean, capped)
    dropped = pl.concat([*(step.dropped for step in steps_dropped), reviewed.dropped, superseded, gone]).sort("source", "source_line", "id", "reason")
    empty = [name for name in SPLITS if records.filter(split=name).is_empty()]
    if empty:
        raise DataError(
            f"Each split must hold at least one record. Received none for {', '.join(empty)}: "
            f"{len(records)} records kept, dropped {count_reasons(dropped) or 0}.",
            hint="Add rows, or give these splits a larger share in data.sources[].splits.",
        )
    tell(len(STEPS))
    return Prepared(records, dropped, gathered.blocks, gathered.pages, redacted, checks, clean.benchmarks)


def _withdraw(
    gathered: Gathered, standing: pl.DataFrame, judged: pl.DataFrame, withdrawals: Sequence[Withdrawal]
) -> tuple[Gathered, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Take out what was taken back; return what stays of each, and the dropped rows."""
    rows, old, said = (drop_withdrawn(frame, withdrawals) for frame in (gathered.rows, standing, judged))
    ids = [one.document_id for one in withdrawals]
    blocks, pages = (frame.filter(~pl.col("document_id").is_in(ids)) for frame in (gathered.blocks, gathered.pages))
    return dataclasses.replace(gathered, rows=rows.kept, blocks=blocks, pages=pages), old.kept, said.kept, pl.concat([rows.dropped, old.dropped, said.dropped])


def _with_types_of(rows: pl.DataFrame, standing: pl.DataFrame) -> pl.DataFrame:
    """Give standing records the document type that their source says now; what is in no source any more keeps its own."""
    said = rows.select("document_id", said="document_type").unique("document_id")
    typed = standing.join(said, on="document_id", how="left", maintain_order="left")
    return typed.with_columns(document_type=pl.coalesce("said", "document_type")).select(standing.columns)


def _redact(
    gathered: Gathered, judged: pl.DataFrame, section: DataSection, root: Path, project: str, engine: DataEngine
) -> tuple[Gathered, pl.DataFrame, dict[str, int]]:
    """Replace personal data in all that was read or judged; return it with the number of replacements a kind."""
    if not section.redact.enabled:
        return gathered, judged, {}
    key = read_key(section.redact)
    rows, blocks, said = (redact(frame, section.redact, key, project, engine=engine) for frame in (gathered.rows, gathered.blocks, judged))
    if section.redact.vault:
        Vault(root / section.redact.vault, key).put({**blocks.values, **rows.values, **said.values})
    # The digest of the text as it was could be guessed; cells repeat the text of their block.
    safe = dataclasses.replace(gathered, rows=_with_digest(rows.frame), blocks=blocks.frame.with_columns(cells=pl.lit(None, dtype=pl.String)))
    return safe, said.frame, rows.counts


def drop_within_splits(rows: pl.DataFrame, stays: pl.DataFrame, section: DataSection, tools: Tools) -> Sifted:
    """Drop the near and semantic duplicates inside each split, as `section.dedup` says.

    Args:
        rows: New rows, columns of `ROW_SCHEMA` and `split`.
        stays: Columns `id`, `text` and `split`: rows that stay, before all new ones.
        section: Thresholds and rules.
        tools: Embeds texts, where `section.dedup.semantic` is set.
    """
    kept, dropped = [], [no_rows(DROPPED_SCHEMA)]
    for name in SPLITS:
        own, before = rows.filter(split=name), stays.filter(split=name)
        if section.dedup.near:
            near = drop_near_duplicates(own, section.near_duplicate_threshold, section.dedup.keep, before)
            own = near.kept
            dropped.append(near.dropped)
        if section.dedup.semantic and len(own):
            vectors, before_vectors = (_embed(frame["text"], tools) for frame in (own, before))
            threshold, keep = section.dedup.semantic_threshold, section.dedup.keep
            semantic = drop_semantic_duplicates(own, vectors, threshold, keep=keep, previous=before, previous_embeddings=before_vectors)
            own = semantic.kept
            dropped.append(semantic.dropped)
        kept.append(own)
    return Sifted(pl.concat(kept), pl.concat(dropped))


def _embed(texts: pl.Series, tools: Tools) -> NDArray[np.float32]:
    if tools.embed_static is None:
        raise ConfigError("data.dedup.semantic needs an embedding model. Received: none.", hint="tunesmith config explain data.embedding_model")
    return tools.embed_static(texts.to_list())


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
        *("text", "label", "split", "source", "source_line", "document_id", "block_ids", "document_type"),
        weight=pl.col("confidence").clip(0.01),
        feedback_id=empty,
        supersedes=empty,
        origin=pl.lit("source"),
    )
    return made.with_columns(id=pl.Series(ids, dtype=pl.String)).select(list(Record.frame_schema()))


def _discard(records: pl.DataFrame, discarded: Mapping[str, str]) -> Sifted:
    """Drop the train records that reviewers discarded."""
    gone = records.filter(pl.col("id").is_in(list(discarded)), pl.col("split") == "train")
    evidence = pl.Series([discarded[each] for each in gone["id"]], dtype=pl.String)
    dropped = as_dropped(_with_digest(gone).with_columns(confidence="weight", reason=pl.lit("discarded"), evidence=evidence))
    return Sifted(records.join(gone, on="id", how="anti", maintain_order="left"), dropped)


def _as_documents(records: pl.DataFrame) -> pl.DataFrame:
    """Give records the columns of `ROW_SCHEMA`, and `split`, so that they pass the same steps. They keep their own ids."""
    return as_rows(_with_digest(records)).with_columns(confidence="weight").select([*ROW_SCHEMA, "split"])


def _with_digest(rows: pl.DataFrame) -> pl.DataFrame:
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in rows["text"]]
    return rows.with_columns(content_sha256=pl.Series(digests, dtype=pl.String))


def _supersede(old: pl.DataFrame, judged: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the old rows that stay, and those that a judged record corrects, as dropped rows."""
    corrections = judged.filter(pl.col("supersedes") != "").unique("supersedes", keep="first", maintain_order=True)
    corrections = corrections.select(pl.col("supersedes"), "feedback_id", kept_id="id", right_label="label")
    gone = old.join(corrections, left_on="id", right_on="supersedes", maintain_order="left").with_columns(
        reason=pl.lit("superseded"),
        evidence=pl.format("corrected to '{}' by {}", "right_label", "feedback_id"),
    )
    return old.join(gone, on="id", how="anti", maintain_order="left"), as_dropped(gone)
