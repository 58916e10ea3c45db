"""Fused kernels of a GPU: FlashAttention in the place of attention, Liger's RMSNorm and gated MLP in decoder layers.

Both are asked for by a key (`model.attn_implementation`, `train.use_liger_kernel`) and checked before anything is loaded; what this machine lacks is
named, never silently replaced. They change rounding, speed and memory, not what is computed. Liger's loss is not taken: logits are made at
supervised positions only, in parts, with or without it (`train/answer_loss.py`). Nor is its rotary embedding, which would be put in the
place of transformers' own for every model of the process; what is taken is bound to the one model.

Sources: Dao 2023, FlashAttention-2; Hsu et al. 2024, Liger Kernel.
"""

from __future__ import annotations

import inspect
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import BackendError, ConfigError
from tunesmith.models.settings import ModelSection

_FLASH, _LIGER = "model.attn_implementation: flash_attention_2", "train.use_liger_kernel"
_PACKAGES = {_FLASH: ("flash_attn", "pip install flash-attn --no-build-isolation"), _LIGER: ("liger_kernel", "pip install liger-kernel")}
_NEWER = "pip install --upgrade liger-kernel; or set train.use_liger_kernel: false."
_TAKEN = ("rms_norm", "swiglu", "geglu")
_OFF = {_FLASH: "set model.attn_implementation: auto", _LIGER: "set train.use_liger_kernel: false"}


def attention_of(section: ModelSection) -> str:
    """Return transformers' name of the attention that a section means on this machine.

    Eager where nothing is chosen and there is no GPU: at these lengths its backward pass is faster on the CPU than the fused one.
    """
    if section.attn_implementation != "auto":
        return section.attn_implementation
    return "sdpa" if torch.cuda.is_available() else "eager"


def refuse_missing_attention(section: ModelSection) -> None:
    """Refuse an attention that this machine cannot compute.

    Args:
        section: The section `model`; its `dtype` may be `auto`, which is bfloat16 on a GPU.

    Raises:
        ConfigError: FlashAttention without a GPU, or in float32.
        BackendError: FlashAttention is not installed.
    """
    if section.attn_implementation != "flash_attention_2":
        return
    _refuse_missing(_FLASH)
    if section.dtype == "float32":
        raise ConfigError(f"{_FLASH} computes in bfloat16. Received: model.dtype float32.", hint=f"Set model.dtype: auto, or {_OFF[_FLASH]}.")


def refuse_missing_liger(base: Path | None = None) -> None:
    """Refuse Liger's kernels where this machine cannot run them.

    Args:
        base: Folder of the base model; None asks for the machine alone.

    Raises:
        ConfigError: there is no GPU, or Liger has no kernels for the model.
        BackendError: the package is not installed, or is one for another transformers.
    """
    _refuse_missing(_LIGER)
    model_type = json.loads((base / "config.json").read_text(encoding="utf-8"))["model_type"] if base else None
    if model_type and model_type not in _liger_models():
        raise ConfigError(f"{_LIGER} is for models that Liger has kernels for. Received: {model_type}.", hint=f"S{_OFF[_LIGER][1:]}.")


def fuse(model: Any) -> None:
    """Give a model's decoder layers Liger's RMSNorm and gated MLP: those of this model, and of no other that the process loads.

    Args:
        model: A transformers model, before adapters are put into it.
    """
    put_in = _liger_models()[model.config.model_type]
    taken = {name: name in _TAKEN for name in inspect.signature(put_in).parameters if name != "model"}
    # Liger changes the instance, and the classes of the module for all that are made later: those are put back.
    module = vars(sys.modules[type(model).__module__])
    before = dict(module)
    try:
        put_in(model=model, **taken)
    finally:
        module.update(before)


def _liger_models() -> dict[str, Any]:
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:  # of another transformers: its table names every model that it has kernels for
        raise BackendError(f"{_LIGER} needs a liger-kernel that fits the transformers that is installed. Received: {error}.", hint=_NEWER) from error
    return dict(MODEL_TYPE_TO_APPLY_LIGER_FN)


def _refuse_missing(key: str) -> None:
    if not torch.cuda.is_available():
        raise ConfigError(f"{key} needs a GPU with CUDA. Received: a machine where torch finds none.", hint=f"S{_OFF[key][1:]}.")
    package, install = _PACKAGES[key]
    if find_spec(package) is None:
        raise BackendError(f"{key} needs the package '{package}', which is not installed.", hint=f"{install}; or {_OFF[key]}.")
