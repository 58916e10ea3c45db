"""What do adapters per document type bring, and what does the router lose of it?

On the test rows, as the adapters are served: end accuracy of the parent alone, with true routes and with predicted ones. The
regret is what true routes would win over the predicted ones; its interval is paired on the rows. The threshold is chosen on
the validation split, which no weight, temperature or gate has seen.

Routing figures are plain data for report.json:

    threshold, threshold_rule, temperature, routes, n_test
    accuracy.{value, low, high}                    the most probable route is the true one
    abstained.{value, low, high}                   the router was not surer than the threshold
    end_accuracy.{parent, true_routes, predicted_routes}.{value, low, high}
    regret.{difference, low, high, p_value}        true routes minus predicted ones
    gain.{difference, low, high, p_value}          predicted routes minus the parent alone
    calibration_error.{value, low, high}           of the confidence of the adapter that answers, expected calibration error
    calibration_error_before.{value, low, high}    the same of its raw confidence
    document_types[].{document_type, n_test, routed_right, abstained, parent, true_routes, predicted_routes}

Intervals: Wilson for shares, paired percentile bootstrap for differences, exact McNemar for their p-values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, mcnemar, wilson
from tunesmith.evaluate.metrics import ExpectedCalibrationError, FloatArray, IntArray, counted, is_correct, mean_of_sums
from tunesmith.models.router import PARENT, Routes

THRESHOLDS = np.linspace(0, 1, 101)
"""What is tried. Nothing is surer than 1, so that the last one sends every text to the parent."""


def pick(adapters: Sequence[str], of_adapter: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return for each row the value of the adapter that answers it.

    Args:
        adapters: n names.
        of_adapter: Adapter -> values of all rows, shape (n, ...).

    Raises:
        DataError: an adapter has no values.
    """
    if unknown := set(adapters) - of_adapter.keys():
        raise DataError(f"Every adapter that answers must have answers. Received none of: {', '.join(sorted(unknown))}.")
    return np.stack([of_adapter[name][row] for row, name in enumerate(adapters)])


def choose_threshold(routes: Routes, right: Mapping[str, NDArray[np.bool_]]) -> float:
    """Return the threshold with most right answers on the validation split; of equals the middle one.

    Args:
        routes: Of n validation texts.
        right: Adapter -> whether its answer is right, shape (n,); rows that are not routed to it are not looked at.
    """
    found = np.array([pick(routes.adapters(threshold, [*right]), right).sum() for threshold in THRESHOLDS])
    best = np.flatnonzero(found == found.max())
    return round(float(THRESHOLDS[best[(len(best) - 1) // 2]]), 2)


def routing_figures(
    routes: Routes,
    true_routes: Sequence[str],
    document_types: Sequence[str],
    probabilities: Mapping[str, FloatArray],
    y: IntArray,
    served: Sequence[str],
    threshold: float,
    *,
    raw: Mapping[str, FloatArray] | None = None,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    n_bins: int = 15,
) -> dict[str, Any]:
    """Measure routing on the test split.

    Args:
        routes: Of n test texts.
        true_routes: Where each of them belongs.
        document_types: The type of each; empty where it has none.
        probabilities: Adapter -> calibrated probabilities, shape (n, n_labels); rows that no route sends to it are not looked at.
        y: shape (n,). Right labels, as indices.
        served: Document types whose child answers; of the others the parent does.
        threshold: The router's.
        raw: The same as `probabilities` without calibrators; `calibration_error_before` is left out without them.
        level: Level of every interval.
        n_samples: Resamples behind each bootstrap interval.
        seed: Seed of the resamples.
        n_bins: Bins of the calibration error.

    Returns:
        The keys of the module docstring, but `threshold_rule`, `temperature` and `routes`.
    """
    n = len(y)
    predicted = routes.adapters(threshold, served)
    ideal = tuple(name if name in served else PARENT for name in true_routes)
    right = {
        name: is_correct(y, pick(adapters, probabilities))
        for name, adapters in (("parent", (PARENT,) * n), ("true_routes", ideal), ("predicted_routes", predicted))
    }
    routed = np.array([name == true for name, true in zip(routes.names, true_routes, strict=True)])
    abstained = routes.confidence <= threshold
    bootstrap = Bootstrap(n, n_samples=n_samples, level=level, seed=seed)

    def difference(first: str, second: str) -> dict[str, float]:
        found = bootstrap.difference(mean_of_sums, *(counted(right[name].astype(np.float64)) for name in (first, second)))
        return replace(found, p_value=mcnemar(right[first], right[second])).to_dict()

    def share(hits: NDArray[np.bool_]) -> dict[str, float]:
        return wilson(int(hits.sum()), len(hits), level).to_dict()

    metric = ExpectedCalibrationError(n_bins)
    types = np.array(document_types)
    return {
        "threshold": threshold,
        "n_test": n,
        "accuracy": share(routed),
        "abstained": share(abstained),
        "end_accuracy": {name: share(hits) for name, hits in right.items()},
        "regret": difference("true_routes", "predicted_routes"),
        "gain": difference("predicted_routes", "parent"),
        "calibration_error": metric.interval(bootstrap, metric.rows(y, pick(predicted, probabilities))).to_dict(),
        **({"calibration_error_before": metric.interval(bootstrap, metric.rows(y, pick(predicted, raw))).to_dict()} if raw else {}),
        "document_types": [
            {
                "document_type": str(each),
                "n_test": int((types == each).sum()),
                "routed_right": float(routed[types == each].mean()),
                "abstained": float(abstained[types == each].mean()),
                **{name: float(hits[types == each].mean()) for name, hits in right.items()},
            }
            for each in sorted(set(document_types), key=lambda name: (name == "", name))
        ],
    }
