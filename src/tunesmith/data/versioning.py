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
from pathlib import Path

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
