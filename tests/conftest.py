"""Fixtures for all tests: a finished tiny project, copies of it to change, and the command line in this process."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tunesmith import flow
from tunesmith.app.cli import main
from tunesmith.project import Project
from tunesmith.testing import tiny_project

# Nothing above imports torch or MLflow, which read these: one thread, no network, nothing told to anyone.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1")
for name in ("MLFLOW_TRACKING_URI", "TUNESMITH_API_KEY"):
    os.environ.pop(name, None)

# In CI the drawn examples are the same every time: a red run means that the change broke something.
if os.environ.get("CI"):
    settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
    settings.load_profile("ci")

WITHOUT_MLFLOW = "train.report_to=[]"  # a copied MLflow store still points to the artifacts of the first one


@dataclass(frozen=True)
class Finished:
    """A project that went through the whole loop once, and what came out."""

    project: Project
    outcome: flow.Outcome


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The finished tiny project. Not to be changed; `tiny` is a copy for that."""
    project = Project.load(tiny_project(tmp_path_factory.mktemp("finished") / "tiny"))
    return Finished(project, flow.run(project))


@pytest.fixture
def tiny(finished, tmp_path):
    """A copy of the finished tiny project, to change at will."""
    return Project.load(shutil.copytree(finished.project.root, tmp_path / "tiny"), [WITHOUT_MLFLOW])


@pytest.fixture(scope="session")
def unused(tmp_path_factory):
    """The folder of a tiny project that nothing was done with. Not to be changed."""
    return tiny_project(tmp_path_factory.mktemp("unused") / "tiny")


@pytest.fixture
def fresh(unused, tmp_path):
    """The folder of a tiny project that nothing was done with yet, to change at will."""
    return shutil.copytree(unused, tmp_path / "fresh")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `tunesmith ARGUMENTS` in this process."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr("sys.argv", ["tunesmith", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run
