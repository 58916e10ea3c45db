"""Judgements -> records of the next dataset version.

A demonstration gives its label, an accepted answer the predicted one; the newest judgement of a prediction counts. A
rejected answer without the right one, a float or a comment makes no record, and stays where it is. Harvested records
join the train split only: the test split stays as it was frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

from tunesmith.entities import Feedback, Prediction, Record, content_id
from tunesmith.store import Store


def harvest(store: Store, feedback: Sequence[Feedback], records: pl.DataFrame) -> pl.DataFrame:
    """Make records of judgements.

    Args:
        store: Holds the predictions that were judged.
        feedback: Judgements that no dataset version has taken in yet, oldest first.
        records: The records of the parent dataset version; one with the same text is superseded.

    Returns:
        A frame of records, split `train`, origin `feedback`; at most one a text.
    """
    by_text: dict[str, tuple[Prediction, Feedback, str]] = {}
    for judgement in feedback:
        prediction = store.find(judgement.prediction_id)
        if not isinstance(prediction, Prediction):
            continue  # it came before its prediction, or for one of another project: it joins when that is there
        if judgement.kind == "demonstration":
            by_text[prediction.text] = (prediction, judgement, str(judgement.value))
        elif judgement.kind == "boolean" and judgement.value:
            by_text[prediction.text] = (prediction, judgement, prediction.label)
    known = dict(records.filter(pl.col("split") == "train").select("text", "id").iter_rows())
    rows = [_record(prediction, judgement, label, known.get(text, "")) for text, (prediction, judgement, label) in by_text.items()]
    return pl.DataFrame(rows, schema=Record.frame_schema())


def _record(prediction: Prediction, feedback: Feedback, label: str, supersedes: str) -> dict[str, str | int]:
    source = f"prediction/{prediction.id}"
    document_id = content_id("doc", source, hashlib.sha256(prediction.text.encode()).hexdigest())
    return {
        "id": content_id("rec", document_id, label, feedback.id, supersedes),
        "document_id": document_id,
        "text": prediction.text,
        "label": label,
        "split": "train",
        "source": source,
        "source_line": 1,
        "origin": "feedback",
        "feedback_id": feedback.id,
        "supersedes": supersedes,
    }
