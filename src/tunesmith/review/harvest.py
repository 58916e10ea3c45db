"""Judgements -> records of the next dataset version.

A demonstration gives its label, an accepted answer the predicted one; of several judgements on one text the newest
counts. A rejection takes back an earlier acceptance, but says nothing of what is right: like a float or a comment it makes
no record. Harvested records join the train split only: the test split stays as it was frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tunesmith.entities import Feedback, Prediction, Record, content_id
from tunesmith.models.router import PARENT
from tunesmith.store import Store


@dataclass(frozen=True)
class Harvest:
    """What judgements came to.

    Attributes:
        records: Columns of `Record`, split `train`, origin `feedback`; at most one a text.
        feedback: Ids of all judgements that were weighed. One that came before its prediction is not among them: it joins
            when that is there.
    """

    records: pl.DataFrame
    feedback: tuple[str, ...]


def harvest_records(store: Store, feedback: Sequence[Feedback], records: pl.DataFrame) -> Harvest:
    """Make records of judgements.

    Args:
        store: Holds the predictions that were judged.
        feedback: Judgements that no dataset version has taken in yet, oldest first.
        records: The records of the parent dataset version; one of its train records with the same text is superseded.
    """
    right: dict[str, tuple[Prediction, Feedback, str]] = {}
    weighed = []
    for judgement in feedback:
        prediction = store.find(Prediction, judgement.prediction_id)
        if prediction is None:
            continue
        weighed.append(judgement.id)
        text = prediction.text
        if judgement.kind == "demonstration":
            right[text] = (prediction, judgement, str(judgement.value))
        elif judgement.kind == "boolean" and judgement.value:
            right[text] = (prediction, judgement, prediction.label)
        elif judgement.kind == "boolean" and text in right and right[text][2] == prediction.label:
            del right[text]
    train = records.filter(pl.col("split") == "train")
    known, types = (dict(train.select("text", name).iter_rows()) for name in ("id", "document_type"))
    rows = [_record(prediction, judgement, label, known.get(text, ""), types.get(text, "")) for text, (prediction, judgement, label) in right.items()]
    return Harvest(pl.DataFrame(rows, schema=Record.frame_schema()), tuple(weighed))


def _record(prediction: Prediction, feedback: Feedback, label: str, supersedes: str, document_type: str) -> dict[str, str | int | float]:
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
        "block_ids": "",
        "weight": 1.0,
        # What the router was sure of is the best that is known of a text from outside.
        "document_type": document_type or (prediction.adapter if prediction.adapter != PARENT else ""),
    }
