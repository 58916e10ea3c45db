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
