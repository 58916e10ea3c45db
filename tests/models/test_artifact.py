import json

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from tunesmith.errors import DataError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.models.artifact import MANIFEST, ModelFile, open_artifact, write_artifact
from tunesmith.models.catalog import resolve_base
from tunesmith.models.engine import Engine
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model

CALIBRATOR = {"method": "temperature", "temperature": 1.5}


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "weights"
    model = load_model(base, ModelSection(model_name_or_path=str(base), dtype="float32"))
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


@pytest.fixture
def model_file(base, task, prompt):
    section = ModelSection(model_name_or_path=base.name, dtype="float32", forward="fast")
    return ModelFile(
        base_sha256=resolve_base(section, base.parent).sha256,
        license="Apache-2.0",
        source="a test",
        model=section,
        task=task,
        max_length=prompt.max_length,
        truncate_keep="ends",
    )


@pytest.fixture
def written(tmp_path, adapter, model_file, prompt):
    folder = tmp_path / "mdl_1"
    digest = write_artifact(folder, weights=adapter, model=model_file, calibrator=CALIBRATOR, chat_template=prompt.tokenizer.chat_template, card="# Card\n")
    return folder, digest


def test_what_is_written_is_read_again(written, model_file, base, adapter, prompt):
    folder, digest = written
    artifact = open_artifact(folder, digest)
    assert artifact.model == model_file
    assert artifact.calibrator == CALIBRATOR
    assert digest == file_sha256(folder / MANIFEST)
    assert set(json.loads((folder / MANIFEST).read_text())) == {
        *("README.md", "weights/README.md", "weights/adapter_config.json", "weights/adapter_model.safetensors"),
        *("calibrator.json", "chat_template.jinja", "model.json"),
    }
    texts = ["my mortgage", "the credit card " * 60]
    direct = Engine(base, prompt, model_file.model, weights=adapter).score(texts[:1])
    np.testing.assert_allclose(artifact.engine(base.parent).score(texts)[:1], direct, atol=1e-5)


def test_writing_again_replaces_the_folder_whole(written, adapter, model_file):
    folder, first = written
    (folder / "stray").touch()
    second = write_artifact(folder, weights=adapter, model=model_file, calibrator={}, chat_template="", card="")
    assert second != first
    assert open_artifact(folder, second).calibrator == {}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def change(folder):
    (folder / "calibrator.json").write_text("{}")
    return "calibrator.json"


def remove(folder):
    (folder / "README.md").unlink()
    return "README.md"


def add(folder):
    (folder / "weights" / "code.py").write_text("print('hello')")
    return "weights/code.py"


def flip_a_bit(folder):
    weights = folder / "weights" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    return "weights/adapter_model.safetensors"


def change_with_the_manifest(folder):
    (folder / "calibrator.json").write_text("{}")
    digests = json.loads((folder / MANIFEST).read_text()) | {"calibrator.json": file_sha256(folder / "calibrator.json")}
    (folder / MANIFEST).write_text(json.dumps(digests))
    return MANIFEST


@pytest.mark.parametrize("damage", [change, remove, add, flip_a_bit, change_with_the_manifest])
def test_a_damaged_folder_is_refused_by_name(written, damage):
    folder, digest = written
    name = damage(folder)
    with pytest.raises(DataError, match=rf"must match its manifest. Changed, missing or added: {name}\."):
        open_artifact(folder, digest)


def test_there_is_no_such_folder(tmp_path):
    with pytest.raises(NotFoundError, match="No model version in"):
        open_artifact(tmp_path / "mdl_0", "")


def test_other_weights_below_the_adapter_are_refused(tmp_path, adapter, model_file, base):
    other = model_file.model_copy(update={"base_sha256": "f" * 64})
    digest = write_artifact(tmp_path / "mdl", weights=adapter, model=other, calibrator={}, chat_template="", card="")
    with pytest.raises(DataError, match="needs the base model with sha256 ffff"):
        open_artifact(tmp_path / "mdl", digest).engine(base.parent)


def test_another_chat_template_is_refused(tmp_path, adapter, model_file, base):
    digest = write_artifact(tmp_path / "mdl", weights=adapter, model=model_file, calibrator={}, chat_template="other", card="")
    with pytest.raises(DataError, match="chat template must be the one that mdl was trained with"):
        open_artifact(tmp_path / "mdl", digest).engine(base.parent)
