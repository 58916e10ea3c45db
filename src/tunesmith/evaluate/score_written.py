"""The written answers behind an evaluation: tuned, base and classical model, each split a file as soon as it is complete.

    tuned-validation, tuned-calibration, tuned-test     as the model answers, an extraction constrained to its schema
    base-test, classical-test                           its opponents on the same records
    tuned-test-free, base-test-free                     without constraint: how often is it JSON of the schema at all?

A killed evaluation goes on with the files that are missing. A model is loaded only when one of its files is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.errors import NotFoundError
from tunesmith.evaluate.classical_extraction import fit_classical_extraction
from tunesmith.evaluate.forgetting import LanguageModel, Probes, score_probes
from tunesmith.evaluate.score_models import LATENCIES_FILE, PROBES_FILE, Progress, tell
from tunesmith.evaluate.written import count_answers
from tunesmith.files import write_json
from tunesmith.models.answered import FieldAnswer
from tunesmith.models.confidence import likelihood_logit

FREE = "-free"
_FIELDS = pl.List(pl.Struct({"field": pl.String, "value": pl.String, "logit": pl.Float64}))


class Writer(LanguageModel, Protocol):
    """A language model that writes answers."""

    def write(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None, *, constrained: bool = True, with_confidence: bool = True) -> Any:
        """Return `answers`, `logit`, `tokens`, `ended` and `fields` of each text, in their order."""


@dataclass(frozen=True)
class WrittenScores:
    """The answers of one model on one split.

    Attributes:
        ids: Record ids, n of them.
        answers: What was written.
        logit: shape (n,). How sure the model is, before calibration (see `models.confidence`); 0 where it cannot say or nobody asks.
        fields: Of an extraction what each answer states and how sure the model is of it; empty where it cannot say or nobody asks.
    """

    ids: tuple[str, ...]
    answers: tuple[str, ...]
    logit: NDArray[np.float64]
    fields: tuple[tuple[FieldAnswer, ...], ...] = ()

    def save(self, path: Path) -> None:
        """Write the Parquet file, then rename it into place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        frame = pl.DataFrame({"id": self.ids, "answer": self.answers, "logit": self.logit})
        if self.fields:
            frame = frame.with_columns(fields=pl.Series([[asdict(one) for one in own] for own in self.fields], dtype=_FIELDS))
        frame.write_parquet(unfinished)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> WrittenScores:
        """Read what `save` wrote.

        Raises:
            NotFoundError: there is no such file.
        """
        if not path.exists():
            raise NotFoundError(f"No answers at {path}.", hint="tunesmith evaluate")
        frame = pl.read_parquet(path)
        if "logit" not in frame.columns:  # from before there was a choice
            frame = frame.with_columns(logit=likelihood_logit(frame["log_probability"].to_numpy(), frame["tokens"].to_numpy()))
        fields = frame["fields"].to_list() if "fields" in frame.columns else []
        told = tuple(tuple(FieldAnswer(**one) for one in own) for own in fields)
        return cls(tuple(frame["id"]), tuple(frame["answer"]), frame["logit"].to_numpy(), told)


def write_split(
    model: Writer, records: pl.DataFrame, progress: Callable[[int, int], None] | None = None, *, constrained: bool = True, with_confidence: bool = True
) -> WrittenScores:
    """Let a model answer every record of a split. Arguments as in `Generator.write`."""
    written = model.write(records["text"].to_list(), progress, constrained=constrained, with_confidence=with_confidence)
    return WrittenScores(tuple(records["id"]), tuple(written.answers), np.asarray(written.logit), tuple(written.fields))


def score_written(
    records: pl.DataFrame,
    task_type: str,
    schema: Mapping[str, Any],
    *,
    base: Callable[[], Writer],
    tuned: Callable[[], Writer],
    folder: Path,
    base_file: Path,
    probes: Probes | None,
    base_probes_file: Path,
    n_latencies: int,
    progress: Progress,
) -> dict[str, WrittenScores]:
    """Let the models answer what is not answered yet, and time single answers.

    Args:
        records: All records of the dataset version.
        task_type: extraction or chat.
        schema: `task.json_schema`.
        base: Loads the untuned model; it answers test.
        tuned: Loads the tuned model; it answers validation, calibration and test.
        folder: Where the answers go, and latencies.json.
        base_file: Where the base model's answers go: runs on the same test records share them.
        probes: What both models read to measure forgetting; None to leave it out.
        base_probes_file: Where go what the base model said about them.
        n_latencies: Test texts that each model answers one by one.
        progress: Told how far it is.

    Returns:
        Name of the file without its ending -> answers.
    """
    of_split = {split: records.filter(pl.col("split") == split) for split in ("train", "validation", "calibration", "test")}
    files = {f"tuned-{split}": folder / f"tuned-{split}.parquet" for split in ("validation", "calibration", "test")}
    files |= {"base-test": base_file}
    if task_type == "extraction":
        files |= {f"tuned-test{FREE}": folder / f"tuned-test{FREE}.parquet", f"base-test{FREE}": base_file.with_name(f"{base_file.stem}{FREE}.parquet")}
    sample = of_split["test"]["text"].head(n_latencies).to_list()
    kept = folder / LATENCIES_FILE
    latencies: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name, load, probes_file in (("base", base, base_probes_file), ("tuned", tuned, folder / PROBES_FILE)):
        missing = [each for each in files if each.startswith(name) and not files[each].exists()]
        reads = probes is not None and not probes_file.exists()
        if not missing and not reads and name in latencies:
            continue
        model = load()
        for each in missing:
            split, free = each.removeprefix(f"{name}-").removesuffix(FREE), each.endswith(FREE)
            what = f"{name} model, {split}{', without constraint' if free else ''}"
            # How sure the model is matters where the tuned one answers as it will.
            is_sure = name == "tuned" and not free
            write_split(model, of_split[split], partial(tell, progress, what), constrained=not free, with_confidence=is_sure).save(files[each])
        if probes is not None and reads:
            progress(0, 1, f"{name} model, probes of forgetting")
            score_probes(model, probes).save(probes_file)
        latencies[name] = [_seconds(partial(model.write, [text])) for text in sample]
        write_json(kept, latencies)
    if task_type == "extraction":
        files["classical-test"] = folder / "classical-test.parquet"
        if not files["classical-test"].exists() or "classical" not in latencies:
            progress(0, 1, "classical baseline")
            train, validation, test = (of_split[split] for split in ("train", "validation", "test"))
            opponent = fit_classical_extraction(schema, *(frame[column].to_list() for frame in (train, validation) for column in ("text", "label")))
            WrittenScores(tuple(test["id"]), tuple(opponent.write(test["text"].to_list())), np.zeros(len(test))).save(files["classical-test"])
            latencies["classical"] = [_seconds(partial(opponent.write, [text])) for text in sample]
            write_json(kept, latencies)
    return {name: WrittenScores.load(file) for name, file in files.items()}


def record_f1(task_type: str, schema: Mapping[str, Any], answers: Sequence[str], records: pl.DataFrame) -> NDArray[np.float64]:
    """Return the F1 of each answer by itself, shape (n,): what candidates and the gate are judged by.

    Args:
        task_type: extraction or chat.
        schema: `task.json_schema`.
        answers: n answers.
        records: Columns `text` and `label`, n rows in the same order.
    """
    return count_answers(task_type, schema, answers, records["label"].to_list(), records["text"].to_list())["f1"]


def _seconds(answer: Callable[[], object]) -> float:
    started = time.perf_counter()
    answer()
    return time.perf_counter() - started
