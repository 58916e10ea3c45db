"""Walk from any noun to its ancestors, and to what was made from it.

Nouns from the dataset version on are rows of the store. Records and documents are rows of a dataset version's Parquet
file: a hundred thousand of them are no burden there, and their ids lead to source and line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tunesmith.entities import DatasetVersion, Deployment, Document, Evaluation, Feedback, ModelVersion, Noun, Prediction, Record, Run
from tunesmith.errors import NotFoundError
from tunesmith.store import Store


@dataclass(frozen=True)
class Node:
    """A noun on the way.

    Attributes:
        noun: The noun, or None when its id is known but it is not there (yet).
        depth: Steps from where the walk began.
    """

    id: str
    noun: Noun | None
    depth: int = 0

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        match self.noun:
            case Prediction() as it:
                by = "" if it.route_confidence is None else f" by the adapter {it.adapter} (route {it.route_confidence:.2f})"
                fields = f" [{'; '.join(map(str, it.fields))}]" if it.fields else ""
                return f"prediction: {it.label} (confidence {it.confidence:.2f}){fields}{by} at {it.created_at[:19]}"
            case Feedback() as it:
                return f"feedback: {it.kind} {it.value!r} by {it.actor or 'unknown'}"
            case Deployment() as it:
                return f"deployment of {it.name}"
            case ModelVersion() as it:
                return f"model version {it.version} of {it.name}" + (f", children: {', '.join(it.children)}" if it.children else "")
            case Evaluation() as it:
                return f"evaluation: {100 * it.accuracy:.1f} % accuracy on {it.n_test:,} test records"
            case Run() as it:
                of_type = f" of the document type {it.document_type}" if it.document_type else ""
                return f"run: {it.strategy} on {it.base_model}{of_type}, {it.steps:,} steps, seed {it.seed}"
            case DatasetVersion() as it:
                return f"dataset version: {sum(it.rows.values()):,} records, {it.reason}"
            case Record() as it:
                return f"record: {it.label}, {it.split}, from {it.source}:{it.source_line}"
            case Document() as it:
                return f"document: {it.source}:{it.source_line}"
            case _:
                return "not in this project's store"

    def to_dict(self) -> dict[str, Any]:
        """Return the node for JSON."""
        return {"id": self.id, "depth": self.depth, "summary": self.summary, "noun": self.noun.model_dump(mode="json") if self.noun else None}


@dataclass(frozen=True)
class Trace:
    """A walk.

    Attributes:
        nodes: Where it began, then its ancestors, each once, depth first.
        made: What was made from it, directly and indirectly, each once.
    """

    nodes: list[Node] = field(default_factory=list)
    made: list[Node] = field(default_factory=list)


def walk(store: Store, root: Path, noun_id: str) -> Trace:
    """Walk from a noun in both directions.

    Args:
        store: The project's store.
        root: The project's folder, where dataset versions lie.
        noun_id: Any noun's id.

    Raises:
        NotFoundError: nothing has that id.
    """
    start = _find(store, root, noun_id)
    if start is None:
        raise NotFoundError(f"Nothing has the id {noun_id!r}.", hint="tunesmith data log")
    trace = Trace()
    seen: set[str] = set()

    def up(node: Node) -> None:
        if node.id in seen:
            return
        seen.add(node.id)
        trace.nodes.append(node)
        for parent in _parents(node.noun):
            up(Node(parent, _find(store, root, parent), node.depth + 1))

    up(Node(noun_id, start))
    pending = _children(store, root, start)
    met = {noun_id}
    while pending:
        child = pending.pop(0)
        if child in met:
            continue
        met.add(child)
        noun = _find(store, root, child)
        trace.made.append(Node(child, noun))
        pending += _children(store, root, noun) if noun else []
    return trace


def _parents(noun: Noun | None) -> tuple[str, ...]:
    if isinstance(noun, Record):
        return tuple(parent for parent in (noun.document_id, noun.feedback_id, noun.supersedes) if parent)
    return noun.parents if noun else ()


def _find(store: Store, root: Path, noun_id: str) -> Noun | None:
    if noun_id.startswith(("rec_", "doc_")):
        return _find_row(store, root, noun_id)
    return store.find(Noun, noun_id)


def _find_row(store: Store, root: Path, noun_id: str) -> Record | Document | None:
    column = "id" if noun_id.startswith("rec_") else "document_id"
    for _, records in _datasets(store, root):
        found = records.filter(pl.col(column) == noun_id).head(1).collect().to_dicts()
        if found and column == "id":
            return Record.model_validate(found[0])
        if found:
            row = found[0]
            return Document(id=noun_id, source=row["source"], source_line=row["source_line"], content_sha256="", text=row["text"], label=row["label"])
    return None


def _datasets(store: Store, root: Path) -> list[tuple[DatasetVersion, pl.LazyFrame]]:
    files = [(version, root / version.path / "records.parquet") for version in reversed(store.all(DatasetVersion))]
    return [(version, pl.scan_parquet(file)) for version, file in files if file.exists()]


def _children(store: Store, root: Path, noun: Noun) -> list[str]:
    if isinstance(noun, Document | Record | Feedback):
        column = {Document: "document_id", Record: "id", Feedback: "feedback_id"}[type(noun)]
        children = list(store.children(noun.id))
        for version, records in _datasets(store, root):
            found = records.filter(pl.col(column) == noun.id).select("id").collect()["id"].to_list()
            children += [version.id] if found and isinstance(noun, Record) else found
        return children
    return store.children(noun.id)
