"""Do reviewers agree, and who decides where they do not?

Krippendorff's alpha says how far the reviewers' labels are from chance: 1 is perfect agreement, 0 what chance gives,
below 0 systematic disagreement. It takes any number of reviewers and missing labels. Labels are names without order
(nominal). An item that fewer than two people labelled says nothing about agreement and is left out. Nothing here reads
a file; resampling depends on the seed alone.

Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.errors import DataError

Labels = Mapping[str, Mapping[str, str]]
"""Item -> reviewer -> label; who did not label an item is missing."""


@dataclass(frozen=True)
class Agreement:
    """How far reviewers agree.

    Attributes:
        alpha: Krippendorff's alpha for nominal labels, at most 1; NaN where all labels are one and the same.
        low: Lower end of the 95 % interval by bootstrap over items.
        high: Its upper end.
        n_items: Items with two labels or more.
        n_labels: Their labels.
    """

    alpha: float
    low: float
    high: float
    n_items: int
    n_labels: int


def krippendorff_alpha(labels: Labels) -> float:
    """Measure agreement beyond chance.

    Args:
        labels: Item -> reviewer -> label.

    Returns:
        At most 1. NaN when every label is the same: there is no disagreement that chance could have given.

    Raises:
        DataError: no item has two labels.

    Source:
        Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C.
    """
    counts = _counts(labels)
    return float(_alpha(counts, np.ones((1, len(counts))))[0])


def measure_agreement(labels: Labels, *, n_samples: int = 1000, seed: int = 0) -> Agreement:
    """Measure agreement beyond chance, with a 95 % percentile interval by resampling items.

    Args:
        labels: Item -> reviewer -> label.
        n_samples: Bootstrap samples. Those in which all labels are the same have no alpha and do not count.
        seed: Seed of the resampling.

    Raises:
        DataError: no item has two labels.
    """
    counts = _counts(labels)
    n_items = len(counts)
    weights = np.random.default_rng(seed).multinomial(n_items, np.full(n_items, 1 / n_items), size=n_samples)
    sampled = _alpha(counts, weights)
    defined = sampled[~np.isnan(sampled)]
    low, high = np.quantile(defined, [0.025, 0.975]) if defined.size else (np.nan, np.nan)
    return Agreement(krippendorff_alpha(labels), float(low), float(high), n_items, int(counts.sum()))


def _counts(labels: Labels) -> np.ndarray:
    """Return label counts of shape (n_items, n_values), only of items with two labels or more, in the order of their ids."""
    pairable = [Counter(given.values()) for _, given in sorted(labels.items()) if len(given) > 1]
    if not pairable:
        raise DataError("Agreement needs at least one item with the labels of two reviewers. Received: none.", hint="tunesmith review export --reviewers 2")
    values = sorted({value for counter in pairable for value in counter})
    return np.array([[counter[value] for value in values] for counter in pairable], dtype=float)


def _alpha(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return alpha for each row of item weights, shape (n_samples, n_items)."""
    sizes = counts.sum(axis=1)
    # Pairs within an item that differ, each label weighing 1 / (size - 1): n times the observed disagreement.
    disagreeing = (sizes**2 - (counts**2).sum(axis=1)) / (sizes - 1)
    totals = weights @ counts
    n = totals.sum(axis=1)
    expected = (n**2 - (totals**2).sum(axis=1)) / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (weights @ disagreeing) / expected, np.nan)


@dataclass(frozen=True)
class Decision:
    """What the labels of one item come to.

    Attributes:
        label: The label that stands; None while it is open.
        by: `agreement` of all, `majority`, the `adjudicator`, or `open`.
        reviewers_wanted: How many more labels the item needs: 0 when it is decided, else it is asked again.
    """

    label: str | None
    by: Literal["agreement", "majority", "adjudicator", "open"]
    reviewers_wanted: int


def decide(given: Sequence[tuple[str, str]], reviewers: int = 1, adjudicators: frozenset[str] = frozenset()) -> Decision:
    """Decide an item.

    An adjudicator's label stands, the last one if there are several. Else the item needs as many labels as it asks for;
    where those differ one more reviewer is asked, and the label with the most votes stands as soon as it has more than
    half of them.

    Args:
        given: (reviewer, label) pairs, oldest first. A reviewer's later label replaces the earlier one.
        reviewers: How many reviewers the item asks for.
        adjudicators: Reviewers whose word is final.
    """
    final = [label for reviewer, label in given if reviewer in adjudicators]
    if final:
        return Decision(final[-1], "adjudicator", 0)
    votes = Counter(dict(given).values())
    cast = votes.total()
    if cast < reviewers:
        return Decision(None, "open", reviewers - cast)
    label, count = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
    if count == cast:
        return Decision(label, "agreement", 0)
    if 2 * count > cast:
        return Decision(label, "majority", 0)
    return Decision(None, "open", 1)
