"""Registries of other libraries, read from stand-ins that may not be imported. Their forms are those of vLLM 0.33.0, optimum-onnx 0.1.0,
GPTQModel 7.7.0 and llm-compressor 0.14.0.1."""

import json
import sys
from dataclasses import replace
from importlib.resources import files
from textwrap import dedent

import pytest

from tunesmith.models.base_facts import read_facts
from tunesmith.models.support import support_of

FAMILIES = json.loads(files("tunesmith.models").joinpath("families.json").read_text(encoding="utf-8"))
ASKED = ("vllm", "onnx", "gptq", "awq")

VLLM = """
    import torch_of_another_version
    _TEXT_GENERATION_MODELS = {
        # [Decoder-only]
        "LlamaForCausalLM": ("llama", "LlamaForCausalLM"),
        "Gemma3ForCausalLM": ("gemma3", "Gemma3ForCausalLM"),
    }
    _EMBEDDING_MODELS = {
        "BertModel": ("bert", "BertEmbeddingModel"),
        **{k: (mod, arch) for k, (mod, arch) in _TEXT_GENERATION_MODELS.items() if arch == "LlamaForCausalLM"},
    }
    _SEQUENCE_CLASSIFICATION_MODELS = {"BertForSequenceClassification": ("bert", "BertForSequenceClassification")}
    _VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS, **_SEQUENCE_CLASSIFICATION_MODELS}
    class ModelRegistry: ...
"""
OPTIMUM = """
    COMMON_TEXT_TASKS = ["feature-extraction", "text-classification"]
    COMMON_TEXT_GENERATION_TASKS = ["feature-extraction", "text-generation"]
    COMMON_TEXT2TEXT_GENERATION_TASKS = [*COMMON_TEXT_GENERATION_TASKS, "text2text-generation"]
    register_tasks_manager_onnx = TasksManager.create_register("onnx")
    @register_tasks_manager_onnx("bert", *COMMON_TEXT_TASKS)
    class BertOnnxConfig(TextEncoderOnnxConfig): ...
    @register_tasks_manager_onnx("xlm-roberta", *COMMON_TEXT_TASKS)
    @register_tasks_manager_onnx("splinter", *["feature-extraction"])
    class RobertaOnnxConfig(TextEncoderOnnxConfig): ...
    @register_tasks_manager_onnx("llama", *[*COMMON_TEXT_GENERATION_TASKS, "text-classification"])
    class LlamaOnnxConfig(TextDecoderOnnxConfig): ...
    @register_tasks_manager_onnx("gemma3_text", *COMMON_TEXT_GENERATION_TASKS, "text-classification")
    class GemmaOnnxConfig(LlamaOnnxConfig): ...
    @register_tasks_manager_onnx("t5", *COMMON_TEXT2TEXT_GENERATION_TASKS)
    class T5OnnxConfig(TextSeq2SeqOnnxConfig): ...
"""
GPTQMODEL = """
    from .definitions.llama import LlamaQModel
    MODEL_MAP = {"llama": LlamaQModel, "mistral": LlamaQModel}  # 100% llama clone
    if IS_NEW:
        MODEL_MAP["gemma3_text"] = Gemma3QModel
    SUPPORTED_MODELS = list(MODEL_MAP.keys())
"""
COMPRESSOR = """
    AWQ_MAPPING_REGISTRY: dict[str, list[AWQMapping]] = {"LlamaForCausalLM": default_mappings, "Gemma3ForCausalLM": _gemma3_mappings}
"""
SOURCES = {
    "vllm/model_executor/models/registry.py": VLLM,
    "optimum/exporters/onnx/model_configs.py": OPTIMUM,
    "gptqmodel/models/auto.py": GPTQMODEL,
    "llmcompressor/modifiers/transform/awq/mappings.py": COMPRESSOR,
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install stand-ins whose import is an error; optimum is a namespace without an __init__, as it is."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(sources):
        for name, source in sources.items():
            file, package = tmp_path / name, name.split("/")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(source), encoding="utf-8")
            if package != "optimum":
                (tmp_path / package / "__init__.py").write_text("raise ImportError('it wants a GPU')\n", encoding="utf-8")

    return put


def told(model_type, kind):
    facts = replace(read_facts(FAMILIES["smollm2-135m"]["config"]), model_type=model_type, kind=kind)
    return {name: support_of(facts)[name] for name in ASKED}


@pytest.mark.parametrize(
    ("model_type", "kind", "expected"),
    [
        ("llama", "decoder", (True, True, True, True)),
        ("gemma3_text", "decoder", (True, True, True, True)),
        ("bert", "encoder", (True, True, False, False)),
        ("xlm-roberta", "encoder", (False, True, False, False)),
        ("splinter", "encoder", (False, False, False, False)),  # exported, but not for sorting texts
        ("t5", "encoder-decoder", (False, True, False, False)),
        ("biogpt", "decoder", (False, False, False, False)),
    ],
)
def test_a_registry_is_read_without_importing_its_library(install, model_type, kind, expected):
    install(SOURCES)
    assert told(model_type, kind) == dict(zip(ASKED, expected, strict=True))
    assert not {"vllm", "optimum", "gptqmodel", "llmcompressor"} & sys.modules.keys()


def test_a_library_that_is_not_installed_is_unknown():
    assert told("llama", "decoder") == dict.fromkeys(ASKED)


@pytest.mark.parametrize(
    "source",
    [
        "MODEL_MAP = build()",
        "MODEL_MAP = {**build(), 'llama': 1}",
        "MODEL_MAP = {KEY: 1}",
        "MODEL_MAP = {**MODEL_MAP}",
        "OTHER = {'llama': 1}",
        "match type 1: not Python",
        "",
    ],
)
def test_a_registry_that_cannot_be_read_is_unknown(install, source):
    install({"gptqmodel/models/auto.py": source})
    assert told("llama", "decoder")["gptq"] is None


def test_an_exporter_whose_tasks_cannot_be_read_is_unknown(install):
    install({"optimum/exporters/onnx/model_configs.py": '@register_tasks_manager_onnx("llama", *tasks())\nclass A: ...\n'})
    assert told("llama", "decoder")["onnx"] is None
    install({"optimum/exporters/onnx/model_configs.py": "class A: ...\n"})
    assert told("llama", "decoder")["onnx"] is None


def test_an_older_layout_is_found(install):
    install({"llmcompressor/modifiers/awq/mappings.py": COMPRESSOR})
    assert told("llama", "decoder")["awq"] is True
