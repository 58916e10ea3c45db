"""Runs a base model, as it is or with what a run learnt: label scores for texts.

One engine serves evaluation, the gate and the HTTP service, so that an answer in production is the answer that was
scored. Labels are scored by what the model writes for them: the logits at the first token where answers differ; answers
that share their first tokens take one more pass per shared beginning. All confidences are over the label space.

On the CPU the fast pass (`fast_llama.py`) runs one batch a core, each on one thread: workers that never wait for each
other scale better than threads inside one small product, and do not stall beside a busy process. A GPU runs one batch at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from tunesmith.errors import ConfigError
from tunesmith.models import fast_llama
from tunesmith.models.answered import Answered
from tunesmith.models.batch import Batch, scoring_batch
from tunesmith.models.encoder import EncoderForward, EncoderPrompt, is_encoder, positions_of
from tunesmith.models.kernels import refuse_missing_attention
from tunesmith.models.likelihood import log_probabilities
from tunesmith.models.logits import head_weight, logits_of
from tunesmith.models.processor import multiplies_bfloat16, n_workers
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Keep, Prompt
from tunesmith.models.weights import load_tuned

Progress = Callable[[int, int], None]


class Forward(Protocol):
    """A forward pass: next-token logits at a batch's positions, differentiable in whatever is trained."""

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        """Return shape (n_positions, n_vocabulary) in float32, for the given token ids or all of them: `states` times `head`."""
        ...

    def states(self, batch: Batch) -> Tensor:
        """Return what the head reads at a batch's positions: shape (n_positions, D) in float32."""
        ...

    def head(self, vocabulary: Tensor | None = None) -> Tensor:
        """Return the head's rows of the given token ids, or all: shape (n_vocabulary, D), as `logits_of` takes them."""
        ...


class PlainForward:
    """The pass of transformers: every row with its prefix, the head on the chosen positions only.

    Args:
        model: A transformers model, or PEFT's around one that has a prefix of virtual tokens.
        dtype: What matrix products are computed in: a base model of another precision is cast for them. None leaves it as it is.
        is_compiled: Whether the decoder goes through torch.compile, for any length of rows.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None, *, is_compiled: bool = False) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._virtual = model if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False) else None
        self._decoder = torch.compile(self._model.model, dynamic=True) if is_compiled else self._model.model
        self._dtype = dtype
        self._casts = dtype is not None and dtype != self._model.get_input_embeddings().weight.dtype

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        """Return the next-token logits at the batch's positions, shape (n_positions, n_vocabulary) in float32."""
        return logits_of(self.states(batch), self.head(vocabulary))

    def head(self, vocabulary: Tensor | None = None) -> Tensor:
        """Return the language-model head's rows of token ids, or all: shape (n_vocabulary, D), as `logits_of` takes them."""
        return head_weight(self._model, vocabulary)

    def states(self, batch: Batch) -> Tensor:
        """Return what the head reads at the batch's positions: shape (n_positions, D), float32."""
        device = self._model.device
        n_rows, n_columns = batch.input_ids.shape
        input_ids = torch.cat([batch.prefix.expand(n_rows, -1), batch.input_ids], dim=1).to(device)
        virtual = self._virtual.get_prompt(batch_size=n_rows) if self._virtual is not None else None
        n_virtual = virtual.get_seq_length() if virtual is not None else 0
        packs = _apart(batch, batch.records, n_virtual, self._model.dtype, device) if batch.records is not None else {}
        with torch.autocast(device.type, self._dtype, enabled=self._casts):
            hidden = self._decoder(input_ids=input_ids, cache=virtual, use_cache=virtual is not None, **packs).last_hidden_state
        own = hidden[:, len(batch.prefix) :].reshape(n_rows * n_columns, -1)
        return own[batch.positions.to(device)].float()  # type: ignore[no-any-return]


def _apart(batch: Batch, records: Tensor, n_virtual: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return what keeps the records of a pack apart: positions (n_rows, n_tokens), and what is added to scores (n_rows, 1, n_tokens, n_virtual + n_tokens)."""
    n_prefix, (n_rows, n_columns) = len(batch.prefix), batch.input_ids.shape
    places = torch.arange(n_columns).expand(n_rows, -1)
    begins = torch.ones(n_rows, n_columns, dtype=torch.bool)
    begins[:, 1:] = records[:, 1:] != records[:, :-1]
    own = places - torch.where(begins, places, 0).cummax(1).values
    positions = torch.cat([torch.arange(n_prefix).expand(n_rows, -1), n_prefix + own], dim=1) + n_virtual
    # The prefix is seen by all, and sees nobody.
    owners = torch.cat([torch.full((n_rows, n_prefix), -2), records], dim=1)
    sees = torch.ones(n_prefix + n_columns, n_prefix + n_columns, dtype=torch.bool).tril() & ((owners[:, :, None] == owners[:, None]) | (owners[:, None] == -2))
    mask = torch.zeros(n_rows, 1, n_prefix + n_columns, n_virtual + n_prefix + n_columns, dtype=dtype)
    mask[..., n_virtual:].masked_fill_(~sees[:, None], torch.finfo(dtype).min / 2)
    return {"position_ids": positions.to(device), "attention_mask": mask.to(device)}


def resolve(section: ModelSection, base: Path, *, fits_fast_pass: bool = True, n_labels: int = 0) -> ModelSection:
    """Replace every `auto` of the section `model` by what it means for this base model on this machine.

    `dtype` becomes bfloat16 where the processor multiplies it natively; `forward` becomes `fast` where that pass is exact; `num_labels` becomes
    the outputs of an encoder's head, and 0 for a model that writes.

    Args:
        section: The section.
        base: Folder of the base model.
        fits_fast_pass: Whether what is trained, or was, is part of the fast pass.
        n_labels: Size of the label space; 0 where answers are written.

    Raises:
        ConfigError: `forward: fast` was asked for where it is not exact, or an encoder shall write; or `attn_implementation` for what is not here.
        BackendError: it asks for a package that is not installed.
    """
    refuse_missing_attention(section)
    config = AutoConfig.from_pretrained(base)
    encodes = is_encoder(config)
    if encodes and (not n_labels or section.load_in_4bit):
        received = "a task whose answers are written" if not n_labels else "model.load_in_4bit, or train.strategy qlora"
        raise ConfigError(
            f"{section.model_name_or_path} is an encoder ({config.model_type}): it picks labels of a classification, by train.strategy full or lora. "
            f"Received: {received}.",
            hint="Choose a base model that writes." if not n_labels else "tunesmith plan --set train.strategy=full",
        )
    is_exact = fast_llama.supports(config) and fits_fast_pass and not section.load_in_4bit and section.attn_implementation == "auto"
    if section.forward == "fast" and not is_exact:
        raise ConfigError(
            "model.forward: fast needs a Llama without biases, in full precision or with LoRA without dropout and magnitudes, "
            "its own attention, and neither packs, a compiler nor Liger's kernels. "
            f"Received: {config.model_type}{' in 4 bits' if section.load_in_4bit else ''}{'' if fits_fast_pass else ' with what it lacks'}, "
            f"model.attn_implementation {section.attn_implementation}.",
            hint="Set model.forward: auto.",
        )
    dtype = section.dtype if section.dtype != "auto" else "bfloat16" if torch.cuda.is_available() or multiplies_bfloat16() else "float32"
    forward = section.forward if section.forward != "auto" else "fast" if is_exact else "plain"
    return section.model_copy(update={"dtype": dtype, "forward": forward, "num_labels": n_labels if encodes else 0})


def load_tokenizer(base: Path) -> Any:
    """Load a fast tokenizer from a folder."""
    return AutoTokenizer.from_pretrained(base)


def load_prompt(base: Path, task: TaskSection, max_length: int, keep: Keep) -> Prompt:
    """Return a task's prompts for the base model in a folder. Arguments as in `Prompt`.

    Raises:
        ConfigError: the task, the tokenizer and max_length do not fit.
    """
    tokenizer, config = load_tokenizer(base), AutoConfig.from_pretrained(base)
    if is_encoder(config):
        return EncoderPrompt(tokenizer, task, max_length, keep, positions_of(config, tokenizer))
    return Prompt(tokenizer, task, max_length, keep)


def forward_pass(model: Any, section: ModelSection, *, is_compiled: bool = False, recomputes: bool = False) -> Forward:
    """Return the forward pass that a resolved section names.

    Args:
        model: A transformers model, or PEFT's around one.
        section: The section `model`, resolved.
        is_compiled: Whether a plain pass goes through torch.compile.
        recomputes: Whether layers keep their input alone for the way back, and compute the rest again (Chen et al. 2016).
    """
    if section.forward == "fast":
        return fast_llama.FastLlama(model.get_base_model() if hasattr(model, "get_base_model") else model, recomputes=recomputes)
    if recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if section.num_labels:
        return EncoderForward(model, getattr(torch, section.dtype))
    return PlainForward(model, getattr(torch, section.dtype), is_compiled=is_compiled)


class Workers:
    """Runs passes side by side: one thread a core for the fast pass and for encoders, in turn for the plain one, which uses all cores itself."""

    def __init__(self, forward: Forward) -> None:
        self.n = n_workers() if isinstance(forward, fast_llama.FastLlama | EncoderForward) else 1
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
        weights: Folder of what a run learnt, or None for the base model as it is.
        batch_size: Texts a forward pass.
        forward: The forward pass of a model in memory, to be asked instead of loading one.
    """

    def __init__(
        self, base: Path, prompt: Prompt, section: ModelSection, *, weights: Path | None = None, batch_size: int = 32, forward: Forward | None = None
    ) -> None:
        self.prompt, self._batch_size = prompt, batch_size
        self._forward = forward or forward_pass(load_tuned(base, section, weights).eval(), section)
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
        return self.score_rows(self.prompt.rows(texts), progress)

    def score_rows(self, rows: Sequence[list[int]], progress: Progress | None = None) -> NDArray[np.float32]:
        """Do the same for texts that are tokenised: per text, the token ids after the prefix."""
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

    def answer(self, texts: Sequence[str], progress: Progress | None = None) -> Answered:
        """Pick a label for each text."""
        logits = self.score(texts, progress)
        chosen = logits.argmax(axis=1).astype(np.int64)
        return Answered(tuple(self.labels[label] for label in chosen), self.labels, logits, chosen)

    def log_probabilities(self, contexts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """Return log probability in nats and tokens of each continuation after its context, shape (n, 2), apart from the task's prompts."""
        return log_probabilities(self._forward, self.prompt.tokenizer, contexts, continuations)

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
