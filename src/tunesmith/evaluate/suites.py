"""What can the base and the tuned model do apart from the project's task, by tasks of EleutherAI's lm-evaluation-harness?

A task is one that the harness brings, or a YAML file of one's own in a folder, with data beside it: paths in it are relative to
that folder. The harness asks and scores; its standard error becomes the interval, value plus and minus the normal quantile times
the standard error. A share of 0 or 1 has a standard error of 0 on any number of records: it gets Wilson's interval.

Where a figure is the mean of a value a record, base and tuned model are compared record by record: paired bootstrap, exact McNemar
for hits, the permutation test else; p-values are corrected by Holm for all figures shown.

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
from tunesmith.evaluate.intervals import Bootstrap, Interval, mcnemar, permutation_test, wilson
from tunesmith.evaluate.metrics import counted, mean_of_sums
from tunesmith.evaluate.settings import SuitesSection
from tunesmith.files import file_sha256

_SEED = 1234
"""Of the examples in prompts: the harness's own default, so that figures compare with published ones."""


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
            `version` and `metrics.METRIC` with `value`, `stderr` (None where the harness has none), `higher_is_better` and `values`, one a
            record where the figure is their mean, else None.

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
            for metric, figure in row["metrics"].items():
                other = base["rows"][name]["metrics"][metric]
                about = {key: row[key] for key in ("n", "num_fewshot", "version")} | {key: tuned[key] for key in ("task", "harness", "limit")}
                both = {"base": _interval(other, row["n"], level), "tuned": _interval(figure, row["n"], level)}
                pair = _paired(figure["values"], other["values"], level, n_samples, seed)
                about["is_part"] = name != tuned["task"] and tuned["task"] in tuned["rows"]
                shown.append({**about, "row": name, "metric": metric, "higher_is_better": figure["higher_is_better"], **both, "paired": pair})
    tested = [row["paired"] for row in shown if row["paired"]]
    for pair, corrected in zip(tested, holm([pair["p_value"] for pair in tested]), strict=True):
        pair["p_value"] = corrected
    return shown


def _interval(figure: Mapping[str, Any], n: int, level: float) -> dict[str, float | None]:
    value, error = figure["value"], figure["stderr"]
    if error is None:
        return {"value": value, "low": None, "high": None}
    if error == 0 and value in (0, 1):
        return dict(wilson(round(value * n), n, level).to_dict())
    half = float(ndtri((1 + level) / 2)) * error
    low, high = value - half, value + half
    if figure["values"] and all(0 <= each <= 1 for each in figure["values"]):
        low, high = max(low, 0.0), min(high, 1.0)
    return dict(Interval(value, low, high).to_dict())


def _paired(tuned: list[float] | None, base: list[float] | None, level: float, n_samples: int, seed: int) -> dict[str, float] | None:
    if not tuned or not base or len(tuned) != len(base):
        return None
    first, second = np.asarray(tuned, dtype=np.float64), np.asarray(base, dtype=np.float64)
    found = Bootstrap(len(first), n_samples=n_samples, level=level, seed=seed).difference(mean_of_sums, counted(first), counted(second))
    if np.isin(np.concatenate([first, second]), (0, 1)).all():
        return replace(found, p_value=mcnemar(first, second)).to_dict()
    return replace(found, p_value=permutation_test(mean_of_sums, counted(first), counted(second), n_samples=n_samples, seed=seed)).to_dict()


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, figures in found["results"].items():
        metrics = {}
        for key, value in figures.items():
            metric, comma, which = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{which}")
            metrics[metric if which == "none" else f"{metric} ({which})"] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else None,
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
                "values": _values(found.get("samples", {}).get(name, []), metric, which, float(value)),
            }
        about = {"num_fewshot": found["n-shot"].get(name), "version": str(found["versions"].get(name, ""))}
        yield name, {"n": int(figures.get("sample_len", 0)), **about, "metrics": metrics}


def _values(samples: Sequence[Mapping[str, Any]], metric: str, which: str, mean: float) -> list[float] | None:
    """Return the value of each record where the figure is their mean."""
    own = [sample.get(metric) for sample in sorted(samples, key=lambda sample: sample["doc_id"]) if sample["filter"] == which]
    if not own or not all(isinstance(value, int | float | np.number | np.bool_) for value in own):
        return None
    values = [float(value) for value in own if value is not None]
    return values if np.isclose(np.mean(values), mean, rtol=1e-9, atol=1e-12) else None


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
