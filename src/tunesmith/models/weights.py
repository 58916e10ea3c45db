"""What a run learnt, on disk, and how it joins its base model again.

    adapter_config.json, adapter_model.safetensors   PEFT: strategies lora, qlora and prefix
    config.json, model.safetensors                   a whole model: strategy full

Only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from tunesmith.errors import BackendError, MissingExtraError, NotFoundError
from tunesmith.models.encoder import empty_encoder, load_encoder
from tunesmith.models.kernels import attention_of
from tunesmith.models.settings import ModelSection

WEIGHTS_FOLDER = "weights"
_LAYER = re.compile(r"\.layers?\.(\d+)\.")
_FILES = ("adapter_model.safetensors", "model.safetensors")


def weights_file(folder: Path) -> Path:
    """Return the safetensors file of a folder of weights.

    Raises:
        NotFoundError: there is none.
    """
    for name in _FILES:
        if (folder / name).exists():
            return folder / name
    raise NotFoundError(f"{folder} must hold {' or '.join(_FILES)}. Received: neither.", hint="tunesmith train")


def fits_fast_pass(weights: Path) -> bool:
    """Whether the fast pass computes exactly what these weights are: a whole model, or LoRA without DoRA's magnitudes."""
    if weights_file(weights).name == "model.safetensors":
        return True
    config = json.loads((weights / "adapter_config.json").read_text(encoding="utf-8"))
    return config["peft_type"] == "LORA" and not config.get("use_dora")


def load_model(base: Path, section: ModelSection) -> Any:
    """Load a causal language model, or an encoder with its head, from a folder of safetensors; runs no code that comes with it.

    Args:
        base: Folder of the model.
        section: The section `model`, resolved: its precision, outputs of an encoder's head, and whether its linear layers are quantised to
            4 bits (NF4 with double quantisation, products in the precision).

    Raises:
        BackendError: transformers cannot read the folder.
        MissingExtraError: 4 bits are asked for without bitsandbytes.
    """
    logging.disable_progress_bar()
    dtype = getattr(torch, section.dtype)
    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention_of(section)}
    if section.load_in_4bit:
        settings["quantization_config"] = _four_bits(dtype)
    try:
        if section.num_labels:
            model = load_encoder(base, section.num_labels, dtype, attention_of(section))
        else:
            model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, trust_remote_code=False, **settings)
    except (OSError, ValueError) as error:
        raise BackendError(f"The base model in {base} cannot be loaded: {error}") from error
    if section.load_in_4bit:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # Its own CPU kernel repacks the weights for good at the first answer, and rounds their scales to bfloat16: it would answer
                # otherwise than the model that was trained.
                module.support_avx512bf16_for_cpu = False
        return model
    return model.to("cuda") if torch.cuda.is_available() else model


def empty_model(base: Path, section: ModelSection, dtype: torch.dtype) -> Any:
    """Return what `load_model` returns without its weights, on torch's meta device.

    Args:
        base: Folder of the model.
        section: The section `model`, resolved.
        dtype: Precision of the weights.
    """
    # FlashAttention computes nothing without a GPU's numbers; sdpa keeps as little for the way back.
    attention = "sdpa" if section.attn_implementation == "flash_attention_2" else attention_of(section)
    with torch.device("meta"):
        if section.num_labels:
            return empty_encoder(base, section.num_labels, dtype, attention)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=dtype, attn_implementation=attention)


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter or module is in, or None outside of all."""
    found = _LAYER.search(f"{name}.")
    return int(found[1]) if found else None


def _four_bits(dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401 - transformers asks for it later, in words of its own
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "", "qlora") from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def load_tuned(base: Path, section: ModelSection, weights: Path | None, *, is_trainable: bool = False) -> Any:
    """Load a base model with what a run learnt, or as it is.

    Args:
        base: Folder of the base model.
        section: The section `model`, resolved when it was trained.
        weights: Folder of the run's weights, or None for the base model as it is.
        is_trainable: Whether an adapter learns on; a whole model always can.

    Returns:
        A transformers model, with PEFT's modules in it or around it where the weights are an adapter.

    Raises:
        NotFoundError: the folder holds no weights.
        BackendError: they cannot be loaded.
    """
    if weights is None:
        return load_model(base, section)
    if weights_file(weights).name == "model.safetensors":
        return load_model(weights, section)
    from peft import PeftModel

    config = json.loads((weights / "adapter_config.json").read_text(encoding="utf-8"))
    is_prefix = config["peft_type"] == "PREFIX_TUNING"
    tuned = PeftModel.from_pretrained(load_model(base, section), weights, is_trainable=is_trainable and not is_prefix)
    if is_trainable and is_prefix:  # which PEFT refuses to load for training
        tuned.peft_config["default"].inference_mode = False
        tuned.prompt_encoder.requires_grad_(True)
    return tuned
