"""What did tuning unlearn?

The base model and the tuned one read the same frozen probes, which no training sees:

    general text    short passages of many kinds; measured is the cross-entropy, in nats a token
    questions       sentences of general knowledge with four endings; measured is how often the right one is the most probable

Forgetting is the rise of the cross-entropy, and the fall of the share of right endings: paired differences on the same
probes, with intervals by resampling them. Below zero means that tuning helped there too. The probes are small (a few
seconds on a CPU): they show damage, they are no benchmark of knowledge.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap
from tunesmith.evaluate.metrics import counted, mean_of_sums
from tunesmith.files import write_json


class LanguageModel(Protocol):
    """What the probes ask of an engine."""

    def log_probabilities(self, contexts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """Return log probability in nats and tokens of each continuation after its context, shape (n, 2)."""


@dataclass(frozen=True)
class Probes:
    """Frozen texts that tell what a model knows apart from its task.

    Attributes:
        texts: Passages of general text.
        questions: (beginning, endings); the first ending is right.
    """

    texts: tuple[str, ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def load_probes(text_file: Path | None = None) -> Probes:
    """Read the probes that come with the program, or a project's own general text with its questions.

    Args:
        text_file: Passages separated by empty lines, UTF-8; None for the built-in ones.

    Raises:
        DataError: the file is missing, or holds fewer than 8 passages.
    """
    folder = files("tunesmith.evaluate") / "probes"
    if text_file is not None and not text_file.is_file():
        raise DataError(f"evaluate.general_text must name a file. Received: {text_file}.", hint="Leave evaluate.general_text empty for the built-in passages.")
    text = text_file.read_text(encoding="utf-8") if text_file else (folder / "general.txt").read_text(encoding="utf-8")
    passages = tuple(" ".join(passage.split()) for passage in text.split("\n\n") if passage.strip())
    if len(passages) < 8:
        raise DataError(f"General text must hold 8 passages or more, separated by empty lines. Received: {len(passages)} in {text_file}.")
    rows = csv.reader(io.StringIO((folder / "questions.tsv").read_text(encoding="utf-8")), delimiter="\t")
    next(rows)
    return Probes(passages, tuple((row[0], tuple(row[1:])) for row in rows))


@dataclass(frozen=True)
class ProbeScores:
    """What one model said about the probes.

    Attributes:
        texts: shape (n_texts, 2). Cross-entropy summed over the tokens of each passage, in nats, and its tokens.
        right: shape (n_questions,). 1 where the right ending is the most probable, else 0.
    """

    texts: NDArray[np.float64]
    right: NDArray[np.float64]

    @classmethod
    def mean(cls, scores: Sequence[ProbeScores]) -> ProbeScores:
        """Return the mean over models that read the same probes."""
        return cls(np.mean([each.texts for each in scores], axis=0), np.mean([each.right for each in scores], axis=0))

    def save(self, path: Path) -> None:
        """Write JSON by write-then-rename."""
        write_json(path, {"texts": self.texts.tolist(), "right": self.right.tolist()})

    @classmethod
    def load(cls, path: Path) -> ProbeScores:
        """Read what `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(np.asarray(saved["texts"], dtype=np.float64), np.asarray(saved["right"], dtype=np.float64))


def score_probes(model: LanguageModel, probes: Probes) -> ProbeScores:
    """Let a model read the probes. An ending is judged by its log probability, divided by its tokens."""
    read = model.log_probabilities([""] * len(probes.texts), probes.texts)
    texts = np.column_stack([-read[:, 0], read[:, 1]])
    beginnings = [beginning for beginning, endings in probes.questions for _ in endings]
    endings = model.log_probabilities(beginnings, [f" {ending}" for _, endings in probes.questions for ending in endings])
    mean = endings[:, 0] / np.maximum(endings[:, 1], 1)
    right, at = [], 0
    for _, choices in probes.questions:
        right.append(float(np.argmax(mean[at : at + len(choices)]) == 0))
        at += len(choices)
    return ProbeScores(texts, np.array(right))


def forgetting(before: ProbeScores, after: ProbeScores, *, level: float = 0.95, n_samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare what two models said about the same probes.

    Args:
        before: The base model, or an earlier stage.
        after: The tuned model.
        level: Level of the intervals, a ratio.
        n_samples: Resamples of the probes.
        seed: Seed of the resamples.

    Returns:
        `cross_entropy` (nats a token of general text) and `questions` (share of right endings): each `before` and `after` with
        value, low and high, and `difference` (after minus before) with its interval and p-value; and `n_texts`, `n_questions`.

    Raises:
        DataError: the two read different probes.
    """
    if before.texts.shape != after.texts.shape or before.right.shape != after.right.shape or not np.array_equal(before.texts[:, 1], after.texts[:, 1]):
        raise DataError("Forgetting needs the same probes before and after. Received: different ones.", hint="tunesmith evaluate")
    compared: dict[str, Any] = {"n_texts": len(before.texts), "n_questions": len(before.right)}
    for name, first, second in (("cross_entropy", before.texts, after.texts), ("questions", counted(before.right), counted(after.right))):
        bootstrap = Bootstrap(len(first), n_samples=n_samples, level=level, seed=seed)
        compared[name] = {
            "before": bootstrap.interval(mean_of_sums, first).to_dict(),
            "after": bootstrap.interval(mean_of_sums, second).to_dict(),
            "difference": bootstrap.difference(mean_of_sums, second, first).to_dict(),
        }
    return compared


def within_budget(compared: Mapping[str, Any], budget: float | None) -> bool:
    """Whether the rise of the cross-entropy is at most the budget, in nats a token; None allows any."""
    return budget is None or compared["cross_entropy"]["difference"]["difference"] <= budget
