"""An address -> what lies there, or an error that says what to do.

An address is a path, relative to the project, or one of fsspec's: `s3://bucket/folder`, `memory://folder`, whatever has `://` in it.
Where a server is and who asks never stands in tunesmith.yaml: file systems take it from the environment or from files of their
own. S3 reads

    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_DEFAULT_REGION    as all programs for S3 do
    AWS_ENDPOINT_URL        the server of a bucket that is not on AWS (MinIO, Ceph, ...)
    FSSPEC_S3_ANON=true     a public bucket, asked without credentials

What this does not do: write, or read what files hold (`read.py`, `folder.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import BackendError, DataError, MissingExtraError, NotFoundError, TunesmithError

_EXPLAIN = "tunesmith config explain data.sources"
_HINTS = {"s3": "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..., and AWS_ENDPOINT_URL=http://HOST:PORT where the bucket is not on AWS"}
# By which file systems say that a file is another one than before.
_STAMPS = ("size", "ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")


def is_remote(address: str) -> bool:
    """Whether an address is one of fsspec's; else it is a path."""
    return "://" in address


def canonical(address: str) -> str:
    """Return an address as documents carry it in their column `source`: a path with forward slashes, without a slash at its end."""
    return address.rstrip("/") if is_remote(address) else Path(address).as_posix()


def open_address(address: str, root: Path) -> tuple[Any, str]:
    """Return the file system that knows an address, and the path in it. What it listed before is forgotten.

    Args:
        address: A path or an address.
        root: Folder of the project, which a path is relative to.

    Raises:
        MissingExtraError: a package is not installed.
        DataError: no file system knows the address.
        BackendError: its server cannot be reached.
    """
    with explained(address):
        from fsspec.core import url_to_fs

        # Of its own: another one may have been made with other credentials.
        system, path = url_to_fs(address, skip_instance_cache=True) if is_remote(address) else url_to_fs(str(root / address))
        system.invalidate_cache()
        return system, path


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what a file system raises into an error of a user.

    Raises:
        NotFoundError: there is nothing at the address.
        MissingExtraError: a package is not installed.
        BackendError: its server cannot be reached, or refuses who asks.
        DataError: it cannot be read for another reason.
    """
    protocol = address.partition("://")[0]
    try:
        yield
    except TunesmithError:
        raise
    except ImportError as error:
        name = str(getattr(error, "name", "") or error).split()[-1]
        raise (MissingExtraError("s3fs", "s3") if protocol == "s3" else MissingExtraError(name, "documents")) from None
    except FileNotFoundError as error:
        said = f" Received: {str(error).rstrip('.')}." if is_remote(address) and " " in str(error) else ""
        raise NotFoundError(f"{address}: nothing is there.{said}", hint=_EXPLAIN) from None
    except Exception as error:  # noqa: BLE001, RUF100 - each file system has errors of its own
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise BackendError(f"{address}: whoever asks must be allowed to read. Received: {said}.", hint=_HINTS.get(protocol, "")) from None
        if isinstance(error, OSError) or type(error).__module__.startswith("botocore."):
            raise BackendError(f"{address}: must be an address that can be reached. Received: {said}.", hint=_HINTS.get(protocol, "")) from None
        raise DataError(f"{address}: must be an address that can be read. Received: {said}.", hint=_EXPLAIN) from None


def read_remote(address: str) -> bytes:
    """Return the bytes of the file at an address of fsspec.

    Raises:
        TunesmithError: see `explained`.
    """
    system, path = open_address(address, Path())
    with explained(address):
        raw: bytes = system.cat_file(path)
        return raw


def fingerprint(address: str) -> list[tuple[str, list[str]]]:
    """Return the files at an address of fsspec, each with what its file system changes when the file changes; empty where it tells too little.

    Raises:
        TunesmithError: see `explained`.
    """
    system, path = open_address(address, Path())
    with explained(address):
        found = system.find(path, detail=True) or {path: system.info(path)}
    stamps = [(name, [f"{key} {info[key]}" for key in _STAMPS if info.get(key) is not None]) for name, info in sorted(found.items())]
    return stamps if all(len(stamp) > 1 for _, stamp in stamps) else []
