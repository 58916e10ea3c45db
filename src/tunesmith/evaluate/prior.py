"""What can be answered without reading: the shares of the labels in the train split.

The opponent "untuned" of an encoder, whose classification head is new: before training there is nothing in it to be measured, and a random head
would be an opponent of straw. Its answer is always the most frequent label; its confidence is that label's share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError


class Prior:
    """Scores every text alike.

    Args:
        labels: The label of each record of the train split, n of them.
        names: The label space.
    """

    def __init__(self, labels: Sequence[str], names: Sequence[str]) -> None:
        counts = np.array([list(labels).count(name) for name in names], dtype=np.float64)
        self._logits = np.log((counts + 1) / (counts.sum() + len(names))).astype(np.float32)  # Laplace: no label is impossible

    def score(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Return the logarithm of each label's share, shape (n_texts, n_labels)."""
        return np.tile(self._logits, (len(texts), 1))

    def log_probabilities(self, contexts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """Say nothing about texts: it is never asked.

        Raises:
            DataError: it was asked.
        """
        raise DataError("Shares of labels give no text a probability.")
