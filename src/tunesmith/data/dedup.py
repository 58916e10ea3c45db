"""Which texts are the same, or nearly, and which of them is kept?

Rules, from strict to loose:

- exact duplicates: equal text once runs of white space count as one space;
- near duplicates: the Jaccard similarity of their sets of word 3-shingles reaches a threshold (`near_duplicates.py`);
- semantic duplicates: the cosine of their embeddings does, and they share words (`semantic.py`);
- same opening: their first words are equal, as in letters written from one template.

Duplicates are dropped best row first: a row goes when it is a duplicate of a better row that stays, so that each dropped
row names a kept one that it was compared with, and chains of small changes do not swallow what differs at their ends.
Which row is better is the `keep` rule's choice, then the text's, then the id's. Same openings are only told: `split.py`
keeps them out of different splits. Everything depends on content, nothing on order or chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.near_duplicates import PAIRS_SCHEMA as PAIRS_SCHEMA
from tunesmith.data.near_duplicates import SHINGLE_WORDS, Sketches
from tunesmith.data.near_duplicates import near_duplicate_pairs as near_duplicate_pairs
from tunesmith.data.shingles import words as words
from tunesmith.data.sifted import Sifted, as_dropped
from tunesmith.errors import ConfigError

Keep = Literal["newest", "longest", "most_reviewed"]
_KEEP_COLUMNS: dict[str, str] = {"newest": "created_at", "longest": "text", "most_reviewed": "n_reviews"}

_WORD = re.compile(r"\w+")


def by_preference(rows: pl.DataFrame, keep: Keep) -> pl.DataFrame:
    """Sort rows, the one to keep of any set of duplicates first.

    Args:
        rows: Columns `id` and `text`. `newest` needs `created_at` too, which grows with time; `most_reviewed` needs
            `n_reviews`. Nulls come last.
        keep: The rule. Equal rows stand by text, then by id, so that the order of the input changes nothing.

    Raises:
        ConfigError: the rule is unknown, or its column is missing.
    """
    if keep not in _KEEP_COLUMNS:
        raise ConfigError(f"keep must be one of {', '.join(get_args(Keep))}. Received: {keep!r}.")
    column = _KEEP_COLUMNS[keep]
    if column not in rows.columns:
        raise ConfigError(f"keep: {keep} needs the column {column!r}, which these rows lack.", hint="Set keep: longest, or give every source that column.")
    value = pl.col(column).str.len_chars() if column == "text" else pl.col(column)
    return rows.sort(value, "text", "id", descending=[True, False, False], nulls_last=True)


def drop_near_duplicates(rows: pl.DataFrame, threshold: float, keep: Keep = "longest", previous: pl.DataFrame | None = None) -> Sifted:
    """Drop each row that is a near duplicate of a better row that stays, as `near_duplicate`.

    Of the pairs at the threshold fewer than 2 in 100 are missed, and fewer the more similar they are. Dropping again drops
    nothing. Takes time linear in the number of words, whatever the texts.

    Args:
        rows: Columns `id`, `text`, what `keep` needs, and those of `Document` that there are. Ids are distinct.
        threshold: Jaccard similarity of word 3-shingles, in (0, 1].
        keep: Which row is better.
        previous: Columns `id` and `text`. These stay whatever they are like, come before all rows, and are not in the result.

    Returns:
        Kept rows in the order of the input. Dropped rows name the most similar row that stays (`kept_id`) and the similarity.
    """
    ranked = by_preference(rows, keep)
    fixed = ranked.select("id", "text").clear() if previous is None else previous.select("id", "text").sort("text", "id")
    whole = pl.concat([fixed, ranked.select("id", "text")])
    keeper, similarity = Sketches.of(whole["text"], threshold).keepers(threshold, len(fixed))
    return sift(rows, whole["id"], keeper, similarity, "near_duplicate", "Jaccard similarity {} to {}")


def sift(rows: pl.DataFrame, ids: pl.Series, keeper: NDArray[np.int64], similarity: NDArray[np.float64], reason: str, evidence: str) -> Sifted:
    """Part rows by the decision of a tier.

    Args:
        rows: What to part, in the order that kept rows shall have.
        ids: shape (n,). Ids of the ranked rows, of which `rows` are some.
        keeper: shape (n,). Rank of the row that is kept in its place, or -1 for a row that stays.
        similarity: shape (n,). Similarity to it.
        reason: For the dropped table.
        evidence: Format of one sentence, with places for similarity and kept id.
    """
    gone = np.flatnonzero(keeper >= 0)
    marks = pl.DataFrame({"id": ids.gather(gone), "kept_id": ids.gather(keeper[gone]), "similarity": similarity[gone]})
    # Rounded down, so that a similarity below the threshold never reads as the threshold.
    shown = (pl.col("similarity") * 1000).floor() / 1000
    dropped = rows.join(marks, on="id", maintain_order="left").with_columns(reason=pl.lit(reason), evidence=pl.format(evidence, shown, "kept_id"))
    return Sifted(kept=rows.join(marks, on="id", how="anti", maintain_order="left"), dropped=as_dropped(dropped))


def drop_exact_duplicates(documents: pl.DataFrame, previous: pl.DataFrame | None = None) -> Sifted:
    """Keep the first of each set of equal texts.

    Copies are dropped as `exact_duplicate`, and as `conflicting_label` when the first has another label: keeping both
    would teach two answers to one question, and dropping both would let one stray copy remove a good document.

    Args:
        documents: Columns `id`, `text`, `label` and those of `Document`, in order of preference.
        previous: Rows with columns `id`, `text` and `label` that are kept already and come before the documents.
    """
    columns = ["id", "text", "label"]
    rows = documents.select(columns) if previous is None else pl.concat([previous.select(columns), documents.select(columns)])
    key = pl.col("text").str.replace_all(r"\s+", " ").str.strip_chars()
    firsts = rows.select(kept_id=pl.col("id").first().over(key), kept_label=pl.col("label").first().over(key)).tail(len(documents))
    marked = pl.concat([documents, firsts], how="horizontal")
    is_copy = pl.col("id") != pl.col("kept_id")
    conflicts = pl.col("label") != pl.col("kept_label")
    dropped = marked.filter(is_copy).with_columns(
        reason=pl.when(conflicts).then(pl.lit("conflicting_label")).otherwise(pl.lit("exact_duplicate")),
        evidence=pl.when(conflicts)
        .then(pl.format("same text as {}, which has the label '{}'", "kept_id", "kept_label"))
        .otherwise(pl.format("same text and label as {}", "kept_id")),
        similarity=pl.lit(1.0),
    )
    return Sifted(kept=marked.filter(~is_copy).drop("kept_id", "kept_label"), dropped=as_dropped(dropped))


def same_opening_pairs(texts: Sequence[str], n_words: int) -> pl.DataFrame:
    """Pair each text with the first one that has the same `n_words` first words. Shorter texts have no opening.

    Returns:
        Columns as in `near_duplicate_pairs`; `similarity` is null. 0 words give no pair.
    """
    first: dict[str, int] = {}
    found = []
    for position, text in enumerate(texts):
        start = opening(text, n_words)
        if start and first.setdefault(start, position) != position:
            found.append((first[start], position, None))
    return pl.DataFrame(found, schema=PAIRS_SCHEMA, orient="row")


def opening(text: str, n_words: int) -> str:
    """Return the first `n_words` normalised words of a text, or an empty string when it has fewer."""
    start = [match.group() for match in islice(_WORD.finditer(text.lower()), n_words)]
    return " ".join(start) if len(start) == n_words else ""


def jaccard(left: str, right: str) -> float:
    """Return the exact similarity of two texts, in [0, 1], as `near_duplicate_pairs` measures it."""
    a, b = (_shingles(text) for text in (left, right))
    return len(a & b) / len(a | b)


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    found += [""] * (SHINGLE_WORDS - len(found))
    return set(zip(*(found[at:] for at in range(SHINGLE_WORDS)), strict=False))


def clusters(n: int, pairs: pl.DataFrame) -> NDArray[np.int64]:
    """Join what is linked, directly or through others (union-find).

    Args:
        n: Number of texts.
        pairs: Columns `left` and `right`, positions in [0, n).

    Returns:
        Shape (n,). The smallest position in each text's cluster.
    """
    parent = list(range(n))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for left, right in pairs.select("left", "right").iter_rows():
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return np.array([root(position) for position in range(n)], dtype=np.int64)
