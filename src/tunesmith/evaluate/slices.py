"""Where is the model weaker than on the whole?

A slice is a named subset of the test records. Given ones come from what is known of a record: its length, source, document
type, language, and the group of similar texts that it is in. A record that lacks a fact is in none of its slices.
Found ones come from a shallow tree over these facts that looks for records which go wrong together. Whoever looks for the worst
slice finds one, in noise too: so the tree is grown on one half of the documents, and a slice that it found is measured on the
other half alone.

All slices, given and found, are tested against the rest of the records together, and their p-values are corrected by Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from tunesmith.errors import DataError
from tunesmith.evaluate.candidates import holm
from tunesmith.evaluate.intervals import wilson
from tunesmith.evaluate.metrics import FloatArray

MIN_RECORDS = 30
"""Fewer records say too little for a slice of their own."""

MAX_VALUES = 30
"""A fact with more values than that names records, not slices."""

DEPTH = 3
CLUSTERS = 12

Mask = NDArray[np.bool_]


def facts_of(records: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Return what slices are made of, a row a record: length in words by quarters, source file, doubt about how it was read, topic.

    Args:
        records: Columns `text`, `source` and `weight`; further ones (`document_type`, `language`) are taken as they are.
        seed: Seed of the groups of similar texts.
    """
    words = records["text"].str.split(" ").list.len()
    edges = [int(words.quantile(q, "nearest") or 0) for q in (0.25, 0.5, 0.75)]
    low, middle, high = edges
    length = (
        pl.when(words <= low).then(pl.lit(f"up to {low} words"))
        .when(words <= middle).then(pl.lit(f"{low + 1} to {middle} words"))
        .when(words <= high).then(pl.lit(f"{middle + 1} to {high} words"))
        .otherwise(pl.lit(f"over {high} words"))
    )  # fmt: skip
    facts = pl.select(length.alias("length"))
    if records["source"].n_unique() > 1:
        facts = facts.with_columns(records["source"])
    if records["weight"].min() != records["weight"].max():
        facts = facts.with_columns(pl.Series("confidence of the text", ["read with doubt" if weight < 0.9 else "read well" for weight in records["weight"]]))
    if (about := topics(records["text"].to_list(), seed)) is not None:
        facts = facts.with_columns(pl.Series("about", about))
    return facts.with_columns(records[name] for name in ("document_type", "language") if name in records.columns)


def topics(texts: Sequence[str], seed: int = 0) -> list[str] | None:
    """Return the group of similar texts that each is in, named by its three most typical words; None where there are too few texts.

    Source:
        Deerwester et al. 1990, Indexing by Latent Semantic Analysis; the groups are k-means of these embeddings.
    """
    if len(texts) < CLUSTERS * MIN_RECORDS:
        return None
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words_only = r"(?u)\b[^\W\d_]{3,}\b"
    counts = TfidfVectorizer(stop_words="english", min_df=5, max_df=0.5, sublinear_tf=True, token_pattern=words_only)
    try:
        terms = counts.fit_transform(texts)
    except ValueError:  # no words in common
        return None
    n_axes = min(50, terms.shape[1] - 1)
    if n_axes < 2:
        return None
    embeddings = normalize(TruncatedSVD(n_axes, random_state=seed).fit_transform(terms))
    group = KMeans(CLUSTERS, n_init=4, random_state=seed).fit_predict(embeddings)
    words, overall = counts.get_feature_names_out(), np.asarray(terms.mean(axis=0)).ravel()
    typical = {}
    for number in np.unique(group):
        lift = np.asarray(terms[group == number].mean(axis=0)).ravel() - overall
        typical[number] = ", ".join(words[at] for at in np.argsort(-lift, kind="stable")[:3])
    return [typical[number] for number in group]


def slices(
    right: ArrayLike,
    facts: pl.DataFrame,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure given slices, and look for the worst ones.

    Args:
        right: shape (n,), in [0, 1]. How right each answer is.
        facts: n rows; a column a fact, text or numbers.
        groups: shape (n,). Document of each record: both halves hold whole documents.
        level: Level of the intervals, a ratio.
        seed: Seed of the halves.

    Returns:
        Per slice: `name`, `kind` (given or found), `n` records it is measured on, `value`, `low`, `high` (share of right answers), `rest`
        (the same of the other records), `p_value` corrected for all slices, `is_worse` (the corrected p-value is below 1 - level and the slice is
        below the rest). Worst first.

    Raises:
        DataError: there are no records, or facts are not one row a record.
    """
    score = np.asarray(right, dtype=np.float64)
    if not len(score) or len(facts) != len(score):
        raise DataError(f"Slices need records, and facts of each. Received: {len(score)} records, {len(facts)} rows of facts.")
    measured = [(name, "given", inside, np.ones(len(score), dtype=bool)) for name, inside in _given(facts).items()]
    held_out = _half(len(score), groups, seed)
    measured += [(name, "found", inside & held_out, held_out) for name, inside in _grow(_given(facts), score, ~held_out, seed).items()]
    measured = [entry for entry in measured if MIN_RECORDS <= entry[2].sum() <= entry[3].sum() - MIN_RECORDS]
    p_values = holm([_p_value(score[inside], score[pool & ~inside]) for _, _, inside, pool in measured])
    shown = []
    for (name, kind, inside, pool), p_value in zip(measured, p_values, strict=True):
        own, rest = score[inside], score[pool & ~inside]
        figure = _share(own, level)
        worse = p_value < 1 - level and own.mean() < rest.mean()
        shown.append({"name": name, "kind": kind, "n": int(inside.sum()), **figure, "rest": float(rest.mean()), "p_value": p_value, "is_worse": bool(worse)})
    return sorted(shown, key=lambda entry: entry["value"])


def _given(facts: pl.DataFrame) -> dict[str, Mask]:
    found: dict[str, Mask] = {}
    for name in facts.columns:
        values = facts[name].unique().drop_nulls().sort().to_list()
        if facts[name].dtype == pl.String and 1 < len(values) <= MAX_VALUES:
            found |= {f"{name}: {value}": (facts[name] == value).fill_null(False).to_numpy() for value in values}
    return found


def _half(n: int, groups: ArrayLike | None, seed: int) -> Mask:
    """Return the records that only measure: half of the documents."""
    unit = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    return np.asarray(np.random.default_rng(seed).permutation(int(unit.max()) + 1)[unit] % 2 == 0)


def _grow(given: Mapping[str, Mask], score: FloatArray, seen: Mask, seed: int) -> Mapping[str, Mask]:
    """Grow the tree on the seen half, and return its leaves that are below the mean there, of all records."""
    names = list(given)
    if not names or seen.sum() < 4 * MIN_RECORDS:
        return {}
    from sklearn.tree import DecisionTreeRegressor

    features = np.column_stack([given[name] for name in names]).astype(np.float32)
    tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=MIN_RECORDS, random_state=seed).fit(features[seen], score[seen]).tree_
    mean, found = score[seen].mean(), {}
    leaf = tree.apply(features)

    def walk(node: int, path: tuple[str, ...]) -> None:
        if tree.children_left[node] < 0:
            if path and tree.value[node].item() < mean:
                found[" and ".join(path)] = leaf == node
            return
        name = names[tree.feature[node]]
        walk(tree.children_left[node], (*path, f"not {name}"))
        walk(tree.children_right[node], (*path, name))

    walk(0, ())
    return found


def _p_value(own: FloatArray, rest: FloatArray) -> float:
    """Return the two-sided p-value that both means are equal, by their standard errors with one right and one wrong answer added to each."""
    first, second = (np.concatenate([values, [0.0, 1.0]]) for values in (own, rest))
    error = np.sqrt(first.var() / len(first) + second.var() / len(second))
    return float(2 * ndtr(-abs(first.mean() - second.mean()) / error))


def _share(score: FloatArray, level: float) -> dict[str, float]:
    """Return the mean with an interval: Wilson's, for values between 0 and 1 too, of which it is rather too wide."""
    found = wilson(round(float(score.sum())), len(score), level)
    return {"value": float(score.mean()), "low": min(found.low, float(score.mean())), "high": max(found.high, float(score.mean()))}
