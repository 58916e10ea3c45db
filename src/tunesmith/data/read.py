"""Files of labelled rows -> documents, one a row, each with the line it came from.

CSV (comma, quoted as in RFC 4180, first row names the columns), JSONL (one object a line) and Parquet, told apart by
suffix. Text is UTF-8, with or without a byte order mark. A null or absent value is read as an empty string, which
`validate.py` drops with its reason; a value that is not text is an error, because guessing how to write it is not ours.
A broken file is an error too, never a shorter data set.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tunesmith.data.settings import Source
from tunesmith.entities import Document, content_id
from tunesmith.errors import DataError, NotFoundError

if TYPE_CHECKING:
    import _csv

Row = tuple[int, str, str]
"""First line, text, label."""


def read_documents(source: Source, root: Path) -> pl.DataFrame:
    """Read one file.

    Args:
        source: The file and the names of its columns.
        root: Folder of the project, which `source.path` is relative to.

    Returns:
        A frame with the columns of `Document`, in the order of the file. `source_line` counts physical lines from 1 (a
        quoted CSV field may span several); in Parquet, which has no lines, it counts rows from 1. An id depends on the
        path, the row's text and label, and how many equal rows stand before it: other rows can come and go.

    Raises:
        NotFoundError: the file does not exist.
        DataError: the file has an unknown suffix, is empty, is not UTF-8, has a broken row or lacks a column, or a value
            is not text.
    """
    path = root / source.path
    read = _FORMATS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{source.path}: must end in one of {', '.join(_FORMATS)}. Received: {path.suffix or 'no suffix'!r}.", hint=_EXPLAIN)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{source.path}: no such file in {root}.", hint=_similar_file(path) or _EXPLAIN) from None
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read: {error.strerror}.") from None
    rows = list(read(raw, source))
    if not rows:
        raise DataError(f"{source.path}: must hold at least one row. Received: an empty file.", hint=_EXPLAIN)
    return _documents(rows, address(source))


_EXPLAIN = "tunesmith config explain data.sources"


def address(source: Source) -> str:
    """Return what the documents of a source carry in their column `source`: its path with forward slashes."""
    return Path(source.path).as_posix()


def _documents(rows: list[Row], path: str) -> pl.DataFrame:
    seen: Counter[str] = Counter()
    ids, digests = [], []
    for line, text, label in rows:
        try:
            row_sha256 = hashlib.sha256(json.dumps([text, label], ensure_ascii=False).encode()).hexdigest()
        except UnicodeEncodeError:
            raise DataError(f"{path}:{line}: must be text that UTF-8 can hold. Received: half of a surrogate pair (\\ud800 to \\udfff).") from None
        ids.append(content_id("doc", path, row_sha256, seen[row_sha256]))
        digests.append(hashlib.sha256(text.encode()).hexdigest())
        seen[row_sha256] += 1
    lines, texts, labels = zip(*rows, strict=True)
    columns = {"id": ids, "source": [path] * len(rows), "source_line": lines, "content_sha256": digests, "text": texts, "label": labels}
    columns["confidence"] = [1.0] * len(rows)
    return pl.DataFrame(columns, schema=Document.frame_schema())


def _read_csv(raw: bytes, source: Source) -> Iterator[Row]:
    # The limit guards against unbounded memory, but the whole file is in memory by now. It is the process's, so only raise it.
    csv.field_size_limit(max(csv.field_size_limit(), len(raw)))
    reader = csv.reader(io.StringIO(_decode(raw, source), newline=""), strict=True)
    rows = _numbered(reader, source)
    _, columns = next(rows, (1, []))
    if not columns:
        return
    _require_columns(columns, source)
    text_at, label_at = columns.index(source.text_column), columns.index(source.label_column)
    for line, fields in rows:
        if len(fields) != len(columns):
            raise DataError(f"{source.path}:{line}: each row must have {len(columns)} fields, as the first one. Received: {len(fields)}.", hint=_QUOTING)
        yield line, fields[text_at], fields[label_at]


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


def _read_jsonl(raw: bytes, source: Source) -> Iterator[Row]:
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
    if rows:
        _require_columns(list(dict.fromkeys(name for _, row in rows for name in row)), source)
    for line, row in rows:
        yield line, _text(row.get(source.text_column), source, line, source.text_column), _text(row.get(source.label_column), source, line, source.label_column)


def _read_parquet(raw: bytes, source: Source) -> Iterator[Row]:
    try:
        frame = pl.read_parquet(io.BytesIO(raw))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{source.path}: must be a Parquet file. Received: {str(error).splitlines()[0]}.") from None
    _require_columns(frame.columns, source)
    pairs: Iterable[tuple[object, object]] = zip(frame[source.text_column], frame[source.label_column], strict=True)
    for line, (text, label) in enumerate(pairs, start=1):
        yield line, _text(text, source, line, source.text_column), _text(label, source, line, source.label_column)


_FORMATS: dict[str, Callable[[bytes, Source], Iterator[Row]]] = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
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


def _require_columns(columns: list[str], source: Source) -> None:
    for key, wanted in (("text_column", source.text_column), ("label_column", source.label_column)):
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
