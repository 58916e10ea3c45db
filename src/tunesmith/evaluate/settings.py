"""Sections `evaluate` and `calibrate`: how a run is scored and how its confidence is made honest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.evaluate.goals import GoalsSection
from tunesmith.section import Section


class EvaluateSection(Section):
    """Scores with intervals, beside the base model and a classical baseline."""

    batch_size: int = Field(default=32, ge=1)
    """Records a forward pass."""
    confidence_level: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of every interval, a ratio."""
    bootstrap_samples: int = Field(default=2000, ge=200)
    """Resamples behind each bootstrap interval."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""
    latency_samples: int = Field(default=40, ge=1)
    """Test texts that are answered one by one to measure latency."""
    forgetting: bool = True
    """Measure what tuning unlearnt: base and tuned model read the same passages of general text and questions of general knowledge."""
    general_text: str = ""
    """File of general text, passages separated by empty lines, relative to the project; the built-in passages when empty."""
    max_forgetting: float | None = Field(default=None, ge=0)
    """Budget: most nats a token by which the cross-entropy of general text may rise. A run that breaks it takes no alias (exit 4)."""
    goals: GoalsSection = GoalsSection()
    """What the project set out to reach; the report says what was reached, and what was missed by how much."""


class CalibrateSection(Section):
    """The map from raw to calibrated confidence, fitted on the calibration split only."""

    method: Literal["auto", "temperature", "platt", "none"] = "auto"
    """`auto` takes the one with the lowest cross-validated log loss on the calibration split."""
    n_bins: int = Field(default=15, ge=2)
    """Bins of the expected calibration error and of the reliability diagram."""
