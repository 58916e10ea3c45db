"""Which train records are most like a text?

Answers "what taught the model this?" in words that a person can check: the train records that share the most telling
words with a text, each with its source and line. This is resemblance, not proof of influence.

Source: Robertson and Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond, section 3.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl

from tunesmith.data.dedup import words

_K1 = 1.2  # how fast repeating a word stops counting
_B = 0.75  # how much long records are held back


def nearest(query: str, records: pl.DataFrame, k: int = 3) -> pl.DataFrame:
    """Rank the train records by BM25.

    Args:
        query: Any text. Each of its words counts once.
        records: Columns of `Record`; splits other than train are ignored.
        k: Most rows to return.

    Returns:
        Up to k rows of `records`, best first, with the column `score` above 0; equal scores stand by id. Scores compare
        within one call only.
    """
    train = records.filter(pl.col("split") == "train").sort("id")
    asked = sorted(set(words(query)))
    column = {word: position for position, word in enumerate(asked)}
    counts = np.zeros((len(train), len(asked)))
    lengths = np.zeros(len(train))
    for row, text in enumerate(train["text"]):
        found = words(text)
        lengths[row] = len(found)
        for word, count in Counter(word for word in found if word in column).items():
            counts[row, column[word]] = count
    holders = (counts > 0).sum(axis=0)
    weight = np.log1p((len(train) - holders + 0.5) / (holders + 0.5))
    length = 1 - _B + _B * lengths / max(lengths.mean() if len(train) else 1.0, 1.0)
    scores = (weight * counts * (_K1 + 1) / (counts + _K1 * length[:, None])).sum(axis=1)
    best = np.argsort(-scores, kind="stable")[:k]
    return train[best].with_columns(score=scores[best]).filter(pl.col("score") > 0)
