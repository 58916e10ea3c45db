"""Every source of a project -> rows, each a document or a chunk of one, and what could not be read.

A source is a file of labelled rows (`read.py`) or a folder of documents (`folder.py`) at any address. Rows of a file are
documents of their own. A document of a folder becomes one row, or one a chunk when `data.chunk` is set; its label is the
name of the folder it stands in, or comes from a table. Which of the two a source is, its address tells: one that ends in
the suffix of a row format is a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import polars as pl

from tunesmith.data.blocks import block_schema
from tunesmith.data.chunk import CountTokens, Embed, chunk
from tunesmith.data.engine import DataEngine, LocalEngine
from tunesmith.data.folder import PAGE_SCHEMA, ReadFolder, read_folder
from tunesmith.data.read import RANK_SCHEMA, ROW_SUFFIXES, address, read_documents
from tunesmith.data.settings import DataSection, Source
from tunesmith.data.sifted import DROPPED_SCHEMA, no_rows
from tunesmith.entities import Document
from tunesmith.errors import ConfigError, DataError

ROW_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {**Document.frame_schema(), "document_id": pl.String, "block_ids": pl.String, **RANK_SCHEMA}
"""Column -> type of the rows that go through the data steps: a document, or a chunk with an id of its own."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tools:
    """What the data tier borrows from the tiers below it; a project that needs neither passes neither.

    Attributes:
        count_tokens: How many tokens a text has for the base model; None cuts no chunks.
        embed: Texts -> unit vectors of a contextual model, shape (n, n_dimensions), to cut chunks where the subject changes; None leaves meaning out.
        embed_static: Texts -> unit vectors by which copies are found, shape (n, n_dimensions).
        queried: Path of a query -> its result, where it was run already, as `read_documents` gives it.
        engine: Where files are read and cut.
    """

    count_tokens: CountTokens | None = None
    embed: Embed | None = None
    embed_static: Embed | None = None
    queried: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    engine: DataEngine = field(default_factory=LocalEngine)


@dataclass(frozen=True)
class Gathered:
    """What the sources hold; each row or file is in one of `rows` and `dropped`, a chunked document in several rows.

    Attributes:
        rows: Columns of `ROW_SCHEMA`, in the order of the sources.
        blocks: Columns of `block_schema()`, of the documents read from folders.
        pages: Columns of `PAGE_SCHEMA`, of the same documents.
        dropped: Columns of `DROPPED_SCHEMA`: the files that were refused.
    """

    rows: pl.DataFrame
    blocks: pl.DataFrame
    pages: pl.DataFrame
    dropped: pl.DataFrame


def is_folder(source: Source) -> bool:
    """Whether a source is read as documents; else it is a file of rows."""
    return PurePosixPath(source.path).suffix.lower() not in ROW_SUFFIXES


def gather(section: DataSection, root: Path, tools: Tools, progress: Progress | None = None) -> Gathered:
    """Read all sources.

    Args:
        section: Sources, and how documents are read and cut.
        root: Folder of the project.
        tools: Counts tokens where `section.chunk` is set.
        progress: Told about each source before it is read, and about each file of a folder.

    Raises:
        NotFoundError: a source does not exist.
        DataError: a source cannot be read or used, or is listed twice.
        BackendError: the OCR failed, or is not installed.
    """
    names = [address(source) for source in section.sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"data.sources must list each file once. Received twice: {', '.join(twice)}.", hint="tunesmith config explain data.sources")
    rows, blocks, pages, dropped = [], [], [], []
    for position, source in enumerate(section.sources):
        name = names[position]
        if progress:
            progress(f"read {name}", position, len(names))
        if not is_folder(source):
            read = tools.queried[source.path] if source.path in tools.queried else read_documents(source, root)
            rows.append(as_rows(read).select(list(ROW_SCHEMA)))
            continue

        def tell(file: str, done: int, total: int, name: str = name) -> None:
            if progress:
                progress(f"read {name}: {file}", done, total)

        found = read_folder(source.path, section.ocr, root=root, progress=tell, engine=tools.engine)
        rows.append(_rows(found, _labels(found.documents["source"], source, root), section, tools).with_columns(document_type=pl.lit(source.document_type)))
        blocks.append(found.blocks)
        pages.append(found.pages)
        dropped.append(found.dropped)
    return Gathered(
        rows=pl.concat(rows),
        blocks=pl.concat(blocks) if blocks else no_rows(block_schema()),
        pages=pl.concat(pages) if pages else no_rows(PAGE_SCHEMA),
        dropped=pl.concat(dropped) if dropped else no_rows(DROPPED_SCHEMA),
    )


def as_rows(documents: pl.DataFrame) -> pl.DataFrame:
    """Add the columns of `ROW_SCHEMA` that the rows lack: no type, those of a chunk, where a row is a whole document, and those that rank duplicates, null."""
    ranks = {name: pl.lit(None, dtype=kind) for name, kind in RANK_SCHEMA.items()}
    defaults = {"document_type": pl.lit(""), "document_id": pl.col("id"), "block_ids": pl.lit(""), **ranks}
    return documents.with_columns(**{name: default for name, default in defaults.items() if name not in documents.columns})


def require_rank_columns(section: DataSection) -> None:
    """Make sure that the sources name the column by which `section.dedup.keep` chooses. Documents of folders have none, and come last.

    Raises:
        ConfigError: a file of rows does not name it, or no source does.
    """
    key = {"newest": "time_column", "most_reviewed": "reviews_column"}.get(section.dedup.keep)
    if key is None:
        return
    named = any(getattr(source, key) for source in section.sources)
    lacking = [source.path for source in section.sources if not getattr(source, key) and not (named and is_folder(source))]
    if lacking:
        raise ConfigError(
            f"data.dedup.keep: {section.dedup.keep} needs the {key} of each file in data.sources. Received none for: {', '.join(lacking)}.",
            hint=f"Set {key} of these sources, or data.dedup.keep: longest.",
        )


def configured(addresses: pl.Series, section: DataSection) -> pl.Series:
    """Return for each row's `source` the address of the source that it was read from: itself, or the folder that holds it."""
    names = sorted((address(source) for source in section.sources), key=len, reverse=True)

    def find(found: str) -> str:
        return next((name for name in names if found == name or found.startswith(f"{name.rstrip('/')}/") or name == "."), found)

    unique = addresses.unique()
    return addresses.replace_strict(unique, pl.Series([find(found) for found in unique], dtype=pl.String), return_dtype=pl.String)


def _rows(found: ReadFolder, labels: pl.Series, section: DataSection, tools: Tools) -> pl.DataFrame:
    """Return a row for each document, or for each of its chunks; a chunk has the label of its document, and its page as `source_line`."""
    documents = found.documents.with_columns(label=labels)
    if section.chunk is None:
        blocks = found.blocks.sort("document_id", "position").group_by("document_id").agg(block_ids=pl.col("id").str.join(" "))
        whole = documents.join(blocks, left_on="id", right_on="document_id", how="left", maintain_order="left")
        made = whole.with_columns(document_id="id", source_line=pl.lit(1, dtype=pl.Int64), block_ids=pl.col("block_ids").fill_null(""))
    else:
        if tools.count_tokens is None:
            raise DataError("data.chunk needs the tokenizer of the base model. Received: none.", hint="tunesmith prepare")
        chunks = chunk(found.blocks, tools.count_tokens, section.chunk, tools.embed, tools.engine)
        facts = documents.select("source", "content_sha256", "label", document_id="id")
        made = chunks.join(facts, on="document_id", maintain_order="left").with_columns(source_line="page", block_ids=pl.col("block_ids").list.join(" "))
    return as_rows(made).select(list(ROW_SCHEMA)).cast(pl.Schema(ROW_SCHEMA))


def _labels(sources: pl.Series, source: Source, root: Path) -> pl.Series:
    """Return each document's label, empty where nothing gives one."""
    if source.label_from == "folder":
        return pl.Series("label", [PurePosixPath(each).parent.name for each in sources], dtype=pl.String)
    table = read_documents(Source(path=source.label_from, text_column="path", label_column="label"), root)
    twice = table.filter(pl.col("text").is_duplicated())
    if len(twice):
        raise DataError(f"{source.label_from}:{twice['source_line'][0]}: each path must be listed once. Received again: {twice['text'][0]!r}.")
    return sources.replace_strict(table["text"], table["label"], default="", return_dtype=pl.String)
