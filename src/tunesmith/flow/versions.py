"""What people do with dataset versions after they are made: look, send, fetch, put back, and take a document out."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import polars as pl

from tunesmith.data.freeze import adopt, read_dropped, read_records
from tunesmith.data.versioning import checkout_version, commit_file, known_versions, pull_versions, push_versions
from tunesmith.data.withdrawn import FILE, Withdrawal, add_withdrawal, read_withdrawals
from tunesmith.entities import SPLITS, DatasetVersion, utc_now
from tunesmith.errors import NotFoundError
from tunesmith.flow.dataset import newest_dataset, next_version, withdrawn_examples
from tunesmith.lineage import Node, walk
from tunesmith.project import Project


@dataclass(frozen=True)
class Overview:
    """What a dataset version holds.

    Attributes:
        version: The version.
        labels: Columns `label` and one a split with the number of records.
        dropped: Columns `reason`, `count`, and of one example `source`, `source_line`, `evidence`.
        expert_share: Share of the records that people saw, in [0, 1]: judged, or answered as a review item.
    """

    version: DatasetVersion
    labels: pl.DataFrame
    dropped: pl.DataFrame
    expert_share: float

    def to_dict(self) -> dict[str, Any]:
        """Return the overview for JSON."""
        parts = {"labels": self.labels.to_dicts(), "dropped": self.dropped.to_dicts(), "expert_share": self.expert_share}
        return {"version": self.version.model_dump(mode="json"), **parts}


def show_dataset(project: Project, version_id: str = "") -> Overview:
    """Say what a dataset version holds; the newest one when no id is given.

    Raises:
        NotFoundError: there is no such version.
        DataError: its files were changed, or are missing.
    """
    version = _version(project, version_id)
    records = read_records(project.root, version)
    dropped = read_dropped(project.root, version)
    by_label = records.group_by("label").agg(*((pl.col("split") == name).sum().alias(name) for name in SPLITS)).sort("label")
    examples = dropped.group_by("reason", maintain_order=True).agg(pl.len().alias("count"), pl.col("source", "source_line", "evidence").first())
    labelled = {row["item_id"] for row in project.store.review_labels()}
    seen = [row["target_id"] for row in project.store.review_items() if row["id"] in labelled]
    by_experts = records.filter((pl.col("origin") == "feedback") | pl.col("id").is_in(seen) | pl.col("document_id").is_in(seen))
    return Overview(version, by_label, examples.sort("count", "reason", descending=[True, False]), len(by_experts) / max(1, len(records)))


def _version(project: Project, version_id: str) -> DatasetVersion:
    version = project.store.get(DatasetVersion, version_id) if version_id else newest_dataset(project)
    if version is None:
        raise NotFoundError("There is no dataset version yet.", hint="tunesmith prepare")
    return version


def push(project: Project, version_id: str = "") -> int:
    """Send a dataset version, or all of them, to the DVC remote. Returns the number of files sent.

    Raises:
        NotFoundError: there is no such version.
        BackendError: there is no remote, or it refused.
    """
    paths = [_version(project, version_id).path] if version_id else known_versions(project.root)
    if not paths:
        raise NotFoundError("There is no dataset version that DVC tracks.", hint="tunesmith prepare, with data.dvc: true")
    return push_versions(project.root, paths, project.config.data.dvc_remote)


def pull(project: Project, version_id: str = "") -> list[DatasetVersion]:
    """Fetch a dataset version, or all that git knows here, from the DVC remote, and enter those that the store lacks.

    A fresh clone of a project has the .dvc files and no store: this brings both back.

    Returns:
        The versions that are in place now, oldest first.

    Raises:
        NotFoundError: git knows no such version.
        BackendError: there is no remote, or it lacks the files.
        DataError: what came is not what was frozen.
    """
    known = known_versions(project.root)
    paths = [path for path in known if not version_id or path.endswith(f"/{version_id}")]
    if not paths:
        raise NotFoundError(f"No dataset version {version_id or 'at all'} has a .dvc file here.", hint="git pull, then type the same command")
    pull_versions(project.root, paths, project.config.data.dvc_remote)
    return adopt(project.root, paths, project.store)


def checkout(project: Project, version_id: str) -> bool:
    """Put the files of a dataset version back as they were frozen, from DVC's cache. Returns whether anything was to do.

    Raises:
        NotFoundError: there is no such version.
        BackendError: DVC's cache lacks the files: pull them.
    """
    version = _version(project, version_id)
    changed = checkout_version(project.root, version.path)
    read_records(project.root, version)
    return changed


# Taking a document back


@dataclass(frozen=True)
class Withdrawn:
    """What a withdrawn document touched, and the version without it.

    Attributes:
        document_ids: The documents: one, or all at an address.
        touched: Records, dataset versions, runs, evaluations, model versions, deployments, predictions and feedback that
            were made from them, each once. Versions that were frozen before still hold the text.
        version: The dataset version without them.
        examples: Numbers of the `task.examples` that say their text in every prompt; the next training refuses them.
    """

    document_ids: tuple[str, ...]
    touched: tuple[Node, ...]
    version: DatasetVersion
    examples: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        touched = [node.to_dict() for node in self.touched]
        return {"document_ids": self.document_ids, "touched": touched, "version": self.version.model_dump(mode="json"), "examples": self.examples}


def withdraw(project: Project, document: str, reason: str, actor: str) -> Withdrawn:
    """Take a document back: say all that it touched, and prepare the dataset version without it.

    It stays out of every later version, and is written down in `datasets/withdrawn.jsonl`, which is committed to git.

    Args:
        project: The project.
        document: Id of a document or of one of its records, or an address: a source, or SOURCE:LINE.
        reason: Why, for people.
        actor: Who asks for it.

    Raises:
        NotFoundError: no dataset version knows such a document.
        DataError: the version without it cannot be made.
    """
    rows = _find_documents(project, document)
    ids = rows["document_id"].unique(maintain_order=True).to_list()
    touched: dict[str, Node] = {}
    for document_id in ids:
        mine = rows.filter(document_id=document_id)
        records = mine.drop_nulls("record_id")["record_id"].unique().sort().to_list()
        if records:
            touched |= {node.id: node for node in walk(project.store, project.root, document_id).made}
        first = mine.row(0, named=True)
        said = {"reason": reason, "actor": actor, "at": utc_now(), "record_ids": tuple(records)}
        facts = {name: first[name] for name in ("document_id", "source", "source_line", "content_sha256")}
        add_withdrawal(project.root, Withdrawal(**facts, **said))
    if project.config.data.dvc:
        commit_file(project.root, FILE, f"withdrawn: {', '.join(ids)}")
    version = next_version(project, newest_dataset(project), because=f"withdrawn: {', '.join(ids)}")
    examples = tuple(number for number, document_id in withdrawn_examples(project).items() if document_id in ids)
    return Withdrawn(tuple(ids), tuple(touched.values()), version, examples)


def _find_documents(project: Project, document: str) -> pl.DataFrame:
    """Return a row for each time that it was met: `document_id`, `record_id` (null where it was dropped), `source`, `source_line`, `content_sha256`."""
    source, _, line = document.rpartition(":")
    address = pl.col("source") == document
    if source and line.isdigit():
        address = address | ((pl.col("source") == source) & (pl.col("source_line") == int(line)))
    columns = ["document_id", "record_id", "source", "source_line", "content_sha256"]
    found = []
    for version in project.store.all(DatasetVersion):
        if not (project.root / version.path).is_dir():
            continue
        records = read_records(project.root, version).filter(address | (pl.col("document_id") == document) | (pl.col("id") == document))
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in records["text"]]
        found.append(records.with_columns(record_id="id", content_sha256=pl.Series(digests, dtype=pl.String)).select(columns))
        dropped = read_dropped(project.root, version).filter(pl.col("id").str.starts_with("doc_") & (address | (pl.col("id") == document)))
        found.append(dropped.with_columns(document_id="id", record_id=pl.lit(None, dtype=pl.String)).select(columns))
    rows = pl.concat(found) if found else pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    if rows.is_empty():
        known = any(document in (one.document_id, one.source) for one in read_withdrawals(project.root))
        why = "It was withdrawn already." if known else "No dataset version knows it."
        raise NotFoundError(
            f"A document must be named by its id, one of its records, its source or SOURCE:LINE. Received: {document!r}. {why}", hint="tunesmith data show"
        )
    return rows


def this_user() -> str:
    """Return who works here: TUNESMITH_ACTOR, or the user of this machine."""
    import getpass

    return os.environ.get("TUNESMITH_ACTOR") or getpass.getuser()
