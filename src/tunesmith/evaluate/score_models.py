"""The scores behind an evaluation: tuned, base and classical model, each split a file as soon as it is complete.

A killed evaluation goes on with the files that are missing. A model is loaded only when one of its files is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from tunesmith.evaluate.classical import Classical, fit_classical
from tunesmith.evaluate.forgetting import LanguageModel, Probes, score_probes
from tunesmith.evaluate.predict_split import Scorer, SplitScores, label_indices, score_split
from tunesmith.files import write_json

LATENCIES_FILE = "latencies.json"
PROBES_FILE = "tuned-probes.json"

Progress = Callable[[int, int, str], None]
"""Called with records done, records in all, and what is being scored."""


class Model(Scorer, LanguageModel, Protocol):
    """A model that answers the task, and reads the probes where there are any."""


def score_models(
    records: pl.DataFrame,
    names: Sequence[str],
    *,
    base: Callable[[], Model],
    tuned: Callable[[], Model],
    folder: Path,
    base_file: Path,
    probes: Probes | None,
    base_probes_file: Path,
    n_latencies: int,
    progress: Progress,
) -> dict[str, SplitScores]:
    """Score what is not scored yet, and time single answers.

    Args:
        records: All records of the dataset version.
        names: The label space.
        base: Loads the untuned model; it answers test.
        tuned: Loads the tuned model; it answers validation, calibration and test.
        folder: Where the scores go, and latencies.json: model -> seconds of single answers.
        base_file: Where the base model's scores go: runs on the same test records share them.
        probes: What both models read to measure forgetting; None to leave it out.
        base_probes_file: Where go what the base model said about them.
        n_latencies: Test texts that each model answers one by one.
        progress: Told how far it is.

    Returns:
        `tuned-validation`, `tuned-calibration`, `tuned-test`, `base-test` and `classical-test`.
    """
    of_split = {split: records.filter(pl.col("split") == split) for split in ("train", "validation", "calibration", "test")}
    files = {f"tuned-{split}": folder / f"tuned-{split}.parquet" for split in ("validation", "calibration", "test")}
    files |= {"base-test": base_file, "classical-test": folder / "classical-test.parquet"}
    sample = of_split["test"]["text"].head(n_latencies).to_list()
    kept = folder / LATENCIES_FILE
    latencies: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}

    for model, load, probes_file in (("base", base, base_probes_file), ("tuned", tuned, folder / PROBES_FILE)):
        missing = [name for name in files if name.startswith(model) and not files[name].exists()]
        reads = probes is not None and not probes_file.exists()
        if not missing and not reads and model in latencies:
            continue
        engine = load()
        for name in missing:
            split = name.removeprefix(f"{model}-")
            score_split(engine, of_split[split], names, partial(tell, progress, f"{model} model, {split}")).save(files[name])
        if probes is not None and reads:
            progress(0, 1, f"{model} model, probes of forgetting")
            score_probes(engine, probes).save(probes_file)
        latencies[model] = [_seconds(engine.score, text) for text in sample]
        write_json(kept, latencies)
    if not files["classical-test"].exists() or "classical" not in latencies:
        progress(0, 1, "classical baseline")
        opponent = _fit(of_split, names)
        test = of_split["test"]
        logits = np.log(np.maximum(opponent.probabilities(test["text"].to_list()), 1e-12)).astype(np.float32)
        SplitScores(tuple(test["id"]), tuple(names), logits).save(files["classical-test"])
        latencies["classical"] = [_seconds(opponent.probabilities, text) for text in sample]
        write_json(kept, latencies)
    return {name: SplitScores.load(file) for name, file in files.items()}


def _fit(of_split: dict[str, pl.DataFrame], names: Sequence[str]) -> Classical:
    train, validation = of_split["train"], of_split["validation"]
    y, validation_y = label_indices(train, names), label_indices(validation, names)
    return fit_classical(train["text"].to_list(), y, validation["text"].to_list(), validation_y, len(names))


def tell(progress: Progress, what: str, done: int, total: int) -> None:
    """Say how far the scoring of one model and split is."""
    progress(done, total, what)


def _seconds(answer: Callable[[list[str]], object], text: str) -> float:
    started = time.perf_counter()
    answer([text])
    return time.perf_counter() - started
