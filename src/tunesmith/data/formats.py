"""What a file is, by its content, and why a file is refused.

A suffix is a promise that is checked: bytes that begin as a PDF are one, whatever the name says, and a name that says PDF
over bytes that are not is `mislabelled`, because something went wrong before the file came here. Between the formats that
are text (plain, HTML, mail) the name decides where it says something. Archives are measured before they are unpacked.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

FileFormat = Literal["pdf", "docx", "picture", "html", "eml", "text"]
Reason = Literal[
    "encrypted", "truncated", "no_pages", "zip_bomb", "mislabelled", "too_large", "unreadable", "unknown_format", "rows_file",
    "needs_ocr", "timed_out", "out_of_memory", "crashed",
]  # fmt: skip
REASONS: tuple[Reason, ...] = get_args(Reason)

SUFFIXES: dict[str, FileFormat] = {
    ".pdf": "pdf", ".docx": "docx",
    ".png": "picture", ".jpg": "picture", ".jpeg": "picture", ".tif": "picture", ".tiff": "picture", ".bmp": "picture", ".webp": "picture", ".gif": "picture",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".eml": "eml", ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_ROWS = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}
_TEXTS: tuple[FileFormat, ...] = ("html", "eml", "text")

_MOST_UNPACKED = 512 * 2**20
_MOST_RATIO = 200  # XML packs to a twentieth or so; a bomb to a thousandth


class RefusedFileError(Exception):
    """One file that is not read: a fixed word for counting, and a sentence for people. It never stops the others."""

    def __init__(self, reason: Reason, evidence: str) -> None:
        super().__init__(f"{reason}: {evidence}")
        self.reason = reason
        self.evidence = evidence


class Page(NamedTuple):
    """One page of a document."""

    number: int
    """Counted from 1."""
    width: float
    """In points, upright."""
    height: float
    is_scan: bool = False
    """Whether its words come from an OCR."""
    quarters: int = 0
    """Quarter turns, counterclockwise, that its picture needed to be upright."""
    lean: float = 0.0
    """Degrees, counterclockwise, that it was turned further."""


def find_format(raw: bytes, name: str) -> FileFormat:
    """Tell a file's format by its content.

    Args:
        raw: The whole file.
        name: Its name or address; only the suffix is looked at.

    Raises:
        RefusedFileError: no_pages (the file is empty), rows_file, mislabelled, unknown_format, encrypted, truncated or zip_bomb.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if not raw:
        raise RefusedFileError("no_pages", "The file is empty.")
    if suffix in _ROWS:
        raise RefusedFileError("rows_file", f"A {suffix} file holds rows, not a document; list it by itself in data.sources.")
    promised = SUFFIXES.get(suffix)
    found = _by_content(raw, promised)
    if promised and found != promised and not (found in _TEXTS and promised in _TEXTS):
        raise RefusedFileError("mislabelled", f"The name says {suffix}; the content is {found or _described(raw)}.")
    if found is None:
        raise RefusedFileError("unknown_format", f"Neither {', '.join(get_args(FileFormat))}; the content is {_described(raw)}.")
    return promised if promised in _TEXTS and found in _TEXTS else found


def _by_content(raw: bytes, promised: FileFormat | None) -> FileFormat | None:
    if b"%PDF-" in raw[:1024]:
        return "pdf"
    if raw.startswith(b"PK\x03\x04"):
        return _by_members(raw, promised)
    if raw.startswith(_OLE):
        if "EncryptedPackage".encode("utf-16-le") in raw:
            raise RefusedFileError("encrypted", "An Office file that opens with a password only.")
        return None
    if raw.startswith(_PICTURES) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP"):
        return "picture"
    if not is_text(raw):
        return None
    start = raw[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<?xml") and b"<html" in start):
        return "html"
    return "eml" if _MAIL.match(raw[:4096]) else "text"


_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM", b"GIF87a", b"GIF89a")
_MAIL = re.compile(
    rb"(?:(?:From|To|Subject|Date|Received|Return-Path|Delivered-To|Message-ID|MIME-Version|X-[\w-]+):[^\n]*\n(?:[ \t][^\n]*\n)*){3,}", re.IGNORECASE
)


def is_text(raw: bytes) -> bool:
    """Whether bytes are text: UTF-16 by its mark, or few control characters and no zero byte."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    sample = raw[:65536]
    return b"\x00" not in sample and len(sample.translate(None, _CONTROLS)) >= 0.98 * len(sample)


_CONTROLS = bytes(set(range(32)) - {7, 8, 9, 10, 12, 13, 27})


def _described(raw: bytes) -> str:
    if raw.startswith(_OLE):
        return "an Office file from before 2007"
    if raw.startswith(b"PK\x03\x04"):
        return "a ZIP archive that is no DOCX"
    return f"unknown, beginning with the bytes {raw[:8].hex(' ')}"


def _by_members(raw: bytes, promised: FileFormat | None) -> FileFormat | None:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError) as error:
        if promised not in ("docx", None):
            return None
        if b"PK\x05\x06" not in raw[-70_000:]:
            raise RefusedFileError("truncated", f"A ZIP archive ends with its directory; this one, of {len(raw):,} bytes, does not.") from None
        raise RefusedFileError("unreadable", f"A broken ZIP archive: {error}.") from None
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MOST_UNPACKED or (unpacked > 10 * 2**20 and unpacked > _MOST_RATIO * len(raw)):
        raise RefusedFileError("zip_bomb", f"{len(raw):,} bytes would unpack to {unpacked:,}.")
    names = {member.filename for member in members}
    if "word/document.xml" not in names:
        return None
    if any(member.flag_bits & 1 for member in members):
        raise RefusedFileError("encrypted", "The members of the archive are encrypted.")
    return "docx"


def decode(raw: bytes, declared: str = "") -> str:
    """Decode text: by its byte order mark, as declared, as UTF-8, else as Windows-1252, undefined bytes as U+FFFD.

    Args:
        raw: The text's bytes.
        declared: The encoding that the file names; ignored where Python does not know it or it does not fit.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    for encoding in filter(None, (declared, "utf-8")):
        try:
            return raw.decode(encoding)
        except (UnicodeDecodeError, LookupError, ValueError):
            continue
    return raw.decode("cp1252", "replace")
