"""Sections `train`, `compare` and `sweep`: how the base model learns, and how better ways are sought.

Keys carry the names known from Hugging Face, PEFT and Axolotl.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith import plugins
from tunesmith.section import Section

# Where these strategies learn well on models of 100 million to 1 billion parameters; any other one starts from that of lora.
_LEARNING_RATE = {"full": 5e-5, "prefix": 1e-2}


class TrainKeys(Section):
    """How one stage learns."""

    strategy: str = "lora"
    """How the base model learns: `full` changes every weight, `lora` trains low-rank adapters beside frozen weights, `qlora` the same beside
    weights in 4 bits (extra `qlora`), `prefix` keys and values of virtual tokens in front of every prompt."""
    max_length: int = Field(default=256, ge=16)
    """Most tokens of one record: prompt, text, answer and stop token. Evaluation and serving cut at the same place."""
    excess_length_strategy: Literal["raise", "drop", "truncate", "split"] = "raise"
    """Rows that do not fit: `raise` stops, `drop` leaves them out, `truncate` cuts the text, `split` makes several rows; the plan names them.
    A text to be predicted is cut as `truncate_keep` says."""
    truncate_keep: Literal["start", "ends"] = "start"
    """What a cut keeps of the text: its start, or both ends (60 % start, 40 % end)."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the adapters; their output is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input. Above 0 needs `model.forward: plain`."""
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get adapters: `all-linear` or a list of names."""
    lora_layers: int | None = Field(default=None, ge=1)
    """Adapters in the last so many decoder layers only; all when empty. The layers below need no backward pass and keep nothing for it."""
    use_dora: bool = False
    """LoRA with the weights' magnitudes as parameters of their own (DoRA). Needs the plain pass, which is slower."""
    use_rslora: bool = False
    """Scale adapters by lora_alpha / sqrt(lora_r), which keeps high ranks learning (rsLoRA)."""
    init_lora_weights: Literal["default", "pissa"] = "default"
    """Where adapters start: `default` changes nothing at first, `pissa` takes over the largest singular values of the base weights."""
    loraplus_lr_ratio: float = Field(default=1.0, gt=0)
    """How many times faster LoRA's B learns than its A (LoRA+)."""
    num_virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens of the strategy `prefix`."""
    start: Literal["continue", "merge"] = "continue"
    """How a stage begins where one stands before it: `continue` trains the same weights on, which needs the same strategy and shape; `merge` merges
    what was learnt into the base model and starts anew, so that the result is a whole model."""
    replay_ratio: float = Field(default=0.0, ge=0, le=1)
    """Rows of the stages before that are mixed into this one, as a share of its own rows: they slow forgetting down."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW. Where it is not set, `full` takes 5e-5 and `prefix` 1e-2."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay on what is trained."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    num_train_epochs: int = Field(default=1, ge=1)
    """Passes over the train split."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after this many steps; -1 trains all epochs."""
    per_device_train_batch_size: int = Field(default=16, ge=1)
    """Records a forward pass."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes a step; the gradient is exactly that of the full batch."""
    group_by_length: bool = True
    """Batch records of like length, which leaves little padding; the order of batches stays random."""
    packing: bool = False
    """Put several records of a batch in a row, up to max_length, so that less is padding and the prompt they share is read once a row. No record
    sees another; batches and losses are the same as without. Needs the plain pass; the fast one shares the prompt as it is."""
    torch_compile: bool = False
    """Send the plain pass through torch.compile, which takes minutes at the first steps. Needs the plain pass."""
    gradient_checkpointing: bool = False
    """Layers keep their input alone for the way back and compute the rest again: a fraction of the memory of long texts, for about half as much time
    again. Equal bits in the fast pass."""
    use_liger_kernel: bool = False
    """RMSNorm and the gated MLP of decoder layers by Liger's kernels: less memory, equal to rounding. Needs a GPU with the package liger-kernel."""
    activation_cache: bool = False
    """Compute once what the layers below the lowest adapter make of each row, and keep it on disk for all epochs: worth it with lora_layers and
    three epochs or more. Equal to rounding. Needs the fast pass."""
    chunked_loss: bool = True
    """Where the logits of a pass would take more than 64 MiB, as those of long answers do, make them in parts: less memory, equal to rounding."""
    seed: int = Field(default=0, ge=0)
    """Seed of what is added to the base model, and of the batch order."""
    save_steps: int = Field(default=50, ge=1)
    """Steps between checkpoints. The last step is always saved."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints to keep; an older one goes only when a newer one is complete."""
    logging_steps: int = Field(default=10, ge=1)
    """Steps between logged losses."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the validation split; none when empty, since each takes as long as several steps."""
    max_eval_samples: int = Field(default=200, ge=1)
    """Evaluations take the first so many records of the validation split."""
    metric_for_best_model: Literal["loss", "accuracy", "macro_f1"] = "loss"
    """What the best step is best at. The loss of the right answers is less noisy than counts of right and wrong."""
    load_best_model_at_end: bool = True
    """Where there are evaluations, the weights of the best step are the result, else those of the last one."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a better one."""
    resume_from_checkpoint: Literal["auto", "never"] = "auto"
    """`auto` continues an interrupted run from its newest complete checkpoint; `never` starts it again."""
    report_to: tuple[str, ...] = ("mlflow",)
    """Trackers: `mlflow`, `wandb` (extra `wandb`; WANDB_MODE=offline needs no account). An empty list keeps figures in the run's folder only."""
    max_memory_gb: float | None = Field(default=None, gt=0)
    """Refuse to start (exit 4) when the upper end of the planned peak memory, in GB (10^9 bytes), is above this."""
    max_hours: float | None = Field(default=None, gt=0)
    """Refuse to start (exit 4) when the upper end of the planned training time is above this."""
    max_disk_gb: float | None = Field(default=None, gt=0)
    """Refuse to start (exit 4) when the planned disk use, in GB, is above this."""

    @field_validator("strategy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        known = plugins.available("strategy")
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return value

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers_are_known(cls, value: Any) -> Any:
        names = (value,) if isinstance(value, str) else value
        known = plugins.available("tracker")
        if isinstance(names, list | tuple) and (unknown := [name for name in names if name not in known]):
            raise ValueError(f"must be a list of {', '.join(known)}; received {unknown[0]!r}")
        return names

    @model_validator(mode="after")
    def _recomputes_layers(self) -> Self:
        if self.gradient_checkpointing and self.strategy == "prefix":
            raise ValueError("gradient_checkpointing needs strategy full, lora or qlora: computed again, a layer would not see the virtual tokens of prefix")
        return self

    @model_validator(mode="after")
    def _evaluates_to_stop(self) -> Self:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("early_stopping_patience needs eval_steps")
        return self

    @model_validator(mode="before")
    @classmethod
    def _usual_learning_rate(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("learning_rate") is None and values.get("strategy") in _LEARNING_RATE:
            return {**values, "learning_rate": _LEARNING_RATE[values["strategy"]]}
        return values

    def as_candidate(self, train: TrainSection, seed: int) -> TrainSection:
        """Return the section `train` with what this candidate sets, and a seed.

        A candidate of another strategy that sets no learning rate takes the usual one of its strategy.
        """
        own = {name: getattr(self, name) for name in self.model_fields_set}
        if self.strategy != train.strategy:
            own["learning_rate"] = self.learning_rate
        return TrainSection.model_validate(train.model_dump() | own | {"seed": seed, "adapters": None})


class StageSection(Section):
    """What is learnt before the task: a stage of its own data, settings and budget."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the stage: letters, digits, dash and underscore."""
    path: str = Field(min_length=1)
    """File of its data: CSV, JSONL or Parquet, or .txt with passages separated by empty lines. A twentieth of it is held out to measure it."""
    objective: Literal["text", "instruction"] = "text"
    """`text` goes on with pre-training on raw text; `instruction` learns the label column (or one of the known row shapes) as the answer to the text."""
    text_column: str = "text"
    """Column that holds the text."""
    label_column: str = "label"
    """Column that holds the answer, of an instruction stage."""
    instruction: str = "You are a helpful assistant."
    """System message of an instruction stage."""
    max_forgetting: float | None = Field(default=None, ge=0)
    """Budget: most nats a token by which the cross-entropy of general text, or of what a stage before held out, may rise in this stage.
    A stage that breaks it stops the run (exit 4)."""
    train: TrainKeys = TrainKeys()
    """Keys of the section `train` that this stage sets; the others are as there."""


_OF_ALL_ADAPTERS = frozenset({"strategy", "max_length", "truncate_keep", "lora_dropout", "use_dora", "start", "replay_ratio", "report_to"})
"""Keys that parent and children share: they answer by one prompt, in one pass over one base model."""


_OF_WEIGHTS_THAT_GO_ON = frozenset({"lora_r", "lora_alpha", "lora_target_modules", "lora_layers", "use_rslora", "init_lora_weights"})
"""Keys that say what the weights of an adapter are, and what they mean: who goes on with them must have the same."""


class AdaptersSection(Section):
    """One adapter per document type beside the parent, which is the run that learns all records."""

    min_records: int = Field(default=200, ge=1)
    """A document type with at least so many train records gets a child: an adapter that learns the records of this type alone. Records of other types, and
    of none, stay with the parent."""
    start_from: Literal["parent", "base"] = "parent"
    """Where a child begins: `parent` goes on with what the parent learnt of all records, so that a new parent makes new children; `base` begins at the base
    model, so that a child is trained again only when its own records or settings changed."""
    train: TrainKeys = TrainKeys()
    """Keys of the section `train` that all children set; the others are as there."""
    document_types: dict[str, TrainKeys] = Field(default_factory=dict)
    """Document type -> keys of the section `train` that its child sets, besides those of all children."""

    @model_validator(mode="after")
    def _share_a_pass(self) -> Self:
        for keys in (self.train, *self.document_types.values()):
            if wrong := sorted(keys.model_fields_set & _OF_ALL_ADAPTERS):
                raise ValueError(f"{', '.join(wrong)} must be that of the section train, which parent and children share")
            if self.start_from == "parent" and (wrong := sorted(keys.model_fields_set & _OF_WEIGHTS_THAT_GO_ON)):
                raise ValueError(f"{', '.join(wrong)} must be that of the section train, since a child goes on with its parent's weights (start_from: parent)")
        return self


class TrainSection(TrainKeys):
    """One training run: the stages before the task, if any, and the task."""

    stages: tuple[StageSection, ...] = ()
    """General -> domain -> task: what is learnt before the task, in this order. The task itself is the last stage and needs no entry."""
    adapters: AdaptersSection | None = None
    """One adapter per document type, and a router that picks it; null trains one adapter for all. Write `adapters: {}` for the defaults."""

    @model_validator(mode="after")
    def _stages_are_distinct(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or "task" in names:
            raise ValueError(f"each stage needs a name of its own, and `task` is the last one; received {names}")
        return self

    def of_stage(self, stage: StageSection) -> TrainSection:
        """Return the section with what a stage sets, and without stages."""
        own = {name: getattr(stage.train, name) for name in stage.train.model_fields_set}
        return TrainSection.model_validate(self.model_dump() | own | {"stages": (), "adapters": None})

    @model_validator(mode="after")
    def _adapters_share_a_base(self) -> Self:
        if self.adapters is None:
            return self
        if self.strategy not in ("lora", "qlora"):
            raise ValueError(f"adapters need strategy lora or qlora, whose adapters share one base model; received {self.strategy}")
        if self.adapters.start_from == "parent" and self.init_lora_weights != "default":
            raise ValueError(f"adapters with start_from: parent need init_lora_weights: default, whose weights can go on; received {self.init_lora_weights}")
        if self.stages and "merge" in (self.start, *(stage.train.start for stage in self.stages)):
            raise ValueError("adapters need start: continue in every stage, since a merge changes the base model that they share")
        return self

    def of_child(self, document_type: str) -> TrainSection:
        """Return the section with what the child of a document type sets, and without stages."""
        adapters = self.adapters or AdaptersSection()
        own: dict[str, Any] = {}
        for keys in (adapters.train, adapters.document_types.get(document_type, TrainKeys())):
            own |= {name: getattr(keys, name) for name in keys.model_fields_set}
        return TrainSection.model_validate(self.model_dump() | own | {"stages": (), "adapters": None})


class RouterSection(Section):
    """What picks the adapter for a text, where `train.adapters` is set."""

    threshold: float | None = Field(default=None, ge=0, le=1)
    """The confidence in a route at or below which the router abstains and the parent answers. When empty, the one with most right answers on the validation
    split; of equals the middle one."""


class CompareSection(Section):
    """Candidates that `tunesmith compare` trains on the same dataset version, with the same seeds, and measures."""

    candidates: dict[str, TrainKeys] = Field(default={name: TrainKeys(strategy=name) for name in ("full", "lora", "qlora", "prefix")}, min_length=1)
    """Name -> keys of the section `train` that this candidate sets; the others are as in `train`. The four strategies when empty."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds that each candidate is trained with. Three or more, or the interval says nothing of their chance."""
    objective: Literal["auto", "accuracy", "macro_f1", "log_loss", "business_cost", "micro_f1", "token_f1", "exact_match"] = "auto"
    """What the best candidate is best at, on the validation split. Of a classification `accuracy`, `macro_f1` (`auto`) or `log_loss`; of an
    extraction `micro_f1` (`auto`) or `exact_match`; of a chat `token_f1` (`auto`) or `exact_match`. Of all `business_cost`, what mistakes cost a document
    (`evaluate.business`)."""
    memory_limit_gb: float | None = Field(default=None, gt=0)
    """A candidate whose training took more memory, in GB (10^9 bytes), is not chosen."""
    hourly_cost: float = Field(default=0.0, ge=0)
    """What an hour of this machine costs, in any currency; 0 shows no cost."""

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"each seed may stand once; received {list(self.seeds)}")
        return self


NOT_LEARNT = frozenset({"save_steps", "save_total_limit", "logging_steps", "resume_from_checkpoint", "report_to", "max_memory_gb", "max_hours", "max_disk_gb"})
"""Keys of `train` that change where and when a run happens, not what it learns."""


_CAME_LATER = frozenset({"gradient_checkpointing", "use_liger_kernel"})


def named_in_id(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out of the section `train`, and of its stages, keys that came later and are off: what was trained before there were such keys keeps its id."""
    named = {key: value for key, value in settings.items() if value or key not in _CAME_LATER}
    if "stages" in named:
        named["stages"] = [stage | {"train": named_in_id(stage["train"])} for stage in named["stages"]]
    return named


class SweptValues(Section):
    """The values that a key may take: `[a, b, c]`, or `{low: a, high: b}`."""

    choices: tuple[Any, ...] = ()
    """One of these; `KEY: [a, b, c]` says the same."""
    low: float | None = None
    """Least value of a range."""
    high: float | None = None
    """Largest value of a range; it may be taken."""
    log: bool = False
    """Draw the logarithm evenly, as suits learning rates."""
    step: float | None = Field(default=None, gt=0)
    """Distance between the values of a range; any value when empty."""

    @model_validator(mode="before")
    @classmethod
    def _list_is_choices(cls, value: object) -> object:
        return {"choices": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _is_choices_or_range(self) -> Self:
        has_range = self.low is not None and self.high is not None and self.low < self.high
        if bool(self.choices) == has_range or (self.choices and (self.low, self.high, self.step, self.log) != (None, None, None, False)):
            raise ValueError("must be a list of values, or a range with low < high")
        if self.log and (self.step is not None or (self.low or 0) <= 0):
            raise ValueError("log needs low > 0 and no step")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values of a list; both ends of a range, without a fraction where they have none."""
        if self.choices:
            return self.choices
        return tuple(int(end) if end is not None and end == int(end) else end for end in (self.low, self.high))


class SweepSection(Section):
    """A search for better settings. Every trial is a run, scored on the validation split; the test split is never looked at."""

    parameters: dict[str, SweptValues] = Field(default={})
    """What is searched: any key below `task`, `model` and `train` that changes what is learnt, with its values."""
    n_trials: int = Field(default=20, ge=1)
    """Trials in all. A higher number later continues the same sweep."""
    metric: Literal["auto", "accuracy", "macro_f1", "log_loss", "brier", "micro_f1", "token_f1", "exact_match"] = "auto"
    """What is sought, on validation. Of a classification more `accuracy` (`auto`, by which `tunesmith register` compares) or `macro_f1`, or less `log_loss` or
    `brier`; of an extraction more `micro_f1` (`auto`) or `exact_match`; of a chat more `token_f1` (`auto`) or `exact_match`."""
    direction: Literal["auto", "maximize", "minimize"] = "auto"
    """`auto` is what the metric means by better; another one is refused."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Stops a trial early: `median` one that is worse than the median of the others at the same tenth of its steps, `hyperband` by successive
    halving. Both judge by the loss: of training, or of validation where `train.eval_steps` is set."""
    seed: int = Field(default=0, ge=0)
    """Seed of the search; the same seed tries the same values in the same order, also after a kill."""
    timeout_hours: float | None = Field(default=None, gt=0)
    """Start no further trial once the trials took so many hours, over all calls."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _nested_keys_are_paths(cls, value: object) -> object:
        return dict(_paths(value, "")) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _direction_fits(self) -> Self:
        if self.direction not in ("auto", "maximize" if self.maximizes else "minimize"):
            raise ValueError(f"{self.metric} is better when it is {'higher' if self.maximizes else 'lower'}: direction must be auto or the same")
        return self

    @property
    def maximizes(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric not in ("log_loss", "brier")


def _paths(values: dict[Any, Any], at: str) -> Iterator[tuple[str, Any]]:
    """Yield `train.learning_rate` for `train: {learning_rate: ...}`: values are lists, or mappings with an end of a range or choices."""
    for key, value in values.items():
        is_section = isinstance(value, dict) and value and not value.keys() & {"low", "high", "choices"}
        if is_section:
            yield from _paths(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
