"""What is known of a base model from its configuration: nothing is loaded, weights are counted on torch's meta device.

Facts are computed, not typed in. What a configuration does not say is None, and shown as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.errors import DataError

Attention = Literal["MHA", "GQA", "MQA", "MLA", "none"]

CACHE_BYTES = 2
"""Bytes a number in the cache of keys and values: bfloat16 or float16."""


@dataclass(frozen=True)
class BaseFacts:
    """Facts of a base model.

    Attributes:
        model_type: Family, as transformers names it.
        kind: decoder, encoder or encoder-decoder.
        parameters: All weights, tied ones once.
        embedding_parameters: Of them, in the vocabulary's table and the head over it.
        linear_parameters: Of them, in linear layers within the decoder or encoder layers: what a quantiser makes smaller.
        lora_parameters_per_rank: Weights that LoRA on all those layers adds for each rank.
        layers, hidden_size, vocabulary: As the configuration says.
        attention: MHA (a key head for each query head), GQA (for several), MQA (for all), MLA (compressed), or none.
        query_heads, key_heads: Heads a layer.
        cache_numbers: Numbers that a layer with attention keeps of a token.
        full_layers: Layers that attend to all tokens, and keep them all.
        window_layers: Layers that attend to the last `window` tokens alone.
        window: Tokens; None where no layer has one.
        context: Most tokens that positions are made for; None where the configuration does not say.
        experts: Experts a layer, of which `experts_per_token` compute; 0 where there are none.
    """

    model_type: str
    kind: str
    parameters: int
    embedding_parameters: int
    linear_parameters: int
    lora_parameters_per_rank: int
    layers: int
    hidden_size: int
    vocabulary: int
    attention: Attention
    query_heads: int
    key_heads: int
    cache_numbers: int
    full_layers: int
    window_layers: int
    window: int | None
    context: int | None
    experts: int
    experts_per_token: int

    @property
    def cache_bytes_per_token(self) -> int:
        """What a further token adds to the cache within the window: keys and values of all layers, in bytes. An encoder keeps none."""
        return 0 if self.kind == "encoder" else self.cache_numbers * CACHE_BYTES * (self.full_layers + self.window_layers)

    def cache_bytes(self, tokens: int) -> int:
        """Return what a text of this many tokens keeps: layers with a window no more than its tokens."""
        if self.kind == "encoder":
            return 0
        return self.cache_numbers * CACHE_BYTES * (self.full_layers * tokens + self.window_layers * min(tokens, self.window or tokens))


def read_facts(source: Path | Mapping[str, Any]) -> BaseFacts:
    """Work out the facts of a configuration.

    Args:
        source: Folder with config.json, or the values of one.

    Raises:
        DataError: there is no configuration, or transformers does not know its family.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        if isinstance(source, Path):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        else:
            given = dict(source)
            config = AutoConfig.for_model(given.pop("model_type"), **given)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"A base model needs a config.json of a family that transformers knows. Received: {error}", hint="tunesmith models --help") from None
    text = config.get_text_config()
    kind = _kind(config)
    with torch.device("meta"):
        model = (AutoModelForCausalLM if kind == "decoder" else AutoModel).from_config(config)
    # GPT-2's family has layers of a class of its own, whose weight is turned.
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D) and module is not _head(model)]
    stacked = [parameter for name, parameter in model.named_parameters() if ".experts." in name and parameter.ndim == 3]
    full, windowed = _layers(text)
    attention, query_heads, key_heads, numbers = _attention(text)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embedding = text.vocab_size * (getattr(text, "embedding_size", None) or text.hidden_size)
    return BaseFacts(
        model_type=config.model_type,
        kind=kind,
        parameters=parameters,
        embedding_parameters=embedding * (2 if _head(model) is not None and not _is_tied(model) else 1),
        linear_parameters=sum(module.weight.numel() for module in linear) + sum(parameter.numel() for parameter in stacked),
        lora_parameters_per_rank=sum(sum(module.weight.shape) for module in linear),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        attention=attention,
        query_heads=query_heads,
        key_heads=key_heads,
        cache_numbers=numbers,
        full_layers=full,
        window_layers=windowed,
        window=getattr(text, "sliding_window", None) or getattr(text, "local_attention", None) if windowed else None,
        context=getattr(text, "max_position_embeddings", None),
        experts=next((count for key in ("num_local_experts", "n_routed_experts", "num_experts") if (count := getattr(text, key, 0))), 0) or 0,
        experts_per_token=getattr(text, "num_experts_per_tok", 0) or 0,
    )


def _kind(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder-decoder"
    # BERT can be built as a decoder too; what a family is trained for decides.
    is_masked, is_causal = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES, config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "encoder" if is_masked or not is_causal else "decoder"


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


def _is_tied(model: Any) -> bool:
    return _head(model) is not None and _head(model).weight is model.get_input_embeddings().weight


def _layers(text: Any) -> tuple[int, int]:
    """Return how many layers attend to all tokens, and how many to a window."""
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return sum(kind == "full_attention" for kind in kinds), sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    has_window = bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True) is not False
    return (0, text.num_hidden_layers) if has_window else (text.num_hidden_layers, 0)


def _attention(text: Any) -> tuple[Attention, int, int, int]:
    """Return the kind of attention, query heads, key heads, and numbers kept of a token and layer."""
    query_heads = getattr(text, "num_attention_heads", 0) or 0
    if not query_heads:
        return "none", 0, 0, 0
    if compressed := getattr(text, "kv_lora_rank", None):
        return "MLA", query_heads, query_heads, compressed + text.qk_rope_head_dim
    key_heads = 1 if getattr(text, "multi_query", False) else getattr(text, "num_key_value_heads", None) or query_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // query_heads
    kind: Attention = "MHA" if key_heads == query_heads else "MQA" if key_heads == 1 else "GQA"
    return kind, query_heads, key_heads, 2 * key_heads * head_size
