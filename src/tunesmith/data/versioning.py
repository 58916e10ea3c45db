"""A frozen dataset version -> DVC's cache and one git commit.

DVC and git are a projection of the store: nothing is decided here, and every step can be repeated. What is missing is
made (`git init`, `dvc init`, `dvc add`, the commit), what is there is left alone, so that the next command finishes what
a killed one began. The commit holds Tunesmith's files only: the version's .dvc file, datasets/.gitignore, and the files
of `dvc init` as long as git does not know them. What the user has staged stays staged.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.entities import DatasetVersion
from tunesmith.errors import BackendError, MissingExtraError

_INIT_FILES = (".dvc/config", ".dvc/.gitignore", ".dvcignore")
_WITHOUT = "To go on without versioning: set data.dvc to false in tunesmith.yaml."


def version_with_dvc(root: Path, version: DatasetVersion, reason: str) -> bool:
    """Bring DVC and git up to date with a dataset version.

    The project's own git repository is used, or one that holds the project and does not ignore it; else one is made.
    Hooks of the user run as for any commit.

    Args:
        root: Folder of the project.
        version: A version whose folder is on disk.
        reason: Why the version was made; becomes part of the commit's message.

    Returns:
        Whether anything was to do.

    Raises:
        MissingExtraError: DVC is not installed.
        BackendError: git is not installed, or git or DVC failed.
    """
    pointer = f"{version.path}.dvc"
    inside = _find_repository(root)
    if inside and _is_known(root, pointer) and not _status(root, pointer):
        return False
    if not inside:
        _git(root, "init", "--quiet")
    _add_to_dvc(root, version, subdirectory=not _is_top(root))
    ours = [pointer, f"{Path(version.path).parent.as_posix()}/.gitignore", *(name for name in _INIT_FILES if not _is_known(root, name))]
    ours = [name for name in ours if (root / name).exists()]  # without SCM, DVC writes no .gitignore
    _git(root, "add", "--", *ours)
    if _status(root, *ours):
        # With paths, git commits these alone and leaves the rest of the index as it is.
        _git(root, *_fallback_identity(root), "commit", "--quiet", "-m", f"tunesmith: dataset version {version.id}\n\n{reason}".strip(), "--", *ours)
    return True


def push_versions(root: Path, paths: Sequence[str], remote: str = "") -> int:
    """Send the bytes of dataset versions to a remote of DVC.

    Args:
        root: Folder of the project.
        paths: Folders of the versions, relative to it.
        remote: Name of a remote in DVC's config, or a URL such as s3://bucket/path; empty takes DVC's default remote.

    Returns:
        Number of files sent; what the remote has already is not sent again.

    Raises:
        MissingExtraError: DVC, or what it needs for this kind of remote, is not installed.
        BackendError: there is no such remote, or it refused.
    """
    with _repository(root, remote) as (repo, options):
        return int(repo.push(targets=_pointers(root, paths), **options))


def pull_versions(root: Path, paths: Sequence[str], remote: str = "") -> int:
    """Fetch dataset versions from a remote of DVC and put their files in place. Arguments and errors as in `push_versions`.

    Returns:
        Number of files fetched; what DVC's cache has already is not fetched again.
    """
    with _repository(root, remote) as (repo, options):
        return int(repo.pull(targets=_pointers(root, paths), force=True, **options)["stats"]["fetched"])


def checkout_version(root: Path, path: str) -> bool:
    """Put the files of a dataset version back as they were frozen, from DVC's cache.

    Returns:
        Whether anything was to do.

    Raises:
        MissingExtraError: DVC is not installed.
        BackendError: the cache lacks the files.
    """
    with _repository(root) as (repo, _):
        done = repo.checkout(targets=_pointers(root, [path]), force=True)
    changes = done.get("stats", done) if isinstance(done, dict) else {}
    return any(bool(count) for count in changes.values())


def known_versions(root: Path) -> list[str]:
    """Return the folders of all dataset versions that DVC tracks here, whether or not their files are in place."""
    return sorted(pointer.relative_to(root).as_posix().removesuffix(".dvc") for pointer in root.glob("datasets/dsv_*.dvc"))


def commit_file(root: Path, path: str, message: str) -> bool:
    """Commit one file of ours to the project's git repository, where there is one that tracks the project.

    Returns:
        Whether anything was to do.

    Raises:
        BackendError: git is not installed, or failed.
    """
    if not _find_repository(root):
        return False
    _git(root, "add", "--", path)
    if not _status(root, path):
        return False
    _git(root, *_fallback_identity(root), "commit", "--quiet", "-m", f"tunesmith: {message}", "--", path)
    return True


def _pointers(root: Path, paths: Sequence[str]) -> list[str]:
    missing = [path for path in paths if not (root / f"{path}.dvc").exists()]
    if missing:
        raise BackendError(
            f"DVC must know a dataset version. Received: {', '.join(missing)}, without a .dvc file.", hint="tunesmith prepare, with data.dvc: true"
        )
    return [str(root / f"{path}.dvc") for path in paths]


@contextmanager
def _repository(root: Path, remote: str = "") -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield DVC's repository, and the options that name a remote; what DVC raises becomes an error of ours."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    try:
        from dvc.config import NoRemoteError
        from dvc.exceptions import DvcException
        from dvc.fs import RemoteMissingDepsError
        from dvc.repo import Repo
    except ImportError:
        raise MissingExtraError("dvc", "data") from None
    config = {"remote": {"tunesmith": {"url": remote}}} if "://" in remote or remote.startswith(("/", ".")) else {}
    options = {"remote": "tunesmith" if config else remote} if remote else {}
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        with Repo(str(root), config=config) as repo:
            yield repo, options
    except RemoteMissingDepsError as error:
        raise MissingExtraError(f"dvc-{remote.partition(':')[0] or 'REMOTE'}", "s3") from error
    except NoRemoteError as error:
        raise BackendError(
            f"A remote of DVC is needed. Received: {error}.", hint="Set data.dvc_remote in tunesmith.yaml, or type: dvc remote add --default NAME URL"
        ) from error
    except (DvcException, OSError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise BackendError(f"DVC failed: {error}{cause}.", hint="dvc remote list; dvc doctor") from error


def _add_to_dvc(root: Path, version: DatasetVersion, *, subdirectory: bool) -> None:
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        raise MissingExtraError("dvc", "data") from None
    try:
        # DVC tells its users to commit, which we do; what fails it raises.
        logging.getLogger("dvc").setLevel(logging.CRITICAL)
        with Repo(str(root)) if (root / ".dvc").is_dir() else Repo.init(str(root), subdir=subdirectory) as repo:
            repo.add(str(root / version.path))
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise BackendError(f"DVC could not add {version.path}: {error}{cause}.", hint=_WITHOUT) from error


def _find_repository(root: Path) -> bool:
    """Return whether git tracks the project's folder: it stands in a repository, and is not ignored there."""
    found = _run(root, "rev-parse", "--show-toplevel")
    if found.returncode == 0:
        return _is_top(root) or _run(root, "check-ignore", "--quiet", ".").returncode != 0
    if "not a git repository" in found.stderr:
        return False
    raise _failed("rev-parse", found.stderr)


def _is_top(root: Path) -> bool:
    return Path(_git(root, "rev-parse", "--show-toplevel")).resolve() == root.resolve()


def _is_known(root: Path, path: str) -> bool:
    """Return whether the last commit holds a path."""
    return _run(root, "cat-file", "-e", f"HEAD:./{path}").returncode == 0


def _status(root: Path, *paths: str) -> str:
    return _git(root, "status", "--porcelain", "--", *paths)


def _fallback_identity(root: Path) -> list[str]:
    """Return options that name an author where the user has configured none; GIT_AUTHOR_NAME and the like win over them."""
    defaults = {"user.name": "tunesmith", "user.email": "tunesmith@localhost"}
    return [part for key, value in defaults.items() if _run(root, "config", key).returncode for part in ("-c", f"{key}={value}")]


def _git(root: Path, *arguments: str) -> str:
    done = _run(root, *arguments)
    if done.returncode:
        verb = next(argument for argument in arguments if argument in _VERBS)
        raise _failed(verb, done.stderr or done.stdout)
    return done.stdout.strip()


_VERBS = ("init", "add", "commit", "status", "rev-parse")


def _failed(verb: str, output: str) -> BackendError:
    return BackendError(f"git {verb} failed: {output.strip()}", hint=_WITHOUT)


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(["git", *arguments], cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackendError("Versioning with DVC needs the program git, which is not installed.", hint=_WITHOUT) from None
