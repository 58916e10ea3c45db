"""What can the base and the tuned model do apart from the project's task, by tasks of EleutherAI's lm-evaluation-harness?

A task is one that the harness brings, or a YAML file of one's own in a folder, with data beside it: paths in it are relative to
that folder. The harness asks and scores; its standard error becomes the interval, value plus and minus the normal quantile times
the standard error. A share of 0 or 1 has a standard error of 0 on any number of records: it gets Wilson's interval. Bits a byte and
perplexities have none: they get the percentile bootstrap's.

Where a figure is a mean over records, or one of these, base and tuned model are compared record by record: paired bootstrap, exact
McNemar for hits, the permutation test else; p-values are corrected by Holm for all figures shown.

Needs the extra `suites`; the harness is imported when a task is asked for.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from tunesmith.entities import content_id
from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.evaluate.candidates import holm
from tunesmith.evaluate.intervals import Bootstrap, Interval, OfSums, mcnemar, permutation_test, wilson
from tunesmith.evaluate.metrics import mean_of_sums
from tunesmith.evaluate.settings import SuitesSection
from tunesmith.files import file_sha256

_SEED = 1234
"""Of the examples in prompts: the harness's own default, so that figures compare with published ones."""


AGGREGATES: dict[str, OfSums] = {
    "mean": mean_of_sums,
    "bits_per_byte": lambda sums: -sums[..., 0] / sums[..., 1] / np.log(2),
    "perplexity": lambda sums: np.exp(-sums[..., 0] / sums[..., 1]),
}
"""How a figure follows from the sums of two numbers a record: a value and 1, or a log probability in nats and what it is divided by."""


@dataclass(frozen=True)
class Suites:
    """Tasks that can be asked.

    Args:
        section: How they are asked.
        folder: Folder of own task files; None for none.
        names: The tasks, or groups of them.

    Raises:
        NotFoundError: the folder, or a task, does not exist.
    """

    section: SuitesSection
    folder: Path | None
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise NotFoundError(
                f"evaluate.suites.path must be a folder of task files. Received: {self.folder}.", hint="tunesmith config explain evaluate.suites"
            )
        manager = self._manager
        for name in self.names:
            if name not in manager.task_index:
                near = difflib.get_close_matches(name, manager.all_tasks, n=1)
                raise NotFoundError(
                    f"No task {name!r} in the harness{f' or in {self.folder}' if self.folder else ''}.",
                    hint=f"tunesmith evaluate --suite {near[0]}" if near else "lm_eval ls tasks",
                )

    @cached_property
    def _manager(self) -> Any:
        """The tasks of the own folder, and those of the harness where they are needed: reading its thousands of files takes a while."""
        from lm_eval.tasks import TaskManager

        with _quiet():
            own = TaskManager(include_path=str(self.folder), include_defaults=False) if self.folder else None
            return own if own and all(name in own.task_index for name in self.names) else TaskManager(include_path=str(self.folder) if self.folder else None)

    def id_of(self, name: str) -> str:
        """Return what names a task as it is asked: its definition, the files of an own one, the settings and the harness."""
        entry = self._manager.task_index[name]
        is_own = self.folder and entry.yaml_path and entry.yaml_path.resolve().is_relative_to(self.folder.resolve())
        files = [file_sha256(file) for file in sorted(self.folder.rglob("*")) if file.is_file()] if is_own and self.folder else []
        return content_id(
            "ste", name, json.dumps(entry.cfg, sort_keys=True, default=str), files, self.section.model_dump(exclude={"path", "batch_size"}), _harness()
        )

    def run(self, name: str, model: Any) -> dict[str, Any]:
        """Let a model do a task.

        Args:
            name: One of the names.
            model: A model of the harness.

        Returns:
            `task`, `harness` (its version), `limit`, and per row, which is the task or a part of a group: `rows.NAME` with `n`, `num_fewshot`,
            `version` and `metrics.METRIC` with `value`, `stderr` (None where the harness has none), `higher_is_better`, and, where the figure
            follows from sums over records, `aggregate` (a name in `AGGREGATES`) and `rows`, two numbers a record; else None and empty.

        Raises:
            DataError: the task's data cannot be read.
            BackendError: the harness refuses the task.
        """
        from lm_eval.evaluator import evaluate

        with _quiet():
            # The harness reads relative paths from where the process stands.
            with contextlib.chdir(self.folder) if self.folder else contextlib.nullcontext():
                try:
                    loaded = self._manager.load([name])
                except (OSError, ValueError, KeyError, ImportError) as error:
                    raise DataError(
                        f"The data of {name} must be readable. Received: {error}.",
                        hint="Data from the hub need a network once; own tasks name local files: dataset_path json and dataset_kwargs.data_files.",
                    ) from error
            for task in loaded["tasks"].values():
                own = task.get_config("num_fewshot")
                if own is None or (self.section.num_fewshot is not None and own != 0):
                    task.set_config("num_fewshot", self.section.num_fewshot or 0)
                task.set_fewshot_seed(_SEED)
            random.seed(0)
            try:
                found = evaluate(model, loaded, limit=self.section.limit, apply_chat_template=self.section.apply_chat_template, fewshot_as_multiturn=True)
            except ValueError as error:
                raise BackendError(f"The harness must be able to run {name}. Received: {error}.", hint="lm_eval ls tasks") from error
        return {"task": name, "harness": _harness(), "limit": self.section.limit, "rows": dict(_rows(found))}


def compare_suites(done: Sequence[Mapping[str, Mapping[str, Any]]], *, level: float = 0.95, n_samples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Compare base and tuned model on tasks.

    Args:
        done: Per task, model name (base and tuned) -> what `Suites.run` returned.
        level: Level of the intervals, a ratio.
        n_samples: Resamples.
        seed: Seed of the resamples.

    Returns:
        A row a figure: `task`, `row` (the task, one of a tag, or part of a group: `is_part`), `metric`, `n`,
        `num_fewshot`, `version`, `harness`, `limit`, `higher_is_better`; `base` and `tuned` with value, low and high (None where there is
        no standard error); `paired`, tuned minus base, with difference, low, high and p_value, or None.
    """
    shown: list[dict[str, Any]] = []
    for of_task in done:
        base, tuned = of_task["base"], of_task["tuned"]
        for name, row in tuned["rows"].items():
            about = {key: row[key] for key in ("n", "num_fewshot", "version")} | {key: tuned[key] for key in ("task", "harness", "limit")}
            about["is_part"] = name != tuned["task"] and tuned["task"] in tuned["rows"]
            for metric, figure in row["metrics"].items():
                other = base["rows"][name]["metrics"][metric]
                bootstrap = Bootstrap(len(figure["rows"]), n_samples=n_samples, level=level, seed=seed) if figure["rows"] else None
                both = {model: _interval(each, row["n"], level, bootstrap) for model, each in (("base", other), ("tuned", figure))}
                pair = _paired(figure, other, bootstrap, n_samples, seed) if bootstrap and figure["aggregate"] == other["aggregate"] else None
                shown.append({**about, "row": name, "metric": metric, "higher_is_better": figure["higher_is_better"], **both, "paired": pair})
    tested = [row["paired"] for row in shown if row["paired"]]
    for pair, corrected in zip(tested, holm([pair["p_value"] for pair in tested]), strict=True):
        pair["p_value"] = corrected
    return shown


def _interval(figure: Mapping[str, Any], n: int, level: float, bootstrap: Bootstrap | None) -> dict[str, float | None]:
    value, error, rows = figure["value"], figure["stderr"], figure["rows"]
    if error is None:
        if bootstrap is None or not rows:
            return {"value": value, "low": None, "high": None}
        return dict(bootstrap.interval(AGGREGATES[figure["aggregate"]], np.asarray(rows, dtype=np.float64)).to_dict())
    if error == 0 and value in (0, 1):
        return dict(wilson(round(value * n), n, level).to_dict())
    half = float(ndtri((1 + level) / 2)) * error
    low, high = value - half, value + half
    if rows and figure["aggregate"] == "mean" and all(0 <= each <= 1 for each, _ in rows):
        low, high = max(low, 0.0), min(high, 1.0)
    return dict(Interval(value, low, high).to_dict())


def _paired(figure: Mapping[str, Any], other: Mapping[str, Any], bootstrap: Bootstrap, n_samples: int, seed: int) -> dict[str, float] | None:
    first, second = (np.asarray(each["rows"], dtype=np.float64) for each in (figure, other))
    if len(first) != len(second):
        return None
    of_sums = AGGREGATES[figure["aggregate"]]
    found = bootstrap.difference(of_sums, first, second)
    if figure["aggregate"] == "mean" and np.isin(np.concatenate([first, second]), (0, 1)).all():
        return replace(found, p_value=mcnemar(first[:, 0], second[:, 0])).to_dict()
    return replace(found, p_value=permutation_test(of_sums, first, second, n_samples=n_samples, seed=seed)).to_dict()


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, figures in found["results"].items():
        metrics = {}
        for key, value in figures.items():
            metric, comma, which = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{which}")
            aggregate, rows = _of_records(found.get("samples", {}).get(name, []), metric, which, float(value))
            metrics[metric if which == "none" else f"{metric} ({which})"] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else None,
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
                "aggregate": aggregate,
                "rows": rows,
            }
        about = {"num_fewshot": found["n-shot"].get(name), "version": str(found["versions"].get(name, ""))}
        yield name, {"n": int(figures.get("sample_len", 0)), **about, "metrics": metrics}


def _of_records(samples: Sequence[Mapping[str, Any]], metric: str, which: str, value: float) -> tuple[str | None, list[list[float]]]:
    """Return how the figure follows from sums over records, and what each record adds; None and nothing where it does not."""
    own = [sample.get(metric) for sample in sorted(samples, key=lambda sample: sample["doc_id"]) if sample["filter"] == which]
    try:
        rows = [[float(one), float(other)] for one, other in (each if isinstance(each, tuple | list) else (each, 1.0) for each in own)]
    except (TypeError, ValueError):  # something else, such as what F1 is made of
        return None, []
    sums = np.sum(rows, axis=0) if rows else np.zeros(2)
    with np.errstate(over="ignore"):
        fits = (name for name, of_sums in AGGREGATES.items() if sums[1] > 0 and np.isclose(of_sums(sums), value, rtol=1e-9, atol=1e-12))
        aggregate = next(fits, None)
    return aggregate, rows if aggregate else []


def _harness() -> str:
    return f"lm-eval {version('lm-eval')}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's bars and notes from the terminal, which has a bar of its own."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
