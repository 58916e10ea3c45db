"""Documents that someone took back: they stay out of every later dataset version.

    datasets/withdrawn.jsonl    one line a document, tracked by git; it holds ids and an address, and no text

A row goes when it is of a withdrawn document, corrects one of its records, or stands in the same source with the same
text (so that a new label does not bring it back). A document that was edited at its source is another one: delete it there
too. Versions that were frozen before keep what they hold; `tunesmith data withdraw` names them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.data.sifted import Sifted, as_dropped
from tunesmith.errors import DataError
from tunesmith.files import write_text

FILE = "datasets/withdrawn.jsonl"


class Withdrawal(BaseModel):
    """One document that was taken back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document_id: str
    source: str
    source_line: int
    content_sha256: str
    """Of the text as it was read; empty when that is not known."""
    record_ids: tuple[str, ...]
    """Records that were made from it in any version."""
    reason: str
    actor: str
    at: str


def read_withdrawals(root: Path) -> list[Withdrawal]:
    """Return what was taken back, oldest first.

    Raises:
        DataError: the file was changed by hand into something else.
    """
    path = root / FILE
    if not path.exists():
        return []
    found = []
    for line, content in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Withdrawal.model_validate_json(content))
        except ValidationError as error:
            raise DataError(
                f"{FILE}:{line}: must be a withdrawal as the command writes it. Received: {content!r:.80} ({error.error_count()} errors)."
            ) from None
    return found


def add_withdrawal(root: Path, withdrawal: Withdrawal) -> bool:
    """Write one down, by write-then-rename. Returns whether it was new; the first one of a document stands."""
    known = read_withdrawals(root)
    if any(one.document_id == withdrawal.document_id for one in known):
        return False
    (root / FILE).parent.mkdir(parents=True, exist_ok=True)
    write_text(root / FILE, "".join(json.dumps(one.model_dump(mode="json"), ensure_ascii=False) + "\n" for one in [*known, withdrawal]))
    return True


def drop_withdrawn(rows: pl.DataFrame, withdrawals: Sequence[Withdrawal]) -> Sifted:
    """Drop the rows of documents that were taken back, with the reason `withdrawn` and without their text.

    Args:
        rows: Documents, chunks or records: columns `id`, `source` and `text`, and where they have them `document_id`,
            `supersedes` and `content_sha256`.
        withdrawals: What was taken back.
    """
    ids = {name for one in withdrawals for name in (one.document_id, *one.record_ids)}
    gone = pl.lit(False)
    for column in ("id", "document_id", "supersedes"):
        if column in rows.columns:
            gone = gone | pl.col(column).is_in(sorted(ids))
    if "content_sha256" in rows.columns:
        texts = [f"{one.source}\n{one.content_sha256}" for one in withdrawals if one.content_sha256]
        gone = gone | pl.concat_str("source", "content_sha256", separator="\n").is_in(texts)
    dropped = rows.filter(gone).with_columns(
        text=pl.lit(""), content_sha256=pl.lit(""), reason=pl.lit("withdrawn"), evidence=pl.lit(f"its document was withdrawn, see {FILE}")
    )
    return Sifted(kept=rows.filter(~gone), dropped=as_dropped(dropped))
