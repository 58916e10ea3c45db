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
from transformers import LogitsProcessor, LogitsProcessorList

from tunesmith.errors import MissingExtraError
from tunesmith.models.answered import Answered, likelihood_logits
from tunesmith.models.batch import training_batch
from tunesmith.models.engine import Engine, forward_pass
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

    def write(self, texts: Sequence[str], progress: Progress | None = None, *, constrained: bool = True) -> Written:
        """Write an answer to each text.

        Args:
            texts: Any texts; the ones that do not fit are cut as in training.
            progress: Called with texts done and texts in all.
            constrained: Whether the answers of an extraction follow its schema whatever the model prefers.
        """
        rows = self.prompt.rows(texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        ids: list[list[int]] = [[] for _ in rows]
        for at in range(0, len(order), self._batch_size):
            batch = order[at : at + self._batch_size]
            for row, answer in zip(batch, self._generate([rows[row] for row in batch], constrained), strict=True):
                ids[row] = answer
            if progress:
                progress(min(at + self._batch_size, len(order)), len(order))
        stop = self.prompt.tokenizer.eos_token_id
        answers = [self.prompt.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False) for answer in ids]
        sums = self._likelihood(rows, ids)
        ended = np.array([bool(answer) and answer[-1] == stop for answer in ids], dtype=bool)
        return Written(answers, sums, np.array([len(answer) for answer in ids], dtype=np.int64), ended)

    @torch.no_grad()
    def _generate(self, rows: Sequence[list[int]], constrained: bool) -> list[list[int]]:
        """Return the token ids of each answer, with the stop token where it ended by itself."""
        tokenizer = self.prompt.tokenizer
        stop, device = tokenizer.eos_token_id, next(self._model.parameters()).device
        whole = [self.prompt.prefix + row for row in rows]
        width = max(map(len, whole))
        # On the left, so that every answer begins in the same column.
        input_ids = torch.tensor([[stop] * (width - len(ids)) + ids for ids in whole], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in whole], device=device)
        follow = LogitsProcessorList([_FollowsSchema(self._matcher, len(rows), width, stop)]) if constrained and self.prompt.task.type == "extraction" else None
        with torch.autocast(device.type, getattr(torch, self._section.dtype), enabled=self._casts):
            made = self._model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                max_new_tokens=self.prompt.task.max_answer_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=stop,
                pad_token_id=stop,
                logits_processor=follow,
            )
        return [_until(answer, stop) for answer in made[:, width:].tolist()]

    @property
    def _casts(self) -> bool:
        return next(self._model.parameters()).dtype != getattr(torch, self._section.dtype) and not self._section.load_in_4bit

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

    @torch.no_grad()
    def _likelihood(self, rows: Sequence[list[int]], answers: Sequence[list[int]]) -> NDArray[np.float64]:
        """Return the log probability of each answer by the pass of training; an empty one has 0."""
        sums = np.zeros(len(rows))
        order = sorted((row for row in range(len(rows)) if answers[row]), key=lambda row: len(rows[row]) + len(answers[row]))
        for at in range(0, len(order), 8):
            chosen = order[at : at + 8]
            batch = training_batch(self.prompt.prefix, [rows[row] for row in chosen], [tuple(answers[row]) for row in chosen])
            losses = torch.nn.functional.cross_entropy(self._forward.logits(batch).cpu(), batch.targets, reduction="none").double()
            for row, own in zip(chosen, torch.split(losses, [len(answers[row]) for row in chosen]), strict=True):
                sums[row] = -float(own.sum())
        return sums


def load_answerer(base: Path, prompt: Prompt, section: ModelSection, *, weights: Path | None = None, batch_size: int = 32) -> Engine | Generator:
    """Load what answers a task: the label space scored for a classification, a written answer otherwise. Arguments as in both."""
    kind = Engine if prompt.task.type == "classification" else Generator
    return kind(base, prompt, section, weights=weights, batch_size=batch_size)


def _until(ids: list[int], stop: int) -> list[int]:
    return ids[: ids.index(stop) + 1] if stop in ids else ids


class _FollowsSchema(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row only the tokens with which its answer can still become one of the schema."""

    def __init__(self, matcher: Callable[[], Any], n_rows: int, width: int, stop: int) -> None:
        import llguidance.torch as masks

        self._masks, self._matchers, self._width = masks, [matcher() for _ in range(n_rows)], width
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > self._width:
            for matcher, token in zip(self._matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        mask = self._masks.allocate_token_bitmask(len(self._matchers), scores.shape[1])
        for row, matcher in enumerate(self._matchers):
            if not matcher.is_stopped():
                self._masks.fill_next_token_bitmask(matcher, mask, row)
        scores = scores.clone()
        self._masks.apply_token_bitmask_inplace(scores, mask.to(scores.device))
        for row, matcher in enumerate(self._matchers):
            if matcher.is_stopped():  # the answer is whole
                scores[row] = float("-inf")
                scores[row, self._stop] = 0.0
        return scores
