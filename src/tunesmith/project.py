"""A project on disk: its settings, its store, its lock, and what it tells while it works.

    tunesmith.yaml      the settings
    datasets/           dataset versions, tracked by DVC
    .tunesmith/         store.db, runs, evaluations, models, mlflow.db; ignored by git

Everything heavy is opened when it is first asked for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tunesmith.config import FILE_NAME, Config, load_config
from tunesmith.entities import utc_now
from tunesmith.errors import BusyError, ConfigError, MissingExtraError
from tunesmith.store import Store

if TYPE_CHECKING:
    from tunesmith.models.catalog import BaseModel
    from tunesmith.models.settings import ModelSection
    from tunesmith.models.tokens import Prompt
    from tunesmith.tracking import Trackers

STATE_FOLDER = ".tunesmith"


class Progress:
    """What a step tells while it works; this one is silent. Doors pass a subclass that shows it."""

    def start(self, step: str, detail: str = "") -> None:
        """A step begins."""

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """A part of the running step is done: `done` of `total` units."""

    def finish(self, step: str, detail: str, *, seconds: float, skipped: bool = False) -> None:
        """A step is done, or was found done for the same inputs."""

    def stop(self) -> None:
        """A step failed."""

    def warn(self, text: str) -> None:
        """Something failed that stops nothing."""


@dataclass(frozen=True)
class Project:
    """A folder with a tunesmith.yaml.

    Attributes:
        root: The folder.
        config: Its checked settings.
        progress: Is told what happens.
        file: Its tunesmith.yaml.
        overrides: The `key.path=value` strings that its settings hold already.
    """

    root: Path
    config: Config
    progress: Progress = field(default_factory=Progress)
    file: Path = Path(FILE_NAME)
    overrides: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path = ".", overrides: Sequence[str] = (), progress: Progress | None = None) -> Self:
        """Open a project.

        Args:
            path: Its folder or its tunesmith.yaml.
            overrides: `key.path=value` strings, checked like the file.
            progress: Is told what happens; silent when None.

        Raises:
            NotFoundError: there is no project file.
            ConfigError: the file or an override breaks a rule; all errors are listed.
        """
        file = Path(path)
        if file.is_dir() or file.suffix not in {".yaml", ".yml"}:
            file = file / FILE_NAME
        return cls(file.parent.resolve(), load_config(file, overrides), progress or Progress(), file, tuple(overrides))

    def changed(self, overrides: Sequence[str]) -> Self:
        """Return this project with further keys overridden; it shares the store, the trackers and, where it is the same, the base model.

        Raises:
            ConfigError: an override breaks a rule.
        """
        other = self.load(self.file, (*self.overrides, *overrides), self.progress)
        shared = {"store": self.store, "trackers": self.trackers} | ({"base": self.base} if other.config.model == self.config.model else {})
        vars(other).update(shared)  # where cached_property keeps what was opened
        return other

    @cached_property
    def store(self) -> Store:
        """The project's database."""
        _ignore_state(self.state)
        return Store.at(self.state / "store.db")

    @property
    def state(self) -> Path:
        """Folder of everything that Tunesmith keeps beside the datasets."""
        return self.root / STATE_FOLDER

    @cached_property
    def base(self) -> BaseModel:
        """The base model, converted or downloaded where needed."""
        with needs_extra("train"):
            from tunesmith.models.catalog import resolve_base
        with self.step("model") as done:  # a step of its own: the first time it downloads or converts
            base = resolve_base(self.config.model, self.root)
            done(f"{base.name}, {base.license}, sha256 {base.sha256[:12]}...")
        return base

    @cached_property
    def model_section(self) -> ModelSection:
        """The section `model` without `auto`, as it is trained."""
        with needs_extra("train"):
            from tunesmith.models.engine import resolve
            from tunesmith.train.strategies import load_strategy
        strategy = load_strategy(self.config.train)
        section = self.config.model.model_copy(update={"load_in_4bit": self.config.model.load_in_4bit or strategy.load_in_4bit})
        _refuse_packs_for_flash(self.config)
        resolved = resolve(section, self.base.path, fits_fast_pass=strategy.fits_fast_pass, n_labels=len(self.config.task.labels))
        if resolved.num_labels:
            _refuse_for_encoder(self.config)
        return resolved

    def answering(self, weights: Path | None) -> ModelSection:
        """Return the section `model` without `auto` for answers: of a run's weights, or of the base model, which is never in 4 bits here.

        The untuned model is the same opponent of every strategy, and what the plain pass trained may be exact in the fast one.
        """
        from tunesmith.models.engine import resolve
        from tunesmith.models.weights import fits_fast_pass

        in_4bit = weights is not None and self.model_section.load_in_4bit
        section = self.config.model.model_copy(update={"load_in_4bit": in_4bit})
        fits = weights is None or fits_fast_pass(weights)
        return resolve(section, self.base.path, fits_fast_pass=fits, n_labels=len(self.config.task.labels))

    @cached_property
    def prompt(self) -> Prompt:
        """The task's prompts for the base model's tokenizer."""
        from tunesmith.models.engine import load_prompt

        return load_prompt(self.base.path, self.config.task, self.config.train.max_length, self.config.train.truncate_keep)

    @cached_property
    def trackers(self) -> Trackers:
        """What `train.report_to` names; none is fine."""
        from tunesmith.tracking import open_trackers

        _ignore_state(self.state)
        return open_trackers(self.config.train.report_to, self.state, self.config.project, self.progress.warn)

    @contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Hold the project while it is changed.

        Raises:
            BusyError: another command holds it; names that command.
        """
        _ignore_state(self.state)
        with (self.state / "lock").open("a+") as file:
            if not _try_lock(file):
                file.seek(0)
                holder = file.read().strip() or "another command"
                raise BusyError(f"One command at a time may change a project. It is held by {holder}.", hint="Wait for it to end, then try again.")
            file.truncate(0)
            file.write(f"'{command}', process {os.getpid()}, since {utc_now()}\n")
            file.flush()
            yield
            file.truncate(0)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[..., None]]:
        """Tell the start and the end of a step, and keep how long it took.

        Yields:
            `done(detail, skipped=False)`, to be called with what came out.
        """
        started = time.monotonic()
        self.progress.start(name)
        told: dict[str, Any] = {"detail": "", "skipped": False}

        def done(detail: str, *, skipped: bool = False) -> None:
            told.update(detail=detail, skipped=skipped)

        try:
            yield done
        except BaseException:
            self.progress.stop()
            raise
        seconds = time.monotonic() - started
        if not told["skipped"]:
            _ignore_state(self.state)
            line = {"step": name, "detail": told["detail"], "seconds": round(seconds, 3), "at": utc_now()}
            with (self.state / "steps.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.progress.finish(name, told["detail"], seconds=seconds, skipped=told["skipped"])

    def seconds_of(self, step: str, noun_id: str) -> float | None:
        """Return how long the step took that made a noun, or None when that is not known."""
        file = self.state / "steps.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        return next((line["seconds"] for line in reversed(lines) if line["step"] == step and line["detail"].startswith(noun_id)), None)


def _refuse_packs_for_flash(config: Config) -> None:
    """Refuse packs where attention cannot keep their records apart.

    Raises:
        ConfigError: `train.packing` with FlashAttention.
    """
    if config.train.packing and config.model.attn_implementation == "flash_attention_2":
        raise ConfigError(
            "train.packing keeps records apart by a mask, which model.attn_implementation must take: eager or sdpa. Received: flash_attention_2.",
            hint="Set model.attn_implementation: sdpa.",
        )


def _refuse_for_encoder(config: Config) -> None:
    """Refuse what needs a model that writes, all of it at once.

    Raises:
        ConfigError: names each key, its rule and what was received.
    """
    train = config.train
    rules = {
        "train.strategy must be full or lora": train.strategy if train.strategy in ("prefix", "qlora") else None,
        "train.lora_dropout must be 0": train.lora_dropout or None,
        "task.examples must be empty, since it reads the text alone": len(config.task.examples) or None,
        "train.stages must be empty": [stage.name for stage in train.stages] or None,
        "train.adapters must be empty": "one adapter per document type" if train.adapters else None,
        "train.packing must be false": train.packing or None,
        "train.torch_compile must be false": train.torch_compile or None,
        "train.activation_cache must be false": train.activation_cache or None,
        "train.use_liger_kernel must be false": train.use_liger_kernel or None,
        "train.gradient_checkpointing must be false": train.gradient_checkpointing or None,
        "launch.fsdp must be false": config.launch.fsdp or None,
        "evaluate.max_forgetting must be empty, since forgetting is measured on text that a model writes": config.evaluate.max_forgetting,
    }
    broken = [f"{rule}. Received: {value}." for rule, value in rules.items() if value is not None]
    if broken:
        raise ConfigError(
            "\n".join((f"{config.model.model_name_or_path} is an encoder with a classification head.", *broken)),
            hint="Set train.strategy: full, the best for an encoder, or choose a base model that writes."
            if "strategy" in broken[0]
            else "tunesmith config explain",
        )


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing optional package into an error that names the extra.

    Raises:
        MissingExtraError: an import in the block failed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tunesmith"):
            raise
        raise MissingExtraError(error.name or "", extra) from None


def _ignore_state(state: Path) -> None:
    """Keep the state folder out of the user's git: it ignores itself."""
    state.mkdir(parents=True, exist_ok=True)
    if not (state / ".gitignore").exists():
        (state / ".gitignore").write_text("*\n", encoding="utf-8")


def _try_lock(file: Any) -> bool:
    """Take an exclusive lock that the operating system frees when this process ends, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
