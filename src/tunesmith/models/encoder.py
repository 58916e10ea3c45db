"""An encoder with a classification head: all in which it differs from a model that writes its answers.

An encoder (BERT, RoBERTa, DistilBERT, ModernBERT, MiniLM, ...) reads the text in both directions and writes nothing. Its head, which
comes new with every run, has one output a label. It takes the place of a language model without changing what is around it:

    prompt    the text alone between the encoder's own special tokens; no instruction, no chat template
    answer    one "token", which is the number of the label
    logits    of labels in place of tokens, one row of them a text, whatever `positions` asks for

The architecture and its head are those of transformers' AutoModelForSequenceClassification, so that what is learnt loads anywhere.
Nothing is dropped out in training: passes run side by side, and what they would draw depended on which of them comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging

from tunesmith.errors import BackendError, ConfigError
from tunesmith.models.batch import Batch
from tunesmith.models.tokens import Prompt

_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_POOLER = "pooler"


def is_encoder(config: Any) -> bool:
    """Whether a model's configuration is that of an encoder: read in both directions, and without a head that writes.

    Args:
        config: A transformers configuration.
    """
    if config.is_encoder_decoder or getattr(config, "is_decoder", False) or any(name.endswith(_WRITES) for name in config.architectures or ()):
        return False
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


@dataclass(frozen=True)
class EncoderPrompt(Prompt):
    """Token ids of texts as an encoder reads them; a label's answer is its number.

    Args:
        tokenizer, task, max_length, keep: As in `Prompt`.
        n_positions: Most tokens that the encoder can read.

    Raises:
        ConfigError: the task is no classification, max_length is more than the encoder reads or leaves no room for a text, or the
            tokenizer puts no special tokens around a text.
    """

    n_positions: int = 512

    def __post_init__(self) -> None:
        if self.task.type != "classification":
            raise ConfigError(f"An encoder picks labels and writes nothing: task.type must be classification. Received: {self.task.type}.")
        if self.max_length > self.n_positions:
            raise ConfigError(
                f"train.max_length must be at most the {self.n_positions} tokens that this encoder reads. Received: {self.max_length}.",
                hint=f"tunesmith plan --set train.max_length={self.n_positions}",
            )
        if not self.prefix + self.suffix:
            raise ConfigError("An encoder's tokenizer must put special tokens around a text. Received: one that puts none.")
        self._check_budget()

    def render(self, text: str) -> str:
        """Return the text itself."""
        return text

    @cached_property
    def _special(self) -> tuple[list[int], list[int]]:
        """Return the token ids that the tokenizer puts before and after a text."""
        found = self._encoders[True].encode("a")
        own = [at for at, is_special in enumerate(found.special_tokens_mask) if not is_special]
        return found.ids[: own[0]], found.ids[own[-1] + 1 :]

    @cached_property
    def prefix(self) -> list[int]:
        """Token ids before the text."""
        return self._special[0]

    @cached_property
    def suffix(self) -> list[int]:
        """Token ids after the text."""
        return self._special[1]

    @cached_property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Per label, its number."""
        return tuple((number,) for number in range(len(self.task.labels)))

    @cached_property
    def text_budget(self) -> int:
        """Most tokens that a text may have."""
        return self.max_length - len(self.prefix) - len(self.suffix)

    def round_trips(self, texts: Sequence[str]) -> bool:
        """Whether encoding in pieces gives the ids that the tokenizer gives for a whole text. Texts that hold special tokens are passed over."""
        special = set(self.tokenizer.all_special_tokens)
        plain = [text for text in texts if not any(token in text for token in special)]
        whole = [encoding.ids for encoding in self._encoders[True].encode_batch(plain)]
        return whole == [self.prefix + ids + self.suffix for ids in self.encode(plain)]


def positions_of(config: Any, tokenizer: Any) -> int:
    """Return the most tokens that an encoder reads, special ones included."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def encoder_config(base: Path, n_labels: int) -> Any:
    """Return the configuration of an encoder with a head of so many outputs and without dropout."""
    config = AutoConfig.from_pretrained(base, num_labels=n_labels)
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def load_encoder(base: Path, n_labels: int, dtype: torch.dtype, attention: str) -> Any:
    """Load an encoder with its head; of a base model the head is drawn from torch's random state.

    Args:
        base: Folder of the base model, or of a whole model that was learnt.
        n_labels: Outputs of the head.
        dtype: Precision of the encoder.
        attention: Name of an implementation that transformers has.

    Returns:
        A transformers model whose head is in float32.

    Raises:
        BackendError: weights of the encoder itself are missing.
        OSError, ValueError: transformers cannot read the folder.
    """
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that the head is new
    try:
        model, told = AutoModelForSequenceClassification.from_pretrained(
            base,
            config=encoder_config(base, n_labels),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,  # in which a new head is drawn: in bfloat16 a truncated normal is far from one
            attn_implementation=attention,
        )
    finally:
        logging.set_verbosity(said)
    heads = head_of(model)
    missing = sorted(name for name in told["missing_keys"] if not set(name.split(".")) & set(heads))
    if missing:
        raise BackendError(f"An encoder's weights must be whole but for its head. Missing in {base}: {', '.join(missing[:3])}.")
    return _with_precision(model, dtype)


def empty_encoder(base: Path, n_labels: int, dtype: torch.dtype, attention: str) -> Any:
    """Return the same without weights, on the device that is the default."""
    config = encoder_config(base, n_labels)
    return _with_precision(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, attn_implementation=attention), dtype)


def _with_precision(model: Any, dtype: torch.dtype) -> Any:
    """Return the model in a precision, but its head in float32: in bfloat16 logits would have steps of 1/32, and labels would tie."""
    kept = {id(tensor) for name in head_of(model) for tensor in _module(model, name).parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)
    return model


def _module(model: Any, name: str) -> Any:
    return getattr(model.base_model if name == _POOLER else model, name)


def head_of(model: Any) -> list[str]:
    """Return the names of the modules that are the head: what stands beside the encoder, and its pooler, which some base models come without."""
    beside = [name for name, module in model.named_children() if name != model.base_model_prefix and list(module.parameters())]
    return [*beside, *([_POOLER] if getattr(model.base_model, _POOLER, None) is not None else [])]


class EncoderForward:
    """The pass of transformers: the encoder in the compute dtype, its head in float32.

    Args:
        model: A transformers model with a classification head, or PEFT's around one.
        dtype: What the encoder's matrix products are computed in.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        encoder = self._model.base_model
        encode = encoder.forward

        @wraps(encode)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(self._model.device.type, dtype, enabled=dtype != torch.float32):
                outputs = encode(*args, **kwargs)
            for name, value in outputs.items():
                outputs[name] = value.float() if isinstance(value, Tensor) else value
            return outputs

        encoder.forward = forward

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        """Return the logits of labels, shape (n_rows, n_labels) in float32, or of the labels whose numbers are given."""
        states = self.states(batch)
        return states if vocabulary is None else states[:, vocabulary.to(states.device)]

    def head(self, vocabulary: Tensor | None = None) -> Tensor:
        """Return rows of the identity, shape (n_labels, n_labels): the states of an encoder are the logits of its labels already."""
        every = torch.eye(self._model.config.num_labels, device=self._model.device)
        return every if vocabulary is None else every[vocabulary.to(every.device)]

    def states(self, batch: Batch) -> Tensor:
        """Return the logits of all labels, shape (n_rows, n_labels) in float32."""
        device = self._model.device
        n_rows, n_columns = batch.input_ids.shape
        last = batch.positions - torch.arange(n_rows) * n_columns + len(batch.prefix)
        input_ids = torch.cat([batch.prefix.expand(n_rows, -1), batch.input_ids], dim=1)
        is_text = torch.arange(input_ids.shape[1]) <= last[:, None]
        logits: Tensor = self._model(input_ids=input_ids.to(device), attention_mask=is_text.long().to(device)).logits
        return logits
