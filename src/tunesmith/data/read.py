"""Files of labelled rows -> documents, one a row, each with the line it came from.

CSV (comma, quoted as in RFC 4180, first row names the columns), JSONL (one object a line), JSON (a list of objects),
Parquet, and the result of an SQL query (`query.py`), told apart by suffix. Rows have a column for the text and one for the
label, or one of the shapes that `rows.py` knows. Text is UTF-8, with or without a byte order mark. A null or absent value is read as an empty string, which
`validate.py` drops with its reason; a value that is not text is an error, because guessing how to write it is not ours.
A broken file is an error too, never a shorter data set.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith.data.address import canonical, is_remote, read_remote
from tunesmith.data.query import read_query
from tunesmith.data.rows import find_shape, to_pair
from tunesmith.data.settings import Source
from tunesmith.entities import Document, content_id
from tunesmith.errors import DataError, NotFoundError

if TYPE_CHECKING:
    import _csv

Row = tuple[int, str, str, object, object, object]
"""First line, text, label, and what the source's columns for time, reviews and document type hold; None where it names none."""

RANK_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "created_at": pl.Float64,  # seconds since 1970, or the number that the source has; null where it has none
    "n_reviews": pl.Int64,
}
"""Columns that say which of duplicates is better (`dedup.by_preference`)."""


def read_documents(source: Source, root: Path) -> pl.DataFrame:
    """Read one file.

    Args:
        source: The file, at a path or an address of fsspec, and the names of its columns.
        root: Folder of the project, which a path is relative to.

    Returns:
        A frame with the columns of `Document` and of `RANK_SCHEMA`, in the order of the file. `source_line` counts physical lines from 1 (a
        quoted CSV field may span several, a JSON object starts on it); in Parquet and queries, which have no lines, it counts
        rows from 1. An id depends on the
        path, the row's text and label, and how many equal rows stand before it: other rows can come and go.

    Raises:
        NotFoundError: the file does not exist.
        DataError: the file has an unknown suffix, is empty, is not UTF-8, has a broken row or lacks a column, or a value
            is not text; or the database refused the query.
        ConfigError: a query has no database.
        BackendError: the database cannot be reached.
    """
    suffix = PurePosixPath(source.path).suffix
    read = _FORMATS.get(suffix.lower())
    if read is None:
        raise DataError(f"{source.path}: must end in one of {', '.join(_FORMATS)}. Received: {suffix or 'no suffix'!r}.", hint=_EXPLAIN)
    rows = list(read(read_remote(source.path) if is_remote(source.path) else _read_local(source.path, root), source, root))
    if not rows:
        raise DataError(f"{source.path}: must hold at least one row. Received: an empty file.", hint=_EXPLAIN)
    return _documents(rows, source)


def _read_local(name: str, root: Path) -> bytes:
    path = root / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{name}: no such file in {root}.", hint=_similar_file(path) or _EXPLAIN) from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}.") from None


_EXPLAIN = "tunesmith config explain data.sources"


def address(source: Source) -> str:
    """Return what the documents of a source carry in their column `source`: its canonical address."""
    return canonical(source.path)


def _documents(rows: list[Row], source: Source) -> pl.DataFrame:
    path = address(source)
    seen: Counter[str] = Counter()
    ids, digests, times, reviews, types = [], [], [], [], []
    for line, text, label, time, n_reviews, document_type in rows:
        types.append(_text(document_type, source, line, source.document_type_column).strip() or source.document_type)
        times.append(_time(time, source, line))
        reviews.append(_count(n_reviews, source, line))
        try:
            row_sha256 = hashlib.sha256(json.dumps([text, label], ensure_ascii=False).encode()).hexdigest()
        except UnicodeEncodeError:
            raise DataError(f"{path}:{line}: must be text that UTF-8 can hold. Received: half of a surrogate pair (\\ud800 to \\udfff).") from None
        ids.append(content_id("doc", path, row_sha256, seen[row_sha256]))
        digests.append(hashlib.sha256(text.encode()).hexdigest())
        seen[row_sha256] += 1
    lines, texts, labels, *_ = zip(*rows, strict=True)
    columns: dict[str, Any] = {"id": ids, "source": [path] * len(rows), "source_line": lines, "content_sha256": digests, "text": texts, "label": labels}
    columns |= {"confidence": [1.0] * len(rows), "document_type": types, "created_at": times, "n_reviews": reviews}
    return pl.DataFrame(columns, schema={**Document.frame_schema(), **RANK_SCHEMA})


def _time(value: object, source: Source, line: int) -> float | None:
    """Return a number that grows with time; a time without a zone counts as UTC."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            with contextlib.suppress(ValueError):
                value = float(str(value))
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise DataError(f"{source.path}:{line}: {source.time_column} must be an ISO 8601 date or time, or a number. Received: {value!r:.80}.")


def _count(value: object, source: Source, line: int) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise DataError(f"{source.path}:{line}: {source.reviews_column} must be a whole number, 0 or more. Received: {value!r:.80}.")


def _read_csv(raw: bytes, source: Source, _root: Path) -> Iterator[Row]:
    # The limit guards against unbounded memory, but the whole file is in memory by now. It is the process's, so only raise it.
    csv.field_size_limit(max(csv.field_size_limit(), len(raw)))
    reader = csv.reader(io.StringIO(_decode(raw, source), newline=""), strict=True)
    rows = _numbered(reader, source)
    _, columns = next(rows, (1, []))
    if not columns:
        return
    _require_columns(columns, source, "text_column", "label_column", *_also_named(source))
    text_at, label_at = columns.index(source.text_column), columns.index(source.label_column)
    others = [columns.index(name) if name else None for name in (source.time_column, source.reviews_column, source.document_type_column)]
    for line, fields in rows:
        if len(fields) != len(columns):
            raise DataError(f"{source.path}:{line}: each row must have {len(columns)} fields, as the first one. Received: {len(fields)}.", hint=_QUOTING)
        time, n_reviews, document_type = (None if at is None else fields[at] for at in others)
        yield line, fields[text_at], fields[label_at], time, n_reviews, document_type


_QUOTING = "Put fields with commas, quotes or line breaks in double quotes, and double the quotes inside."


def _numbered(reader: _csv.Reader, source: Source) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each row that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rule = "a quoted field must be closed" if "end of data" in str(error) else "must be CSV with commas and double quotes"
            raise DataError(
                f"{source.path}:{line}: {rule}. Received: a row that starts here and is broken on line {reader.line_num}: {error}.", hint=_QUOTING
            ) from None
        if fields:
            yield line, fields


def _read_jsonl(raw: bytes, source: Source, _root: Path) -> Iterator[Row]:
    rows = []
    # Not splitlines: it also splits at U+2028, which may stand inside a JSON string.
    for line, content in enumerate(_decode(raw, source).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(f"{source.path}:{line}: must be one JSON object a line. Received: {error.msg} at column {error.colno}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{source.path}:{line}: must be one JSON object a line. Received: {type(row).__name__}.")
        rows.append((line, row))
    yield from _pairs(rows, list(dict.fromkeys(name for _, row in rows for name in row)), source)


def _read_json(raw: bytes, source: Source, _root: Path) -> Iterator[Row]:
    text = _decode(raw, source)
    decoder = json.JSONDecoder()
    at, line, counted = _after_space(text, 0), 1, 0
    if not text.startswith("[", at):
        raise DataError(
            f"{source.path}: must be a list of objects. Received: {text[at : at + 40]!r}.", hint="One object a line is JSONL: give the file the suffix .jsonl."
        )
    rows: list[tuple[int, dict[str, Any]]] = []
    at = _after_space(text, at + 1)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{source.path}:{error.lineno}: must be a list of objects. Received: {error.msg} at column {error.colno}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{source.path}:{line}: must be a list of objects. Received: {type(row).__name__}.")
        rows.append((line, row))
        at = _after_space(text, end)
        if text.startswith(",", at):
            at = _after_space(text, at + 1)
        elif not text.startswith("]", at):
            raise DataError(f"{source.path}:{line + text.count(chr(10), counted, at)}: objects must be parted by commas. Received: {text[at : at + 20]!r}.")
    yield from _pairs(rows, list(dict.fromkeys(name for _, row in rows for name in row)), source)


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _pairs(rows: Iterable[tuple[int, dict[str, Any]]], columns: list[str], source: Source) -> Iterator[Row]:
    """Yield the text and label of rows that have columns for them, or one of the known shapes."""
    shape = None if {source.text_column, source.label_column} <= set(columns) else find_shape(columns)
    if columns:
        _require_columns(columns, source, *(("text_column", "label_column") if shape is None else ()), *_also_named(source))
    for line, row in rows:
        others = (source.time_column, source.reviews_column, source.document_type_column)
        time, n_reviews, document_type = (row.get(name) if name else None for name in others)
        if shape is None:
            text, label = (_text(row.get(column), source, line, column) for column in (source.text_column, source.label_column))
            yield line, text, label, time, n_reviews, document_type
            continue
        try:
            yield (line, *to_pair(row, shape), time, n_reviews, document_type)
        except ValueError as error:
            raise DataError(f"{source.path}:{line}: {error}.") from None


def _read_sql(raw: bytes, source: Source, root: Path) -> Iterator[Row]:
    columns, rows = read_query(_decode(raw, source), source.path, source.database, root)
    yield from _pairs(rows, columns, source)


def _read_parquet(raw: bytes, source: Source, _root: Path) -> Iterator[Row]:
    try:
        frame = pl.read_parquet(io.BytesIO(raw))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{source.path}: must be a Parquet file. Received: {str(error).splitlines()[0]}.") from None
    yield from _pairs(enumerate(frame.iter_rows(named=True), start=1), frame.columns, source)


_FORMATS: dict[str, Callable[[bytes, Source, Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".sql": _read_sql,
}
ROW_SUFFIXES = tuple(_FORMATS)
"""A source with one of these is a file of rows."""


def _decode(raw: bytes, source: Source) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source.path}:{line}: must be UTF-8. Received: byte {raw[error.start]:#04x} at offset {error.start}.",
            hint=f"iconv -f WINDOWS-1252 -t UTF-8 {source.path} > NEW_FILE",
        ) from None


def _text(value: object, source: Source, line: int, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{source.path}:{line}: {column} must be text. Received: {value!r:.80} ({type(value).__name__}).")
    return value


def _also_named(source: Source) -> list[str]:
    """Return the keys of the columns beside text and label that the source names."""
    return [key for key in ("time_column", "reviews_column", "document_type_column") if getattr(source, key)]


def _require_columns(columns: list[str], source: Source, *keys: str) -> None:
    for key in keys:
        wanted = getattr(source, key)
        if columns.count(wanted) > 1:
            raise DataError(f"{source.path}:1: column names must differ. Received: {wanted!r} {columns.count(wanted)} times.")
        if wanted in columns:
            continue
        near = difflib.get_close_matches(wanted, columns, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"{source.path}: {key} must name one of its columns: {', '.join(map(repr, columns))}. Received: {wanted!r}.",
            hint=f"{hint}Set {key} of this source in tunesmith.yaml.",
        )


def _similar_file(path: Path) -> str:
    """Return a question that names the file meant, when one beside the missing path has nearly its name."""
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {near[0]!r}, in the same folder?" if near else ""
