"""Runs a base model, as it is or with what a run learnt: written answers for texts.

Answers are greedy, so that a text has one answer, and stop at the stop token or after `task.max_answer_tokens`. Those of an
extraction follow its schema by constrained decoding (llguidance): every step allows only tokens that can still become
valid JSON, so that an answer that ends is an answer of the schema. It can be turned off to measure what the model does by
itself.

How sure the model is of an answer is one of the measures of `confidence.py`. Likelihood and margin are read from the answer once
more by the same forward pass as in training; for the agreement further answers are sampled. A calibrator makes it the probability
of being right.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
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
from tunesmith.models.answered import Answered, FieldAnswer
from tunesmith.models.batch import training_batch
from tunesmith.models.confidence import WIDEST, agreement, agreement_logit, draws, field_agreement, likelihood_logit, right_logits
from tunesmith.models.decode import FastSteps, PlainSteps, Rule, Steps, greedy, sample
from tunesmith.models.engine import Engine, Workers, forward_pass
from tunesmith.models.fast_llama import FastLlama
from tunesmith.models.json_answers import Stated, stated_in, strict_schema
from tunesmith.models.likelihood import log_probabilities
from tunesmith.models.settings import ConfidenceSection, ModelSection
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
        logit: shape (n,). How sure the model is of each, before calibration; 0 where nobody asked.
        tokens: shape (n,). How many tokens each has, stop token included.
        ended: shape (n,). Whether the answer ended by itself, before `task.max_answer_tokens`.
        fields: What each answer of an extraction states, and how sure the model is of it; empty of other tasks, or where nobody asked.
    """

    answers: list[str]
    logit: NDArray[np.float64]
    tokens: NDArray[np.int64]
    ended: NDArray[np.bool_]
    fields: tuple[tuple[FieldAnswer, ...], ...] = ()


class Generator:
    """Writes answers to texts.

    Args:
        base: Folder of the base model.
        prompt: The task's prompts.
        section: Precision and forward pass, resolved.
        weights: Folder of what a run learnt, or None for the base model as it is.
        batch_size: Texts that are answered side by side.
        confidence: How it tells how sure it is.
    """

    def __init__(
        self,
        base: Path,
        prompt: Prompt,
        section: ModelSection,
        *,
        weights: Path | None = None,
        batch_size: int = 32,
        confidence: ConfidenceSection | None = None,
    ) -> None:
        self.prompt, self._batch_size, self._section, self._confidence = prompt, batch_size, section, confidence or ConfidenceSection()
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
        """Answer texts as the task wants it, and say how sure the model is of each answer."""
        written = self.write(texts, progress)
        return Answered(tuple(written.answers), OUTCOMES, right_logits(written.logit), np.zeros(len(texts), dtype=np.int64), fields=written.fields)

    def write(self, texts: Sequence[str], progress: Progress | None = None, *, constrained: bool = True, with_confidence: bool = True) -> Written:
        """Write an answer to each text.

        Args:
            texts: Any texts; the ones that do not fit are cut as in training.
            progress: Called with texts done and texts in all.
            constrained: Whether the answers of an extraction follow its schema whatever the model prefers.
            with_confidence: Whether the model says how sure it is.
        """
        rows, stop = self.prompt.rows(texts), self.prompt.tokenizer.eos_token_id
        steps, rule = self._steps, self._rule(constrained)
        n_new, n_samples = self.prompt.task.max_answer_tokens, self._confidence.samples
        is_sampled = with_confidence and self._confidence.method == "agreement"
        rounds = 1 + is_sampled

        def generate(batch: list[int]) -> list[list[int]]:
            return greedy(steps, [rows[row] for row in batch], stop=stop, n_new=n_new, rule=rule(len(batch)) if rule else None)

        def agree(batch: list[int]) -> list[_Sureness]:
            drawn = np.stack([draws(texts[row], n_samples, n_new, self._confidence.seed) for row in batch])
            about: dict[str, Any] = {"stop": stop, "n_new": n_new, "rule": rule(len(batch) * n_samples) if rule else None}
            found = sample(steps, [rows[row] for row in batch], drawn, temperature=self._confidence.temperature, **about)
            return [self._agreed(answers[row], stated[row], self._decoded(own)) for row, own in zip(batch, found, strict=True)]

        def tell(done: int) -> None:
            if progress:
                progress(done // rounds, len(rows))

        ids = self._for_each(rows, generate, self._batch_size, tell)
        answers = self._decoded(ids)
        has_fields = with_confidence and self.prompt.task.type == "extraction"
        stated = [stated_in(self.prompt.task.json_schema, answer) if has_fields else [] for answer in answers]
        sure = [_Sureness(0.0, ())] * len(rows)
        if is_sampled:
            sure = self._for_each(rows, agree, max(1, self._batch_size // n_samples), lambda done: tell(len(rows) + done))
        elif with_confidence:
            sure = self._read(rows, ids, stated, rule)
        of_stated = [own.of_stated for own in sure]
        fields = [tuple(FieldAnswer(one.field, one.value, logit) for one, logit in zip(*both, strict=True)) for both in zip(stated, of_stated, strict=True)]
        return Written(
            answers,
            np.array([own.of_answer for own in sure], dtype=np.float64),
            np.array([len(answer) for answer in ids], dtype=np.int64),
            np.array([bool(answer) and answer[-1] == stop for answer in ids], dtype=bool),
            tuple(fields) if has_fields else (),
        )

    def _agreed(self, answer: str, stated: Sequence[Stated], samples: Sequence[str]) -> _Sureness:
        schema = self.prompt.task.json_schema
        shares = [agreement(schema, answer, samples), *field_agreement(schema, stated, samples)]
        of_answer, *of_stated = agreement_logit(shares, len(samples)).tolist()
        return _Sureness(of_answer, tuple(of_stated))

    def _for_each(self, rows: Sequence[list[int]], work: Callable[[list[int]], list[Any]], size: int, tell: Callable[[int], None]) -> list[Any]:
        """Return what batches of row numbers give, in the order of the rows; the longest come first, and every worker has something to do."""
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        size = min(size, -(-len(rows) // self._workers.n))
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        found: list[Any] = [None] * len(rows)
        done = 0
        for batch, values in zip(batches, self._workers.map(work, batches), strict=True):
            for row, value in zip(batch, values, strict=True):
                found[row] = value
            done += len(batch)
            tell(done)
        return found

    def _decoded(self, ids: Sequence[list[int]]) -> list[str]:
        return [self.prompt.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False) for answer in ids]

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

    def _read(
        self, rows: Sequence[list[int]], answers: Sequence[list[int]], stated: Sequence[list[Stated]], rule: Callable[[int], Rule] | None
    ) -> list[_Sureness]:
        """Return the likelihood or the margin of each answer, and of what it states, by the pass of training; of an empty one 0."""
        found = [_Sureness(0.0, ())] * len(rows)
        order = sorted((row for row in range(len(rows)) if answers[row]), key=lambda row: len(rows[row]) + len(answers[row]))
        passes = [order[at : at + 8] for at in range(0, len(order), 8)]
        for chosen, own in zip(passes, self._workers.map(lambda chosen: self._sureness(chosen, rows, answers, stated, rule), passes), strict=True):
            for row, sure in zip(chosen, own, strict=True):
                found[row] = sure
        return found

    @torch.no_grad()
    def _sureness(
        self, chosen: Sequence[int], rows: Sequence[list[int]], answers: Sequence[list[int]], stated: Sequence[list[Stated]], rule: Callable[[int], Rule] | None
    ) -> list[_Sureness]:
        batch = training_batch(self.prompt.prefix, [rows[row] for row in chosen], [tuple(answers[row]) for row in chosen])
        lengths = [len(answers[row]) for row in chosen]
        is_margin, found = self._confidence.method == "margin", []
        for row, logits, tokens in zip(chosen, torch.split(self._forward.logits(batch).cpu(), lengths), torch.split(batch.targets, lengths), strict=True):
            losses = torch.nn.functional.cross_entropy(logits, tokens, reduction="none").double()  # before the schema forbids anything
            if rule and (is_margin or stated[row]):
                follows = rule(1)
                for step, token in enumerate(tokens.tolist()):
                    follows.forbid([0], logits[step : step + 1])
                    follows.take(0, token)
            spans = self._spans(answers[row], stated[row])
            if is_margin:
                others = logits.scatter(1, tokens[:, None], float("-inf")).amax(1)
                margins = (logits.gather(1, tokens[:, None])[:, 0] - others).clamp(max=WIDEST)
                found.append(_Sureness(float(margins.min()), tuple(float(margins[span].min()) for span in spans)))
            else:
                of_answer = likelihood_logit([-float(losses.sum())], [len(tokens)])
                if spans:
                    losses = torch.nn.functional.cross_entropy(logits, tokens, reduction="none").double()
                of_stated = likelihood_logit([-float(losses[span].sum()) for span in spans], np.ones(len(spans)))
                found.append(_Sureness(float(of_answer[0]), tuple(of_stated.tolist())))
        return found

    def _spans(self, answer: Sequence[int], stated: Sequence[Stated]) -> list[slice]:
        """Return which tokens of an answer touch each thing that it states: with a value those that open and close it, which say that there is one."""
        if not stated:
            return []
        # What a token adds to the text; half a letter adds nothing yet.
        ends = [len(text.rstrip("\ufffd")) for text in self._decoded([list(answer[: n + 1]) for n in range(len(answer))])]
        return [slice(bisect_right(ends, one.start), bisect_left(ends, one.end) + 1) for one in stated]


@dataclass(frozen=True)
class _Sureness:
    """How sure the model is of an answer and of each thing that it states, in their order: logits before calibration."""

    of_answer: float
    of_stated: tuple[float, ...]


def load_answerer(
    base: Path, prompt: Prompt, section: ModelSection, *, weights: Path | None = None, batch_size: int = 32, confidence: ConfidenceSection | None = None
) -> Engine | Generator:
    """Load what answers a task: the label space scored for a classification, a written answer otherwise. Arguments as in both."""
    if prompt.task.type == "classification":
        return Engine(base, prompt, section, weights=weights, batch_size=batch_size)
    return Generator(base, prompt, section, weights=weights, batch_size=batch_size, confidence=confidence)


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
