"""Picks the adapter for a text: a linear classifier on sentence embeddings that knows how sure it is.

    text -> embedding (D) -> logits over the routes -> temperature -> softmax -> the most probable route and its confidence

A route is a document type that has a child, or `parent` for texts of all other types. At or below a threshold the router
abstains: the parent, which learnt all types, answers. Weights are fitted on the train split, the temperature on the calibration
split (`train/router.py`), the threshold is chosen on the validation split (`evaluate/routing.py`).

    router.safetensors   weight (n_routes, D), bias (n_routes,)
    router.json          routes, temperature, the embedding model and its digest

Loads no torch before texts are embedded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError
from tunesmith.files import write_json

if TYPE_CHECKING:
    from tunesmith.models.embed import Embedder

PARENT = "parent"
"""Name of the adapter that learnt all records, and of the route to it."""

_FILE, _WEIGHTS = "router.json", "router.safetensors"


@dataclass(frozen=True)
class Routes:
    """Where texts go.

    Attributes:
        names: The most probable route of each of n texts.
        confidence: shape (n,). Its calibrated probability, in [0, 1].
    """

    names: tuple[str, ...]
    confidence: NDArray[np.float64]

    def adapters(self, threshold: float, served: Sequence[str]) -> tuple[str, ...]:
        """Return who answers each text: the route's child where the router is surer than the threshold and it is served, else the parent."""
        pairs = zip(self.names, self.confidence, strict=True)
        return tuple(name if sure > threshold and name in served else PARENT for name, sure in pairs)


@dataclass(frozen=True)
class Router:
    """A fitted router.

    Attributes:
        routes: Names, n_routes of them: document types, sorted, and `parent` last where there are records of other types.
        weight: shape (n_routes, D).
        bias: shape (n_routes,).
        temperature: What the logits are divided by.
        embedding_model: Address of the embedding model, as `data.embedding_model`.
        embedding_sha256: Digest of its weights.
    """

    routes: tuple[str, ...]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    temperature: float
    embedding_model: str
    embedding_sha256: str

    def logits(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return logits before the temperature, shape (n, n_routes), of embeddings (n, D)."""
        return np.asarray(vectors, dtype=np.float64) @ self.weight.T + self.bias

    def probabilities(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return calibrated probabilities of the routes, shape (n, n_routes), of embeddings (n, D)."""
        scaled = self.logits(vectors) / self.temperature
        exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))

    def route(self, vectors: NDArray[np.floating[Any]]) -> Routes:
        """Return the most probable route of each of n embeddings (n, D)."""
        found = self.probabilities(vectors)
        return Routes(tuple(self.routes[each] for each in found.argmax(axis=1)), found.max(axis=1))

    def save(self, folder: Path) -> None:
        """Write both files; router.json comes last, by rename, and marks them as whole."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}, folder / _WEIGHTS)
        facts = {"routes": self.routes, "temperature": self.temperature}
        write_json(folder / _FILE, facts | {"embedding_model": self.embedding_model, "embedding_sha256": self.embedding_sha256})

    @classmethod
    def load(cls, folder: Path) -> Router | None:
        """Read what `save` wrote; None where it is not there or not whole."""
        from safetensors.numpy import load_file

        if not (folder / _FILE).exists():
            return None
        facts = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
        return cls(tuple(facts.pop("routes")), tensors["weight"], tensors["bias"], **facts)


@dataclass(frozen=True)
class TextRouter:
    """A router that reads texts.

    Attributes:
        router: The classifier.
        root: The project's folder, where a relative address of the embedding model starts.
    """

    router: Router
    root: Path

    @cached_property
    def _embedder(self) -> Embedder:
        from tunesmith.models.embed import Embedder

        return Embedder(self.router.embedding_model, self.root, sha256=self.router.embedding_sha256)

    def route(self, texts: Sequence[str]) -> Routes:
        """Return the most probable route of each text.

        Raises:
            NotFoundError: the embedding model is not installed.
            DataError: it has other weights than the ones that the router was fitted on.
        """
        if not texts:
            raise DataError("A router needs texts. Received: none.")
        return self.router.route(self._embedder.encode(texts))
