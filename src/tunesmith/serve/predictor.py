"""Texts -> predictions that are on disk before they are answered.

One predictor answers for the terminal, the batch command and the HTTP service. Nothing here knows torch: the engine and
the calibrator come ready made.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.entities import Deployment, FieldConfidence, Prediction, new_id, utc_now
from tunesmith.errors import DataError
from tunesmith.models.answered import Answered, FieldAnswer
from tunesmith.models.confidence import EVERY_FIELD, right_logits
from tunesmith.store import Store

Progress = Callable[[int, int], None]


class Answerer(Protocol):
    """Answers texts."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space; empty where answers are written."""

    def answer(self, texts: Sequence[str], progress: Progress | None = None) -> Answered:
        """Return an answer to each text, in their order."""


class Calibrator(Protocol):
    """Turns logits into probabilities."""

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return shape (n_texts, n_labels); rows sum to 1."""


class Predictor:
    """Answers with one variant of a deployment.

    Args:
        engine: Answers.
        calibrator: Makes the confidence honest; with children, of what the parent answers.
        deployment: Who answers.
        variant: The variant's name in the deployment.
        store: Keeps every prediction.
        children: Document type -> the calibrator of its child, where several adapters answer.
        fields: Field of an extraction -> its calibrator, and `EVERY_FIELD` -> that of the others; None where none was fitted.
    """

    def __init__(
        self,
        engine: Answerer,
        calibrator: Calibrator,
        deployment: Deployment,
        variant: str,
        store: Store,
        *,
        children: Mapping[str, Calibrator] | None = None,
        accepts: Callable[[float], bool] | None = None,
        fields: Mapping[str, Calibrator] | None = None,
    ) -> None:
        self._engine, self._calibrator, self._store, self._children, self._accepts = engine, calibrator, store, children or {}, accepts
        self._fields = fields or {}
        self.deployment, self.variant = deployment, variant
        self._one_at_a_time = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space."""
        return self._engine.labels

    @property
    def model_version_id(self) -> str:
        """The model version that answers."""
        return self.deployment.variants[self.variant]

    def predict(self, texts: Sequence[str], progress: Progress | None = None) -> list[Prediction]:
        """Answer texts, in their order, and write each answer to the store first.

        Args:
            texts: One or more texts, none of them empty.
            progress: Called with texts done and texts in all.

        Raises:
            DataError: a text is empty, or cannot be written as UTF-8.
        """
        digests = [_text_sha256(text, position) for position, text in enumerate(texts, start=1)]
        if not texts:
            return []
        with self._one_at_a_time:  # the engine uses every core by itself
            started = time.perf_counter()
            found = self._engine.answer(texts, progress)
            seconds = (time.perf_counter() - started) / len(texts)
        raw, honest = _softmax(found.logits), self._honest(found)
        adapters = found.adapters or ("",) * len(texts)
        sure = [None] * len(texts) if found.route_confidence is None else [float(each) for each in found.route_confidence]
        predictions = [
            Prediction(
                id=new_id("prd"),
                deployment_id=self.deployment.id,
                model_version_id=self.model_version_id,
                variant=self.variant,
                text=text,
                text_sha256=digests[row],
                label=answer,
                confidence_raw=float(raw[row, found.chosen[row]]),
                confidence=float(honest[row, found.chosen[row]]),
                scores={label: float(logit) for label, logit in zip(found.names, found.logits[row], strict=True)},
                latency_seconds=seconds,
                created_at=utc_now(),
                adapter=adapters[row],
                route_confidence=sure[row],
                accepted=self._accepts(float(raw[row, found.chosen[row]])) if self._accepts else None,
                fields=tuple(map(self._sure_of, found.fields[row])) if found.fields and self._fields else (),
            )
            for row, (text, answer) in enumerate(zip(texts, found.answers, strict=True))
        ]
        self._store.put(*predictions)
        return predictions

    def _sure_of(self, stated: FieldAnswer) -> FieldConfidence:
        logits = right_logits([stated.logit])
        honest = self._fields.get(stated.field, self._fields[EVERY_FIELD]).probabilities(logits)
        return FieldConfidence(field=stated.field, value=stated.value, confidence_raw=float(_softmax(logits)[0, 0]), confidence=float(honest[0, 0]))

    def _honest(self, found: Answered) -> NDArray[np.float64]:
        """Return calibrated probabilities, shape (n_texts, n_names): each row by the calibrator of the adapter that answered."""
        honest = self._calibrator.probabilities(found.logits)
        for adapter, calibrator in self._children.items():
            rows = [row for row, each in enumerate(found.adapters) if each == adapter]
            if rows:
                honest[rows] = calibrator.probabilities(found.logits[rows])
        return honest


def _text_sha256(text: str, position: int) -> str:
    if not text.strip():
        raise DataError(f"A text to predict must not be empty. Received: {text!r} at position {position}.")
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError:
        raise DataError(f"A text to predict must be UTF-8. Received: half of a surrogate pair at position {position}.") from None


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
