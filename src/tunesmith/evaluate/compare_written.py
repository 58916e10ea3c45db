"""Did tuning pay, for written answers? Base, classical and tuned model on the same test records.

The keys are those of `compare.compare`, with the figures of `written.FIGURES` in place of accuracy and its kin, and
`per_class` a row a property. A chat has no classical opponent: its keys then hold base and tuned alone, and
`classical_verdict` is None. What its judge could not tell, and how it agrees with the lexical one, is `judge`:

    judge.{name, models.MODEL.{sentences, unjudged, unjudged_rate, ungrounded_at_most, agreement}}    the last three with value, low and high

Intervals: Wilson for shares of answers, percentile bootstrap for the rest and for all paired differences. A figure that is 0 or 1 on
every record is so in every resample, which would claim certainty: it gets Wilson's interval of as many trials as there are
records (documents, where records share one) that it looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.errors import DataError
from tunesmith.evaluate.groundedness import Judge, Lexical
from tunesmith.evaluate.intervals import Bootstrap, OfSums, wilson
from tunesmith.evaluate.metrics import FloatArray, counted, mean_of_sums
from tunesmith.evaluate.written import AGREEMENT, FIGURES, HEADLINE, PROPORTIONS, UNGROUNDED_AT_MOST, UNJUDGED, are_valid, count_answers, per_field


def compare_written(
    answers: Mapping[str, Sequence[str]],
    free: Mapping[str, Sequence[str]],
    rights: Sequence[str],
    texts: Sequence[str],
    *,
    task_type: str,
    schema: Mapping[str, Any],
    judge: Judge | None = None,
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
        judge: Says which sentences of a chat the text supports; None for the lexical one.
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
    counts = {model: count_answers(task_type, schema, answers[model], rights, texts, judge) for model in models}
    if task_type == "extraction":
        for model in models:
            counts[model]["is_valid_unconstrained"] = are_valid(schema, free.get(model, answers[model]))
    bootstrap = Bootstrap(len(rights), n_samples=n_samples, level=level, seed=seed, groups=groups)
    rows: dict[str, tuple[Any, dict[str, FloatArray], Bootstrap]] = {
        name: (figure.of_sums, {model: figure.rows(counts[model]) for model in models}, bootstrap) for name, figure in FIGURES[task_type].items()
    }
    if task_type == "chat" and any(by_name["sentences"].sum() and not by_name["judged"].sum() for by_name in counts.values()):
        del rows["ungrounded_rate"]  # nothing was told: 0 would be a lie
    if latencies is not None:
        seconds = {model: counted(np.asarray(latencies[model], dtype=np.float64)) for model in models}
        timed = Bootstrap(len(seconds["tuned"]), n_samples=n_samples, level=level, seed=seed)
        rows["latency_seconds"] = (mean_of_sums, seconds, timed)
    metrics = {name: {model: _interval(of_sums, by_model[model], own, groups) for model in models} for name, (of_sums, by_model, own) in rows.items()}
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
    else:
        found["judge"] = {"name": (judge or Lexical()).name, "models": {model: _told(counts[model], bootstrap, groups) for model in models}}
    return found


def _interval(of_sums: OfSums, rows: FloatArray, bootstrap: Bootstrap, groups: ArrayLike | None) -> dict[str, float]:
    found = bootstrap.interval(of_sums, rows)
    looked_at = rows[:, 1] > 0
    if found.low == found.high and found.value in (0, 1) and looked_at.any():
        n = int(looked_at.sum()) if groups is None else len(np.unique(np.asarray(groups)[looked_at]))
        found = wilson(n if found.value else 0, n, bootstrap.level)
    return found.to_dict()


def _told(counts: Mapping[str, FloatArray], bootstrap: Bootstrap, groups: ArrayLike | None) -> dict[str, Any]:
    """Return how many sentences a model wrote, and what of them the judge could not tell."""
    figures = {"unjudged_rate": UNJUDGED, "ungrounded_at_most": UNGROUNDED_AT_MOST, "agreement": AGREEMENT}
    shares = {name: _interval(figure.of_sums, figure.rows(counts), bootstrap, groups) for name, figure in figures.items()}
    return {"sentences": int(counts["sentences"].sum()), "unjudged": int(counts["unjudged"].sum()), **shares}


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
