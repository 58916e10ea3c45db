"""Answers with several adapters on one base model: the parent and its children, between which a router picks for each text.

The base model is loaded once. PEFT holds the adapters side by side in its linear layers; texts are grouped by adapter, and
switching between groups moves no weights. An answer is that of the adapter alone: what the neighbours in a request are changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.models.answered import Answered
from tunesmith.models.engine import Engine, Progress, forward_pass
from tunesmith.models.fast_llama import FastLlama
from tunesmith.models.router import PARENT, Routes
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import load_tuned


class RoutesTexts(Protocol):
    """Says where texts go."""

    def route(self, texts: Sequence[str]) -> Routes:
        """Return the most probable route of each text."""


class RoutedEngine:
    """Scores the label space for texts, each with the adapter that the router picks.

    Args:
        base: Folder of the base model.
        prompt: The task's prompts.
        section: Precision and forward pass, resolved.
        weights: Folder of the parent's adapter.
        children: Document type -> folder of its adapter; those that are served.
        router: Picks.
        threshold: The confidence in a route at or below which the parent answers.
        batch_size: Texts a forward pass.
    """

    def __init__(
        self,
        base: Path,
        prompt: Prompt,
        section: ModelSection,
        *,
        weights: Path,
        children: Mapping[str, Path],
        router: RoutesTexts,
        threshold: float,
        batch_size: int = 32,
    ) -> None:
        self._model = load_tuned(base, section, weights)
        self._names = {PARENT: "default"}  # PEFT's name of the first one
        for number, (document_type, folder) in enumerate(sorted(children.items())):
            self._names[document_type] = f"child_{number}"  # a document type may hold what a module's name may not
            self._model.load_adapter(str(folder), adapter_name=self._names[document_type])
        self._forward = forward_pass(self._model.eval(), section)
        self._engine = Engine(base, prompt, section, batch_size=batch_size, forward=self._forward)
        self._router, self._threshold = router, threshold

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the scores' columns."""
        return self._engine.labels

    def _switch(self, adapter: str) -> None:
        if isinstance(self._forward, FastLlama):
            self._forward.switch(self._names[adapter])
        else:
            self._model.set_adapter(self._names[adapter], inference_mode=True)

    def answer(self, texts: Sequence[str], progress: Progress | None = None) -> Answered:
        """Pick a label for each text; says which adapter answered, and how sure the router was of the route.

        Args:
            texts: One or more texts.
            progress: Called with texts done and texts in all.
        """
        routes = self._router.route(texts)
        adapters = routes.adapters(self._threshold, [*self._names])
        logits = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        done = 0
        for adapter in sorted(set(adapters)):
            rows = [row for row, each in enumerate(adapters) if each == adapter]
            self._switch(adapter)
            logits[rows] = self._engine.score([texts[row] for row in rows])
            done += len(rows)
            if progress:
                progress(done, len(texts))
        chosen = logits.argmax(axis=1).astype(np.int64)
        found = Answered(tuple(self.labels[label] for label in chosen), self.labels, logits, chosen)
        return replace(found, adapters=adapters, route_confidence=routes.confidence)

    def score(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return uncalibrated logits of the labels, shape (n_texts, n_labels), each text by the adapter that answers it."""
        return self.answer(texts, progress).logits
