"""What a model answered, in one form for every kind of task. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FieldAnswer:
    """What an extraction states of a field, and how sure the model is of it.

    Attributes:
        field: The property of the schema.
        value: What it holds, of a list one element; None says that it holds nothing.
        logit: Before calibration, of being right.
    """

    field: str
    value: str | None
    logit: float


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
        fields: What each answer of an extraction states; empty of other tasks.
    """

    answers: tuple[str, ...]
    names: tuple[str, ...]
    logits: NDArray[np.float32]
    chosen: NDArray[np.int64]
    adapters: tuple[str, ...] = ()
    route_confidence: NDArray[np.float64] | None = None
    fields: tuple[tuple[FieldAnswer, ...], ...] = ()
