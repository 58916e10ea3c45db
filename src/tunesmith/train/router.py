"""Fits the router: multinomial logistic regression on the train split, its temperature on the calibration split.

The penalty of the regression is chosen inside the train split, by cross-validated log loss. The splits share no document, so that
the confidence is honest about texts that the weights have not seen. The validation split chooses the threshold elsewhere, and
the test split measures all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError
from tunesmith.evaluate.calibration import Temperature
from tunesmith.models.router import Router

_INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # embeddings have length 1: with less than 1 the weights stay too small to be sure of anything
_FOLDS = 5


def fit_router(
    vectors: NDArray[np.floating[Any]],
    routes: Sequence[str],
    calibration_vectors: NDArray[np.floating[Any]],
    calibration_routes: Sequence[str],
    *,
    embedding_model: str,
    embedding_sha256: str,
    last: str = "",
) -> Router:
    """Fit a router.

    Args:
        vectors: shape (n, D). Embeddings of the train split.
        routes: n names: where each text belongs.
        calibration_vectors: shape (m, D). Embeddings of the calibration split.
        calibration_routes: m names.
        embedding_model: What embedded the texts.
        embedding_sha256: Digest of its weights.
        last: The route that stands last, where it occurs; the others are sorted.

    Raises:
        DataError: there are fewer than two routes, or a calibration text belongs to a route that no train text has.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks (temperature).
    """
    names = tuple(sorted(set(routes), key=lambda name: (name == last, name)))
    if len(names) < 2 or set(calibration_routes) - set(names):
        raise DataError(
            "A router needs two routes or more: document types with a child, or one of them and records of other types. "
            f"Received: {', '.join(sorted({*routes, *calibration_routes})) or 'none'}."
        )
    at = {name: number for number, name in enumerate(names)}
    fitted = _fit(vectors, np.array([at[name] for name in routes]))
    weight, bias = np.array(fitted.coef_, dtype=np.float64, order="C"), np.array(fitted.intercept_, dtype=np.float64)
    if len(names) == 2:  # of two routes scikit-learn keeps the second one's logit, against 0
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    router = Router(names, weight, bias, 1.0, embedding_model, embedding_sha256)
    y = np.array([at[name] for name in calibration_routes], dtype=np.int64)
    temperature = Temperature.fit(router.logits(calibration_vectors), y).temperature
    return Router(names, weight, bias, temperature, embedding_model, embedding_sha256)


def _fit(vectors: NDArray[np.floating[Any]], y: NDArray[np.int64]) -> Any:
    """Return the regression, with the penalty that has the lowest log loss on folds of the same rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    smallest = int(np.bincount(y).min())
    if smallest < 2:  # too few of a route to hold any out
        return LogisticRegression(C=_INVERSE_PENALTIES[1], max_iter=1000).fit(vectors, y)
    folds = StratifiedKFold(min(_FOLDS, smallest), shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": list(_INVERSE_PENALTIES)}, scoring="neg_log_loss", cv=folds)
    return search.fit(vectors, y).best_estimator_
