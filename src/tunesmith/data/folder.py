"""A folder of files at any address -> documents, blocks, pages, and the files that were refused.

Addresses are those of `address.py`. Files are read in processes with limits (`parse_worker.py`), several side by side, here or on the nodes of a
cluster (`engine.py`), which must reach the address; the outcome is in the order of the addresses and the same wherever they
are read. Hidden files and folders (a leading dot) are left out, as shells do; every other file is in exactly one of documents and dropped.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tunesmith.data.address import canonical, explained, open_address
from tunesmith.data.blocks import block_frame, block_schema
from tunesmith.data.documents import ReadDocument, Refused
from tunesmith.data.engine import DataEngine, LocalEngine
from tunesmith.data.ocr import load_ocr
from tunesmith.data.parse_worker import ParseWorker
from tunesmith.data.settings import OcrSection
from tunesmith.data.sifted import DROPPED_SCHEMA, as_dropped
from tunesmith.entities import content_id
from tunesmith.errors import BackendError, NotFoundError

DOCUMENT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "source": pl.String,  # the address that was read, and below it the path of the file
    "content_sha256": pl.String,  # of the file's bytes
    "format": pl.String,
    "n_pages": pl.Int64,
    "text": pl.String,  # its blocks joined, as blocks.text_of does
    "confidence": pl.Float64,  # of the OCR, in [0, 1]; 1.0 without
}
"""Column -> type of the documents of a folder."""

PAGE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "document_id": pl.String,
    "page": pl.Int64,  # from 1
    "width": pl.Float64,  # in points, upright; 0 where the format has no pages
    "height": pl.Float64,
    "is_scan": pl.Boolean,  # whether the OCR read it
    "quarters": pl.Int64,  # quarter turns counterclockwise that made it upright
    "lean": pl.Float64,  # degrees counterclockwise that it was turned further
}
"""Column -> type of the pages of a folder's documents."""


@dataclass(frozen=True)
class ReadFolder:
    """What a folder held; each file is in one of `documents` and `dropped`.

    Attributes:
        documents: Columns of `DOCUMENT_SCHEMA`, by source.
        blocks: Columns of `blocks.block_schema()`, by source and position.
        pages: Columns of `PAGE_SCHEMA`, by source and page.
        dropped: Columns of `DROPPED_SCHEMA`, by source.
    """

    documents: pl.DataFrame
    blocks: pl.DataFrame
    pages: pl.DataFrame
    dropped: pl.DataFrame


_REACH = "Files must stay while they are read. On a cluster every node must reach them: put them on a path that all share, or at an address such as s3://"

Progress = Callable[[str, int, int], None]
"""Called with the address of a file that is done, how many are done and how many there are."""


def read_folder(
    address: str, section: OcrSection, *, root: Path | None = None, pattern: str = "**", progress: Progress | None = None, engine: DataEngine | None = None
) -> ReadFolder:
    """Read all files of a folder.

    Args:
        address: A path, relative to `root`, or an address that fsspec knows. A single file is a folder of one.
        section: The OCR, and the limits for each file.
        root: Folder of the project; documents of local files are named relative to it.
        pattern: Glob below the address; `**` crosses folders.
        progress: Told about each file when it is done.
        engine: Where the files are read; in processes of this machine when None.

    Returns:
        Documents, their blocks and pages, and the files refused, each with reason and evidence.

    Raises:
        NotFoundError: there is nothing at the address.
        DataError: the address cannot be read.
        ConfigError: the OCR engine is unknown or lacks a setting.
        BackendError: the OCR failed, or is not installed; the address refuses who asks; a file cannot be fetched from where it is to be read.
        MissingExtraError: a package is not installed.
    """
    load_ocr(section)  # says what is missing before the first process starts
    system, paths, named = _files(address, root, pattern)
    outcomes: list[ReadDocument | Refused] = []
    read = (engine or LocalEngine()).map(
        partial(_reader, system, section), list(zip(paths, named, strict=True)), runs_in="process", n_workers=section.n_workers
    )
    for done, outcome in enumerate(read, start=1):
        outcomes.append(outcome)
        if progress:
            progress(outcome.name, done, len(paths))
    return _frames(outcomes)


def _files(address: str, root: Path | None, pattern: str) -> tuple[Any, list[str], list[str]]:
    """Return the file system, the paths in it, and what the documents are called, in order of the latter."""
    base = (root or Path()).resolve()
    system, start = open_address(address, base)
    with explained(address):
        # Asked for itself: it says more than that it does not exist.
        found = [start] if system.info(start)["type"] == "file" else _below(system, start.rstrip("/"), pattern)
    name = canonical(address)
    rows = []
    for path in found:
        if path.endswith("/"):  # the empty object by which a bucket shows a folder
            continue
        below = path[len(start) :].strip("/")
        if any(part.startswith(".") for part in below.split("/")):
            continue
        rows.append(("/".join(part for part in ("" if name == "." else name, below) if part), path))
    if not rows:
        raise NotFoundError(f"{address}: no file is there that matches {pattern!r}.", hint="tunesmith config explain data.sources")
    rows.sort()
    return system, [path for _, path in rows], [named for named, _ in rows]


def _below(system: Any, start: str, pattern: str) -> list[str]:
    if pattern == "**":
        return list(system.find(start))
    return [path for path in system.glob(f"{glob.escape(start)}/{pattern}") if system.isfile(path)]


@contextmanager
def _reader(system: Any, section: OcrSection) -> Iterator[Callable[[tuple[str, str]], ReadDocument | Refused]]:
    """Open a process that reads files, given by their path and name."""
    with ParseWorker(section) as worker:
        yield lambda file: _read_one(system, *file, section, worker)


def _read_one(system: Any, path: str, name: str, section: OcrSection, worker: ParseWorker) -> ReadDocument | Refused:
    most = section.max_file_mib * 2**20
    try:
        size = int(system.size(path) or 0)
        if size > most:
            evidence = f"{size:,} bytes; data.ocr.max_file_mib is {section.max_file_mib}."
            return Refused(name, "", "too_large", evidence)  # not read, so its digest is not known
        raw: bytes = system.cat_file(path)
    except FileNotFoundError as error:
        raise BackendError(f"{name}: must be there while it is read. Received: {error}.", hint=_REACH) from None
    except Exception as error:  # noqa: BLE001, RUF100 - each file system has errors of its own
        raise BackendError(f"{name}: cannot be fetched. Received: {type(error).__name__}: {str(error)[:200]}.", hint=_REACH) from None
    return worker.read(raw, name, hashlib.sha256(raw).hexdigest())


def _frames(outcomes: list[ReadDocument | Refused]) -> ReadFolder:
    documents, blocks, pages, dropped = [], [], [], []
    for outcome in outcomes:
        made = content_id("doc", outcome.name, outcome.content_sha256)
        if isinstance(outcome, Refused):
            dropped.append({
                "id": made, "source": outcome.name, "source_line": 1, "content_sha256": outcome.content_sha256, "text": "", "label": "",
                "reason": outcome.reason, "evidence": outcome.evidence,
            })  # fmt: skip
            continue
        documents.append((made, outcome.name, outcome.content_sha256, outcome.format, len(outcome.pages), outcome.text, outcome.confidence))
        blocks.append(block_frame(made, outcome.blocks))
        pages += [(made, *page) for page in outcome.pages]
    return ReadFolder(
        documents=pl.DataFrame(documents, schema=DOCUMENT_SCHEMA, orient="row"),
        blocks=pl.concat(blocks) if blocks else pl.DataFrame(schema=block_schema()),
        pages=pl.DataFrame(pages, schema=PAGE_SCHEMA, orient="row"),
        dropped=as_dropped(pl.DataFrame(dropped)) if dropped else pl.DataFrame(schema=DROPPED_SCHEMA),
    )
