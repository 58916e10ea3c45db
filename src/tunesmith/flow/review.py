"""Review items: put to reviewers, sent to labelling tools and fetched back, decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tunesmith.errors import ConfigError
from tunesmith.project import Project
from tunesmith.review.agreement import Agreement, Decision, decide, measure_agreement
from tunesmith.review.decisions import Corrections, corrections_of
from tunesmith.review.exchange import DISCARD, Format, Imported, ReviewItem, export_items, guideline_version, import_labels


@dataclass(frozen=True)
class Review:
    """Where the review of items stands.

    Attributes:
        items: All items, the most urgent first.
        decisions: Item id -> what its labels come to.
        agreement: Of reviewers beyond chance; None while no item has two labels.
    """

    items: list[ReviewItem]
    decisions: dict[str, Decision]
    agreement: Agreement | None

    @property
    def open_items(self) -> list[ReviewItem]:
        """Items that want another label."""
        return [item for item in self.items if self.decisions[item.id].reviewers_wanted]


def ask_reviewers(project: Project, items: Iterable[ReviewItem]) -> int:
    """Put items into the review, with today's guidelines and number of reviewers. Returns how many were new."""
    stamp = {"guideline_version": guideline_version(read_guidelines(project)), "reviewers": project.config.review.reviewers}
    return project.store.put_review_items(item.model_dump(mode="json") | stamp for item in items)


def review_state(project: Project) -> Review:
    """Say what was decided, what is open, and how far reviewers agree."""
    items = [ReviewItem.model_validate(row) for row in project.store.review_items()]
    given: dict[str, list[tuple[str, str]]] = {item.id: [] for item in items}
    for row in project.store.review_labels():
        if row["item_id"] in given:
            given[row["item_id"]].append((row["reviewer"], row["label"]))
    adjudicators = frozenset(project.config.review.adjudicators)
    decisions = {item.id: decide(given[item.id], item.reviewers, adjudicators) for item in items}
    # An adjudicator has seen what others said, which is no second opinion.
    labels = {name: {who: label for who, label in pairs if who not in adjudicators} for name, pairs in given.items()}
    return Review(items, decisions, measure_agreement(labels) if any(len(pairs) > 1 for pairs in labels.values()) else None)


def read_guidelines(project: Project) -> str:
    """Return the text of `review.guidelines`, empty when none is named.

    Raises:
        ConfigError: the file is not there.
    """
    name = project.config.review.guidelines
    if not name:
        return ""
    try:
        return (project.root / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"review.guidelines must name a UTF-8 file. Received: {name}.", hint="tunesmith config explain review.guidelines") from None


def export_review(project: Project, path: Path, form: Format, limit: int | None = None) -> tuple[int, list[Path]]:
    """Write the open items, the most urgent first, to a file for a labelling tool. Returns their number and the files."""
    items = review_state(project).open_items[:limit]
    return len(items), export_items(items, path, form, (*project.config.task.names, DISCARD), read_guidelines(project))


def import_review(project: Project, path: Path, reviewer: str = "") -> tuple[Imported, int]:
    """Read what reviewers said and store it. Returns what the file held and how many labels were new.

    Raises:
        NotFoundError: the file does not exist.
        DataError: the file has no known format.
    """
    items = [ReviewItem.model_validate(row) for row in project.store.review_items()]
    imported = import_labels(path, items, (*project.config.task.names, DISCARD), reviewer)
    return imported, project.store.put_review_labels(label.model_dump(mode="json") for label in imported.labels)


def corrections(project: Project, records: pl.DataFrame) -> Corrections:
    """Return what the decided items change in records, columns of `Record`."""
    state = review_state(project)
    # The most urgent stands first: of several items about one record its decision counts, so it comes last.
    decided = [(item, label) for item in reversed(state.items) if (label := state.decisions[item.id].label) is not None]
    return corrections_of(decided, records)
