"""General -> domain -> task: the stages before the task, each with its own data, and what each made the model forget.

    stage 1 -> weights -> stage 2 -> weights -> ... -> the task's run

A stage's id names its file, its settings and the stage before, so that a changed stage is trained again with all that
follow, and no other. Its file is tokenised once, by the first command that needs it, into .tunesmith/tokens. After each
stage, and after the task, the model reads general text and what every stage held out: the cross-entropy of each, before
and after, is kept in stages.json. A stage that breaks its budget stops the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.read import read_documents
from tunesmith.data.settings import Source
from tunesmith.entities import content_id
from tunesmith.errors import DataError, NotFoundError, RefusedError
from tunesmith.files import file_sha256, write_json
from tunesmith.flow.parts import FITTED_FILE, Part, base_bytes, read_fitted, save_plan
from tunesmith.flow.processes import fit_job, make_job
from tunesmith.project import Project
from tunesmith.train.settings import StageSection, TrainSection, named_in_id

if TYPE_CHECKING:
    from tunesmith.train.batches import Rows
    from tunesmith.train.plan import Plan
    from tunesmith.train.stages import StageData

# Bump when the same inputs would learn something else.
STEP_VERSION = 1

STAGES_FILE = "stages.json"
GENERAL = "general"


@dataclass(frozen=True)
class Begun:
    """Where the task begins after the stages before it.

    Attributes:
        id: Of the last stage, which names all before it.
        base: Folder of the base model, with the stages merged in that were merged.
        weights: What the last stage learnt and the task continues, or None where it was merged.
        data: Stage name -> what it learnt and held out, in their order.
        readings: What the model said before the task: probe -> shape (n, 2), nats and tokens.
        rows: The table so far, a row a stage and probe.
    """

    id: str
    base: Path
    weights: Path | None
    data: dict[str, StageData]
    readings: dict[str, NDArray[np.float64]]
    rows: list[dict[str, Any]]


def stages_id(project: Project) -> str:
    """Return the id of the last stage before the task, empty where there are none.

    Raises:
        NotFoundError: a stage's file does not exist.
    """
    identity = ""
    for stage in project.config.train.stages:
        identity = _stage_id(project, stage, identity)
    return identity


def _stage_id(project: Project, stage: StageSection, before: str) -> str:
    own = named_in_id(project.config.train.of_stage(stage).model_dump(mode="json", exclude={"save_steps", "logging_steps", "report_to", "adapters"}))
    settings = stage.model_dump(mode="json", exclude={"max_forgetting", "train"})
    model = project.model_section.computing()
    return content_id("stg", before, project.base.sha256, _file_sha256(project, stage), settings, own, model, STEP_VERSION)


def _file_sha256(project: Project, stage: StageSection) -> str:
    file = project.root / stage.path
    if not file.is_file():
        raise NotFoundError(f"The file of the stage {stage.name} must exist. Received: {stage.path}.", hint="tunesmith config explain train.stages")
    return file_sha256(file)


def data_of_stages(project: Project) -> dict[str, StageData]:
    """Return stage name -> what it learns and holds out, in their order.

    Raises:
        NotFoundError: a stage's file does not exist.
        DataError: it cannot be read or used.
    """
    return {stage.name: _data_of(project, stage) for stage in project.config.train.stages}


def _data_of(project: Project, stage: StageSection) -> StageData:
    """Return what a stage learns and holds out, tokenised once for all commands and settings that it is the same for."""
    from tunesmith.train.stages import StageData, stage_data

    settings = project.config.train.of_stage(stage)
    own = stage.model_dump(mode="json", exclude={"max_forgetting", "train"})
    cut = settings.model_dump(mode="json", include={"max_length", "excess_length_strategy", "truncate_keep"})
    identity = content_id("tok", _file_sha256(project, stage), own, cut, project.base.sha256, STEP_VERSION)
    return StageData.cached(project.state / "tokens" / identity, lambda: stage_data(_records(project, stage), stage, settings, project.prompt.tokenizer))


def _learnt(data: Mapping[str, StageData], name: str, settings: TrainSection) -> Rows:
    """Return the rows of a stage, with what it replays of those before."""
    from tunesmith.train.stages import mix_replay

    before = [*data][: [*data].index(name)]
    return mix_replay(data[name].rows, [data[each].rows for each in before], settings.replay_ratio, settings.seed)


def stage_parts(project: Project) -> list[Part]:
    """Return the stages before the task as parts of the training, each with its plan, and with what it took where it is trained."""
    section, identity, parts = project.config.train, "", []
    data: dict[str, StageData] = {}
    for stage in section.stages:
        before, identity = identity, _stage_id(project, stage, identity)
        folder, settings = project.state / "stages" / identity, section.of_stage(stage)
        name = f"stage {stage.name}"
        if (folder / STAGES_FILE).exists():
            parts.append(Part.trained(name, folder, read_fitted(folder)))
        else:
            merged = base_bytes(project) if before and settings.start == "merge" else 0
            data = data or data_of_stages(project)
            parts.append(Part(name, _plan_stage(project, settings, _learnt(data, stage.name, settings)), merged))
    return parts


def _plan_stage(project: Project, settings: TrainSection, rows: Rows) -> Plan:
    """Plan a stage without history: runs of the task say little of rows whose every token is supervised."""
    from tunesmith.train.plan import make_plan

    none = pl.DataFrame(schema={"id": pl.String, "text": pl.String, "label": pl.String})
    return make_plan(none, project.prompt, project.base.path, project.model_section, settings, rows=rows)


def train_stages(project: Project) -> Begun | None:
    """Train the stages before the task, or find them trained; None where there are none.

    Raises:
        RefusedError: a stage broke its budget.
        NotFoundError: a stage's file does not exist.
        DataError: it cannot be read or used.
        ConfigError: a stage continues weights of another shape, or does not go together with `launch`.
        BackendError: a loss is not finite.
    """
    from tunesmith.models.weights import WEIGHTS_FOLDER, weights_file

    section = project.config.train
    if not section.stages:
        return None
    for settings in (*map(section.of_stage, section.stages), section):
        make_job(project, project.state, settings)  # what does not go together is told before anything is trained
    known = data_of_stages(project)
    begun = Begun("", project.base.path, None, {}, _read_probes(project, project.base.path, None, {}), [])
    for stage in section.stages:
        identity = _stage_id(project, stage, begun.id)
        settings = section.of_stage(stage)
        folder = project.state / "stages" / identity
        data = known[stage.name]
        base, start = _begins(project, begun, settings)
        with project.step("stage") as done:
            if (folder / STAGES_FILE).exists():
                saved = json.loads((folder / STAGES_FILE).read_text(encoding="utf-8"))
                readings = {name: np.asarray(values) for name, values in saved["readings"].items()}
                rows = saved["rows"]
                done(f"{stage.name}: {identity}", skipped=True)
            else:
                learnt = _learnt(known, stage.name, settings)
                before = begun.readings | _read_probes(project, base, start, {stage.name: data}, general=False)

                def report(at: int, n: int, figures: dict[str, float], name: str = stage.name) -> None:
                    project.progress.advance(at, n, f"{name}, loss {figures['loss']:.3f}" if "loss" in figures else name)

                if not (folder / FITTED_FILE).exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    save_plan(_plan_stage(project, settings, learnt), folder)
                    job = make_job(project, folder, settings, base=base, prefix=(), start=start)
                    write_json(folder / FITTED_FILE, asdict(fit_job(project, job, learnt, None, report)))
                readings = _read_probes(project, base, folder / WEIGHTS_FOLDER, begun.data | {stage.name: data})
                rows = _compare(project, stage.name, before, readings)
                write_json(folder / STAGES_FILE, {"name": stage.name, "readings": {name: values.tolist() for name, values in readings.items()}, "rows": rows})
                for checkpoint in folder.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint, ignore_errors=True)
                done(f"{stage.name}: {identity}, {_in_words(rows, stage.name)}")
        weights_file(folder / WEIGHTS_FOLDER)
        _refuse_over_budget(rows, stage.name, stage.max_forgetting)
        begun = Begun(identity, base, folder / WEIGHTS_FOLDER, begun.data | {stage.name: data}, readings, begun.rows + rows)
    base, start = _begins(project, begun, section)
    return Begun(begun.id, base, start, begun.data, begun.readings, begun.rows)


def task_rows(project: Project, data: Mapping[str, StageData], rows: Rows) -> Rows:
    """Return the task's rows, prefix and all, with what is replayed of the stages before."""
    from tunesmith.train.stages import mix_replay, with_prefix

    section = project.config.train
    return mix_replay(with_prefix(rows, project.prompt.prefix), [each.rows for each in data.values()], section.replay_ratio, section.seed)


def finish_task(project: Project, begun: Begun, folder: Path) -> None:
    """Make the weights whole where a stage was merged, and measure what the task made the model forget of the stages.

    Raises:
        RefusedError: it forgot more than `evaluate.max_forgetting`.
    """
    from tunesmith.models.weights import WEIGHTS_FOLDER
    from tunesmith.train.stages import merge

    weights = folder / WEIGHTS_FOLDER
    if begun.base != project.base.path and not (weights / "model.safetensors").exists():
        whole = merge(begun.base, project.model_section, weights, folder / "whole")
        shutil.rmtree(weights)
        whole.replace(weights)
    readings = _read_probes(project, project.base.path, weights, begun.data)
    rows = begun.rows + _compare(project, "task", begun.readings, readings)
    write_json(folder / STAGES_FILE, {"stages": begun.id, "rows": rows})
    _refuse_over_budget(rows, "task", project.config.evaluate.max_forgetting)


def stage_table(project: Project, run_path: str) -> list[dict[str, Any]]:
    """Return what each stage of a run changed: `stage`, `probe`, `before`, `after`, `difference`, `low`, `high`, in nats a token; empty without stages."""
    file = project.root / run_path / STAGES_FILE
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    return rows


def _begins(project: Project, begun: Begun, settings: TrainSection) -> tuple[Path, Path | None]:
    """Return base and weights that the next stage begins with."""
    from tunesmith.train.stages import merge

    if begun.weights is None or settings.start == "continue":
        return begun.base, begun.weights
    return merge(begun.base, project.model_section, begun.weights, begun.weights.parent / "merged"), None


def _records(project: Project, stage: StageSection) -> pl.DataFrame:
    file = project.root / stage.path
    if file.suffix == ".txt":
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{stage.path} must be UTF-8. Received: byte {error.object[error.start]:#04x} at offset {error.start}.") from None
        passages = [passage.strip() for passage in text.split("\n\n") if passage.strip()]
        return pl.DataFrame({"text": passages, "label": passages})
    label = stage.text_column if stage.objective == "text" else stage.label_column
    return read_documents(Source(path=stage.path, text_column=stage.text_column, label_column=label), project.root).select("text", "label")


def _read_probes(project: Project, base: Path, weights: Path | None, data: dict[str, StageData], *, general: bool = True) -> dict[str, NDArray[np.float64]]:
    """Let a model read general text and what stages held out: probe -> nats and tokens of each text, shape (n, 2)."""
    from tunesmith.evaluate.forgetting import load_probes
    from tunesmith.models.engine import forward_pass
    from tunesmith.models.likelihood import log_probabilities
    from tunesmith.models.weights import load_tuned

    section = project.answering(weights)
    forward = forward_pass(load_tuned(base, section, weights).eval(), section)
    evaluated = project.config.evaluate
    texts = load_probes(project.root / evaluated.general_text if evaluated.general_text else None).texts
    asked = ({GENERAL: (("",) * len(texts), texts)} if general else {}) | {name: (own.contexts, own.continuations) for name, own in data.items()}
    readings = {}
    for name, (contexts, continuations) in asked.items():
        read = log_probabilities(forward, project.prompt.tokenizer, contexts, continuations)
        readings[name] = np.column_stack([-read[:, 0], read[:, 1]])
    return readings


def _compare(project: Project, stage: str, before: dict[str, NDArray[np.float64]], after: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    from tunesmith.evaluate.intervals import Bootstrap
    from tunesmith.evaluate.metrics import mean_of_sums

    section, rows = project.config.evaluate, []
    for probe, values in after.items():
        bootstrap = Bootstrap(len(values), n_samples=section.bootstrap_samples, level=section.confidence_level, seed=section.seed)
        difference = bootstrap.difference(mean_of_sums, values, before[probe])
        ends = [float(mean_of_sums(each.sum(axis=0))) for each in (before[probe], values)]
        rows.append({"stage": stage, "probe": probe, "before": ends[0], "after": ends[1], **difference.to_dict()})
    return rows


def _refuse_over_budget(rows: list[dict[str, Any]], stage: str, budget: float | None) -> None:
    """Stop where a stage forgot more of anything but itself than its budget."""
    if budget is None:
        return
    broken = [row for row in rows if row["stage"] == stage and row["probe"] != stage and row["difference"] > budget]
    if broken:
        worst = max(broken, key=lambda row: row["difference"])
        key = "evaluate.max_forgetting" if stage == "task" else f"max_forgetting of the stage {stage}"
        place = "train.replay_ratio" if stage == "task" else f"replay_ratio under train of the stage {stage}"
        raise RefusedError(
            f"The cross-entropy of {worst['probe']} may rise by at most {budget:g} nats a token in the stage {stage} ({key}). "
            f"Measured: {worst['difference']:+.3f} [{worst['low']:+.3f}, {worst['high']:+.3f}].",
            hint=f"Set {place} to 0.2, which mixes rows of the stages before into it; or lower its learning_rate, or raise the budget.",
        )


def _in_words(rows: list[dict[str, Any]], own: str) -> str:
    return ", ".join(f"{'itself' if row['probe'] == own else row['probe']} {row['before']:.2f} -> {row['after']:.2f}" for row in rows)
