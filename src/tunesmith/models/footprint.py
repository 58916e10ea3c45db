"""How large a model is, and how much memory its passes hold, from its configuration alone.

Nothing is loaded: parameters are counted on torch's meta device. The activation formula counts the tensors that the fast
pass saves for its backward pass (`fast_llama._DecoderLayer`); the plain pass of transformers and PEFT saves about
`_PLAIN_FACTOR` times as much, measured on a Llama of 135 million parameters. All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.models.settings import ModelSection

# By the compute dtype's size: PEFT keeps a float32 copy of each adapter's input beside bfloat16 activations.
_PLAIN_FACTOR = {2: 2.9, 4: 1.9}
_FLOAT32 = 4


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model with adapters.

    Attributes:
        parameters: All weights, adapters included.
        trainable: Weights that training changes.
        vocabulary: Entries of the vocabulary.
        weight_bytes: Frozen weights in the compute dtype, with the float32 head of the fast pass.
        optimizer_bytes: Adapters, their gradients and AdamW's two moments, in float32.
        flops_per_token: Multiplications and additions of one training step a token: forward, and backward to the inputs.
    """

    parameters: int
    trainable: int
    vocabulary: int
    weight_bytes: int
    optimizer_bytes: int
    flops_per_token: float
    _config: Any
    _item_bytes: int
    _is_fast: bool
    _trained_layers: int

    def activation_bytes(self, n_tokens: int, n_columns: int) -> int:
        """Return what one pass saves for its backward pass.

        Args:
            n_tokens: Tokens of the pass, padding and prefix included.
            n_columns: Keys that a token attends to at most.
        """
        config = self._config
        heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        # Two norms save their input and output, attention its queries, output, keys, values and weights, the MLP four inner tensors.
        widths = 4 * config.hidden_size + 2 * heads * head_dim + 2 * kv_heads * head_dim + heads * n_columns + 4 * config.intermediate_size
        saved = n_tokens * widths * self._item_bytes * self._trained_layers
        return int(saved if self._is_fast else saved * _PLAIN_FACTOR[self._item_bytes])

    def logit_bytes(self, n_positions: int) -> int:
        """Return what the logits of a pass, their softmax and their gradient take: three float32 matrices over the vocabulary."""
        return 3 * n_positions * self.vocabulary * _FLOAT32


def measure_footprint(base: Path, section: ModelSection, make_trainable: Callable[[Any], Any]) -> Footprint:
    """Count a model's parameters and sizes without loading its weights.

    Args:
        base: Folder of the base model.
        section: The section `model`, resolved.
        make_trainable: Makes a model trainable as the strategy does.
    """
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = make_trainable(AutoModelForCausalLM.from_config(config))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = (name.partition(".layers.")[2].partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad)
    trained_layers = config.num_hidden_layers - min((int(layer) for layer in trained if layer), default=0)
    embedding = config.vocab_size * config.hidden_size
    inner = parameters - embedding * (1 if config.tie_word_embeddings else 2)
    item_bytes = getattr(torch, section.dtype).itemsize
    is_fast = section.forward == "fast"
    return Footprint(
        parameters=parameters,
        trainable=trainable,
        vocabulary=config.vocab_size,
        weight_bytes=(parameters - trainable) * item_bytes + (embedding * _FLOAT32 if is_fast and item_bytes < _FLOAT32 else 0),
        optimizer_bytes=4 * trainable * _FLOAT32,
        # 2 a weight forward and 2 backward to the input, from the lowest adapter up; adapters take 2 more for their own gradient.
        flops_per_token=2.0 * inner * (1 + trained_layers / config.num_hidden_layers) + 2.0 * trainable,
        _config=config,
        _item_bytes=item_bytes,
        _is_fast=is_fast,
        _trained_layers=trained_layers,
    )
