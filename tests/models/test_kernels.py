"""Fused kernels: what is asked for is there, or it is said what is missing, before anything heavy."""

import sys
from types import ModuleType

import pytest
import torch

from tunesmith import flow
from tunesmith.errors import BackendError, ConfigError
from tunesmith.models import kernels
from tunesmith.models.engine import resolve
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model
from tunesmith.project import Project

FLASH = "model.attn_implementation=flash_attention_2"


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine whose torch finds a GPU, as far as anyone asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def section(base, **keys):
    return ModelSection(model_name_or_path=str(base), dtype="float32", **keys)


@pytest.mark.parametrize("command", ["plan", "train", "run"])
@pytest.mark.parametrize("setting", [FLASH, "train.use_liger_kernel=true"])
def test_what_needs_a_gpu_is_refused_before_any_data_is_read(fresh, cli, command, setting):
    (fresh / "data" / "records.csv").unlink()  # whoever reads it fails otherwise
    told = cli(command, "-C", fresh, "--set", setting)
    assert told.code == ConfigError.exit_code
    assert f"{setting.removesuffix('=true').replace('=', ': ')} needs a GPU with CUDA." in told.err
    assert "Set model.attn_implementation: auto." in told.err or "Set train.use_liger_kernel: false." in told.err


def test_kernels_of_stages_and_children_are_asked_for_too(fresh):
    stage = "train.stages=[{name: a, path: data/a.txt, train: {use_liger_kernel: true}}]"
    child = "train.adapters={document_types: {letter: {use_liger_kernel: true}}}"
    for setting in (stage, child):
        with pytest.raises(ConfigError, match="use_liger_kernel needs a GPU"):
            flow.refuse_missing_kernels(Project.load(fresh, [setting]))
    flow.refuse_missing_kernels(Project.load(fresh))


@pytest.mark.parametrize(("key", "package"), [("flash", "flash_attn"), ("liger", "liger_kernel")])
def test_a_package_that_is_not_installed_is_named(with_gpu, monkeypatch, unused, key, package):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    flash = section(unused / "base", attn_implementation="flash_attention_2")
    with pytest.raises(BackendError, match=rf"needs the package '{package}', which is not installed") as raised:
        kernels.refuse_missing_liger() if key == "liger" else kernels.refuse_missing_attention(flash)
    assert raised.value.hint.startswith("pip install ")


def test_flash_attention_is_not_for_float32(with_gpu, monkeypatch, unused):
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"computes in bfloat16. Received: model.dtype float32"):
        resolve(section(unused / "base", attn_implementation="flash_attention_2"), unused / "base")


def test_packs_are_not_for_flash_attention(fresh):
    with pytest.raises(ConfigError, match=r"keeps records apart by a mask.*flash_attention_2"):
        _ = Project.load(fresh, [FLASH, "train.packing=true"]).model_section


def test_a_chosen_attention_takes_the_plain_pass_and_is_part_of_the_id(unused):
    base = unused / "base"
    usual = resolve(section(base), base)
    assert (usual.forward, kernels.attention_of(usual)) == ("fast", "eager")
    assert "attn_implementation" not in usual.computing()
    chosen = resolve(section(base, attn_implementation="sdpa"), base)
    assert (chosen.forward, chosen.computing()["attn_implementation"]) == ("plain", "sdpa")
    assert load_model(base, chosen).config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match=r"its own attention, .* Received: .*attn_implementation sdpa"):
        resolve(section(base, attn_implementation="sdpa", forward="fast"), base)


# Liger, by a stand-in of its table: what it does to a model stays with that model


@pytest.fixture
def liger(monkeypatch):
    from transformers.models.llama import modeling_llama

    seen = {}

    def apply_liger_kernel_to_llama(rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None):
        seen.update(rope=rope, loss=cross_entropy or fused_linear_cross_entropy, rms_norm=rms_norm, swiglu=swiglu)
        modeling_llama.LlamaRMSNorm = None
        for layer in model.model.layers:
            layer.mlp.forward = layer.mlp.forward

    table = ModuleType("liger_kernel.transformers.monkey_patch")
    table.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_liger_kernel_to_llama}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, table.__name__, table)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    return seen


def test_liger_changes_one_model_and_leaves_the_loss_to_us(liger, unused):
    from transformers.models.llama import modeling_llama

    before = modeling_llama.LlamaRMSNorm
    model = load_model(unused / "base", section(unused / "base"))
    kernels.fuse(model)
    assert liger == {"rope": False, "loss": False, "rms_norm": True, "swiglu": True}
    assert "forward" in vars(model.model.layers[0].mlp)
    assert modeling_llama.LlamaRMSNorm is before
    other = load_model(unused / "base", section(unused / "base"))
    assert "forward" not in vars(other.model.layers[0].mlp)


def test_a_model_without_kernels_is_refused(liger, with_gpu, unused, tmp_path):
    kernels.refuse_missing_liger(unused / "base")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"models that Liger has kernels for. Received: bert"):
        kernels.refuse_missing_liger(tmp_path)


def test_a_liger_for_another_transformers_is_told(liger, with_gpu, monkeypatch, unused):
    """As liger-kernel 0.6 beside transformers 5: it asks for a class that is gone."""
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", ModuleType("liger_kernel.transformers.monkey_patch"))
    with pytest.raises(BackendError, match=r"fits the transformers that is installed. Received: cannot import name"):
        kernels.refuse_missing_liger(unused / "base")


def test_a_key_that_came_later_leaves_ids_as_they_were_while_it_is_off():
    from tunesmith.flow.training import what_is_learnt
    from tunesmith.train.settings import TrainSection

    stages = {"stages": [{"name": "a", "path": "x", "train": {}}]}
    off, on = what_is_learnt(TrainSection(**stages)), what_is_learnt(TrainSection(use_liger_kernel=True))
    assert "gradient_checkpointing" not in off
    assert "use_liger_kernel" not in off
    assert "use_liger_kernel" not in off["stages"][0]["train"]
    assert on["use_liger_kernel"]
