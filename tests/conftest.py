"""Fixtures for all tests: a finished tiny project, copies of it to change, and the command line in this process."""

import json
import os
import shutil
import socket
import uuid
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


@pytest.fixture(scope="session")
def s3():
    """The address of an S3-compatible server on loopback."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("dvc_s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """A new bucket's URL; the environment says where the server is and who asks."""
    import boto3

    for name, value in {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    name = f"team-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
