"""Which base model: facts, needs and a first look at each candidate, and a choice with its reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith.entities import content_id, utc_now
from tunesmith.errors import ConfigError, NotFoundError, TunesmithError
from tunesmith.flow.dataset import prepare, read, refuse_leaked_examples
from tunesmith.flow.scoring import is_written
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.models.base_facts import BaseFacts
    from tunesmith.models.licenses import Use

FAMILY = "family:"
_CHARACTERS_READ = 2000


@dataclass(frozen=True)
class Selection:
    """A selection matrix that was written.

    Attributes:
        id: Names candidates, data and settings.
        report: What selection.json holds; keys as in `evaluate.matrix`.
        html: The decision page.
    """

    id: str
    report: dict[str, Any]
    html: Path


@cache
def families() -> dict[str, dict[str, Any]]:
    """Return well-known families by name: `config`, `license` and `source` of their published values."""
    known: dict[str, dict[str, Any]] = json.loads(files("tunesmith.models").joinpath("families.json").read_text(encoding="utf-8"))
    return known


def select(
    project: Project, candidates: Sequence[str], *, device: str | None = None, use: Use = "commercial", records: int = 100, ask_hub: bool = False
) -> Selection:
    """Compare base models for a project.

    Args:
        project: The project; its validation split is what candidates are looked at with.
        candidates: Addresses as `model.model_name_or_path` takes them, folders with a config.json alone, or `family:NAME` of `families`.
        device: A device of `models.needs.DEVICES` that training and serving shall fit; None for any.
        use: What the licence shall allow.
        records: Validation records that each candidate with weights answers untuned; 0 for facts alone.
        ask_hub: Whether the hub is asked for age, downloads and adapters of candidates with a hub name.

    Raises:
        ConfigError: no candidate, an unknown family or device.
        DataError: an example of the prompt stands in a held-out split.
    """
    with needs_extra("train"):
        from tunesmith.evaluate.matrix import recommend, write_matrix
        from tunesmith.models.needs import DEVICES, Workload
    if not candidates:
        raise ConfigError("A selection needs a candidate. Received: none.", hint="tunesmith models . family:llama-3.2-1b")
    if device is not None and device not in DEVICES:
        raise ConfigError(f"--gpu must be one of {', '.join(DEVICES)}. Received: {device!r}.", hint="tunesmith models --gpu rtx-4090 ...")
    dataset = prepare(project)
    refuse_leaked_examples(project, dataset)
    sample = read(project, dataset).filter(pl.col("split") == "validation").sort("id").head(max(records, 1))
    texts = sample["text"].to_list()
    work = Workload(batch=project.config.train.per_device_train_batch_size, tokens=project.config.train.max_length)
    identity = content_id("sel", list(candidates), device, use, records, dataset.id, project.config.task.model_dump(mode="json"))
    with project.step("models") as done:
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(project.config.model.model_name_or_path if each == "." else each for each in candidates):
            project.progress.advance(number, len(candidates), name)
            try:
                rows.append(_row(project, name, texts, sample if records else None, work, device, use, ask_hub=ask_hub))
            except ConfigError:
                raise
            except TunesmithError as error:  # one candidate that is not there does not hide the others
                rows.append({"name": name, "error": error.message})
        report = recommend(rows, device=device, use=use, level=project.config.evaluate.confidence_level) | {
            "title": f"{project.config.project}: choice of the base model",
            "created_at": utc_now(),
            "dataset_version": dataset.id,
            "n_records": len(sample) if records else 0,
            "workload": asdict(work),
        }
        html = write_matrix(project.state / "selections" / identity, report)
        done(f"{identity}: {report['choice'] or 'no choice'} of {len(rows)}")
        return Selection(identity, report, html)


def _row(
    project: Project, name: str, texts: list[str], sample: pl.DataFrame | None, work: Any, device: str | None, use: Use, *, ask_hub: bool
) -> dict[str, Any]:
    from tunesmith.models.base_facts import read_facts
    from tunesmith.models.licenses import license_of, stated_license
    from tunesmith.models.needs import fits, serving_bytes, training_bytes
    from tunesmith.models.support import support_of

    folder, stated, source = _find(project, name)
    facts: BaseFacts = read_facts(folder if folder is not None else families()[name.removeprefix(FAMILY)]["config"])
    terms = license_of(stated or (stated_license(folder) if folder else None))
    training, serving = training_bytes(facts, work), serving_bytes(facts, work)
    both = {"training": training, "serving": serving}
    row: dict[str, Any] = {
        "name": name,
        "source": source,
        "license": {**asdict(terms), "allows": terms.allows(use)},
        "facts": asdict(facts) | {"cache_bytes_per_token": facts.cache_bytes_per_token, "cache_bytes_at_context": facts.cache_bytes(work.context)},
        "training_bytes": training,
        "serving_bytes": serving,
        "fits": {what: [name for name, n in needs.items() if fits(n, device)] for what, needs in both.items()} if device else None,
        "support": support_of(facts, name if ask_hub else None),
        "tokens_per_word": _tokens_per_word(folder, texts) if folder else None,
        "measured": None,
    }
    if folder is not None and sample is not None and facts.kind == "decoder" and any(folder.glob("*.safetensors")):
        row["measured"] = _measure(project, name, sample)
    return row


def _find(project: Project, name: str) -> tuple[Path | None, str | None, str]:
    """Return a candidate's folder (None of a family), the licence that is stated for it, and its source in words."""
    from tunesmith.models.catalog import resolve_base
    from tunesmith.models.licenses import stated_license

    if name.startswith(FAMILY):
        if (family := families().get(name.removeprefix(FAMILY))) is None:
            raise ConfigError(
                f"A family must be one of {', '.join(families())}. Received: {name.removeprefix(FAMILY)!r}.", hint="tunesmith models family:llama-3.2-1b"
            )
        return None, family["license"], family["source"]
    if name == project.config.model.model_name_or_path:
        return project.base.path, project.base.license, project.base.source
    folder = (project.root / name).expanduser()
    if folder.is_dir() and (folder / "config.json").exists() and not any(folder.glob("*.safetensors")):
        return folder, None, f"configuration in {name}"
    section = project.config.model.model_copy(update={"model_name_or_path": name, "sha256": None, "license": None})
    base = resolve_base(section, project.root)
    stated = stated_license(folder) if folder.suffix == ".gguf" and folder.is_file() else None
    return base.path, stated or (None if base.license == "unknown" else base.license), base.source


def _tokens_per_word(folder: Path, texts: list[str]) -> float | None:
    """Return how many tokens a word of the project's own texts takes, or None where there is no tokenizer."""
    from tunesmith.models.engine import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, NotFoundError):
        return None
    words = sum(len(text.split()) for text in texts)
    return sum(len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts) / words if words else None


def _measure(project: Project, name: str, sample: pl.DataFrame) -> dict[str, Any]:
    """Let a candidate answer validation records untuned, and read their texts.

    Returns:
        `zero_shot`, the share of right answers with its interval, and `right`, one a record; None with `why_not` where the task or the candidate
        has no such answers; `bits_per_byte` of the texts.
    """
    from tunesmith.evaluate.intervals import wilson
    from tunesmith.evaluate.metrics import is_correct
    from tunesmith.evaluate.predict_split import label_indices, score_split
    from tunesmith.models.engine import Engine, forward_pass, load_tokenizer
    from tunesmith.models.likelihood import log_probabilities
    from tunesmith.models.weights import load_tuned

    changes = {} if name == project.config.model.model_name_or_path else {"model_name_or_path": name, "sha256": None, "license": None}
    own = replace(project, config=project.config.model_copy(update={"model": project.config.model.model_copy(update=changes)}))
    section, names, level = own.answering(None), own.config.task.names, own.config.evaluate.confidence_level
    forward = forward_pass(load_tuned(own.base.path, section, None).eval(), section)
    measured: dict[str, Any] = {
        "zero_shot": None,
        "right": None,
        "why_not": f"answers of {own.config.task.type} are not scored here" if is_written(own) else None,
    }
    if not is_written(own):
        try:
            model = Engine(own.base.path, own.prompt, section, batch_size=own.config.evaluate.batch_size, forward=forward)
            scores = score_split(model, sample, names, lambda done, total: project.progress.advance(done, total, f"{name}, untuned"))
            right = is_correct(label_indices(sample, names), scores.logits)
            measured |= {"zero_shot": wilson(int(right.sum()), len(right), level).to_dict(), "right": [bool(one) for one in right]}
        except TunesmithError as error:  # of a base model that was never taught to answer
            measured["why_not"] = error.message
    # The first word is given: a model predicts from something.
    split = [text[:_CHARACTERS_READ].split(" ", 1) for text in sample["text"].to_list() if " " in text[:_CHARACTERS_READ]]
    tokenizer = load_tokenizer(own.base.path)
    # Some models know no text without the token that begins one.
    begins = tokenizer.bos_token if tokenizer("text")["input_ids"][0] == tokenizer.bos_token_id else ""
    read = log_probabilities(forward, tokenizer, [f"{begins}{first}" for first, _ in split], [f" {rest}" for _, rest in split])
    n_bytes = sum(len(f" {rest}".encode()) for _, rest in split)
    return measured | {"bits_per_byte": float(-read[:, 0].sum() / math.log(2) / n_bytes) if n_bytes else None}
