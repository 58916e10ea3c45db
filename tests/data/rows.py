"""Small frames and settings for the tests of this folder."""

import hashlib

import polars as pl

from tunesmith.data.settings import DataSection
from tunesmith.entities import Document, Record, content_id

COLUMNS = {"text_column": "Consumer complaint narrative", "label_column": "Product"}
FOUR = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}


def section(**keys):
    return DataSection.model_validate({"sources": [{"path": "a.csv", "splits": FOUR}], **keys})


def documents(*rows):
    """Rows are (source, text) or (source, text, label)."""
    made = []
    for number, (source, text, *label) in enumerate(rows):
        made.append(
            {
                "id": content_id("doc", source, text, label, sum(row[:2] == (source, text) for row in rows[:number])),
                "source": source,
                "source_line": number + 2,
                "content_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "text": text,
                "label": label[0] if label else "yes",
                "confidence": 1.0,
                "document_type": "",
            }
        )
    return pl.DataFrame(made, schema=Document.frame_schema())


def record(text, label="yes", split="train", *, supersedes="", origin="source", feedback_id="", number=1):
    return {
        "id": content_id("rec", text, label, supersedes, number),
        "document_id": content_id("doc", text, label, number),
        "text": text,
        "label": label,
        "split": split,
        "source": "a.csv",
        "source_line": number,
        "origin": origin,
        "feedback_id": feedback_id,
        "supersedes": supersedes,
        "block_ids": "",
        "weight": 1.0,
        "document_type": "",
    }


def records(*rows):
    return pl.DataFrame(list(rows), schema=Record.frame_schema())


_AS_LETTERS = str.maketrans("0123456789", "abcdefghij")  # texts that differ in their digits alone are equal to some checks


def prose(seed, n_words=40):
    """A text of made-up words that shares no shingle with that of another seed."""
    return " ".join(f"w{seed}x{position}".translate(_AS_LETTERS) for position in range(n_words))


def same_rows(sifted, whole):
    """Whether kept and dropped together hold each row of the input once."""
    return sorted([*sifted.kept["id"], *sifted.dropped["id"]]) == sorted(whole["id"])
