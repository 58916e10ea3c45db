"""Records -> a dataset version that never changes again.

    datasets/dsv_.../records.parquet    columns of Record, sorted by id
                     dropped.parquet    columns of DROPPED_SCHEMA: what was not used, and why
                     blocks.parquet     blocks and pages of the documents that were read from folders, where there are any
                     pages.parquet
                     manifest.json      id, parent, reason, settings, counts, SHA-256 of the other files

The folder appears whole or not at all: it is written beside its place, flushed to disk and renamed. Then its row goes to
the store, which decides; then DVC and git follow (`versioning.py`). A kill in between is repaired by the next run, which
finds the folder by its id. Equal records give equal bytes under one release of Polars.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tunesmith.data.blocks import block_schema
from tunesmith.data.sifted import DROPPED_SCHEMA, count_reasons
from tunesmith.data.versioning import version_with_dvc
from tunesmith.entities import SPLITS, DatasetVersion, Noun, Record, content_id, utc_now
from tunesmith.errors import DataError
from tunesmith.store import Store

STEP_VERSION = 1
"""Part of every id; raise it when the same inputs give other records."""

FOLDER = "datasets"


def freeze(
    records: pl.DataFrame,
    dropped: pl.DataFrame,
    root: Path,
    project: str,
    labels: tuple[str, ...],
    parent: DatasetVersion | None,
    reason: str,
    settings: dict[str, Any],
    store: Store,
    dvc: bool,
    *,
    inputs: str = "",
    feedback: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
    extra: Mapping[str, pl.DataFrame | str] | None = None,
) -> DatasetVersion:
    """Write a dataset version, or return the one that these inputs made before.

    Args:
        records: Columns of `Record`.
        dropped: Columns of `DROPPED_SCHEMA`.
        root: Folder of the project.
        project: Name of the project, for the manifest.
        labels: The label space.
        parent: The version that this one follows.
        reason: Why it was made, for people.
        settings: The resolved settings behind it; anything JSON can hold.
        store: Where its row goes.
        dvc: Whether to version the folder with DVC and git.
        inputs: Hash of the sources and settings, by which unchanged ones are recognised.
        feedback: Ids of the judgements that were taken in.
        facts: What else the manifest shall say; anything JSON can hold.
        extra: Name of a further file -> its frame or text; empty frames are left out.

    Raises:
        DataError: the folder of a version in the store was lost or changed, and this release of Polars writes other bytes.
        BackendError: DVC or git failed; the version is in the store, and the next command tries again.
    """
    records = records.select(list(Record.frame_schema())).sort("id")
    parent_id = parent.id if parent else None
    version_id = content_id("dsv", parent_id, settings, inputs, feedback, records.select("id", "split").rows(), STEP_VERSION)
    folder = root / FOLDER / version_id
    stored = store.find(DatasetVersion, version_id)
    if not _is_whole(folder):
        known: dict[str, Any] = {"id": version_id, "project": project, "parent": parent_id, "reason": reason, "labels": labels}
        known |= {"settings": settings, "inputs": inputs, "feedback": feedback}
        created_at = stored.created_at if stored else utc_now()
        files = {"records.parquet": records, "dropped.parquet": dropped.select(list(DROPPED_SCHEMA)), **(extra or {})}
        _write(folder, files, {**known, **(facts or {}), "step_version": STEP_VERSION, "created_at": created_at})
    version = _version(folder)
    if stored and stored.sha256 != version.sha256:
        raise DataError(f"{version.path}/records.parquet must have the SHA-256 {stored.sha256}. Received: {version.sha256}.", hint=_repair(root, stored))
    store.put(version)
    if dvc:
        version_with_dvc(root, version, reason)
    return version


def adopt(root: Path, paths: Sequence[str], store: Store) -> list[DatasetVersion]:
    """Enter versions whose folders are on disk into a store that lacks them, as after a clone; return them, oldest first.

    Raises:
        DataError: a folder is not whole, or not what its manifest says.
    """
    for path in paths:
        if not _is_whole(root / path):
            raise DataError(
                f"{path}: must be a dataset version, whole and as it was frozen. Received: files that are missing or changed.", hint="tunesmith data pull"
            )
    versions = sorted((_version(root / path) for path in paths), key=lambda version: (version.created_at, version.id))
    store.put(*versions)
    return versions


def read_records(root: Path, version: DatasetVersion) -> pl.DataFrame:
    """Return the records of a version, columns of `Record`, sorted by id.

    Raises:
        DataError: records.parquet is missing, or its bytes are not those that were frozen.
    """
    return _with_defaults(_read(root, version, "records.parquet", version.sha256), Record)


def read_dropped(root: Path, version: DatasetVersion) -> pl.DataFrame:
    """Return the rows that a version does not use, columns of `DROPPED_SCHEMA`.

    Raises:
        DataError: a file of the version is missing, or its bytes are not those that were frozen.
    """
    return _read(root, version, "dropped.parquet", _manifest(root, version)["files"]["dropped.parquet"])


def _read(root: Path, version: DatasetVersion, name: str, sha256: str) -> pl.DataFrame:
    path = root / version.path / name
    if not path.exists():
        raise DataError(f"{version.path}/{name} is missing.", hint=_repair(root, version))
    found = _sha256(path)
    if found != sha256:
        raise DataError(
            f"{version.path}/{name} must have the SHA-256 {sha256}. Received: {found}; it was changed after it was frozen.", hint=_repair(root, version)
        )
    return pl.read_parquet(path)


def read_blocks(root: Path, version: DatasetVersion) -> pl.DataFrame:
    """Return the blocks of the documents that a version was read from, columns of `block_schema()`; none where all sources were rows.

    Raises:
        DataError: the file is there no more, or its bytes are not those that were frozen.
    """
    sha256 = _manifest(root, version)["files"].get("blocks.parquet")
    return _read(root, version, "blocks.parquet", sha256) if sha256 else pl.DataFrame(schema=block_schema())


def _manifest(root: Path, version: DatasetVersion) -> dict[str, Any]:
    path = root / version.path / "manifest.json"
    if not path.exists():
        raise DataError(f"{version.path}/manifest.json is missing.", hint=_repair(root, version))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _with_defaults(frame: pl.DataFrame, noun: type[Noun]) -> pl.DataFrame:
    """Add the columns that the noun had not when the frame was frozen."""
    missing = [pl.lit(field.default).alias(name) for name, field in noun.model_fields.items() if name not in frame.columns and not field.is_required()]
    return frame.with_columns(missing).select(list(noun.frame_schema())) if missing else frame


def _repair(root: Path, version: DatasetVersion) -> str:
    pointer = f"{version.path}.dvc"
    return f"dvc checkout --force {pointer}" if (root / pointer).exists() else "tunesmith prepare"


def _write(folder: Path, files: Mapping[str, pl.DataFrame | str], facts: dict[str, Any]) -> None:
    part = folder.with_name(f".{folder.name}.part")  # a fixed name, so that what a killed run left is replaced
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    frames = {name: frame for name, frame in files.items() if isinstance(frame, pl.DataFrame)}
    for name, content in files.items():
        if isinstance(content, str):
            (part / name).write_text(content, encoding="utf-8")
        elif len(content) or name in ("records.parquet", "dropped.parquet"):
            content.write_parquet(part / name)
    records, dropped = frames["records.parquet"], frames["dropped.parquet"]
    manifest = {
        **facts,
        "rows": {split: len(records.filter(split=split)) for split in SPLITS},
        "dropped": count_reasons(dropped),
        "files": {path.name: _sha256(path) for path in sorted(part.iterdir())},
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in (*part.iterdir(), part):
        _flush(path)
    if folder.exists():  # not whole, or it would not be written again
        shutil.rmtree(folder)
    part.rename(folder)
    _flush(folder.parent)


def _is_whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all(_sha256(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _version(folder: Path) -> DatasetVersion:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return DatasetVersion(
        path=f"{FOLDER}/{folder.name}",
        sha256=manifest["files"]["records.parquet"],
        **{key: manifest[key] for key in ("id", "parent", "reason", "rows", "dropped", "labels", "inputs", "feedback", "created_at")},
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
