"""Sections `task` and `model`: what is decided about a document, and which base model learns it. Loads no torch."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer, model_validator

from tunesmith.models.json_answers import check_schema, why_invalid
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


class Example(Section):
    """A record that every prompt shows."""

    text: str = Field(min_length=1)
    """Its text."""
    label: str = Field(min_length=1)
    """Its right answer as the label column of the data holds it: a label, the JSON (a mapping is fine too), or the answer in words."""

    @field_validator("label", mode="before")
    @classmethod
    def _mapping_is_json(cls, value: object) -> object:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class TaskSection(Section):
    """What is decided about each document."""

    type: Literal["classification", "extraction", "chat"] = "classification"
    """Kind of decision. `classification` picks one label of a closed label space; `extraction` writes JSON that fits `json_schema`; `chat`
    answers in words. The label column of the data holds the label, the JSON, or the answer."""
    instruction: str = Field(min_length=1)
    """What the model is told to do; the list of answers is added to it."""
    labels: tuple[Label, ...] = Field(default=(), validate_default=True)
    """The label space of a classification, in the order in which reports show it. Entries are names, or mappings with `name` and `answer`."""
    json_schema: dict[str, Any] = Field(default_factory=dict)
    """JSON schema of an extraction: an object whose properties are texts, numbers, booleans, or lists of texts. Answers keep its order of keys."""
    max_answer_tokens: int = Field(default=128, ge=1)
    """Most tokens of an extracted or written answer; a longer one is stopped there, and training rows with one are named."""
    examples: tuple[Example, ...] = ()
    """Records that every prompt shows before the document, to the base model and to the tuned one alike (few-shot), each as a turn of user and assistant.
    They count in `train.max_length`. Take them from the train split: one that stands in another is refused."""

    @field_validator("labels", mode="before")
    @classmethod
    def _names_are_labels(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [{"name": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("labels")
    @classmethod
    def _labels_fit_the_type(cls, value: tuple[Label, ...], info: ValidationInfo) -> tuple[Label, ...]:
        kind = info.data.get("type", "classification")
        if kind == "classification" and len(value) < 2:
            raise ValueError(f"a classification needs two labels or more; received {len(value)}")
        if kind != "classification" and value:
            raise ValueError(f"labels belong to a classification; received {len(value)} for {kind}")
        return value

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type == "extraction":
            check_schema(self.json_schema)
        elif self.json_schema:
            raise ValueError(f"json_schema belongs to an extraction; received one for {self.type}")
        return self

    @model_validator(mode="after")
    def _examples_have_answers(self) -> Self:
        for number, example in enumerate(self.examples):
            if self.type == "classification" and example.label not in self.names:
                raise ValueError(f"examples[{number}].label must be a label of the task; received {example.label!r:.80}")
            if self.type == "extraction" and (why := why_invalid(self.json_schema, example.label)):
                raise ValueError(f"examples[{number}].label is {why}")
        return self

    @model_serializer(mode="wrap")
    def _left_out_where_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave examples out where there are none, so that runs from before there were any are still recognised."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if value or key != "examples"}

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


class ConfidenceSection(Section):
    """How a model tells how sure it is of a written answer. One of a label space has the probability of its label."""

    method: Literal["likelihood", "margin", "agreement"] = "likelihood"
    """`likelihood` is the mean probability of the answer's tokens; `margin` the odds of a written token against the next allowed one, where they are lowest;
    `agreement` how many of `samples` sampled answers say the same, field by field, which takes about so many times as long. Evaluation, calibration and
    the model version that follows use the same."""
    samples: int = Field(default=5, ge=2)
    """Of `agreement`: answers that are sampled for each text."""
    temperature: float = Field(default=1.0, gt=0)
    """Of `agreement`: what logits are divided by before sampling; 1 samples as the model believes, less keeps nearer to its first choice."""
    seed: int = Field(default=0, ge=0)
    """Of `agreement`: seed of the samples. The same text and seed give the same samples, whatever is asked beside it."""


class ModelSection(Section):
    """The base model."""

    model_name_or_path: str = Field(min_length=1)
    """A hub name, a local folder or GGUF file, `package:NAME/FILE.gguf` for a GGUF file or `package:NAME/FOLDER` for a folder of safetensors inside an
    installed Python package. An encoder (BERT, RoBERTa, ModernBERT, MiniLM, ...) is known by its config.json and gets a classification head."""
    model_revision: str | None = None
    """Commit of a hub model. Needed for a hub name, so that the same file means the same weights tomorrow."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Digest that the downloaded weight file (GGUF, or model.safetensors) must have; checked when it is set."""
    license: str | None = None
    """SPDX name of the model's licence, kept with every model version."""
    forward: Literal["auto", "fast", "plain"] = "auto"
    """Which forward pass runs: `fast` is our Llama pass for the CPU, `plain` is the one of transformers, `auto` takes `fast` where it is exact."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """How the plain pass computes attention, by transformers' names; `auto` is sdpa on a GPU and eager on the CPU. `flash_attention_2` needs a GPU with
    the package flash-attn. Any but `auto` needs the plain pass: the fast one has its own."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the frozen weights and the activations; `auto` is bfloat16 where the processor multiplies it natively."""
    num_labels: int = Field(default=0, ge=0)
    """Outputs of the classification head that an encoder gets. Set from `task.labels`: leave it out."""
    load_in_4bit: bool = False
    """Keep the linear layers' weights in 4 bits (NF4 with double quantisation, extra `qlora`); the strategy `qlora` sets it."""

    def computing(self) -> dict[str, Any]:
        """Return the keys that say how passes are computed, which a run's id names beside the weights' digest.

        One that says nothing is left out: a run from before there was such a key keeps its id.
        """
        chosen = {"attn_implementation"} if self.attn_implementation != "auto" else set()
        return self.model_dump(mode="json", include={"forward", "dtype", "load_in_4bit"} | chosen)
