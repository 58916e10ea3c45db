"""Judgements -> which answers are preferred: pairs for DPO, single answers for KTO.

What a text's judgements come to is a set of answers, each right or wrong. A demonstration makes its value right and, where
they differ, what the model had answered wrong; a boolean makes the answer right or wrong. Of several judgements the newest
counts, and a text has one right answer: a newer one takes the place of an older one. A float or a comment says neither.

Answers are as `Prediction.label` holds them: names of the label space, JSON, or words. Review items are not read here: what
they correct is a label of the data, not an answer of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tunesmith.entities import Feedback, Prediction
from tunesmith.errors import DataError, NotFoundError
from tunesmith.store import Store

_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}
_SHAPES = (("prompt", "chosen", "rejected"), ("prompt", "completion", "label"))


@dataclass(frozen=True)
class Answer:
    """One answer to a text, and whether it is right."""

    text: str
    answer: str
    is_right: bool


@dataclass(frozen=True)
class Pair:
    """Two answers to a text, of which the first is preferred."""

    text: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Preferences:
    """What is preferred, as pairs or as single answers.

    Attributes:
        rows: What there is to learn from.
        feedback: Ids of the judgements behind them; none where they come from a file.
        dropped: Reason -> number of rows that may not be learnt from.
    """

    rows: list[Pair] | list[Answer]
    feedback: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)


def judged_answers(store: Store) -> tuple[list[Answer], tuple[str, ...]]:
    """Return what all judgements of a project come to, and the ids of those that say so, oldest first.

    A judgement whose prediction has not arrived says nothing yet.
    """
    answers: dict[str, dict[str, bool]] = {}
    heard = []
    for judgement in store.feedback():
        prediction = store.find(Prediction, judgement.prediction_id) if judgement.kind in ("boolean", "demonstration") else None
        if prediction is not None:
            heard.append(judgement.id)
            _hear(answers.setdefault(prediction.text, {}), prediction.label, judgement)
    return [Answer(text, answer, is_right) for text, known in answers.items() for answer, is_right in known.items()], tuple(heard)


def _hear(known: dict[str, bool], answered: str, judgement: Feedback) -> None:
    if judgement.kind == "boolean" and not judgement.value:
        known[answered] = False
        return
    right = str(judgement.value) if judgement.kind == "demonstration" else answered
    for older in [answer for answer, is_right in known.items() if is_right]:
        del known[older]
    if answered != right:
        known[answered] = False
    known[right] = True


def read_preferences(path: Path) -> list[Pair] | list[Answer]:
    """Read a file of preferences in TRL's columns.

    Args:
        path: CSV, JSONL or Parquet with the columns prompt, chosen and rejected, all text, or prompt and completion, text, and
            label, a boolean. Other columns are passed over.

    Raises:
        NotFoundError: there is no such file.
        DataError: it cannot be read, lacks a column, or a value is no text.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"prefer.path must name a file that ends in {', '.join(_READERS)}. Received: {path.name}.")
    try:
        frame = reader(path)
    except FileNotFoundError:
        raise NotFoundError(f"prefer.path must name a file. There is none at {path}.", hint="tunesmith config explain prefer.path") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from None
    columns = next((shape for shape in _SHAPES if set(shape) <= set(frame.columns)), None)
    if columns is None:
        wanted = " or ".join(", ".join(shape) for shape in _SHAPES)
        raise DataError(f"{path.name} must have the columns {wanted}. Received: {', '.join(frame.columns)}.", hint="tunesmith config explain prefer.path")
    frame = frame.select(columns)
    for name, kind in frame.schema.items():
        wanted_kind = pl.Boolean if name == "label" else pl.String
        if kind != wanted_kind or frame[name].has_nulls():
            needed = "true or false" if name == "label" else "text, not a list of messages"
            raise DataError(f"{path.name}: every {name} must be {needed}. Received: {kind}{', with gaps' if frame[name].has_nulls() else ''}.")
    return [Pair(*row) for row in frame.iter_rows()] if columns == _SHAPES[0] else [Answer(*row) for row in frame.iter_rows()]


def as_pairs(rows: Sequence[Pair | Answer]) -> list[Pair]:
    """Put each right answer to a text beside each wrong one; what is a pair already stays."""
    pairs = [row for row in rows if isinstance(row, Pair)]
    answers = [row for row in rows if isinstance(row, Answer)]
    rights: dict[str, list[str]] = {}
    for each in answers:
        if each.is_right:
            rights.setdefault(each.text, []).append(each.answer)
    pairs += [Pair(each.text, right, each.answer) for each in answers if not each.is_right for right in rights.get(each.text, ())]
    return pairs


def as_answers(rows: Sequence[Pair | Answer]) -> list[Answer]:
    """Take pairs apart; what is a single answer already stays."""
    return [
        part for row in rows for part in ((row,) if isinstance(row, Answer) else (Answer(row.text, row.chosen, True), Answer(row.text, row.rejected, False)))
    ]
