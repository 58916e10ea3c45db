"""One adapter per document type: the parent learns all records, each child those of its type, and a router picks one for a text.

    dataset version -> parent run -> child runs (one a document type with enough records) and the router

A child's id names its own inputs: its records, its settings, and the run that it starts from. So `tunesmith train` trains what
changed and no other: with `start_from: parent` the children of a new parent, with `start_from: base` those whose own records or
settings are new. A killed command continues with what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tunesmith.entities import DatasetVersion, Run, content_id
from tunesmith.errors import ConfigError, DataError
from tunesmith.flow.dataset import embedding_model, read
from tunesmith.flow.parts import Part, save_plan, total
from tunesmith.flow.processes import fit_job, make_job
from tunesmith.flow.stages import stage_parts
from tunesmith.flow.training import fitted_run, plan_run, refuse_missing_kernels, run_id, run_part, train, what_is_learnt
from tunesmith.models.router import PARENT, Router
from tunesmith.project import Project, needs_extra
from tunesmith.train.settings import AdaptersSection

# Bump when the same inputs would learn something else.
STEP_VERSION = 1

_LEAST = {"validation": 1, "calibration": 2, "test": 1}
"""Split -> records that a document type with a child must have there."""


def plan_parts(project: Project, dataset: DatasetVersion) -> list[Part]:
    """Say what all of a training will do and cost, before anything is trained: the stages before the task, the run, and its children.

    Returns:
        The parts in the order in which they are trained, and what those took that are trained already.

    Raises:
        ConfigError, DataError: children cannot be trained with these settings, or rows not be used as they are.
        RefusedError: a limit of the section `train` would be passed by all that is to be trained.
    """
    with needs_extra("train"):
        from tunesmith.train.plan import refuse_over_limits
    refuse_missing_kernels(project)
    with project.step("plan") as done:
        types = child_types(project, dataset)
        parts = [*stage_parts(project), run_part(project, dataset), *_child_parts(project, dataset, types)]
        if (whole := total(parts)) is None:
            done(", ".join(part.name for part in parts), skipped=True)
            return parts
        refuse_over_limits(whole, project.config.train, project.root)
        ahead = [part.plan for part in parts if part.plan and not part.is_trained]
        rows, tokens, steps = (sum(getattr(each, name) for each in ahead) for name in ("rows", "tokens", "steps"))
        done(f"{rows:,} rows, {tokens:,} tokens, {steps:,} steps" + (f" in {len(ahead)} parts" if len(ahead) > 1 else ""))
        return parts


def measured_parts(project: Project, dataset: DatasetVersion) -> list[Part]:
    """Return the parts of a training that is done: what was predicted of each, and what it took."""
    return [*stage_parts(project), run_part(project, dataset), *_child_parts(project, dataset, child_types(project, dataset))]


def _child_parts(project: Project, dataset: DatasetVersion, types: Sequence[str]) -> list[Part]:
    parts, records = [], read(project, dataset) if types else pl.DataFrame()
    for document_type in types:
        own, name = records.filter(document_type=document_type), f"child {document_type}"
        if found := project.store.find(Run, _child_id(project, own, run_id(project, dataset), document_type)):
            parts.append(Part.trained(name, project.root / found.path, found.model_dump()))
        else:
            parts.append(Part(name, plan_run(project, own.filter(split="train"), project.config.train.of_child(document_type))))
    return parts


def train_adapters(project: Project, dataset: DatasetVersion, parts: Sequence[Part] = ()) -> Run:
    """Train the run, and where `train.adapters` is set its children, each only where it changed.

    Args:
        project: The project.
        dataset: What is learnt.
        parts: What `plan_parts` said, where it was asked already.

    Returns:
        The run that learns all records: the parent.

    Raises:
        ConfigError: children cannot be trained with these settings.
        DataError: no document type has enough records, or one lacks records in a split.
        And what `train` raises.
    """
    types = child_types(project, dataset)  # what is wrong is told before anything is trained
    found = project.store.find(Run, run_id(project, dataset))
    if not parts and (found is None or children_of(project, dataset, found).keys() != set(types)):
        parts = plan_parts(project, dataset)
    parent = train(project, dataset, next((part.plan for part in parts if part.name == "run"), None))
    records = read(project, dataset) if types else pl.DataFrame()
    for document_type in types:
        _train_child(project, dataset, records.filter(document_type=document_type), parent, document_type)
    if types:
        train_router(project, dataset, types)
    return parent


def child_types(project: Project, dataset: DatasetVersion) -> list[str]:
    """Return the document types that get a child, sorted; none where `train.adapters` is not set.

    Raises:
        ConfigError: the task is no classification.
        DataError: no document type has enough records, one lacks records in a split, or one is called `parent`.
    """
    section = project.config.train.adapters
    if section is None:
        return []
    if project.config.task.type != "classification":
        raise ConfigError(
            f"train.adapters is for classifications only, so far. Received: task.type {project.config.task.type}.", hint="Leave train.adapters out."
        )
    records = read(project, dataset)
    return types_of(records, section)


def types_of(records: pl.DataFrame, section: AdaptersSection) -> list[str]:
    """Return the document types of records that get a child, sorted.

    Args:
        records: Columns `document_type` and `split`.
        section: Says how many records a child needs.

    Raises:
        DataError: none has enough records, one lacks records in a split, or one is called `parent`.
    """
    typed = records.filter(pl.col("document_type") != "")
    if PARENT in typed["document_type"]:
        raise DataError(f"No document type may be called {PARENT!r}: that is the adapter of all records.", hint="Rename it in the source.")
    counts = {split: dict(typed.filter(split=split).group_by("document_type").len().iter_rows()) for split in ("train", *_LEAST)}
    types = sorted(each for each, count in counts["train"].items() if count >= section.min_records)
    if not types:
        found = ", ".join(f"{name}: {count:,}" for name, count in sorted(counts["train"].items())) or "no record with a document type"
        raise DataError(
            f"train.adapters needs a document type with at least train.adapters.min_records = {section.min_records} train records. Received: {found}.",
            hint="Set document_type or document_type_column in data.sources, or lower train.adapters.min_records.",
        )
    for split, least in _LEAST.items():
        few = [f"{each}: {counts[split].get(each, 0)}" for each in types if counts[split].get(each, 0) < least]
        if few:
            raise DataError(
                f"A document type with a child needs {least} or more {split} records. Received: {', '.join(few)}.",
                hint="Raise train.adapters.min_records, or the share of the split in data.sources[].splits.",
            )
    return types


def _child_id(project: Project, own: pl.DataFrame, parent_id: str, document_type: str) -> str:
    """Return the id that the child of a document type has with the present settings, given the records of that type."""
    section = project.config.train
    model = project.model_section.computing()
    rows = own.filter(split="train").select("id", "text", "label", "weight").rows()
    validation = own.filter(split="validation")["id"].to_list() if section.of_child(document_type).eval_steps else []
    start = parent_id if _begins_at_parent(project) else ""
    task, settings = project.config.task.model_dump(mode="json"), what_is_learnt(section.of_child(document_type))
    return content_id("run", "child", document_type, start, project.base.sha256, task, model, settings, rows, validation, STEP_VERSION)


def children_of(project: Project, dataset: DatasetVersion, parent: Run) -> dict[str, Run]:
    """Return document type -> child of a run, of those that are trained with the present settings."""
    types = child_types(project, dataset)
    records = read(project, dataset) if types else pl.DataFrame()
    found = {each: project.store.find(Run, _child_id(project, records.filter(document_type=each), parent.id, each)) for each in types}
    return {each: run for each, run in found.items() if run is not None}


def _begins_at_parent(project: Project) -> bool:
    adapters = project.config.train.adapters
    return adapters is not None and adapters.start_from == "parent"


def _train_child(project: Project, dataset: DatasetVersion, own: pl.DataFrame, parent: Run, document_type: str) -> Run:
    """Train the child of a document type on the records of that type, continue it, or find it trained."""
    from tunesmith.models.weights import WEIGHTS_FOLDER
    from tunesmith.train.batches import encode_rows
    from tunesmith.train.checkpoint import remove_checkpoints
    from tunesmith.train.validation import Validation

    with project.step("child") as done:
        identity = _child_id(project, own, parent.id, document_type)
        if found := project.store.find(Run, identity):
            done(f"{document_type}: {found.id}, {found.steps:,} steps, loss {found.train_loss:.3f}", skipped=True)
            return found
        settings = project.config.train.of_child(document_type)
        folder = project.state / "runs" / identity
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(project.config.model_dump_json(indent=2), encoding="utf-8")
        save_plan(plan_run(project, own.filter(split="train"), settings), folder)  # made anew: how fast the parent was is known by now
        rows = encode_rows(own.filter(split="train"), project.prompt, settings)
        evaluated = Validation.of(own.filter(split="validation"), project.prompt, settings) if settings.eval_steps else None
        about = {"dataset_version": dataset.id, "parent_run": parent.id, "document_type": document_type, "base_model": project.base.name}
        params = {f"train.{key}": value for key, value in settings.model_dump(mode="json").items()}
        project.trackers.set_parent(identity, parent.id)
        project.trackers.begin(identity, about | params, dataset)

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            told = ", ".join(f"{name} {figures[name]:.3f}" for name in ("loss", "eval_loss", "eval_accuracy") if name in figures)
            project.progress.advance(step, steps, f"{document_type}, {told}")
            named = {name.replace("eval_", "eval/") if name.startswith("eval_") else f"train/{name}": value for name, value in figures.items()}
            project.trackers.log_metrics(identity, named, step)

        start = project.root / parent.path / WEIGHTS_FOLDER if _begins_at_parent(project) else None
        fitted = fit_job(project, make_job(project, folder, settings, start=start), rows, evaluated, report)
        made = fitted_run(project, identity, dataset, settings, rows, fitted, folder)
        run = made.model_copy(update={"parent": parent.id if start else None, "document_type": document_type})
        project.trackers.finish(run.id)
        project.store.put(run)
        remove_checkpoints(folder)
        done(f"{document_type}: {run.id}, {run.steps:,} steps, loss {run.train_loss:.3f}")
        return run


# The router


def routes_of(records: pl.DataFrame, types: Sequence[str]) -> list[str]:
    """Return where each record belongs: to the child of its type, or to the parent."""
    return [each if each in types else PARENT for each in records["document_type"]]


def train_router(project: Project, dataset: DatasetVersion, types: Sequence[str]) -> tuple[str, Router]:
    """Fit the router on the train split and its temperature on the calibration split, or find it fitted; return its id and the router.

    Args:
        project: The project.
        dataset: What it learns.
        types: The document types that have a child.

    Raises:
        DataError: all records are of one type: there is nothing to choose.
        NotFoundError: the embedding model is not installed.
    """
    from tunesmith.train.router import fit_router

    with project.step("router") as done:
        embedder, address = embedding_model(project), project.config.data.embedding_model
        splits = [read(project, dataset).filter(split=split) for split in ("train", "calibration")]
        routes = [routes_of(records, types) for records in splits]
        read_of = [[*zip(records["text"], to, strict=True)] for records, to in zip(splits, routes, strict=True)]
        identity = content_id("rtr", read_of, embedder.sha256, address, STEP_VERSION)
        folder = project.state / "routers" / identity
        if (found := Router.load(folder)) is not None:
            done(f"{identity}: {len(found.routes)} routes", skipped=True)
            return identity, found

        def tell(at: int, n: int) -> None:
            project.progress.advance(at, n, "texts embedded")

        vectors = [embedder.encode(records["text"].to_list(), tell) for records in splits]
        router = fit_router(vectors[0], routes[0], vectors[1], routes[1], embedding_model=address, embedding_sha256=embedder.sha256, last=PARENT)
        router.save(folder)
        done(f"{identity}: {', '.join(router.routes)}; temperature {router.temperature:.2f}")
        return identity, router
