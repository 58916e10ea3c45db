"""Runs a base model, as it is or with what a run learnt: written answers for texts.

Answers are greedy, so that a text has one answer, and stop at the stop token or after `task.max_answer_tokens`. Those of an
extraction follow its schema by constrained decoding (llguidance): every step allows only tokens that can still become
valid JSON, so that an answer that ends is an answer of the schema. It can be turned off to measure what the model does by
itself.

The confidence of an answer is its likelihood: the mean log probability of its tokens, as the model itself gives them
without constraint, computed by the same forward pass as in training. A calibrator makes it the probability of being right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.errors import MissingExtraError
from tunesmith.models.answered import Answered, likelihood_logits
from tunesmith.models.batch import training_batch
from tunesmith.models.decode import FastSteps, PlainSteps, Rule, Steps, greedy
from tunesmith.models.engine import Engine, Workers, forward_pass
from tunesmith.models.fast_llama import FastLlama
from tunesmith.models.json_answers import strict_schema
from tunesmith.models.likelihood import log_probabilities
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import load_tuned

Progress = Callable[[int, int], None]

OUTCOMES = ("right", "wrong")
"""What the confidence of a written answer is about: columns of its logits."""


@dataclass(frozen=True)
class Written:
    """Written answers.

    Attributes:
        answers: n texts.
        log_probability: shape (n,). Sum over the tokens of the answer, stop token included, in nats.
        tokens: shape (n,). How many.
        ended: shape (n,). Whether the answer ended by itself, before `task.max_answer_tokens`.
    """

    answers: list[str]
    log_probability: NDArray[np.float64]
    tokens: NDArray[np.int64]
    ended: NDArray[np.bool_]


class Generator:
    """Writes answers to texts.

    Args:
        base: Folder of the base model.
        prompt: The task's prompts.
        section: Precision and forward pass, resolved.
        weights: Folder of what a run learnt, or None for the base model as it is.
        batch_size: Texts that are answered side by side.
    """

    def __init__(self, base: Path, prompt: Prompt, section: ModelSection, *, weights: Path | None = None, batch_size: int = 32) -> None:
        self.prompt, self._batch_size, self._section = prompt, batch_size, section
        self._model = load_tuned(base, section, weights).eval()
        self._forward = forward_pass(self._model, section)
        self._workers = Workers(self._forward)

    @property
    def labels(self) -> tuple[str, ...]:
        """Empty: the answers are not from a closed label space."""
        return ()

    def log_probabilities(self, contexts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """Return log probability in nats and tokens of each continuation after its context, shape (n, 2), apart from the task's prompts."""
        return log_probabilities(self._forward, self.prompt.tokenizer, contexts, continuations)

    def answer(self, texts: Sequence[str], progress: Progress | None = None) -> Answered:
        """Answer texts as the task wants it; the confidence is the likelihood of the answer."""
        written = self.write(texts, progress)
        return Answered(tuple(written.answers), OUTCOMES, likelihood_logits(written.log_probability, written.tokens), np.zeros(len(texts), dtype=np.int64))

    def write(self, texts: Sequence[str], progress: Progress | None = None, *, constrained: bool = True, with_likelihood: bool = True) -> Written:
        """Write an answer to each text.

        Args:
            texts: Any texts; the ones that do not fit are cut as in training.
            progress: Called with texts done and texts in all.
            constrained: Whether the answers of an extraction follow its schema whatever the model prefers.
            with_likelihood: Whether the answers are read once more for their probability; 0 otherwise.
        """
        rows, stop = self.prompt.rows(texts), self.prompt.tokenizer.eos_token_id
        ids: list[list[int]] = [[] for _ in rows]
        # The longest first, and something for every worker.
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        size = min(self._batch_size, -(-len(rows) // self._workers.n))
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        steps, rule, done = self._steps, self._rule(constrained), 0

        def generate(batch: list[int]) -> list[list[int]]:
            own = [rows[row] for row in batch]
            return greedy(steps, own, stop=stop, n_new=self.prompt.task.max_answer_tokens, rule=rule(len(own)) if rule else None)

        for batch, answers in zip(batches, self._workers.map(generate, batches), strict=True):
            for row, answer in zip(batch, answers, strict=True):
                ids[row] = answer
            done += len(batch)
            if progress:
                progress(done, len(rows))
        answers = [self.prompt.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False) for answer in ids]
        sums = self._likelihood(rows, ids) if with_likelihood else np.zeros(len(rows))
        ended = np.array([bool(answer) and answer[-1] == stop for answer in ids], dtype=bool)
        return Written(answers, sums, np.array([len(answer) for answer in ids], dtype=np.int64), ended)

    def _rule(self, constrained: bool) -> Callable[[int], Rule] | None:
        """Return what makes the rule of so many answers; None where they may say anything."""
        if not constrained or self.prompt.task.type != "extraction":
            return None
        matcher, stop = self._matcher, self.prompt.tokenizer.eos_token_id
        return lambda n_rows: _FollowsSchema(matcher, n_rows, stop)

    @cached_property
    def _steps(self) -> Steps:
        """What is stepped through, with the prompt's prefix read."""
        if isinstance(self._forward, FastLlama):
            model = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
            return FastSteps(self._forward, model.lm_head.weight.detach(), self.prompt.prefix)
        dtype = getattr(torch, self._section.dtype)
        casts = next(self._model.parameters()).dtype != dtype and not self._section.load_in_4bit
        return PlainSteps(self._model, dtype if casts else None, self.prompt.prefix)

    @cached_property
    def _matcher(self) -> Callable[[], Any]:
        """Return what makes a matcher of the schema's grammar, at its beginning."""
        try:
            from llguidance import JsonCompiler, LLMatcher
            from llguidance.hf import from_tokenizer
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "", "train") from None
        # As training writes it: one space after commas and colons, none elsewhere.
        compiler = JsonCompiler(separators=(", ", ": "), whitespace_flexible=False)
        grammar = compiler.compile(json.dumps(strict_schema(self.prompt.task.json_schema)))
        tokenizer = from_tokenizer(
            self.prompt.tokenizer, n_vocab=self._model.get_input_embeddings().weight.shape[0], eos_token=self.prompt.tokenizer.eos_token_id
        )
        return lambda: LLMatcher(tokenizer, grammar)

    def _likelihood(self, rows: Sequence[list[int]], answers: Sequence[list[int]]) -> NDArray[np.float64]:
        """Return the log probability of each answer by the pass of training; an empty one has 0."""
        sums = np.zeros(len(rows))
        order = sorted((row for row in range(len(rows)) if answers[row]), key=lambda row: len(rows[row]) + len(answers[row]))
        passes = [order[at : at + 8] for at in range(0, len(order), 8)]
        for chosen, nats in zip(passes, self._workers.map(lambda chosen: self._nats(chosen, rows, answers), passes), strict=True):
            sums[chosen] = nats
        return sums

    @torch.no_grad()
    def _nats(self, chosen: Sequence[int], rows: Sequence[list[int]], answers: Sequence[list[int]]) -> list[float]:
        batch = training_batch(self.prompt.prefix, [rows[row] for row in chosen], [tuple(answers[row]) for row in chosen])
        losses = torch.nn.functional.cross_entropy(self._forward.logits(batch).cpu(), batch.targets, reduction="none").double()
        return [-float(own.sum()) for own in torch.split(losses, [len(answers[row]) for row in chosen])]


def load_answerer(base: Path, prompt: Prompt, section: ModelSection, *, weights: Path | None = None, batch_size: int = 32) -> Engine | Generator:
    """Load what answers a task: the label space scored for a classification, a written answer otherwise. Arguments as in both."""
    kind = Engine if prompt.task.type == "classification" else Generator
    return kind(base, prompt, section, weights=weights, batch_size=batch_size)


class _FollowsSchema:
    """Leaves each row only the tokens with which its answer can still become one of the schema."""

    def __init__(self, matcher: Callable[[], Any], n_rows: int, stop: int) -> None:
        self._matchers, self._stop = [matcher() for _ in range(n_rows)], stop

    def forbid(self, rows: Sequence[int], logits: Tensor) -> None:
        """Set the logits of all other tokens to minus infinity, in place."""
        n_vocabulary = logits.shape[1]
        allowed = np.zeros((len(rows), -(-n_vocabulary // 32)), dtype=np.int32)  # a bit a token
        for place, row in enumerate(rows):
            if self._matchers[row].is_stopped():  # the answer is whole
                allowed[place, self._stop // 32] = np.uint32(1 << self._stop % 32).astype(np.int32)
            else:
                self._matchers[row].unsafe_compute_mask_ptr(allowed[place].ctypes.data, allowed[place].nbytes)
        bits = np.unpackbits(allowed.view(np.uint8), axis=1, count=n_vocabulary, bitorder="little")
        logits.masked_fill_(torch.from_numpy(bits == 0).to(logits.device), float("-inf"))

    def take(self, row: int, token: int) -> None:
        """Hear what a row said."""
        if not self._matchers[row].is_stopped():
            self._matchers[row].consume_token(token)
