"""What a model answered, in one form for every kind of task. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Answered:
    """Answers to n texts and how sure the model is of them.

    Attributes:
        answers: The label that was picked, or the text that was written.
        names: What the columns of the logits stand for: the label space, or right and wrong.
        logits: shape (n, n_names). Uncalibrated; their softmax is the raw confidence.
        chosen: shape (n,). Column whose probability is the confidence in the answer.
        adapters: Which adapter gave each answer; empty where there is one only.
        route_confidence: shape (n,). How sure the router was of the most probable route, calibrated; None without a router.
    """

    answers: tuple[str, ...]
    names: tuple[str, ...]
    logits: NDArray[np.float32]
    chosen: NDArray[np.int64]
    adapters: tuple[str, ...] = ()
    route_confidence: NDArray[np.float64] | None = None


def likelihood_logits(log_probability: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits of a written answer being right and wrong, shape (n, 2): those of its mean probability a token.

    One place for the calibrator's fit and for serving, so that they cannot drift apart.

    Args:
        log_probability: shape (n,). Sum over the tokens of each answer, in nats.
        tokens: shape (n,). How many.
    """
    mean = np.clip(np.exp(log_probability / np.maximum(tokens, 1)), 1e-6, 1 - 1e-6)
    return np.column_stack([np.log(mean / (1 - mean)), np.zeros(len(mean))]).astype(np.float32)
