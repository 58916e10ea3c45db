"""Dataset version -> review items: which train records should a person look at first?

Four things make a record suspicious: its label does not fit its text (`label_errors.py`), it is far from its class
(`outliers.py`), its text is noise (`checks.py`), the OCR was unsure of it. Each record is asked about once, for its
strongest reason, the most urgent first. Nothing is changed here: decisions of reviewers are, with the next dataset version.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.checks import check_records
from tunesmith.data.label_errors import find_label_errors
from tunesmith.data.outliers import score_outliers
from tunesmith.entities import DatasetVersion
from tunesmith.errors import DataError
from tunesmith.flow.dataset import embed_texts, read
from tunesmith.flow.review import ask_reviewers
from tunesmith.project import Project
from tunesmith.review.exchange import Reason, ReviewItem

_NOISE_CHECKS = ("garbage", "encoding", "template_markers")


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        items: Review items, one a suspicious record, the most urgent first; scores are in [0, 1].
        label_error_rate: Estimated share of train records with a wrong label, in [0, 1]; labels that are a matter of taste count.
        new: Items that were not asked before.
    """

    items: tuple[ReviewItem, ...]
    label_error_rate: float
    new: int

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> items, most frequent first."""
        return dict(Counter(item.reason for item in self.items).most_common())


def audit(project: Project, dataset: DatasetVersion) -> Audit:
    """Look for records of the train split that a person should see, and open a review item for each.

    Args:
        project: The project.
        dataset: The version to look at.

    Raises:
        DataError: there are too few records or labels to judge.
        MissingExtraError: a package is not installed.
    """
    with project.step("audit") as done:
        # A record that a person corrected or confirmed is not asked about again.
        records = read(project, dataset).filter(pl.col("split") == "train", pl.col("origin") == "source")
        if records["label"].n_unique() < 2:
            raise DataError(f"An audit needs train records of two labels. Received: {len(records)} records.", hint="tunesmith data show")
        texts, labels = records["text"].to_list(), records["label"].to_list()
        vectors = embed_texts(project, texts, lambda at, n: project.progress.advance(at, n, "read the meaning of the texts"))
        errors = find_label_errors(texts, labels, vectors, progress=lambda at, n: project.progress.advance(at, n, "label errors"))
        project.progress.advance(0, 1, "outliers and noise")
        suspicions = pl.concat([
            _label_errors(records, errors.rows),
            _outliers(records, vectors),
            _noise(records, project),
            _unsure_ocr(records, project.config.data.audit.min_ocr_confidence),
        ])  # fmt: skip
        strongest = suspicions.sort("score", "reason", "id", descending=[True, False, False]).unique("id", keep="first", maintain_order=True)
        joined = strongest.join(records.select("id", "text", "label"), on="id", maintain_order="left")
        items = tuple(
            ReviewItem.ask(row["id"], row["text"], row["suggested"] or row["label"], row["reason"], row["score"], evidence={"why": row["evidence"]})
            for row in joined.iter_rows(named=True)
        )
        found = Audit(items, errors.error_rate, ask_reviewers(project, items))
        done(f"{dataset.id}: {len(items):,} of {len(records):,} train records to look at, {found.new:,} of them new")
        return found


_SCHEMA = {"id": pl.String, "score": pl.Float64, "reason": pl.String, "suggested": pl.String, "evidence": pl.String}


def _suspicions(rows: pl.DataFrame, reason: Reason) -> pl.DataFrame:
    if "suggested" not in rows.columns:
        rows = rows.with_columns(suggested=pl.lit(None, dtype=pl.String))
    return rows.with_columns(reason=pl.lit(reason)).select(list(_SCHEMA)).cast(pl.Schema(_SCHEMA))


def _label_errors(records: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    rows = pl.concat([records.select("id"), found.select("label", "suggested", "score", "is_proposed", "neighbours")], how="horizontal").filter("is_proposed")
    labels = records["label"]
    near = [", ".join(f"{name} {count}" for name, count in Counter(labels.gather(each)).most_common(3)) for each in rows["neighbours"]]
    said = pl.format("labelled '{}'; '{}' fits better; its nearest neighbours are {}", "label", "suggested", pl.Series(near, dtype=pl.String))
    return _suspicions(rows.with_columns(evidence=said), "label_error")


def _outliers(records: pl.DataFrame, vectors: NDArray[np.float32]) -> pl.DataFrame:
    found = score_outliers(vectors, records["label"].to_list())
    rows = pl.concat([records.select("id"), found.select("is_proposed", z="score")], how="horizontal").filter("is_proposed")
    # From 0.5 where proposals begin towards 1, so that the reasons share a scale.
    return _suspicions(
        rows.with_columns(score=1 - 1.75 / pl.col("z"), evidence=pl.format("{} robust deviations from its class", pl.col("z").round(1))), "outlier"
    )


def _noise(records: pl.DataFrame, project: Project) -> pl.DataFrame:
    every = project.config.data.checks.model_copy(update={"n_examples": len(records)})
    checks = [check for check in check_records(records, every).checks if check.name in _NOISE_CHECKS]
    rows = [(example.id, 1.0, f"{check.name}: {example.why}") for check in checks for example in check.examples]
    return _suspicions(pl.DataFrame(rows, schema={"id": pl.String, "score": pl.Float64, "evidence": pl.String}, orient="row"), "garbage")


def _unsure_ocr(records: pl.DataFrame, least: float) -> pl.DataFrame:
    rows = records.filter(pl.col("weight") < least)
    return _suspicions(rows.with_columns(score=1 - pl.col("weight"), evidence=pl.format("the OCR's confidence is {}", pl.col("weight").round(2))), "ocr")
