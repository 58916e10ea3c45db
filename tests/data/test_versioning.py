import subprocess
import sys

import pytest
from rows import record, records

from tunesmith.data import versioning
from tunesmith.data.freeze import freeze, read_records
from tunesmith.data.sifted import DROPPED_SCHEMA, no_rows
from tunesmith.data.versioning import version_with_dvc
from tunesmith.errors import BackendError, MissingExtraError
from tunesmith.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc")
RECORDS = records(record("text"))


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def no_identity(tmp_path_factory, monkeypatch):
    """A home without git settings, as in a fresh container."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(home.parent))
    for name in ("NAME", "EMAIL"):
        monkeypatch.delenv(f"GIT_AUTHOR_{name}", raising=False)
        monkeypatch.delenv(f"GIT_COMMITTER_{name}", raising=False)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def make(root, rows=RECORDS, dvc=False):
    store = Store.at(root.parent / "store.db")
    return freeze(rows, no_rows(DROPPED_SCHEMA), root, "complaints", ("yes", "no"), None, "first version", {}, store, dvc=dvc)


def committed(root):
    return set(git(root, "show", "--name-only", "--format=").splitlines())


def test_a_bare_folder_becomes_a_repository(root, capfd):
    version = make(root, dvc=True)
    assert committed(root) == {".dvc/config", ".dvc/.gitignore", ".dvcignore", "datasets/.gitignore", f"{version.path}.dvc"}
    assert git(root, "log", "-1", "--format=%an <%ae>%n%B") == f"tunesmith <tunesmith@localhost>\ntunesmith: dataset version {version.id}\n\nfirst version"
    assert git(root, "status", "--porcelain") == ""
    assert capfd.readouterr() == ("", "")
    again = make(root, records(record("text"), record("more", number=2)), dvc=True)
    assert committed(root) == {"datasets/.gitignore", f"{again.path}.dvc"}


def test_it_is_idempotent(root):
    version = make(root)
    assert version_with_dvc(root, version, "why")
    head = git(root, "rev-parse", "HEAD")
    assert not version_with_dvc(root, version, "why")
    assert git(root, "rev-parse", "HEAD") == head


def test_dvc_brings_the_bytes_back(root):
    version = make(root, dvc=True)
    for path in (root / version.path).iterdir():
        path.unlink()
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "--force", f"{version.path}.dvc"], cwd=root, check=True, capture_output=True)
    assert read_records(root, version).equals(RECORDS)


def test_what_the_user_has_staged_and_changed_stays(root):
    git(root, "init", "-q")
    git(root, "config", "user.name", "Ada")
    git(root, "config", "user.email", "ada@example.org")
    for name in ("known.txt", "staged.txt"):
        (root / name).write_text("old")
    git(root, "add", "known.txt")
    git(root, "commit", "-qm", "mine")
    (root / "known.txt").write_text("new")
    git(root, "add", "staged.txt")
    version = make(root, dvc=True)
    assert committed(root) == {".dvc/config", ".dvc/.gitignore", ".dvcignore", "datasets/.gitignore", f"{version.path}.dvc"}
    assert git(root, "log", "-1", "--format=%an") == "Ada"
    assert git(root, "status", "--porcelain").splitlines() == ["M known.txt", "A  staged.txt"]
    (root / ".dvc" / "config").write_text("[core]\n    remote = mine\n")
    make(root, records(record("other")), dvc=True)
    assert git(root, "diff", "--name-only").splitlines() == [".dvc/config", "known.txt"]


def test_a_project_inside_a_repository_uses_it(root):
    git(root.parent, "init", "-q")
    version = make(root, dvc=True)
    assert git(root, "rev-parse", "--show-toplevel") == str(root.parent.resolve())
    assert f"project/{version.path}.dvc" in committed(root)
    assert not version_with_dvc(root, version, "why")


def test_a_project_that_its_repository_ignores_gets_its_own(root):
    git(root.parent, "init", "-q")
    (root.parent / ".gitignore").write_text("project/\n")
    make(root, dvc=True)
    assert git(root, "rev-parse", "--show-toplevel") == str(root.resolve())


def test_a_repository_of_dvc_without_git_is_taken_over(root):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=root, check=True, capture_output=True)
    version = make(root, dvc=True)
    assert f"{version.path}.dvc" in committed(root)


@pytest.mark.parametrize("step", ["_add_to_dvc", "_fallback_identity"])
def test_a_kill_before_dvc_or_before_the_commit_is_repaired(root, monkeypatch, step):
    def kill(*_, **__):
        raise KeyboardInterrupt("killed")

    version = make(root)
    with monkeypatch.context() as patch:
        patch.setattr(versioning, step, kill)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            version_with_dvc(root, version, "why")
    assert version_with_dvc(root, version, "why")
    assert git(root, "status", "--porcelain") == ""
    assert f"{version.path}.dvc" in committed(root)


def test_failures_say_what_failed_and_what_to_do(root, monkeypatch):
    git(root, "init", "-q")
    (root / ".gitignore").write_text("datasets/\n")
    version = make(root)
    with pytest.raises(BackendError, match=f"DVC could not add {version.path}: .*ignored") as error:
        version_with_dvc(root, version, "why")
    assert "data.dvc" in error.value.hint
    (root / ".gitignore").unlink()
    hook = root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no commits on Friday\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(BackendError, match="git commit failed: no commits on Friday"):
        version_with_dvc(root, version, "why")
    hook.unlink()
    assert version_with_dvc(root, version, "why")


def test_missing_programs(root, monkeypatch):
    version = make(root)
    monkeypatch.setitem(sys.modules, "dvc.repo", None)
    with pytest.raises(MissingExtraError, match="needs the package 'dvc'") as error:
        version_with_dvc(root, version, "why")
    assert error.value.hint == "pip install 'tunesmith[data]'"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendError, match="needs the program git"):
        version_with_dvc(root, version, "why")
