"""Section `prefer`: how a tuned model learns from answers that people preferred. Keys carry TRL's names."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tunesmith.section import Section

PreferenceMethod = Literal["dpo", "kto"]


class PreferSection(Section):
    """Preference tuning: it goes on from a run's weights, and those same weights, frozen, are the reference."""

    method: PreferenceMethod = "dpo"
    """`dpo` learns from pairs, a right answer beside a wrong one to the same text; `kto` from single answers that are right or wrong, so
    that a mere "wrong" counts too. Both through TRL (extra `preference`)."""
    path: str = ""
    """CSV, JSONL or Parquet file with the columns prompt, chosen, rejected or prompt, completion, label, relative to the project; `prompt` is
    the text alone. Empty takes the feedback on predictions as it came."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the reference holds the model back; lower lets it go further."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW for an adapter; where every weight learns (strategy `full`) a tenth of it is usual. Corrections are mistakes alone: from
    few of them a higher rate learns first which answers to give less often."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "linear"
    """Shape of the learning rate."""
    num_train_epochs: int = Field(default=1, ge=1)
    """Passes over the pairs or answers."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after this many steps; -1 trains all epochs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Pairs, or answers, a forward pass. `kto` estimates from the others of a batch how far the model has moved, so it needs 2 or more."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes a step."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order."""
    save_steps: int = Field(default=20, ge=1)
    """Steps between checkpoints, from which a killed command continues."""

    @model_validator(mode="after")
    def _has_others_in_its_batch(self) -> Self:
        if self.method == "kto" and self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size must be 2 or more for kto")
        return self
