"""Did tuning pay? Base, classical and tuned model on the same test records.

The result is plain data for report.json, with these keys, which are stable:

    metrics.NAME.{base, classical, tuned}.{value, low, high}
    paired.NAME.{difference, low, high, p_value}              tuned minus base
    paired_classical.NAME.{difference, low, high, p_value}    tuned minus classical
    classical_verdict                                         "wins", "level" or "loses": the tuned model against classical
    n_test
    per_class[].{label, precision, recall, f1, support}       tuned, in the order of the label space
    confusion.{labels, counts}                                tuned; rows are the truth, columns the answers

    uncertain                                                 names of metrics that have too few test records for their interval

NAME is one of `QUALITY`, `AREAS` and, where latencies are given, latency_seconds. Figures are ratios, but for the log loss
(nats) and the correlation (-1 to 1); latencies are seconds.

Intervals: Wilson for accuracy (bootstrap where rows are grouped), percentile bootstrap for the rest and for all paired
differences. P-values are two-sided: exact McNemar for accuracy (the permutation test where rows are grouped), the permutation
test for other sums over records, and the bootstrap for areas under curves and latencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, Difference, Interval, OfSums, mcnemar, permutation_test, two_sided, wilson
from tunesmith.evaluate.metrics import (
    ExpectedCalibrationError,
    FloatArray,
    Metric,
    TopK,
    accuracy,
    answers,
    brier,
    check,
    confusion_matrix,
    counted,
    false_negative_rate,
    false_positive_rate,
    is_correct,
    log_loss,
    macro_f1,
    matthews_correlation,
    mean_of_sums,
    per_class,
    weighted_f1,
)
from tunesmith.evaluate.ranks import Area, auprc, auroc

MODELS = ("base", "classical", "tuned")

QUALITY: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "matthews_correlation": matthews_correlation,
    "top_3_accuracy": TopK(3),
    "false_positive_rate": false_positive_rate,
    "false_negative_rate": false_negative_rate,
    "log_loss": log_loss,
    "brier": brier,
}
"""Beside the calibration errors, whose bins are the project's."""
AREAS: dict[str, Area] = {"auroc": auroc, "auprc": auprc}


def compare(
    scores: Mapping[str, ArrayLike],
    y: ArrayLike,
    labels: Sequence[str],
    *,
    latencies: Mapping[str, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    n_bins: int = 15,
) -> dict[str, Any]:
    """Compare the three models on the test split.

    Args:
        scores: Model name -> probabilities, shape (n, n_labels); the names are `MODELS`.
        y: shape (n,). Right label of each record, an index.
        labels: The label space.
        latencies: Model name -> seconds of single answers, shape (m,), the same m texts for all models.
        groups: shape (n,). Document of each record, where a document has several.
        level: Level of every interval, a ratio.
        n_samples: Resamples behind each bootstrap interval.
        seed: Seed of the resamples.
        n_bins: Bins of the calibration error.

    Raises:
        DataError: a model is missing, or shapes do not fit each other.
    """
    _check_names(scores)
    checked = {name: check(y, scores[name]) for name in MODELS}
    truth, tuned = checked["tuned"]
    bootstrap = Bootstrap(len(truth), n_samples=n_samples, level=level, seed=seed, groups=groups)
    quality = QUALITY | {
        "expected_calibration_error": ExpectedCalibrationError(n_bins),
        "expected_calibration_error_equal_mass": ExpectedCalibrationError(n_bins, equal_mass=True),
    }
    metrics: dict[str, dict[str, Interval]] = {}
    paired: dict[str, dict[str, Difference]] = {"base": {}, "classical": {}}
    uncertain = []
    for name, metric in quality.items():
        rows = {model: metric.rows(*checked[model]) for model in MODELS}
        metrics[name] = {model: metric.interval(bootstrap, rows[model]) for model in MODELS}
        for opponent, difference in _differences(bootstrap, metric.of_sums, rows).items():
            p_value = permutation_test(metric.of_sums, rows["tuned"], rows[opponent], n_samples=n_samples, seed=seed, groups=groups)
            paired[opponent][name] = replace(difference, p_value=p_value)
        # Wilson's interval needs no check.
        if (name != "accuracy" or groups is not None) and not bootstrap.holds(metric.of_sums, rows["tuned"]):
            uncertain.append(name)
    for name, area in AREAS.items():
        of_weights = {model: area.of_weights(*checked[model]) for model in MODELS}
        replicates = {model: bootstrap.replicates_of_weights(figure) for model, figure in of_weights.items()}
        metrics[name] = {model: Interval(area(*checked[model]), *bootstrap.ends(resampled)) for model, resampled in replicates.items()}
        for opponent, by_name in paired.items():
            resampled = replicates["tuned"] - replicates[opponent]
            value = metrics[name]["tuned"].value - metrics[name][opponent].value
            by_name[name] = Difference(value, *bootstrap.ends(resampled), two_sided(resampled))

    correct = {model: is_correct(truth, probabilities) for model, (_, probabilities) in checked.items()}
    if groups is None:
        metrics["accuracy"] = {model: wilson(int(hits.sum()), len(hits), level) for model, hits in correct.items()}
        for opponent, by_name in paired.items():
            by_name["accuracy"] = replace(by_name["accuracy"], p_value=mcnemar(correct["tuned"], correct[opponent]))

    if latencies is not None:
        _check_names(latencies)
        seconds = {model: np.asarray(latencies[model], dtype=np.float64) for model in MODELS}
        timed = Bootstrap(len(seconds["tuned"]), n_samples=n_samples, level=level, seed=seed)
        rows = {model: counted(values) for model, values in seconds.items()}
        metrics["latency_seconds"] = {model: timed.interval(mean_of_sums, own) for model, own in rows.items()}
        for opponent, difference in _differences(timed, mean_of_sums, rows).items():
            paired[opponent]["latency_seconds"] = difference

    against_classical = paired["classical"]["accuracy"]
    return {
        "metrics": {name: {model: interval.to_dict() for model, interval in by_model.items()} for name, by_model in metrics.items()},
        "paired": {name: difference.to_dict() for name, difference in paired["base"].items()},
        "paired_classical": {name: difference.to_dict() for name, difference in paired["classical"].items()},
        "classical_verdict": "level" if not against_classical.excludes_zero else "wins" if against_classical.value > 0 else "loses",
        "uncertain": uncertain,
        "n_test": len(truth),
        "per_class": per_class(truth, tuned, labels),
        "confusion": {"labels": list(labels), "counts": confusion_matrix(truth, tuned).tolist()},
    }


def worst_mistakes(
    ids: Sequence[str], texts: Sequence[str], y: ArrayLike, probabilities: ArrayLike, labels: Sequence[str], *, limit: int = 10, max_characters: int = 400
) -> list[dict[str, Any]]:
    """Return the wrong answers that were given with most confidence, the surest first.

    Args:
        ids: Record ids, n of them.
        texts: Their texts; an excerpt is kept, with an ellipsis where it was cut.
        y: shape (n,). Right label of each record, an index.
        probabilities: shape (n, n_labels).
        labels: The label space.
        limit: Most mistakes to return.
        max_characters: Length of an excerpt.

    Returns:
        `id`, `text`, `truth`, `answer` and `confidence` of each.

    Raises:
        DataError: shapes do not fit each other.
    """
    y, probabilities = check(y, probabilities)
    answer, confidence = answers(probabilities), probabilities.max(axis=1)
    wrong = np.flatnonzero(answer != y)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    return [
        {
            "id": ids[row],
            "text": texts[row] if len(texts[row]) <= max_characters else texts[row][:max_characters].rstrip() + " …",
            "truth": labels[y[row]],
            "answer": labels[answer[row]],
            "confidence": float(confidence[row]),
        }
        for row in surest
    ]


def _check_names(given: Mapping[str, ArrayLike]) -> None:
    if set(given) != set(MODELS):
        raise DataError(f"A comparison needs exactly the models {', '.join(MODELS)}. Received: {', '.join(sorted(given)) or 'none'}.")


def _differences(bootstrap: Bootstrap, of_sums: OfSums, rows: Mapping[str, FloatArray]) -> dict[str, Difference]:
    """Return opponent -> tuned minus opponent."""
    return {opponent: bootstrap.difference(of_sums, rows["tuned"], rows[opponent]) for opponent in ("base", "classical")}
