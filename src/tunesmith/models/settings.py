"""Sections `task` and `model`: what is decided about a document, and which base model learns it. Loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith.section import Section


class Label(Section):
    """One class of the label space."""

    name: str = Field(min_length=1)
    """The label as the data spells it."""
    answer: str = ""
    """What the model writes for it; the name when empty. Short answers that differ in their first token score fastest."""

    @property
    def written(self) -> str:
        """The text that the model writes for this label."""
        return self.answer or self.name


class TaskSection(Section):
    """What is decided about each document."""

    type: Literal["classification"] = "classification"
    """Kind of decision. `classification` picks one label of a closed label space."""
    instruction: str = Field(min_length=1)
    """What the model is told to do; the list of answers is added to it."""
    labels: tuple[Label, ...] = Field(min_length=2)
    """The label space, in the order in which reports show it. Entries are names, or mappings with `name` and `answer`."""

    @field_validator("labels", mode="before")
    @classmethod
    def _names_are_labels(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [{"name": item} if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, values in (("name", self.names), ("answer", tuple(label.written for label in self.labels))):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"each label needs its own {what}; used twice: {', '.join(twice)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Label names in the order of the label space."""
        return tuple(label.name for label in self.labels)


class ModelSection(Section):
    """The base model."""

    model_name_or_path: str = Field(min_length=1)
    """A hub name, a local folder, or `package:NAME/FILE.gguf` for a GGUF file inside an installed Python package."""
    model_revision: str | None = None
    """Commit of a hub model. Needed for a hub name, so that the same file means the same weights tomorrow."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Digest that the downloaded weight file (GGUF, or model.safetensors) must have; checked when it is set."""
    license: str | None = None
    """SPDX name of the model's licence, kept with every model version."""
    forward: Literal["auto", "fast", "plain"] = "auto"
    """Which forward pass runs: `fast` is our Llama pass for the CPU, `plain` is the one of transformers, `auto` takes `fast` where it is exact."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the frozen weights and the activations; `auto` is bfloat16 where the processor multiplies it natively."""
    load_in_4bit: bool = False
    """Keep the linear layers' weights in 4 bits (NF4 with double quantisation, extra `qlora`); the strategy `qlora` sets it."""
