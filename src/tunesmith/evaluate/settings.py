"""Sections `evaluate` and `calibrate`: how a run is scored, what that is worth, and how its confidence is made honest."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tunesmith.evaluate.goals import GoalsSection
from tunesmith.models.settings import ConfidenceSection
from tunesmith.section import Section


class ConfusionCost(Section):
    """What one kind of mistake costs."""

    truth: str
    """The right label; `*` for any."""
    answer: str
    """The label that was given; `*` for any."""
    cost: float = Field(ge=0)
    """Money a mistake of this kind."""


class ValueCosts(Section):
    """What mistakes in single values of an extraction cost. A value that takes the place of the right one is one mistake, not two."""

    wrong: float = Field(default=0.0, ge=0)
    """Money of a stated value that is not right, though it stands in the text."""
    hallucinated: float = Field(default=0.0, ge=0)
    """Money of a stated value that is not right and stands nowhere in the text."""
    missing: float = Field(default=0.0, ge=0)
    """Money of a right value that is not stated, with no other one in its place."""


class CurrentProcess(Section):
    """How the work is done today."""

    accuracy: float = Field(ge=0, le=1)
    """Share of documents that come out right, a ratio."""
    minutes: float = Field(ge=0)
    """Working time a document."""


class BusinessSection(Section):
    """What mistakes and working time cost. Without `error_cost` no money is reckoned."""

    currency: str = "USD"
    """Shown beside amounts."""
    error_cost: float | None = Field(default=None, ge=0)
    """Money that a wrong answer costs when it goes out, where `costs` or `values` say nothing else; a written answer is wrong when not all of it is right."""
    costs: tuple[ConfusionCost, ...] = ()
    """Classification: costs of single confusions; of several that fit the last counts."""
    values: ValueCosts | None = None
    """Extraction: an answer costs what its single mistakes do. `error_cost` stays what a mistake of a reviewer or of today's process costs."""
    minute_cost: float = Field(default=0.0, ge=0)
    """Money a minute of a person's work."""
    review_minutes: float = Field(default=0.0, ge=0)
    """Minutes that a person needs to review an answer which was not accepted."""
    reviewer_accuracy: float = Field(default=1.0, ge=0, le=1)
    """Share of reviewed answers that leave right, a ratio; the others cost `error_cost`."""
    documents_per_month: float = Field(default=0.0, ge=0)
    """Volume."""
    reviews_per_month: float | None = Field(default=None, ge=0)
    """How many answers people can review."""
    running_cost_per_month: float = Field(default=0.0, ge=0)
    """Machines, licences and care of the model."""
    setup_cost: float = Field(default=0.0, ge=0)
    """Spent once; the break-even says when it is earned."""
    current: CurrentProcess | None = None
    """The process of today; without it costs are compared between models only."""


class JudgeSection(Section):
    """Who says which sentences of a written answer its source supports."""

    kind: Literal["lexical", "endpoint"] = "lexical"
    """`lexical` compares words and needs nothing; `endpoint` asks a model behind an address that speaks as OpenAI's chat completions do."""
    base_url: str = Field(default="", pattern=r"^(https?://[^@?#\s]+)?$")
    """Address up to and with /v1, as OpenAI's clients take it: http://localhost:8000/v1. No key, no user name in it."""
    model: str = ""
    """Name of the model there."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; empty for none. The key itself is never kept nor shown."""
    max_tokens: int = Field(default=16, ge=1)
    """Most tokens of a reply, which is one word; more for a model that thinks before it replies."""
    timeout_seconds: float = Field(default=60, gt=0)
    """Most seconds that a reply may take before it is asked for again."""
    concurrency: int = Field(default=4, ge=1)
    """Sentences that are asked about side by side."""

    @model_validator(mode="after")
    def _endpoint_has_an_address(self) -> Self:
        if self.kind == "endpoint" and not (self.base_url and self.model):
            raise ValueError(f"kind: endpoint needs base_url and model; received base_url {self.base_url!r} and model {self.model!r}")
        return self


class SuitesSection(Section):
    """How tasks of EleutherAI's lm-evaluation-harness are asked (`tunesmith evaluate --suite`, extra `suites`)."""

    path: str = ""
    """Folder of own task files, relative to the project. Data files that they name (dataset_path json, dataset_kwargs.data_files) are relative to it."""
    limit: int | None = Field(default=None, ge=2)
    """Records of each task at most, the first ones; figures of a part do not compare with published ones."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in the prompt; what the task says when empty."""
    batch_size: int = Field(default=8, ge=1)
    """Requests a forward pass. The harness holds the logits of all tokens of a batch at once, so that it needs more memory than `evaluate.batch_size` would."""
    apply_chat_template: bool = False
    """Ask through the model's chat template."""


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
    robustness_samples: int = Field(default=0, ge=0)
    """Test records that the tuned model answers again with typos, noise of a scan, capitals, broken lines, an order inside the document, much text
    before it, and cut short; 0 leaves it out."""
    confidence: ConfidenceSection = ConfidenceSection()
    """How sure the model says it is of a written answer; the calibrator makes that the probability of being right."""
    slices: bool = True
    """Look for groups of test records on which the tuned model is worse than on the rest."""
    judge: JudgeSection = JudgeSection()
    """Who says which sentences of a chat's answers their source supports."""
    suites: SuitesSection = SuitesSection()
    """Tasks apart from the project's own, of EleutherAI's lm-evaluation-harness."""
    business: BusinessSection = BusinessSection()
    """What mistakes and working time cost, from which the report reckons money."""
    goals: GoalsSection = GoalsSection()
    """What the project set out to reach; the report says what was reached, and what was missed by how much."""

    @model_serializer(mode="wrap")
    def _left_out_by_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `confidence` out where it is the default, so that evaluations from before there was a choice are still recognised."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "confidence" or self.confidence != ConfidenceSection()}


class CalibrateSection(Section):
    """The map from raw to calibrated confidence, and the confidence from which an answer needs no review, both from the calibration split."""

    method: Literal["auto", "temperature", "platt", "beta", "isotonic", "none"] = "auto"
    """`auto` takes the one with the lowest cross-validated log loss on the calibration split."""
    by: Literal["document_type", "source", "language", "none"] = "document_type"
    """By what the report shows the calibration error of slices, and what a calibrator of their own would bring. Answers are given with the run's
    calibrator, or with that of the adapter that gives them (`train.adapters`)."""
    n_bins: int = Field(default=15, ge=2)
    """Bins of the expected calibration error and of the reliability diagram."""
    accept: Literal["guarantee", "cost", "capacity"] = "guarantee"
    """Which answers need no review: as many as the guarantee of `max_error` allows; those whose acceptance costs less than their review
    (`evaluate.business`); or all but what `evaluate.business.reviews_per_month` can look at."""
    max_error: float = Field(default=0.05, gt=0, lt=1)
    """Most share of accepted answers that may be wrong, a ratio."""
    delta: float = Field(default=0.05, gt=0, lt=1)
    """Chance that the guarantee of `max_error` fails, over calibration splits."""
    set_coverage: float = Field(default=0.9, gt=0, lt=1)
    """How often the right label shall be in the set of labels that a prediction set names, a ratio."""
