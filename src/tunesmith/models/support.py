"""Which programs can run or quantise a family: asked of the libraries that are installed here. What cannot be asked is unknown (None)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tunesmith.models.base_facts import BaseFacts

_GGUF_NAMES = {
    "mistral": "llama",
    "mixtral": "llama",
    "smollm": "llama",
    "gemma3text": "gemma3",
    "deepseekv2": "deepseek2",
    "deepseekv3": "deepseek2",
    "phi": "phi2",
    "cohere": "commandr",
    "roberta": "bert",
    "xlmroberta": "bert",
    "qwen2moe": "qwen2moe",
}
"""How the converter of llama.cpp names families that transformers names otherwise (convert_hf_to_gguf.py); spelled without signs."""


def support_of(facts: BaseFacts, hub_name: str | None = None) -> dict[str, Any]:
    """Return what is known of the programs that take the family.

    Args:
        facts: The model's facts.
        hub_name: Name on the hub to ask about; None asks nobody.

    Returns:
        `transformers` and `llama_cpp` (GGUF), True or False; `vllm`, `onnx` and `awq_gptq`, None where their library is not installed; `hub`,
        `last_modified`, `downloads`, `likes` and `adapters`, or None where the hub was not asked or did not answer.
    """
    return {
        "transformers": True,  # or its configuration would not have been read
        "llama_cpp": _has_gguf(facts.model_type),
        "vllm": _ask(_vllm, facts.model_type),
        "onnx": _ask(_onnx, facts.model_type),
        "awq_gptq": _ask(_gptq, facts.model_type),
        "hub": _hub(hub_name) if hub_name else None,
    }


def _has_gguf(model_type: str) -> bool:
    from gguf import MODEL_ARCH_NAMES

    spelled = _plain(model_type)
    return _GGUF_NAMES.get(spelled, spelled) in {_plain(name) for name in MODEL_ARCH_NAMES.values()}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _ask(library: Callable[[str], bool], model_type: str) -> bool | None:
    try:
        return library(model_type)
    except ImportError:
        return None


def _vllm(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm import ModelRegistry

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) in ModelRegistry.get_supported_archs()


def _onnx(model_type: str) -> bool:
    from optimum.exporters.tasks import TasksManager

    return model_type.replace("-", "_") in TasksManager.get_supported_model_type_for_task("text-generation", "onnx")


def _gptq(model_type: str) -> bool:
    from gptqmodel.models.auto import MODEL_MAP

    return model_type in MODEL_MAP


def _hub(name: str) -> dict[str, Any] | None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        found = api.model_info(name, timeout=10)
        adapters = sum(1 for _ in api.list_models(filter=f"base_model:adapter:{name}", limit=1000))
    except (HfHubHTTPError, OSError, ValueError):
        return None
    return {"last_modified": str(found.last_modified), "downloads": found.downloads, "likes": found.likes, "adapters": adapters}
