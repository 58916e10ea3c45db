"""Which documents can be used at all?

A text must have a length within bounds and a label of the task's label space. A document that breaks a rule is dropped
with the first reason that holds, in the order of `REASONS`. When a source loses more than `data.max_dropped_share` of
its rows, something is wrong with its columns, not with its rows, and the command stops. Judged a source at a time: a
wrong column in a small file must not hide behind a big one.
"""

from __future__ import annotations

import difflib

import polars as pl

from tunesmith.data.settings import DataSection
from tunesmith.data.sifted import Sifted, as_dropped, count_reasons
from tunesmith.data.sources import configured
from tunesmith.errors import DataError
from tunesmith.models.json_answers import AnswerRule

REASONS = ("empty", "too_short", "too_long", "missing_label", "unknown_label", "invalid_answer")


def validate(documents: pl.DataFrame, task_names: tuple[str, ...], section: DataSection, rule: AnswerRule | None = None) -> Sifted:
    """Drop the documents that cannot be used.

    Args:
        documents: Columns of `Document`.
        task_names: The label space. A label must equal one of them, letter by letter; of an empty one any label may be right.
        section: The bounds on length, in characters without surrounding white space, and on the share of dropped rows.
        rule: Judges labels that are free answers.

    Raises:
        DataError: a source loses more than `section.max_dropped_share` of its rows; names counts and examples.
    """
    sifted = drop_invalid(documents, task_names, section, rule)
    totals = dict(configured(documents["source"], section).value_counts().iter_rows())
    by_source = sifted.dropped.with_columns(configured=configured(sifted.dropped["source"], section))
    for (source,), dropped in by_source.group_by(["configured"], maintain_order=True):
        share = len(dropped) / totals[source]
        if share > section.max_dropped_share:
            raise DataError(
                f"{source}: at most {section.max_dropped_share:.0%} of its rows may be unusable (data.max_dropped_share). "
                f"Received: {len(dropped)} of {totals[source]}.\n{_describe(dropped)}",
                hint="Check text_column, label_column and task.labels in tunesmith.yaml.",
            )
    return sifted


def drop_invalid(documents: pl.DataFrame, task_names: tuple[str, ...], section: DataSection, rule: AnswerRule | None = None) -> Sifted:
    """Drop the documents that cannot be used, however many they are. Arguments as in `validate`."""
    label, length = pl.col("label"), pl.col("text").str.strip_chars().str.len_chars()
    invalid = {name: rule.why_invalid(name) for name in documents["label"].unique() if name.strip()} if rule else {}
    invalid = {name: why for name, why in invalid.items() if why}
    checked = documents.with_columns(
        reason=pl.when(length == 0)
        .then(pl.lit("empty"))
        .when(length < section.min_characters)
        .then(pl.lit("too_short"))
        .when(length > section.max_characters)
        .then(pl.lit("too_long"))
        .when(label.str.strip_chars() == "")
        .then(pl.lit("missing_label"))
        .when(pl.lit(bool(task_names)) & ~label.is_in(task_names))
        .then(pl.lit("unknown_label"))
        .when(label.is_in(list(invalid)))
        .then(pl.lit("invalid_answer"))
    )
    dropped = checked.filter(pl.col("reason").is_not_null())
    unknown = {name: _unknown(name, task_names) for name in dropped.filter(reason="unknown_label")["label"].unique()}
    evidence = (
        pl.when(pl.col("reason") == "unknown_label")
        .then(label.replace_strict(unknown, default="", return_dtype=pl.String))
        .when(pl.col("reason") == "invalid_answer")
        .then(label.replace_strict(invalid, default="", return_dtype=pl.String))
        .when(pl.col("reason") == "missing_label")
        .then(pl.lit("the label is empty"))
        .otherwise(pl.format("{} characters; {} to {} are used", length, pl.lit(section.min_characters), pl.lit(section.max_characters)))
    )
    return Sifted(
        kept=checked.filter(pl.col("reason").is_null()).drop("reason"),
        dropped=as_dropped(dropped.with_columns(evidence=evidence)),
    )


def _unknown(label: str, task_names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(label, task_names, n=1, cutoff=0.0)
    return f"{label!r} is not in task.labels; the nearest is {near[0]!r}" if near else f"{label!r} is not in task.labels"


def _describe(dropped: pl.DataFrame) -> str:
    lines = []
    for reason, count in count_reasons(dropped).items():
        first = dropped.filter(reason=reason).row(0, named=True)
        lines.append(f"  {reason}: {count}, for example line {first['source_line']}: {first['evidence']}")
    return "\n".join(lines)
