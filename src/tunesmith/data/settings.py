"""Section `data`: where documents come from, what is refused, and how they are split."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tunesmith.entities import SPLITS, Split
from tunesmith.section import Section


class Source(Section):
    """One file of labelled rows."""

    path: str = Field(min_length=1)
    """CSV, JSONL or Parquet file, relative to the project."""
    text_column: str = "text"
    """Column that holds the document's text."""
    label_column: str = "label"
    """Column that holds the right answer."""
    splits: dict[Split, float] = Field(default={"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1})
    """Split -> share of this file's documents, by a hash of the document; shares are scaled to sum to 1."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if not self.splits or any(share <= 0 for share in self.splits.values()):
            raise ValueError(f"every share must be above 0; received {self.splits}")
        return self


class DataSection(Section):
    """Documents, their validation and their splits."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Files to read, in order; of exact duplicates the first is kept."""
    max_records: dict[Split, int] = Field(default_factory=dict)
    """Split -> most records to use, chosen by a hash of the document, so that raising it only adds. The rest is listed as `over_max_records`."""
    min_characters: int = Field(default=1, ge=1)
    """Shorter texts (white space stripped) are dropped with the reason `too_short`; empty ones as `empty`."""
    max_characters: int = Field(default=100_000, ge=1)
    """Longer texts are dropped with the reason `too_long`."""
    max_dropped_share: float = Field(default=0.5, gt=0, le=1)
    """More than this share of rows dropped by validation stops the command: that is a wrong column, not dirt."""
    near_duplicate_threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word 3-shingles, in (0, 1], from which two texts may not stand in different splits."""
    same_opening_words: int = Field(default=15, ge=0)
    """Texts that share this many first words may not stand in different splits; 0 turns the rule off."""
    dvc: bool = True
    """Version the dataset with DVC in the project's git repository (`git init` and `dvc init` are done where missing)."""

    @model_validator(mode="after")
    def _every_split(self) -> Self:
        missing = [split for split in SPLITS if not any(split in source.splits for source in self.sources)]
        if missing:
            raise ValueError(f"some source must feed each of {', '.join(SPLITS)}; nothing feeds {', '.join(missing)}")
        return self
