"""Review items -> a file for a labelling tool, and back with what people said.

    Label Studio    JSON tasks with a prediction; read back from its exports JSON and JSON-MIN
    Argilla         JSON records with a suggestion; read back as `Dataset.records.to_json` or its REST API writes them
    CSV             one row an item, with empty columns for label, reviewer, time and comment

An item asks one question about one record or document and says why it is asked. Its id travels through the tool and back,
so that tools may reorder, drop or repeat rows. On each label stand reviewer, time and the version of the guidelines that
the item was shown with. A row that cannot be used is told with its reason; the rest is taken. Which format a file has is
seen from its content.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from xml.sax.saxutils import quoteattr

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.entities import content_id, utc_now
from tunesmith.errors import DataError, NotFoundError
from tunesmith.files import write_text

DISCARD = "(discard)"
"""What a reviewer answers instead of a label when the text is not worth learning from."""

Reason = Literal["label_error", "outlier", "garbage", "near_duplicate", "low_confidence", "ocr"]
Format = Literal["label-studio", "argilla", "csv"]

_CSV_COLUMNS = (
    "item_id", "target_id", "text", "proposed_label", "reason", "score", "evidence", "guideline_version", "label", "reviewer", "labelled_at", "comment",
)  # fmt: skip


class ReviewItem(BaseModel):
    """One question to a reviewer. Its id hashes what is asked about what, so that the same question is one item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    target_id: str
    """Id of the record or document."""
    text: str
    proposed_label: str
    """What the reviewer confirms or corrects; empty when nothing is proposed."""
    reason: Reason
    """Why it is asked."""
    score: float
    """How urgent it is; higher comes first."""
    evidence: dict[str, Any] = Field(default_factory=dict)
    """What made it suspicious, for people: neighbours, probabilities."""
    guideline_version: str = ""
    """Version of the guidelines that go with it, as of `guideline_version`."""
    reviewers: int = Field(default=1, ge=1)
    """How many people are to label it."""
    created_at: str

    @classmethod
    def ask(
        cls,
        target_id: str,
        text: str,
        proposed_label: str,
        reason: Reason,
        score: float,
        *,
        evidence: dict[str, Any] | None = None,
        guideline_version: str = "",
        reviewers: int = 1,
    ) -> Self:
        """Make an item; arguments are its fields."""
        return cls(
            id=content_id("rvi", target_id, reason, proposed_label),
            target_id=target_id,
            text=text,
            proposed_label=proposed_label,
            reason=reason,
            score=score,
            evidence=evidence or {},
            guideline_version=guideline_version,
            reviewers=reviewers,
            created_at=utc_now(),
        )


class ReviewLabel(BaseModel):
    """What one person said about one item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: str
    reviewer: str
    labelled_at: str
    """UTC, ISO 8601; the time of the import where the tool tells none."""
    label: str
    comment: str = ""
    guideline_version: str = ""
    created_at: str
    """When it was imported."""


@dataclass(frozen=True)
class Rejected:
    """A row of an imported file that was not used."""

    row: int
    """Counted from 1; in CSV the line on which it starts."""
    reason: Literal["unknown_item", "unknown_label", "no_reviewer"]
    evidence: str


@dataclass(frozen=True)
class Imported:
    """What an imported file held. Rows without a label are not labelled yet: they are counted, not rejected."""

    labels: list[ReviewLabel]
    rejected: list[Rejected]
    n_unlabelled: int


def guideline_version(text: str) -> str:
    """Return the version of a guideline text: 12 hex digits of its SHA-256, or an empty string when there is none."""
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text.strip() else ""


def export_items(items: Sequence[ReviewItem], path: Path, form: Format, labels: Sequence[str], guidelines: str = "") -> list[Path]:
    """Write items to a file for a labelling tool, and beside it what the tool needs to show them.

    Args:
        items: In the order in which reviewers are to see them.
        path: The file.
        form: Its format.
        labels: The label space.
        guidelines: Text for the reviewers; goes into a file of its own, and where the tool has a place for it there too.

    Returns:
        The files: the given one, FILE.guidelines.md where there are guidelines, and FILE.config.xml for Label Studio.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "csv":
        write_text(path, _csv(items))
    else:
        rows = [(_label_studio_task if form == "label-studio" else _argilla_record)(item, guidelines) for item in items]
        write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    written = [path]
    if guidelines.strip():
        written.append(path.with_name(f"{path.name}.guidelines.md"))
        write_text(written[-1], guidelines)
    if form == "label-studio":
        written.append(path.with_name(f"{path.name}.config.xml"))
        write_text(written[-1], _label_studio_config(labels))
    return written


def _csv(items: Sequence[ReviewItem]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, _CSV_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for item in items:
        row = {name: getattr(item, name) for name in ("target_id", "text", "proposed_label", "reason", "score", "guideline_version")}
        writer.writerow({"item_id": item.id, "evidence": json.dumps(item.evidence, ensure_ascii=False, sort_keys=True), **row})
    return out.getvalue()


def _facts(item: ReviewItem) -> dict[str, Any]:
    return {
        "item_id": item.id,
        "target_id": item.target_id,
        "reason": item.reason,
        "score": item.score,
        "proposed_label": item.proposed_label,
        "guideline_version": item.guideline_version,
    }


def _label_studio_task(item: ReviewItem, guidelines: str) -> dict[str, Any]:
    choice = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [item.proposed_label]}}
    predictions = [{"model_version": "tunesmith", "score": item.score, "result": [choice]}] if item.proposed_label else []
    return {"data": {"text": item.text, **_facts(item), "evidence": item.evidence, "guidelines": guidelines}, "predictions": predictions}


def _label_studio_config(labels: Sequence[str]) -> str:
    choices = "".join(f"    <Choice value={quoteattr(label)}/>\n" for label in labels)
    return (
        '<View>\n  <Collapse>\n    <Panel value="Guidelines">\n      <Text name="guidelines" value="$guidelines"/>\n    </Panel>\n  </Collapse>\n'
        '  <Header value="Asked because: $reason"/>\n  <Text name="text" value="$text"/>\n'
        f'  <Choices name="label" toName="text" choice="single" required="true">\n{choices}  </Choices>\n'
        '  <TextArea name="comment" toName="text" placeholder="Comment" maxSubmissions="1"/>\n</View>\n'
    )


def _argilla_record(item: ReviewItem, _guidelines: str) -> dict[str, Any]:
    suggestion = {"label": {"value": item.proposed_label, "score": item.score, "agent": "tunesmith"}} if item.proposed_label else {}
    metadata = {**_facts(item), "evidence": json.dumps(item.evidence, ensure_ascii=False, sort_keys=True)}  # metadata of Argilla is flat
    return {"id": item.id, "fields": {"text": item.text}, "metadata": metadata, "suggestions": suggestion, "responses": {}, "vectors": {}, "status": "pending"}


@dataclass(frozen=True)
class _Row:
    """A label as a tool wrote it."""

    number: int
    item_id: str
    label: str
    reviewer: str
    labelled_at: str
    comment: str


def import_labels(path: Path, items: Sequence[ReviewItem], labels: Sequence[str], reviewer: str = "") -> Imported:
    """Read what people said.

    Args:
        path: A file that a labelling tool wrote, or a CSV filled in by hand.
        items: The items that may be in it.
        labels: The label space; a label must equal one of them.
        reviewer: Who labelled, for rows that name nobody.

    Raises:
        NotFoundError: the file does not exist.
        DataError: the file has no known format.
    """
    known = {item.id: item for item in items}
    now = utc_now()
    said, rejected, n_unlabelled = [], [], 0
    for row in _read(path):
        who = row.reviewer or reviewer
        if row.item_id not in known:
            rejected.append(Rejected(row.number, "unknown_item", f"no review item has the id {row.item_id!r}"))
        elif not row.label:
            n_unlabelled += 1
        elif row.label not in labels:
            rejected.append(Rejected(row.number, "unknown_label", f"{row.label!r} is not in task.labels"))
        elif not who:
            rejected.append(Rejected(row.number, "no_reviewer", "the row names no reviewer, and --reviewer was not given"))
        else:
            version = known[row.item_id].guideline_version
            facts = {"item_id": row.item_id, "reviewer": who, "labelled_at": row.labelled_at or now, "label": row.label, "comment": row.comment}
            said.append(ReviewLabel(**facts, guideline_version=version, created_at=now))
    return Imported(said, rejected, n_unlabelled)


def _read(path: Path) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: must be a UTF-8 file of Label Studio, Argilla or CSV. Received: {error}.") from None
    if not text.lstrip().startswith(("[", "{")):
        yield from _read_csv(text, path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        try:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: must be JSON. Received: {error}.") from None
    if isinstance(rows, dict):
        rows = rows.get("items") or rows.get("records") or [rows]  # pages of a REST API
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: must be a list of objects. Received: {type(row).__name__} at position {number}.")
        try:
            if "fields" in row:
                yield from _argilla(row, number)
            elif "data" in row or "item_id" in row:
                yield from _label_studio(row, number)
            else:
                raise DataError(
                    f"{path}: each object must be a task of Label Studio (`data`) or a record of Argilla (`fields`). Received at {number}: {', '.join(row)}."
                )
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{path}: object {number} must be shaped as the tool writes it. Received: {type(error).__name__}: {error}.") from None


def _read_csv(text: str, path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in ("item_id", "label") if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: must have the columns item_id and label. Missing: {', '.join(missing)}.", hint="tunesmith review export --format csv FILE")
    line = reader.line_num + 1
    for row in reader:
        plain = {name: (row.get(name) or "").strip() for name in ("item_id", "label", "reviewer", "labelled_at", "comment")}
        yield _Row(line, **plain)
        line = reader.line_num + 1


def _label_studio(task: dict[str, Any], number: int) -> Iterator[_Row]:
    if "data" not in task:  # JSON-MIN: flat, an annotation a row
        when = task.get("updated_at") or task.get("created_at") or ""
        label = task.get("label") or ""
        if isinstance(label, dict):
            label = label["choices"][0]
        yield _Row(number, task["item_id"], label, _person(task.get("annotator")), when, str(task.get("comment") or ""))
        return
    item_id = task["data"].get("item_id", "")
    # The export has `annotations`; its older name was `completions`.
    finished = [one for one in task.get("annotations") or task.get("completions") or [] if not one.get("was_cancelled")]
    if not finished:
        yield _Row(number, item_id, "", "", "", "")
    for annotation in finished:
        choices = [result["value"]["choices"] for result in annotation["result"] if result["type"] == "choices" and result["from_name"] == "label"]
        comments = [text for result in annotation["result"] if result["type"] == "textarea" for text in _as_list(result["value"]["text"])]
        when = annotation.get("updated_at") or annotation.get("created_at") or ""
        yield _Row(number, item_id, choices[0][0] if choices else "", _person(annotation.get("completed_by")), when, "\n".join(comments))


def _argilla(record: dict[str, Any], number: int) -> Iterator[_Row]:
    item_id = (record.get("metadata") or {}).get("item_id") or record.get("external_id") or record.get("id") or ""
    responses = record.get("responses") or []
    rows = []
    if isinstance(responses, dict):  # version 2, question -> answers
        when = record.get("updated_at") or ""
        rows = [_Row(number, item_id, str(one["value"]), _person(one.get("user_id")), when, "") for one in responses.get("label", [])]
    else:  # version 1 and the REST API: user -> answers
        for one in responses:
            if one.get("status", "submitted") == "submitted" and "label" in (one.get("values") or {}):
                when = one.get("updated_at") or one.get("inserted_at") or ""
                comment = one["values"].get("comment", {}).get("value", "")
                rows.append(_Row(number, item_id, str(one["values"]["label"]["value"]), _person(one.get("user_id")), when, comment))
    yield from rows or [_Row(number, item_id, "", "", "", "")]


def _person(value: Any) -> str:
    """Return who labelled: Label Studio names people by number or by object."""
    if isinstance(value, dict):
        return str(value.get("email") or value.get("username") or value["id"])
    return "" if value is None else str(value)


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
