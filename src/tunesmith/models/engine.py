"""Runs a base model with or without an adapter: label scores for texts.

One engine serves evaluation, the gate and the HTTP service, so that an answer in production is the answer that was
scored. Labels are scored by what the model writes for them: the logits at the first token where answers differ; answers
that share their first tokens take one more pass per shared beginning. All confidences are over the label space.

On the CPU the fast pass (`fast_llama.py`) runs one batch a core, each on one thread: workers that never wait for each
other scale better than threads inside one small product, and do not stall beside a busy process.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tunesmith.errors import BackendError, ConfigError
from tunesmith.models import fast_llama
from tunesmith.models.batch import Batch, scoring_batch
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt

Progress = Callable[[int, int], None]


class Forward(Protocol):
    """A forward pass: next-token logits at a batch's positions, differentiable in whatever is trained."""

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        """Return shape (n_positions, n_vocabulary) in float32, for the given token ids or all of them."""
        ...


class PlainForward:
    """The pass of transformers: every row with its prefix, the head on the chosen positions only."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        """Return the next-token logits at the batch's positions, shape (n_positions, n_vocabulary) in float32."""
        device = self._model.device
        n_rows, n_columns = batch.input_ids.shape
        input_ids = torch.cat([batch.prefix.expand(n_rows, -1), batch.input_ids], dim=1).to(device)
        hidden = self._model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        own = hidden[:, len(batch.prefix) :].reshape(n_rows * n_columns, -1)
        head = self._model.lm_head.weight if vocabulary is None else self._model.lm_head.weight[vocabulary.to(device)]
        return own[batch.positions.to(device)].float() @ head.float().t()  # type: ignore[no-any-return]


def resolve(section: ModelSection, base: Path, *, lora_dropout: float = 0.0) -> ModelSection:
    """Replace every `auto` of the section `model` by what it means for this base model on this machine.

    `dtype` becomes bfloat16 where the processor multiplies it natively; `forward` becomes `fast` where that pass is exact.

    Raises:
        ConfigError: `forward: fast` was asked for where it is not exact.
    """
    has_gpu = torch.cuda.is_available()
    multiplies_bf16 = has_gpu or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    config = AutoConfig.from_pretrained(base)
    is_exact = fast_llama.supports(config) and not has_gpu and lora_dropout == 0
    if section.forward == "fast" and not is_exact:
        raise ConfigError(
            "model.forward: fast needs a Llama without biases on the CPU and no dropout. "
            f"Received: {config.model_type}, dropout {lora_dropout:g}, {'GPU' if has_gpu else 'CPU'}.",
            hint="Set model.forward: auto.",
        )
    dtype = section.dtype if section.dtype != "auto" else "bfloat16" if multiplies_bf16 else "float32"
    forward = section.forward if section.forward != "auto" else "fast" if is_exact else "plain"
    return section.model_copy(update={"dtype": dtype, "forward": forward})


def n_workers() -> int:
    """Return how many forward passes run side by side on the CPU: one a core that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def load_tokenizer(base: Path) -> Any:
    """Load a fast tokenizer from a folder."""
    return AutoTokenizer.from_pretrained(base)


def load_model(base: Path, section: ModelSection) -> Any:
    """Load a causal language model from a folder of safetensors; runs no code that comes with it.

    Raises:
        BackendError: transformers cannot read the folder.
    """
    logging.disable_progress_bar()
    # Eager attention: at these lengths its backward pass is faster on the CPU than the fused one.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, section.dtype), attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise BackendError(f"The base model in {base} cannot be loaded: {error}") from error
    return model.to("cuda") if torch.cuda.is_available() else model


def forward_pass(model: Any, section: ModelSection) -> Forward:
    """Return the forward pass that a resolved section names."""
    return fast_llama.FastLlama(model) if section.forward == "fast" else PlainForward(model)


class Workers:
    """Runs passes side by side: one thread a core for the fast pass, in turn for the plain one, which uses all cores itself."""

    def __init__(self, forward: Forward) -> None:
        self.n = n_workers() if isinstance(forward, fast_llama.FastLlama) else 1
        self._pool = ThreadPoolExecutor(self.n, initializer=torch.set_num_threads, initargs=(1,)) if self.n > 1 else None

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield function(item) in the order of the items."""
        return self._pool.map(function, items) if self._pool else map(function, items)


class Engine:
    """Scores the label space for texts.

    Args:
        base: Folder of the base model.
        prompt: The task's prompts.
        section: Precision and forward pass, resolved.
        adapter: Folder of a PEFT adapter, or None for the base model as it is.
        batch_size: Texts a forward pass.
    """

    def __init__(self, base: Path, prompt: Prompt, section: ModelSection, *, adapter: Path | None = None, batch_size: int = 32) -> None:
        model = load_model(base, section)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).get_base_model()
        self.prompt, self._batch_size = prompt, batch_size
        self._forward = forward_pass(model.eval(), section)
        self._workers = Workers(self._forward)
        self._tree = AnswerTree(prompt.answers)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the scores' columns."""
        return self.prompt.task.names

    def score(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return uncalibrated logits of the labels, shape (n_texts, n_labels); their softmax is the raw confidence.

        Args:
            texts: Any texts; the ones that do not fit are cut as in training.
            progress: Called with texts done and texts in all.
        """
        rows = self.prompt.rows(texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        batches = [order[at : at + self._batch_size] for at in range(0, len(order), self._batch_size)]
        scores = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        done = 0
        for batch, values in zip(batches, self._workers.map(lambda batch: self._score([rows[row] for row in batch]), batches), strict=True):
            scores[batch] = values
            done += len(batch)
            if progress:
                progress(done, len(rows))
        return scores

    @torch.no_grad()
    def _score(self, rows: Sequence[list[int]]) -> NDArray[np.float32]:
        log_probability = torch.zeros(len(rows), len(self.labels))
        for beginning, choices in self._tree.nodes:
            batch = scoring_batch(self.prompt.prefix, [[*row, *beginning] for row in rows])
            logits = self._forward.logits(batch, torch.tensor(list(choices))).cpu()
            # With distinct first tokens there is one node, and the scores are the model's own logits.
            values = logits if len(self._tree.nodes) == 1 else logits.log_softmax(1)
            for column, labels in enumerate(choices.values()):
                log_probability[:, labels] += values[:, [column]]
        return log_probability.numpy()


class AnswerTree:
    """Where answers differ: the beginnings after which more than one token is possible.

    Attributes:
        nodes: (beginning token ids, next token -> indices of the labels that go on with it), the empty beginning first.
    """

    def __init__(self, answers: Sequence[tuple[int, ...]]) -> None:
        choices: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for label, answer in enumerate(answers):
            for step, token in enumerate(answer):
                choices[answer[:step]][token].append(label)
        self.nodes = [(beginning, dict(options)) for beginning, options in sorted(choices.items()) if len(options) > 1]
