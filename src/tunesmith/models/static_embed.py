"""Static sentence embeddings: a weighted mean of word-piece vectors, some fifty times faster than the model they come from.

Each word piece of the vocabulary is encoded alone by an `Embedder`; the vectors are centred, reduced to their principal
components, half whitened, and weighted by how rare a piece is (its rank stands for its frequency, by Zipf's law). A
text is the mean of the pieces of its words, so that word order is lost: good for finding copies among many texts,
useless for telling outliers or shades of meaning. Made once for a model, in a minute at most, and kept in the cache
folder.

Sources: Tulkens and van Dongen 2024 (Model2Vec); Arora et al. 2017, A Simple but Tough-to-Beat Baseline (smooth inverse frequency).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag, normalize

from tunesmith.models.catalog import cache_folder
from tunesmith.models.embed import MINILM, Embedder, Progress

_DIMENSION = 256
_SMOOTHING = 3e-6  # of the inverse frequency; chosen, with the half whitening, on short against long package descriptions
_BLOCK = 8192
_MOST_WORDS = 200_000  # remembered; 1 KB each
_WORD = re.compile(r"\w+")
_FORMAT = 1  # of the cached table; bump when the distillation changes


class StaticEmbedder:
    """Encodes texts with a table of word-piece vectors.

    Args:
        address: The model that the table is made from, as `Embedder` takes it.
        root: Where relative folders start.

    Attributes:
        sha256: Digest of the model's weights.
        dimension: Length D of a vector: 256, or the model's where that is shorter.

    Raises:
        NotFoundError, DataError, BackendError: as `Embedder`.
    """

    def __init__(self, address: str = MINILM, root: Path = Path()) -> None:
        self._embedder = Embedder(address, root)
        self.sha256 = self._embedder.sha256
        self._table = torch.from_numpy(_cached_table(self._embedder))
        self.dimension = int(self._table.shape[1])

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return the embeddings of texts: shape (n, D), rows of length 1, or 0 where a text is empty.

        A vector depends on its text alone, all of which is read. Of a text with words only they count, else all that is there.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        numbers: dict[str, int] = {}  # of the words seen, each of which is cut into pieces once
        table = torch.empty(0, self.dimension)
        for at in range(0, len(texts), _BLOCK):
            if len(numbers) > _MOST_WORDS:
                numbers, table = {}, table[:0]
            n_known = len(numbers)
            rows = []
            for text in texts[at : at + _BLOCK]:
                lower = text.lower()
                rows.append([numbers.setdefault(word, len(numbers)) for word in _WORD.findall(lower) or lower.split()])
            new = list(numbers)[n_known:]
            table = torch.cat([table, _sums([ids[1:-1] for ids in self._embedder.token_ids(new)], self._table)])
            vectors[at : at + len(rows)] = normalize(_sums(rows, table)).numpy()
            if progress:
                progress(at + len(rows), len(texts))
        return vectors


def _sums(rows: list[list[int]], table: torch.Tensor) -> torch.Tensor:
    """Return the sum of the table's rows that each list names."""
    flat = torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=np.int64))
    offsets = torch.from_numpy(np.cumsum([0, *map(len, rows)], dtype=np.int64))[:-1]
    return embedding_bag(flat, table, offsets, mode="sum") if len(flat) else torch.zeros(len(rows), table.shape[1])


def _cached_table(embedder: Embedder) -> NDArray[np.float32]:
    path = cache_folder() / "embeddings" / f"static-{embedder.sha256[:16]}-{_FORMAT}.npy"
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError, BadZipFile):
        table = _distil(embedder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        np.save(file, table)
    os.replace(partial, path)
    return table


def _distil(embedder: Embedder) -> NDArray[np.float32]:
    """Return one weighted vector a word piece, shape (vocabulary, D)."""
    vectors = embedder.encode_pieces().astype(np.float64)
    vectors -= vectors.mean(0)
    values, axes = np.linalg.eigh(vectors.T @ vectors)
    strongest = axes[:, np.argsort(-values)[:_DIMENSION]]
    signs = np.sign(strongest[np.abs(strongest).argmax(0), np.arange(strongest.shape[1])])  # an axis has no sign of its own
    components = vectors @ (strongest * signs)
    spread = np.maximum(components.std(0), 1e-12)
    # A vocabulary lists special pieces and single characters first, then pieces from the most frequent word on.
    first = next((piece for piece, text in enumerate(embedder.pieces()) if len(text) > 1 and text.isalpha()), 0)
    frequency = 1 / np.maximum(np.arange(len(vectors)) - first + 1, 1)
    weight = _SMOOTHING / (_SMOOTHING + frequency / frequency.sum())
    table: NDArray[np.float32] = (components / np.sqrt(spread) * weight[:, None]).astype(np.float32)
    return table
