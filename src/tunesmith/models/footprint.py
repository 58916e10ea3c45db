"""How large a model is, from its configuration alone. Nothing is loaded: parameters are counted on torch's meta device.

What memory its training takes is counted by `train/dry_run.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import empty_model, layer_of


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model with what a strategy adds.

    Attributes:
        parameters: All weights, adapters included.
        trainable: Weights that training changes.
        flops_per_token: Multiplications and additions of one training step a token: forward, and backward to the inputs.
    """

    parameters: int
    trainable: int
    flops_per_token: float


def measure_footprint(base: Path, section: ModelSection, make_trainable: Callable[[Any], Any]) -> Footprint:
    """Count a model's parameters and sizes without loading its weights.

    Args:
        base: Folder of the base model.
        section: The section `model`, resolved.
        make_trainable: Makes a model trainable as the strategy does.
    """
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = make_trainable(empty_model(base, section, torch.float32))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = (layer_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad)
    trained_layers = config.num_hidden_layers - min((layer for layer in trained if layer is not None), default=0)
    embedding = config.vocab_size * config.hidden_size
    inner = parameters - embedding * (1 if section.num_labels or config.tie_word_embeddings else 2)
    return Footprint(
        parameters=parameters,
        trainable=trainable,
        # 2 a weight forward and 2 backward to the input, from the lowest adapter up; adapters take 2 more for their own gradient.
        flops_per_token=2.0 * inner * (1 + trained_layers / config.num_hidden_layers) + 2.0 * trainable,
    )
