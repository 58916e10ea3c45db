"""Did tuning pay, for written answers? Base, classical and tuned model on the same test records.

The keys are those of `compare.compare`, with the figures of `written.FIGURES` in place of accuracy and its kin, and
`per_class` a row a property. A chat has no classical opponent: its keys then hold base and tuned alone, and
`classical_verdict` is None.

Intervals: Wilson for shares of answers, percentile bootstrap for the rest and for all paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, wilson
from tunesmith.evaluate.metrics import FloatArray, counted, mean_of_sums
from tunesmith.evaluate.written import FIGURES, HEADLINE, PROPORTIONS, are_valid, count_answers, per_field


def compare_written(
    answers: Mapping[str, Sequence[str]],
    free: Mapping[str, Sequence[str]],
    rights: Sequence[str],
    texts: Sequence[str],
    *,
    task_type: str,
    schema: Mapping[str, Any],
    latencies: Mapping[str, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the models on the test split.

    Args:
        answers: Model name -> its n answers; base and tuned, and classical where there is one.
        free: Model name -> what it wrote without constraint, for the share of valid JSON; of a model that is left out, its answers.
        rights: n right answers.
        texts: n texts.
        task_type: extraction or chat.
        schema: `task.json_schema`.
        latencies: Model name -> seconds of single answers, the same texts for all models.
        groups: shape (n,). Document of each record, where a document has several.
        level: Level of every interval, a ratio.
        n_samples: Resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: a model is missing or answered other records.
    """
    if not {"base", "tuned"} <= answers.keys() or any(len(each) != len(rights) for each in answers.values()):
        raise DataError(f"A comparison needs {len(rights)} answers of base and tuned. Received: { {name: len(each) for name, each in answers.items()} }.")
    models = [model for model in ("base", "classical", "tuned") if model in answers]
    counts = {model: count_answers(task_type, schema, answers[model], rights, texts) for model in models}
    if task_type == "extraction":
        for model in models:
            counts[model]["is_valid_unconstrained"] = are_valid(schema, free.get(model, answers[model]))
    bootstrap = Bootstrap(len(rights), n_samples=n_samples, level=level, seed=seed, groups=groups)
    rows: dict[str, tuple[Any, dict[str, FloatArray], Bootstrap]] = {
        name: (figure.of_sums, {model: figure.rows(counts[model]) for model in models}, bootstrap) for name, figure in FIGURES[task_type].items()
    }
    if latencies is not None:
        seconds = {model: counted(np.asarray(latencies[model], dtype=np.float64)) for model in models}
        timed = Bootstrap(len(seconds["tuned"]), n_samples=n_samples, level=level, seed=seed)
        rows["latency_seconds"] = (mean_of_sums, seconds, timed)
    metrics = {name: {model: own.interval(of_sums, by_model[model]).to_dict() for model in models} for name, (of_sums, by_model, own) in rows.items()}
    for name in PROPORTIONS & rows.keys() if groups is None else ():  # a bootstrap of answers that are all right would claim certainty
        metrics[name] = {model: wilson(int(rows[name][1][model][:, 0].sum()), len(rights), level).to_dict() for model in models}
    paired = {
        opponent: {name: own.difference(of_sums, by_model["tuned"], by_model[opponent]).to_dict() for name, (of_sums, by_model, own) in rows.items()}
        for opponent in models
        if opponent != "tuned"
    }
    headline = HEADLINE[task_type]
    found: dict[str, Any] = {
        "headline": headline,
        "metrics": metrics,
        "paired": paired["base"],
        "n_test": len(rights),
        "classical_verdict": None,
    }
    if "classical" in paired:
        against = paired["classical"][headline]
        clear = against["low"] > 0 or against["high"] < 0
        found |= {"paired_classical": paired["classical"], "classical_verdict": ("wins" if against["difference"] > 0 else "loses") if clear else "level"}
    if task_type == "extraction":
        found["per_class"] = per_field(schema, answers["tuned"], rights)
    return found


def worst_answers(
    ids: Sequence[str], texts: Sequence[str], rights: Sequence[str], answers: Sequence[str], confidence: ArrayLike, f1: ArrayLike, *, limit: int = 10
) -> list[dict[str, Any]]:
    """Return the answers that were not all right and given with most confidence, the surest first: `id`, `text`, `truth`, `answer`, `confidence`."""
    sure = np.asarray(confidence)
    wrong = np.flatnonzero(np.asarray(f1) < 1)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:limit]
    return [
        {"id": ids[row], "text": texts[row][:400], "truth": rights[row], "answer": answers[row], "confidence": float(sure[row])} for row in map(int, chosen)
    ]
