"""Which programs can run or quantise a family: looked up in the libraries that are installed here. What cannot be looked up is unknown (None).

vLLM, optimum-onnx, GPTQModel and llm-compressor each keep a registry of the families that they know. It is read from the source of
the installed package, which is not imported: they want other versions of torch and transformers than this program, and most want a
GPU, so that they could be asked in no environment that this runs in. `pip install --no-deps` is enough to be looked into. A registry
that is written in a way which cannot be read without running it is unknown, never a no.

A no means that the library has no code of its own for the family: vLLM may still run it by transformers' own code, and
llm-compressor may still try the layers of a Llama.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
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
        `transformers` and `llama_cpp` (GGUF), True or False; `vllm`, `onnx` (optimum-onnx), `gptq` (GPTQModel) and `awq` (llm-compressor), None where
        their library is not installed; `hub`, `last_modified`, `downloads`, `likes` and `adapters`, or None where the hub was not asked or did not answer.
    """
    architecture = _architecture(facts)
    return {
        "transformers": True,  # or its configuration would not have been read
        "llama_cpp": _has_gguf(facts.model_type),
        "vllm": _is_in(_registry("vllm", "_VLLM_MODELS", "model_executor/models/registry.py"), architecture),
        "onnx": _onnx(facts),
        "gptq": _is_in(_registry("gptqmodel", "MODEL_MAP", "models/auto.py"), facts.model_type),
        "awq": _is_in(_registry("llmcompressor", "AWQ_MAPPING_REGISTRY", "modifiers/transform/awq/mappings.py", "modifiers/awq/mappings.py"), architecture),
        "hub": _hub(hub_name) if hub_name else None,
    }


def _has_gguf(model_type: str) -> bool:
    from gguf import MODEL_ARCH_NAMES

    spelled = _plain(model_type)
    return _GGUF_NAMES.get(spelled, spelled) in {_plain(name) for name in MODEL_ARCH_NAMES.values()}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _architecture(facts: BaseFacts) -> str | None:
    """Return the class that a family has for what it is tuned to do, as transformers names it."""
    from transformers.models.auto import modeling_auto as auto

    mappings = {
        "decoder": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "encoder-decoder": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    found: str | None = mappings[facts.kind].get(facts.model_type)
    return found


def _is_in(registry: frozenset[str] | None, name: str | None) -> bool | None:
    return None if registry is None else name in registry


_ONNX_REGISTERS = "register_tasks_manager_onnx"
_ONNX_TASKS = {"decoder": "text-generation", "encoder": "text-classification", "encoder-decoder": "text2text-generation"}


def _onnx(facts: BaseFacts) -> bool | None:
    """Whether optimum-onnx exports the family for its task: it registers a family by a decorator that names it and its tasks."""
    tree = _source("optimum", "exporters/onnx/model_configs.py")
    if tree is None:
        return None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == _ONNX_REGISTERS]
    own = [call for call in calls if isinstance(named := call.args[0], ast.Constant) and _plain(str(named.value)) == _plain(facts.model_type)]
    try:
        tasks = {task for call in own for argument in call.args[1:] for task in _strings(argument, _assigned(tree))}
    except _UnreadableError:
        return None
    return _ONNX_TASKS[facts.kind] in tasks if calls else None


def _registry(package: str, name: str, *files: str) -> frozenset[str] | None:
    """Return the names in a registry, a dict at the top level of one of these files of an installed package; None where there is none to be read."""
    for file in files:
        if (tree := _source(package, file)) and name in (assigned := _assigned(tree)):
            try:
                return frozenset(_strings(assigned[name], assigned)) | frozenset(_added(tree, name))
            except _UnreadableError:
                return None
    return None


def _source(package: str, file: str) -> ast.Module | None:
    """Return a file of an installed package, parsed; the package is not imported."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / file).is_file():
            try:
                return ast.parse(path.read_bytes())
            except SyntaxError:  # written for a newer Python
                return None
    return None


class _UnreadableError(Exception):
    """A registry is written in a way that only running it would tell."""


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """Return what names are given at the top level of a module, the last time where several."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
    return found


def _strings(node: ast.expr, assigned: Mapping[str, ast.expr]) -> Iterator[str]:
    """Yield the texts of a list, the keys of a dict, and those of what either unpacks. Of a dict's items that are filtered, all keys count.

    Raises:
        _UnreadableError: something in it is neither.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Starred):
        yield from _strings(node.value, assigned)
    elif isinstance(node, ast.List | ast.Tuple | ast.Set):
        for element in node.elts:
            yield from _strings(element, assigned)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield from _strings(value if key is None else key, assigned)  # without a key it is a dict that is unpacked
    elif isinstance(node, ast.DictComp) and isinstance(items := node.generators[0].iter, ast.Call) and isinstance(items.func, ast.Attribute):
        yield from _strings(items.func.value, assigned)  # for key, value in OTHER.items() if ...: whatever the condition
    elif isinstance(node, ast.Name) and node.id in assigned:
        yield from _strings(assigned[node.id], {name: value for name, value in assigned.items() if name != node.id})
    else:
        raise _UnreadableError


def _added(tree: ast.Module, name: str) -> Iterator[str]:
    """Yield the keys that are put into a dict one by one, such as those that a newer transformers is needed for."""
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id == name and isinstance(target.slice, ast.Constant):
                yield str(target.slice.value)


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
