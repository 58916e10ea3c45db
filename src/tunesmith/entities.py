"""The nouns, in flow order, and how they get their ids.

    Document -> Record -> DatasetVersion -> Run -> Evaluation -> ModelVersion -> Deployment -> Prediction -> Feedback

What is computed has an id that names its inputs: a prefix and a hash of the parents' ids, the resolved settings and the
step's STEP_VERSION. What happens (a prediction, a feedback) has a UUIDv7, which sorts by time. Between stages documents
and records travel as Polars frames with the columns of `frame_schema`; the objects here live at the edges.

All times are UTC, ISO 8601. All confidences are ratios in [0, 1].
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import DataError

if TYPE_CHECKING:
    import polars as pl

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
FeedbackKind = Literal["boolean", "float", "comment", "demonstration"]


def content_id(prefix: str, *parts: Any) -> str:
    """Return `prefix_` and 16 hex digits that depend on every part.

    Args:
        prefix: The noun's prefix, without the underscore.
        parts: Anything JSON can hold; mappings are sorted by key, so that equal content gives an equal id.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"{prefix}_{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def new_id(prefix: str) -> str:
    """Return `prefix_` and a UUIDv7 in hex: 48 bits of milliseconds, then random bits (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{prefix}_{value:032x}"


def utc_now() -> str:
    """Return the present moment, UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Noun(BaseModel):
    """A frozen thing with an id. `prefix` is what its ids start with."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    prefix: ClassVar[str]

    id: str

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return ()

    @classmethod
    def frame_schema(cls) -> dict[str, pl.DataType | type[pl.DataType]]:
        """Return column name -> Polars type for a frame of this noun."""
        import polars as pl

        kinds: dict[str, type[pl.DataType]] = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}
        return {name: kinds[str(field.annotation.__name__ if isinstance(field.annotation, type) else "str")] for name, field in cls.model_fields.items()}


class Document(Noun):
    """Source text as read. Its id hashes its address and its bytes, so that two sources of one text stay two documents."""

    prefix = "doc"
    source: str
    """Path relative to the project, or URI."""
    source_line: int
    """First line of the row in its file, counted from 1; 1 for a whole file."""
    content_sha256: str
    text: str
    label: str
    """What the source says the answer is; empty when it says nothing."""
    confidence: float = Field(default=1.0, ge=0, le=1)
    """How sure the OCR is of the text, mean over its characters; 1 for text that was never a picture."""
    document_type: str = ""
    """What type of document it is, as its source says; empty when it says nothing."""


class Record(Noun):
    """One text and one target made from a document."""

    prefix = "rec"
    document_id: str
    text: str
    label: str
    split: str
    source: str
    source_line: int
    origin: str
    """`source` as read, `feedback` from a judged prediction, `review` corrected in a review item."""
    feedback_id: str
    """The judgement or review item behind it when origin is `feedback` or `review`, else empty."""
    supersedes: str
    """Id of the record that this one corrects, else empty."""
    block_ids: str = ""
    """Blocks of the document that the text comes from, by position, joined by spaces; empty where the source has no blocks."""
    weight: float = Field(default=1.0, ge=0, le=1)
    """What the record counts in training; the document's confidence."""
    document_type: str = ""
    """The document's type; empty where it has none."""


class DatasetVersion(Noun):
    """Frozen records in disjoint splits."""

    prefix = "dsv"
    parent: str | None = None
    reason: str = ""
    inputs: str = ""
    """Hash of the sources' bytes and the settings, by which an unchanged input is recognised."""
    feedback: tuple[str, ...] = ()
    """Judgements that were taken in since the parent."""
    path: str
    """Folder relative to the project: records.parquet, dropped.parquet, manifest.json."""
    sha256: str
    """Of records.parquet."""
    rows: dict[str, int]
    """Split -> number of records."""
    dropped: dict[str, int]
    """Reason -> number of rows that were not used."""
    labels: tuple[str, ...]
    created_at: str

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return (*((self.parent,) if self.parent else ()), *self.feedback)


class Run(Noun):
    """One training run that finished."""

    prefix = "run"
    dataset_version_id: str
    path: str
    base_model: str
    base_sha256: str
    strategy: str
    seed: int
    steps: int
    train_loss: float
    seconds: float
    peak_memory_bytes: int
    supervised_tokens: int
    tokens: int
    machine: str
    """Passes side by side, forward pass and precision: what its speed is comparable with."""
    weights_sha256: str
    """Of the safetensors file of what was learnt."""
    created_at: str
    parent: str | None = None
    """The run whose weights it started from; None when it started from the base model."""
    feedback: tuple[str, ...] = ()
    """Judgements that it learnt preferences from."""
    document_type: str = ""
    """Of a child the document type whose records it learnt; empty where it learnt all."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return (self.dataset_version_id, *((self.parent,) if self.parent else ()), *self.feedback)


class Evaluation(Noun):
    """What a run scored on the validation, calibration and test splits, beside the base model and a classical baseline."""

    prefix = "evl"
    run_id: str
    dataset_version_id: str
    path: str
    n_test: int
    accuracy: float
    seconds: float
    created_at: str

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return (self.run_id, self.dataset_version_id)


class ModelVersion(Noun):
    """A registered run: base, weights, chat template, label space and calibrator in one folder."""

    prefix = "mdl"
    run_id: str
    evaluation_id: str
    name: str
    version: int
    path: str
    sha256: str
    """Of the folder's manifest, which holds the digest of every file in it."""
    created_at: str
    children: dict[str, str] = Field(default_factory=dict)
    """Document type -> run of the child that answers it; empty where one adapter answers all."""
    routing: str = ""
    """Folder of what its router and adapters scored, relative to the project; empty where one adapter answers all."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return (self.run_id, self.evaluation_id, *self.children.values())


class Deployment(Noun):
    """Model versions that share traffic; each is a variant."""

    prefix = "dep"
    name: str
    variants: dict[str, str]
    """Variant name -> model version id."""
    created_at: str

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return tuple(self.variants.values())


class FieldConfidence(BaseModel):
    """What an extraction states of a field, and how sure the model is that it is right."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    field: str
    value: str | None
    """What the field holds, of a list one element; None says that it holds nothing."""
    confidence_raw: float = Field(ge=0, le=1)
    confidence: float = Field(ge=0, le=1)
    """Calibrated on fields."""

    def __str__(self) -> str:
        return f"{self.field}: {'nothing' if self.value is None else self.value} {self.confidence:.2f}"


class Prediction(Noun):
    """One answer to one request."""

    prefix = "prd"
    deployment_id: str
    model_version_id: str
    variant: str
    text: str
    text_sha256: str
    label: str
    confidence_raw: float = Field(ge=0, le=1)
    confidence: float = Field(ge=0, le=1)
    scores: dict[str, float]
    """Label -> uncalibrated logit, so that a new calibrator needs no new inference."""
    latency_seconds: float
    created_at: str
    adapter: str = ""
    """Which adapter answered: a document type, or `parent`; empty where the model version has one only."""
    route_confidence: float | None = Field(default=None, ge=0, le=1)
    """How sure the router was of the most probable route, calibrated; None without a router."""
    accepted: bool | None = None
    """Whether the answer needs no review, by the threshold of the model version; None where it has none."""
    fields: tuple[FieldConfidence, ...] = ()
    """Of an extraction what it states, field by field; empty of other tasks, and of a model version whose fields were not calibrated."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return (self.deployment_id, self.model_version_id)


class Feedback(Noun):
    """A judgement on a prediction: a boolean, a float, a comment or a demonstration (the right answer)."""

    prefix = "fbk"
    prediction_id: str
    event_id: str
    """The sender's idempotency key."""
    kind: FeedbackKind
    value: bool | float | str
    actor: str
    created_at: str

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what this was made from."""
        return (self.prediction_id,)

    @classmethod
    def judge(cls, labels: Sequence[str], *, prediction_id: str, event_id: str, kind: FeedbackKind, value: bool | float | str, actor: str) -> Feedback:
        """Make a judgement whose value fits its kind.

        Args:
            labels: The label space; a demonstration is one of them. Empty where answers are written: then any text may be right.
            prediction_id: What is judged. It may arrive later than its judgement.
            event_id: The sender's idempotency key.
            kind: What is said.
            value: A boolean (is the answer right), a float, a text, or a label.
            actor: Who says it.

        Raises:
            DataError: the value does not fit.
        """
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {"boolean": isinstance(value, bool), "float": is_number}.get(kind, isinstance(value, str))
        if not fits:
            raise DataError(f"The value of a {kind} must be {f'a {kind}' if kind in ('boolean', 'float') else 'text'}. Received: {value!r}.")
        if kind == "demonstration" and labels and value not in labels:
            raise DataError(f"A demonstration must be one of the labels: {'; '.join(labels)}. Received: {value!r}.")
        return cls(id=new_id(cls.prefix), prediction_id=prediction_id, event_id=event_id, kind=kind, value=value, actor=actor, created_at=utc_now())


NOUNS: tuple[type[Noun], ...] = (
    Document,
    Record,
    DatasetVersion,
    Run,
    Evaluation,
    ModelVersion,
    Deployment,
    Prediction,
    Feedback,
)
