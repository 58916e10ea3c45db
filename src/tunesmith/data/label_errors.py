"""Which labels are wrong, and which answers belong to another prompt?

Confident learning on three views of a text that fail differently: logistic regression on embeddings, the labels of the
nearest neighbours, and logistic regression on TF-IDF of words and word pairs. Probabilities are out of fold: no view saw
the label that it judges. What is proposed after a first round would teach the errors, so that the views learn once more
without it, and judge all rows again.

What a text says of its class and how often each class is labelled as each other give, by Bayes' rule, the probability that
a label is wrong: a text between two classes that nobody mixes up is less suspicious than one between two that people do.
Views that learned from some wrong labels are too unsure, and lean to some classes. How sharp they are made, how far each class
is raised, and how often classes are mixed up are fitted together, so that the given labels, errors included, are most likely.
That is the score; rows more likely wrong than right are proposed. The share of errors is estimated, never told; labels that are
a matter of taste count as errors too, so that it is an upper guide.

All is proposals for reviewers, with the nearest neighbours as evidence. Folds depend on the text and the seed: the order of
the rows changes nothing beyond rounding.

Sources: Northcutt, Jiang and Chuang 2021, Confident Learning (the joint to begin with);
Natarajan et al. 2013, Learning with Noisy Labels (noise that depends on the class alone);
Alexandari, Kundaje and Shrikumar 2020, Maximum Likelihood with Bias-Corrected Calibration (one sharpness, one offset a class);
Conneau et al. 2018, Word Translation Without Parallel Data (margins over the best alternatives, for mismatched answers).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.errors import DataError, MissingExtraError

LABEL_ERRORS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "position": pl.Int64,
    "label": pl.String,  # as given
    "suggested": pl.String,  # the most probable other label
    "score": pl.Float64,  # probability that the label is wrong, in [0, 1]
    "is_proposed": pl.Boolean,  # more likely wrong than right
    "neighbours": pl.List(pl.Int64),  # positions, nearest first
    "similarities": pl.List(pl.Float64),  # cosines to them
}
MISMATCHES_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "position": pl.Int64,
    "score": pl.Float64,  # in [-4, 4]; above 0 another partner fits better
    "better_response": pl.Int64,  # position of the other response that fits this prompt best
    "better_prompt": pl.Int64,  # position of the other prompt that fits this response best
}

Progress = Callable[[int, int], object]

_NEIGHBOURS = 15  # whose labels are a view
_NEARNESS = 0.1  # scale of their cosines: one that is 0.1 nearer counts e times as much
_MOST_TERMS = 50_000
_LARGEST_KERNEL = 5_000  # rows whose terms are replaced by coordinates with the same products
_MOST_STEPS = 50  # of a regression
_LEAST_NOISE = 1e-4  # share of a class that carries some other label, where the joint knows of none: no label is beyond doubt
_LEAST_PROBABILITY = 1e-3  # no view is surer
_ROUNDS = 15  # of expectation and maximisation; after six little changes
_SHARPNESS = (0.2, 20.0)  # least and most
_DEVIATION = 0.7  # of an offset from 0 that is no surprise: what few rows say does not go far beyond
_PROPOSED_FROM = 0.5


@dataclass(frozen=True)
class LabelErrors:
    """What was found.

    Attributes:
        rows: Columns of `LABEL_ERRORS_SCHEMA`, one row a row, in the order of the input.
        error_rate: Estimated share of rows whose label is wrong: the mean score.
        joint: shape (n_labels, n_labels). Estimated share of rows with a given label (row) that belong to another (column).
        labels: Names of the joint's rows and columns, sorted.
    """

    rows: pl.DataFrame
    error_rate: float
    joint: NDArray[np.float64]
    labels: tuple[str, ...]


def find_label_errors(
    texts: Sequence[str],
    labels: Sequence[str],
    embeddings: NDArray[np.float32],
    *,
    n_folds: int = 5,
    n_neighbours: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> LabelErrors:
    """Score every label and propose those that are probably wrong.

    Args:
        texts: n texts.
        labels: n labels as given; at least 2 different ones.
        embeddings: shape (n, D). Unit vectors of a contextual model.
        n_folds: Parts of the data, each judged by models that learned from the others; at least 2.
        n_neighbours: Rows named as evidence.
        seed: Of the folds.
        progress: Called with folds judged and folds in all, of both rounds.

    Raises:
        DataError: the inputs differ in number, or there are fewer than 2 labels or rows than folds.
        MissingExtraError: scikit-learn is not installed.
    """
    names, given = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
    if not len(texts) == len(labels) == len(embeddings):
        raise DataError(f"Each text needs one label and one embedding. Received: {len(texts)} texts, {len(labels)} labels, {len(embeddings)} embeddings.")
    if len(names) < 2 or len(texts) < n_folds:
        raise DataError(f"Label errors need 2 labels and {n_folds} rows at least. Received: {len(names)} labels, {len(texts)} rows.")
    from tunesmith.models.neighbours import nearest

    views = _Views(texts, given, embeddings, len(names), _folds(texts, given, n_folds, seed))
    trusted = np.ones(len(given), dtype=bool)
    for begun in range(2):

        def told(done: int, total: int, begun: int = begun) -> None:
            if progress:
                progress(begun * total + done, 2 * total)

        belongs, joint = _weighed(views.probabilities(trusted, told), given)
        score = 1 - belongs[np.arange(len(given)), given]
        trusted = score < _PROPOSED_FROM
    belongs[np.arange(len(given)), given] = -1
    positions, cosines = nearest(embeddings, embeddings, n_neighbours, exclude_self=True)
    columns = {
        "position": np.arange(len(given)),
        "label": names[given],
        "suggested": names[belongs.argmax(1)],
        "score": score,
        "is_proposed": score >= _PROPOSED_FROM,
        "neighbours": positions.tolist(),
        "similarities": cosines.tolist(),
    }
    return LabelErrors(pl.DataFrame(columns, schema=LABEL_ERRORS_SCHEMA), float(score.mean()), joint, tuple(names.tolist()))


def estimate_joint(probability: NDArray[np.float64], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimate how often each given label stands for each true one.

    Args:
        probability: shape (n, n_labels). Out-of-fold probabilities, rows summing to 1.
        given: shape (n,). Labels as given.

    Returns:
        shape (n_labels, n_labels). Shares summing to 1; rows are given labels, columns true ones.

    Source:
        Northcutt et al. 2021, equations 1 and 2: a row counts for the class whose probability, beyond the class's mean
        probability over the rows that carry its label, is highest; then rows are scaled to the given labels' counts.
    """
    n, n_labels = probability.shape
    counts = np.bincount(given, minlength=n_labels)
    own = np.bincount(given, weights=probability[np.arange(n), given], minlength=n_labels)
    threshold = np.divide(own, counts, out=np.ones(n_labels), where=counts > 0)
    beyond = np.where(probability >= threshold - 1e-9, probability, -1)
    counted = np.flatnonzero(beyond.max(1) >= 0)
    confident = np.zeros((n_labels, n_labels))
    np.add.at(confident, (given[counted], beyond[counted].argmax(1)), 1)
    np.fill_diagonal(confident, np.maximum(np.diagonal(confident), 1))
    scaled = confident / confident.sum(1, keepdims=True) * counts[:, None]
    return scaled / scaled.sum()  # type: ignore[no-any-return]


def true_labels(probability: NDArray[np.float64], given: NDArray[np.int64], joint: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability that each row belongs to each class, by what its text says and by the label that it was given.

    Args:
        probability: shape (n, n_labels). Out-of-fold probabilities of the classes, of the text alone; rows sum to 1.
        given: shape (n,). Labels as given.
        joint: shape (n_labels, n_labels). Shares of given labels (rows) and true ones (columns), as of `estimate_joint`.

    Returns:
        shape (n, n_labels). Rows sum to 1: the text's probability of a class times how often that class is labelled so, scaled.

    Source:
        Bayes' rule, where the noise depends on the class alone: Natarajan et al. 2013.
    """
    belongs = probability * _labelled_so(joint)[given]
    return belongs / belongs.sum(1, keepdims=True)  # type: ignore[no-any-return]


def _weighed(probability: NDArray[np.float64], given: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each row belongs to, shape (n, n_labels), and the joint that follows from it: together they make the given labels most likely.

    Source:
        Expectation and maximisation: the text's probabilities are fitted with the joint held, then the joint is what each row belongs to.
    """
    from scipy.optimize import minimize

    said, joint = np.log(np.maximum(probability, _LEAST_PROBABILITY)), estimate_joint(probability, given)
    n_labels = len(joint)
    correction = np.append(1.0, np.zeros(n_labels))
    bounds = [_SHARPNESS] + [(None, None)] * n_labels
    for _ in range(_ROUNDS):
        correction = minimize(
            _unlikelihood, correction, (said, _labelled_so(joint)[given]), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _MOST_STEPS}
        ).x
        belongs = true_labels(_corrected(said, correction), given, joint)
        joint = np.zeros_like(joint)
        np.add.at(joint, given, belongs / len(given))
    return belongs, joint


def _corrected(said: NDArray[np.float64], correction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log probabilities times the sharpness plus the classes' offsets, as probabilities again."""
    logits = correction[0] * said + correction[1:]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)  # type: ignore[no-any-return]


def _unlikelihood(correction: NDArray[np.float64], said: NDArray[np.float64], labelled_so: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return minus the log likelihood of the given labels and of the offsets, and its gradient.

    Args:
        correction: shape (1 + n_labels,). The sharpness, and the classes' offsets.
        said: shape (n, n_labels). Log probabilities of the classes, of the text alone.
        labelled_so: shape (n, n_labels). How often each class carries the label that the row was given.
    """
    text = _corrected(said, correction)
    belongs = text * labelled_so
    likely = belongs.sum(1, keepdims=True)
    rise = belongs / likely - text
    unusual = np.append(0, correction[1:]) / _DEVIATION
    return float((unusual**2).sum() / 2 - np.log(likely).sum()), unusual / _DEVIATION - np.append((rise * said).sum(), rise.sum(0))


def _labelled_so(joint: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each given label (row), the share of each true class (column) that carries it."""
    shares: NDArray[np.float64] = np.maximum(joint / np.maximum(joint.sum(0), 1e-12), _LEAST_NOISE)
    return shares


def _folds(texts: Sequence[str], given: NDArray[np.int64], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Return each row's fold: rows of a class are dealt out in the order of a hash of text and seed."""
    hashes = [hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    fold = np.empty(len(texts), dtype=np.int64)
    for label in np.unique(given):
        members = sorted(np.flatnonzero(given == label).tolist(), key=lambda row: hashes[row])
        fold[members] = (np.arange(len(members)) + label) % n_folds
    return fold


class _Views:
    """Three out-of-fold classifiers of the same rows."""

    def __init__(self, texts: Sequence[str], given: NDArray[np.int64], embeddings: NDArray[np.float32], n_labels: int, fold: NDArray[np.int64]) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise MissingExtraError("scikit-learn", "data") from None
        from tunesmith.models.neighbours import nearest

        self._given, self._embeddings, self._n_labels, self._fold = given, embeddings, n_labels, fold
        terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 100 else 1, max_features=_MOST_TERMS, token_pattern=r"\w+")  # noqa: S106 - of words
        self._terms = _coordinates(terms.fit_transform([text or "empty" for text in texts]), n_labels)
        # More than are asked, for some may not be trusted.
        self._near, self._cosine = nearest(embeddings, embeddings, 2 * _NEIGHBOURS, exclude_self=True)

    def probabilities(self, trusted: NDArray[np.bool_], progress: Progress) -> NDArray[np.float64]:
        """Return the mean of the views, shape (n, n_labels), learned from the trusted rows alone."""
        total = self._neighbours(trusted)
        numbers = np.unique(self._fold)
        for done, number in enumerate(numbers, start=1):
            judge = self._fold == number
            for features in (self._embeddings, self._terms):
                total[judge] += self._regression(features, trusted, number)
            progress(done, len(numbers))
        return total / 3

    def _regression(self, features: Any, trusted: NDArray[np.bool_], number: int) -> NDArray[np.float64]:
        """Return what a regression on the other folds says of one fold, shape (n_judged, n_labels)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        learn, judge = np.flatnonzero((self._fold != number) & trusted), np.flatnonzero(self._fold == number)
        if len(np.unique(self._given[learn])) < 2:
            return np.full((len(judge), self._n_labels), 1 / self._n_labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough to rank by
            model = LogisticRegression(C=10, max_iter=_MOST_STEPS).fit(features[learn], self._given[learn])
        probability = np.zeros((len(judge), self._n_labels))
        probability[:, model.classes_] = model.predict_proba(features[judge])
        return probability

    def _neighbours(self, trusted: NDArray[np.bool_]) -> NDArray[np.float64]:
        usable = trusted[self._near]
        usable &= usable.cumsum(1) <= _NEIGHBOURS
        weight = np.exp((self._cosine.astype(np.float64) - 1) / _NEARNESS) * usable
        votes = np.zeros((len(self._given), self._n_labels))
        for column in range(self._near.shape[1]):
            votes[np.arange(len(votes)), self._given[self._near[:, column]]] += weight[:, column]
        prior = np.bincount(self._given[trusted], minlength=self._n_labels) / max(int(trusted.sum()), 1)
        total = votes.sum(1, keepdims=True)
        share = np.divide(votes, total, out=np.tile(prior, (len(votes), 1)), where=total > 0)
        return (share * _NEIGHBOURS + prior) / (_NEIGHBOURS + 1)  # type: ignore[no-any-return]


def _coordinates(terms: Any, n_labels: int) -> Any:
    """Return features with the same products between rows, as few as there are rows: a regression on them is the same one.

    Args:
        terms: shape (n, n_terms), sparse; it comes back as it is where that is faster.
        n_labels: Each has a weight for each feature.
    """
    n, n_terms = terms.shape
    # A step of the solver goes over the products and, slower, over the weights.
    if n > _LARGEST_KERNEL or n * n > 40 * n_terms * n_labels:
        return terms
    products = (terms @ terms.T).toarray()
    products[np.diag_indices(n)] += 1e-8  # equal rows have no root of their own
    return np.linalg.cholesky(products)


def score_mismatches(prompts: NDArray[np.float32], responses: NDArray[np.float32]) -> pl.DataFrame:
    """Score, for instruction data, how far each response is from belonging to its prompt.

    The score is how much better the best other response fits the prompt, and the best other prompt the response, than the
    two fit each other: swapped answers stand out, and so do answers to nothing in the data, somewhat less.

    Args:
        prompts: shape (n, D). Unit vectors of a contextual model.
        responses: shape (n, D). Those of the responses, in the same order.

    Returns:
        Columns of `MISMATCHES_SCHEMA`, in the order of the input. To be read from the highest score down.

    Raises:
        DataError: prompts and responses differ in number, or there are fewer than 2.
    """
    if len(prompts) != len(responses) or len(prompts) < 2:
        raise DataError(f"Mismatches need two pairs or more, one response a prompt. Received: {len(prompts)} prompts, {len(responses)} responses.")
    from tunesmith.models.neighbours import nearest

    response, response_cosine = nearest(prompts, responses, 1, exclude_self=True)
    prompt, prompt_cosine = nearest(responses, prompts, 1, exclude_self=True)
    own = np.einsum("ij,ij->i", prompts, responses)
    columns = {
        "position": np.arange(len(own)),
        "score": (response_cosine[:, 0] + prompt_cosine[:, 0] - 2 * own).astype(np.float64),
        "better_response": response[:, 0],
        "better_prompt": prompt[:, 0],
    }
    return pl.DataFrame(columns, schema=MISMATCHES_SCHEMA)
