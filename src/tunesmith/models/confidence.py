"""How sure is a model of an answer that it wrote? Loads no torch.

Three measures, of which `evaluate.confidence.method` names one. Each is a logit, so that a calibrator makes any of them the
probability of being right; before that none of them is.

    likelihood   the mean probability of the answer's tokens, as the model gives them without constraint
    margin       the odds of a written token against the most probable other one that was allowed, where they are lowest
    agreement    how much of the answer other answers say again, that were sampled and not the most probable

Of a field of an extraction, by the same measure:

    likelihood   the probability of its value's tokens among those that the schema allows, given what stands before them
    margin       as above, over its value's tokens
    agreement    the share of samples that hold the value in that field too

Evaluation, calibration and serving ask here, so that they cannot drift apart.

Sources:
    Malinin and Gales 2021, Uncertainty Estimation in Autoregressive Structured Prediction (length-normalised likelihood);
    Scheffer, Decomain and Wrobel 2001, Active Hidden Markov Models for Information Extraction (margin);
    Wang et al. 2023, Self-Consistency Improves Chain of Thought Reasoning in Language Models (agreement of samples).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.models.json_answers import Stated, answer_values, held_by, parse_answer, plain

EVERY_FIELD = ""
"""Key of the calibrator of the fields that have none of their own."""

WIDEST = 30.0
"""Margin, in nats, of an answer that never had another token to choose."""


def right_logits(logit: ArrayLike) -> NDArray[np.float32]:
    """Return logits of written answers being right and wrong, shape (n, 2), from one of the measures below, shape (n,)."""
    given = np.asarray(logit, dtype=np.float64)
    return np.column_stack([given, np.zeros(len(given))]).astype(np.float32)


def likelihood_logit(log_probability: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
    """Return the logit of the mean probability a token, shape (n,).

    Args:
        log_probability: shape (n,). Sum over the tokens of each answer, in nats.
        tokens: shape (n,). How many.
    """
    return _logit(np.clip(np.exp(np.asarray(log_probability) / np.maximum(tokens, 1)), 1e-6, 1 - 1e-6))


def agreement_logit(share: ArrayLike, samples: int) -> NDArray[np.float64]:
    """Return the logit of a share of samples, shape (n,), with half a sample more on either side: all of five is no certainty.

    Args:
        share: shape (n,). See `agreement`.
        samples: How many answers were sampled.
    """
    return _logit((np.asarray(share, dtype=np.float64) * samples + 0.5) / (samples + 1))


def agreement(schema: Mapping[str, Any], answer: str, samples: Sequence[str]) -> float:
    """Return how much of an answer samples say again, a ratio.

    Of an extraction it is the mean over its properties of the share of samples whose values are the same after normalisation, in any order; a
    sample that is no JSON of the schema says nothing. Of an answer in words it is the mean F1 of its words with those of each sample.

    Args:
        schema: `task.json_schema`; empty for answers in words.
        answer: What is given out.
        samples: One or more.
    """
    if not schema:
        return float(np.mean([word_f1(answer, sample) for sample in samples]))
    given, others = parse_answer(schema, answer), [parse_answer(schema, sample) for sample in samples]
    if given is None:
        return float(np.mean([sample == answer for sample in samples]))
    said = [[other is not None and _values(other, name) == _values(given, name) for other in others] for name in schema["properties"]]
    return float(np.mean(said))


def field_agreement(schema: Mapping[str, Any], stated: Sequence[Stated], samples: Sequence[str]) -> list[float]:
    """Return for each thing that an answer states the share of samples that say it too, a ratio; a sample that is no JSON of the schema says nothing."""
    if not stated:
        return []
    said = [held_by(stated, parse_answer(schema, sample)) for sample in samples]
    return [float(share) for share in np.mean(said, axis=0)]


def word_f1(answer: str, right: str) -> float:
    """Return the F1 of two texts' words after normalisation, a ratio; 1 where neither has any.

    Source:
        Rajpurkar et al. 2016, SQuAD.
    """
    words, wanted = words_of(answer), words_of(right)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted)) if words or wanted else 1.0


def words_of(text: str) -> list[str]:
    """Return the words of a text after normalisation."""
    return re.findall(r"\w+", plain(text))


def draws(text: str, samples: int, tokens: int, seed: int) -> NDArray[np.float64]:
    """Return the random numbers that the samples of a text are drawn with, in [0, 1), shape (samples, tokens).

    They depend on the text and the seed alone, not on what is asked beside it.
    """
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return np.random.default_rng([seed, *digest]).random((samples, tokens))


def _values(answer: Mapping[str, Any], name: str) -> Counter[str]:
    return Counter(plain(value) for _, value in answer_values({name: answer[name]}))


def _logit(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(ratio) - np.log1p(-ratio))
