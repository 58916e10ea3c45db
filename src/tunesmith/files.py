"""Small files: digests, writes that are whole or absent, and files that grow line by line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file by write-then-rename, flushed to disk before it gets its name."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file by write-then-rename."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(file: IO[str], value: Any) -> None:
    """Write a JSON value as a line at the end of an open UTF-8 file, on disk when this returns."""
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


def read_lines(path: Path) -> list[Any]:
    """Return the values of a file that `append_line` wrote, none where it is missing; half a line at the end, of a killed process, is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
