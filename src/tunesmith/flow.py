"""The whole loop, one function an arrow.

    prepare -> plan -> train -> evaluate -> calibrate -> register -> predict -> judge -> renew
    documents  dataset   run    evaluation  calibrator   model       prediction feedback  the next dataset version
               version                                   version

Each function takes a project, does its arrow or finds that it was done for the same inputs, and returns the noun. The
CLI and Python users call the same functions. A killed function is called again and continues.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith.data.diff import Difference, diff
from tunesmith.data.freeze import freeze, read_records
from tunesmith.data.nearest import nearest
from tunesmith.data.prepare import prepare_records
from tunesmith.data.versioning import version_with_dvc
from tunesmith.entities import DatasetVersion, Deployment, Evaluation, ModelVersion, Prediction, Run, content_id, utc_now
from tunesmith.errors import DataError, NotFoundError, RefusedError
from tunesmith.files import file_sha256, write_json
from tunesmith.project import Project, needs_extra
from tunesmith.review.harvest import Harvest, harvest_records

if TYPE_CHECKING:
    from tunesmith.evaluate.predict_split import SplitScores
    from tunesmith.registry.gates import Verdict
    from tunesmith.serve.predictor import Predictor
    from tunesmith.train.plan import Plan

CHAMPION = "champion"

# Bump when a step's output changes for the same inputs.
TRAIN_VERSION = 1
EVALUATE_VERSION = 1

# Settings of `train` that change where and when, not what is learnt.
_NOT_LEARNT = {"save_steps", "save_total_limit", "logging_steps", "resume_from_checkpoint", "report_to", "max_memory_gb", "max_hours", "max_disk_gb"}


# documents -> dataset version


def prepare(project: Project, *, fresh: bool = False) -> DatasetVersion:
    """Read, validate, deduplicate and split the documents, and freeze them as a dataset version.

    The newest dataset version becomes the parent, so that no old record changes its split; unchanged inputs return it.

    Args:
        project: The project.
        fresh: Start without a parent.

    Raises:
        NotFoundError: a source does not exist.
        DataError: a source cannot be read or used.
    """
    head = None if fresh else newest_dataset(project)
    if head is not None and set(head.labels) != set(project.config.task.names):
        raise DataError(
            f"A dataset version keeps the label space of its parent. {head.id} has: {'; '.join(head.labels)}. "
            f"Received: {'; '.join(project.config.task.names)}.",
            hint="tunesmith prepare --fresh",
        )
    return _prepare(project, head)


def newest_dataset(project: Project) -> DatasetVersion | None:
    """Return the dataset version made last, or None."""
    versions = project.store.all(DatasetVersion)
    return versions[-1] if versions else None


def _prepare(project: Project, parent: DatasetVersion | None, harvest: Harvest | None = None) -> DatasetVersion:
    with project.step("prepare") as done:
        inputs = _input_digest(project)
        if parent is not None and parent.inputs == inputs and harvest is None:
            _records(project, parent)
            if project.config.data.dvc:
                version_with_dvc(project.root, parent, parent.reason)
            done(_rows(parent), skipped=True)
            return parent
        previous = _records(project, parent) if parent else None
        sifted = prepare_records(
            project.config.data,
            project.config.task.names,
            project.root,
            previous,
            harvest.records if harvest else None,
            lambda what, at, n: project.progress.advance(at, n, what),
        )
        reason = f"{len(harvest.feedback)} judgements" if harvest else "sources or settings changed" if parent else "first version"
        version = freeze(
            sifted.kept,
            sifted.dropped,
            project.root,
            project.config.project,
            project.config.task.names,
            parent,
            reason,
            project.config.data.model_dump(mode="json"),
            project.store,
            project.config.data.dvc,
            inputs=inputs,
            feedback=harvest.feedback if harvest else (),
        )
        done(_rows(version))
        return version


def _input_digest(project: Project) -> str:
    """Identify what a dataset version is made from: the sources' bytes, the settings and the label space."""
    paths = [project.root / source.path for source in project.config.data.sources]
    digests = [file_sha256(path) if path.is_file() else None for path in paths]  # a missing file is refused where files are read
    return content_id("inp", digests, project.config.data.model_dump(mode="json"), project.config.task.names)


def _rows(version: DatasetVersion) -> str:
    kept = ", ".join(f"{count:,} {split}" for split, count in version.rows.items())
    return f"{version.id}: {kept}; {sum(version.dropped.values()):,} rows dropped with their reason"


# dataset version -> plan -> run


def plan(project: Project, dataset: DatasetVersion) -> Plan:
    """Say what a run on a dataset version will do and cost, without training; of a finished run, what was said.

    Raises:
        DataError: texts do not fit and `train.excess_length_strategy` is `raise`.
        RefusedError: a limit of the section `train` would be passed.
    """
    with needs_extra("train"):
        from tunesmith.train.plan import make_plan, refuse_over_limits
    with project.step("plan") as done:
        finished = project.store.find(Run, run_id(project, dataset))
        if finished:
            done(finished.id, skipped=True)
            return run_plan(project, finished)
        records = _records(project, dataset).filter(pl.col("split") == "train")
        made = make_plan(records, project.prompt, project.base.path, project.model_section, project.config.train, _speeds(project))
        refuse_over_limits(made, project.config.train, project.root)
        done(f"{made.rows:,} rows, {made.tokens:,} tokens, {made.steps:,} steps")
        return made


def _speeds(project: Project) -> list[float]:
    """Return tokens a second of earlier runs with the same base, passes and cores."""
    speeds = []
    for run in project.store.all(Run):
        if run.base_sha256 == project.base.sha256 and run.machine == _machine(project):
            speeds.append(run.tokens / run.seconds)
    return speeds


def _machine(project: Project) -> str:
    from tunesmith.models.engine import n_workers

    return f"{n_workers()} workers, {project.model_section.forward}, {project.model_section.dtype}"


def run_id(project: Project, dataset: DatasetVersion) -> str:
    """Return the id that a run of these settings on a dataset version has."""
    learnt = project.config.train.model_dump(mode="json", exclude=_NOT_LEARNT)
    model = project.model_section.model_dump(mode="json", include={"forward", "dtype"})
    return content_id("run", dataset.id, project.base.sha256, project.config.task.model_dump(mode="json"), model, learnt, TRAIN_VERSION)


def train(project: Project, dataset: DatasetVersion, made: Plan | None = None) -> Run:
    """Fine-tune the base model on a dataset version, or continue where a killed run stopped.

    Args:
        project: The project.
        dataset: What is learnt.
        made: The plan, where `plan` was called already.

    Raises:
        RefusedError: the plan passes a limit.
        DataError: the rows cannot be trained on as they are.
        BackendError: the loss is not finite, or a checkpoint cannot be written.
    """
    found = project.store.find(Run, run_id(project, dataset))
    if found:
        with project.step("train") as done:
            done(f"{found.id}: {found.steps:,} steps, loss {found.train_loss:.3f}", skipped=True)
        return found
    with needs_extra("train"):
        from tunesmith.train.batches import encode_rows
        from tunesmith.train.fit import ADAPTER_FOLDER, fit
    made = made or plan(project, dataset)
    with project.step("train") as done:
        identity = run_id(project, dataset)
        folder = project.state / "runs" / identity
        folder.mkdir(parents=True, exist_ok=True)
        settings = project.config.train
        (folder / "config.json").write_text(project.config.model_dump_json(indent=2), encoding="utf-8")
        (folder / "plan.json").write_text(made.model_dump_json(indent=2), encoding="utf-8")
        rows = encode_rows(_records(project, dataset).filter(pl.col("split") == "train"), project.prompt, settings)
        tracked = _track_run(project, identity, dataset)

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            project.progress.advance(step, steps, f"loss {figures['loss']:.3f}")
            if tracked:
                tracked({f"train/{name}": value for name, value in figures.items()}, step)

        fitted = fit(rows, project.prompt.prefix, project.base.path, project.model_section, settings, folder, report)
        run = Run(
            id=identity,
            dataset_version_id=dataset.id,
            path=str(folder.relative_to(project.root)),
            base_model=project.base.name,
            base_sha256=project.base.sha256,
            strategy=settings.strategy,
            seed=settings.seed,
            steps=fitted.steps,
            train_loss=fitted.train_loss,
            seconds=fitted.seconds,
            peak_memory_bytes=fitted.peak_memory_bytes,
            supervised_tokens=rows.supervised_tokens,
            tokens=fitted.tokens,
            machine=_machine(project),
            adapter_sha256=file_sha256(folder / ADAPTER_FOLDER / "adapter_model.safetensors"),
            created_at=utc_now(),
        )
        # The tracker first: a kill between the two leaves a run that the next command finishes again, in both.
        if project.tracker:
            project.tracker.finish(run.id)
        project.store.put(run)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        done(f"{run.id}: {run.steps:,} steps, loss {run.train_loss:.3f}, {run.tokens / run.seconds:,.0f} tokens a second")
        return run


def _track_run(project: Project, identity: str, dataset: DatasetVersion) -> Callable[[dict[str, float], int], None] | None:
    if project.tracker is None:
        return None
    tracker = project.tracker
    params = {f"train.{key}": value for key, value in project.config.train.model_dump(mode="json").items()}
    tracker.log_params(identity, {"dataset_version": dataset.id, "base_model": project.base.name, "base_sha256": project.base.sha256, **params})
    mlflow_run = tracker.run(identity)
    return lambda figures, step: tracker.log_metrics(mlflow_run, figures, step)


def run_plan(project: Project, run: Run) -> Plan:
    """Return the plan that a run was started with."""
    from tunesmith.train.plan import Plan

    return Plan.model_validate_json((project.root / run.path / "plan.json").read_text(encoding="utf-8"))


# run -> evaluation


def evaluate(project: Project, run: Run) -> Evaluation:
    """Score the base model, the tuned model and a classical baseline on the same test records.

    Scores are kept as files as soon as they are complete, so that a killed evaluation goes on where it stopped.
    """
    settings = project.config.evaluate.model_dump(mode="json", exclude={"batch_size"})
    identity = content_id("evl", run.id, settings, EVALUATE_VERSION)
    found = project.store.find(Evaluation, identity)
    if found:
        with project.step("evaluate") as done:
            done(f"{found.id}: {100 * found.accuracy:.1f} % accuracy on {found.n_test:,} test records", skipped=True)
        return found
    with needs_extra("train"):
        from tunesmith.evaluate.metrics import is_correct
    with project.step("evaluate") as done:
        started = time.monotonic()
        dataset = _dataset(project, run)
        folder = project.state / "evaluations" / identity
        folder.mkdir(parents=True, exist_ok=True)
        scores = _all_scores(project, run, dataset, folder)
        test = scores["tuned-test"]
        correct = is_correct(_truth(project, dataset, test), test.logits)
        evaluation = Evaluation(
            id=identity,
            run_id=run.id,
            dataset_version_id=dataset.id,
            path=str(folder.relative_to(project.root)),
            n_test=len(test.ids),
            accuracy=float(correct.mean()),
            seconds=time.monotonic() - started,
            created_at=utc_now(),
        )
        project.store.put(evaluation)
        done(f"{evaluation.id}: {100 * evaluation.accuracy:.1f} % accuracy on {evaluation.n_test:,} test records")
        return evaluation


def _all_scores(project: Project, run: Run, dataset: DatasetVersion, folder: Path) -> dict[str, SplitScores]:
    from tunesmith.evaluate.score_models import score_models
    from tunesmith.models.engine import Engine

    records = _records(project, dataset)

    def engine(adapter: Path | None) -> Engine:
        return Engine(project.base.path, project.prompt, project.model_section, adapter=adapter, batch_size=project.config.evaluate.batch_size)

    return score_models(
        records,
        project.config.task.names,
        base=lambda: engine(None),
        tuned=lambda: engine(project.root / run.path / "adapter"),
        folder=folder,
        base_file=_base_scores_file(project, records.filter(pl.col("split") == "test")),
        n_latencies=project.config.evaluate.latency_samples,
        progress=project.progress.advance,
    )


def _base_scores_file(project: Project, test: pl.DataFrame) -> Path:
    """Name the base model's scores by what they depend on: a later run on the same test records finds them."""
    prompt = (project.prompt.render(""), project.prompt.max_length, project.prompt.keep, [label.written for label in project.config.task.labels])
    key = content_id("scr", project.base.sha256, project.model_section.dtype, project.model_section.forward, prompt, sorted(test["id"]), EVALUATE_VERSION)
    folder = project.state / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key}.parquet"


def _truth(project: Project, dataset: DatasetVersion, scores: SplitScores) -> Any:
    """Return the right label of each scored record, as indices."""
    from tunesmith.evaluate.predict_split import label_indices

    return label_indices(_in_order(project, dataset, scores), project.config.task.names)


def _in_order(project: Project, dataset: DatasetVersion, scores: SplitScores) -> pl.DataFrame:
    """Return the scored records in the order of the scores."""
    return pl.DataFrame({"id": list(scores.ids)}).join(_records(project, dataset), on="id", how="left", maintain_order="left")


def _records(project: Project, dataset: DatasetVersion) -> pl.DataFrame:
    return read_records(project.root, dataset)


def _dataset(project: Project, run: Run) -> DatasetVersion:
    return project.store.get(DatasetVersion, run.dataset_version_id)


def evaluation_of(project: Project, run: Run) -> Evaluation:
    """Return the newest evaluation of a run.

    Raises:
        NotFoundError: the run was not evaluated.
    """
    found = [made for made in project.store.all(Evaluation) if made.run_id == run.id]
    if not found:
        raise NotFoundError(f"{run.id} was not evaluated.", hint="tunesmith evaluate")
    return found[-1]


# evaluation -> calibrator and report


@dataclass(frozen=True)
class Calibration:
    """A fitted calibrator and the report that shows it.

    Attributes:
        calibrator: `method` and its parameters.
        report: What report.json holds.
        html: The report for people.
    """

    calibrator: dict[str, Any]
    report: dict[str, Any]
    html: Path


def calibrate(project: Project, evaluation: Evaluation) -> Calibration:
    """Fit the calibrator on the calibration split, choose it there, and write the report that shows it on test."""
    folder = project.root / evaluation.path
    settings = content_id("cal", project.config.calibrate.model_dump(mode="json"), EVALUATE_VERSION)
    file = folder / "calibrator.json"
    if file.exists() and (saved := json.loads(file.read_text(encoding="utf-8")))["settings"] == settings and (folder / "report.html").exists():
        with project.step("calibrate") as done:
            done(f"{saved['calibrator']['method']}", skipped=True)
        return Calibration(saved["calibrator"], json.loads((folder / "report.json").read_text(encoding="utf-8")), folder / "report.html")
    with needs_extra("train"):
        from tunesmith.evaluate.calibration import choose_calibrator
        from tunesmith.evaluate.predict_split import SplitScores
        from tunesmith.evaluate.report import write_report
    with project.step("calibrate") as done:
        run = project.store.get(Run, evaluation.run_id)
        dataset = _dataset(project, run)
        scores = SplitScores.load(folder / "tuned-calibration.parquet")
        section = project.config.calibrate
        calibrator, table = choose_calibrator(
            scores.logits, _truth(project, dataset, scores), section.method, project.config.evaluate.seed, n_bins=section.n_bins
        )
        report = _report(project, run, dataset, evaluation, calibrator, table)
        html = write_report(folder, report)
        if project.tracker:
            figures = {f"test/{name}": by_model["tuned"]["value"] for name, by_model in report["metrics"].items()}
            project.tracker.log_metrics(project.tracker.run(run.id), figures, run.steps)
        write_json(file, {"settings": settings, "calibrator": calibrator.to_dict()})  # last: it marks the step as done
        before, after = (report["calibration"][when]["value"] for when in ("before", "after"))
        done(f"{report['calibration']['method']}: expected calibration error {before:.3f} -> {after:.3f} on test")
        return Calibration(calibrator.to_dict(), report, html)


def _report(project: Project, run: Run, dataset: DatasetVersion, evaluation: Evaluation, calibrator: Any, table: dict[str, Any]) -> dict[str, Any]:
    """Put the report together: the tuned model as it will answer, that is calibrated, beside base and classical as they are."""
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.compare import calibration_effect, compare, worst_mistakes
    from tunesmith.evaluate.predict_split import SplitScores

    section, n_bins = project.config.evaluate, project.config.calibrate.n_bins
    folder = project.root / evaluation.path
    tuned = SplitScores.load(folder / "tuned-test.parquet")
    test = _in_order(project, dataset, tuned)
    base = SplitScores.load(_base_scores_file(project, test))
    classical = SplitScores.load(folder / "classical-test.parquet")
    y, names = _truth(project, dataset, tuned), project.config.task.names
    before, after = softmax(tuned.logits), calibrator.probabilities(tuned.logits)
    common: dict[str, Any] = {"level": section.confidence_level, "n_samples": section.bootstrap_samples, "seed": section.seed, "n_bins": n_bins}
    latencies = json.loads((folder / "latencies.json").read_text())
    made = run_plan(project, run)
    return {
        "title": f"{project.config.project}: {project.config.task.instruction}",
        "created_at": utc_now(),
        "confidence_level": section.confidence_level,
        "labels": list(names),
        **compare({"base": softmax(base.logits), "classical": softmax(classical.logits), "tuned": after}, y, names, latencies=latencies, **common),
        **calibration_effect(before, after, y, method=calibrator.to_dict()["method"], table=table, **common),
        "mistakes": worst_mistakes(list(tuned.ids), test["text"].to_list(), y, after, names),
        "data": {"rows": dataset.rows, "dropped": dataset.dropped},
        "training": {
            "settings": project.config.train.model_dump(mode="json"),
            "figures": {
                "steps": run.steps,
                "tokens": run.tokens,
                "supervised_tokens": run.supervised_tokens,
                "train_loss": run.train_loss,
                "trainable_parameters": made.trainable_parameters,
                "all_parameters": made.all_parameters,
                "records_cut": len(made.excess),
            },
            "seconds": _beside(run.seconds, made.seconds),
            "peak_memory_bytes": _beside(run.peak_memory_bytes, made.peak_memory_bytes),
        },
        "seconds": {"prepare": project.seconds_of("prepare", dataset.id), "train": run.seconds, "evaluate": evaluation.seconds},
        "peak_memory_bytes": run.peak_memory_bytes,
        "provenance": {
            "dataset_version": dataset.id,
            "run": run.id,
            "evaluation": evaluation.id,
            "base_model": run.base_model,
            "base_license": project.base.license,
            "base_source": project.base.source,
            "base_sha256": run.base_sha256,
            "adapter_sha256": run.adapter_sha256,
        },
        "reproduce": "tunesmith run",
    }


def _beside(measured: float, predicted: Any) -> dict[str, float]:
    return {"measured": measured, "predicted": predicted.expected, "predicted_low": predicted.low, "predicted_high": predicted.high}


# run + evaluation -> model version -> champion


def register(project: Project, run: Run, evaluation: Evaluation, calibration: Calibration | None = None) -> tuple[ModelVersion, Verdict]:
    """Register a run as a model version and ask the gate for the alias `champion`.

    Args:
        project: The project.
        run: What is registered.
        evaluation: What it scored.
        calibration: Its calibrator and report, where `calibrate` was called already.

    Returns:
        The model version, and the gate's verdict; a refused model version stays registered without the alias.

    Raises:
        RefusedError: another run of the same dataset version is better on validation.
    """
    with needs_extra("train"):
        from tunesmith.evaluate.metrics import is_correct
        from tunesmith.evaluate.predict_split import SplitScores
        from tunesmith.registry.gates import judge, refuse_unless_best
    calibration = calibration or calibrate(project, evaluation)
    with project.step("register") as done:
        refuse_unless_best(run.id, _validation_accuracy(project, run))
        name = project.config.model_name
        version = _model_version(project, run, evaluation, calibration)
        dataset = _dataset(project, run)
        tuned = SplitScores.load(project.root / evaluation.path / "tuned-test.parquet")
        y = _truth(project, dataset, tuned)
        holder = project.store.alias(name, CHAMPION)
        opponent, opponent_scores = _opponent(project, holder, version, dataset, tuned)
        verdict = judge(
            project.store,
            project.config.registry,
            name,
            CHAMPION,
            challenger=version.id,
            opponent=opponent,
            record_ids=tuned.ids,
            challenger_correct=is_correct(y, tuned.logits),
            opponent_correct=is_correct(y, opponent_scores.logits),
            against_classical=calibration.report["classical_verdict"],
            seed=project.config.evaluate.seed,
        )
        if project.tracker:  # every time, so that what a kill left undone here is done by the next command
            tags = {"tunesmith.run": run.id, "tunesmith.classical": verdict.against_classical}
            project.tracker.register(name, version.id, run.id, project.root / version.path, tags)
            if (current := project.store.alias(name, CHAMPION)) is not None:
                project.tracker.set_alias(name, CHAMPION, current)
        done(f"{version.id}, version {version.version} of {name}: {'champion' if verdict.passed else 'refused'}, {verdict.reason}")
        return version, verdict


def _opponent(project: Project, holder: str | None, version: ModelVersion, dataset: DatasetVersion, tuned: SplitScores) -> tuple[str, SplitScores]:
    """Return whom the gate compares with, and its scores on the same test rows: the champion, or the base model at first."""
    from tunesmith.evaluate.predict_split import SplitScores, score_split

    first = project.store.looks_of(version.id)
    if holder is not None and first and holder == version.id:
        holder = None if first[0]["opponent_id"] == "base" else first[0]["opponent_id"]
    test = _in_order(project, dataset, tuned)
    if holder is None:
        return "base", SplitScores.load(_base_scores_file(project, test))
    champion = project.store.get(ModelVersion, holder)
    own = project.store.get(Evaluation, champion.evaluation_id)
    scores = SplitScores.load(project.root / own.path / "tuned-test.parquet")
    if scores.ids != tuned.ids:  # the test split grew since: the champion answers the new rows too
        from tunesmith.models.artifact import open_artifact

        engine = open_artifact(project.root / champion.path).engine(project.root)
        scores = score_split(engine, test, project.config.task.names, lambda at, n: project.progress.advance(at, n, "champion, test"))
    return champion.id, scores


def _validation_accuracy(project: Project, run: Run) -> dict[str, float]:
    """Return run id -> accuracy on validation, of every evaluated run of the same dataset version."""
    from tunesmith.evaluate.metrics import is_correct
    from tunesmith.evaluate.predict_split import SplitScores

    dataset = _dataset(project, run)
    accuracy = {}
    for evaluation in project.store.all(Evaluation):
        if evaluation.dataset_version_id == dataset.id:
            scores = SplitScores.load(project.root / evaluation.path / "tuned-validation.parquet")
            accuracy[evaluation.run_id] = float(is_correct(_truth(project, dataset, scores), scores.logits).mean())
    return accuracy


def _model_version(project: Project, run: Run, evaluation: Evaluation, calibration: Calibration) -> ModelVersion:
    from tunesmith.models.artifact import ModelFile, write_artifact
    from tunesmith.registry.model_card import model_card

    name = project.config.model_name
    identity = content_id("mdl", name, run.id, evaluation.id, calibration.calibrator)
    found = project.store.find(ModelVersion, identity)
    if found and (project.root / found.path).exists():
        return found
    folder = project.state / "models" / identity
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = ModelFile(
        base_sha256=project.base.sha256,
        license=project.base.license,
        source=project.base.source,
        model=project.model_section,
        task=project.config.task,
        max_length=project.prompt.max_length,
        truncate_keep=project.prompt.keep,
    )
    digest = write_artifact(
        folder,
        adapter=project.root / run.path / "adapter",
        model=model,
        calibrator=calibration.calibrator,
        chat_template=project.prompt.tokenizer.chat_template,
        card=model_card(model, run, _dataset(project, run), calibration.report),
    )
    number = 1 + sum(known.name == name for known in project.store.all(ModelVersion))
    version = ModelVersion(
        id=identity,
        run_id=run.id,
        evaluation_id=evaluation.id,
        name=name,
        version=number,
        path=str(folder.relative_to(project.root)),
        sha256=digest,
        created_at=utc_now(),
    )
    project.store.put(version)
    return version


@dataclass(frozen=True)
class Outcome:
    """Everything that one turn of the loop made."""

    dataset: DatasetVersion
    run: Run
    evaluation: Evaluation
    calibration: Calibration
    model_version: ModelVersion
    verdict: Verdict


def run(project: Project) -> Outcome:
    """Turn documents into a registered model: prepare, plan, train, evaluate, calibrate, register."""
    return finish(project, prepare(project))


def finish(project: Project, dataset: DatasetVersion, made: Plan | None = None) -> Outcome:
    """Go from a dataset version to a registered model: plan, train, evaluate, calibrate, register. Arguments as in `train`."""
    trained = train(project, dataset, made)
    evaluation = evaluate(project, trained)
    calibration = calibrate(project, evaluation)
    version, verdict = register(project, trained, evaluation, calibration)
    return Outcome(dataset, trained, evaluation, calibration, version, verdict)


# model version -> deployment -> prediction


def deploy(project: Project) -> Deployment:
    """Return the deployment that sends all traffic to the champion.

    Raises:
        NotFoundError: no model version holds the alias yet.
    """
    name = project.config.model_name
    champion = project.store.alias(name, CHAMPION)
    if champion is None:
        raise NotFoundError(f"No model version of {name} is champion yet.", hint="tunesmith run")
    variants = {CHAMPION: champion}
    deployment = Deployment(id=content_id("dep", name, variants), name=name, variants=variants, created_at=utc_now())
    project.store.put(deployment)
    return deployment


def load_predictor(project: Project) -> Predictor:
    """Load the champion, ready to answer.

    Raises:
        NotFoundError: there is no champion, or its folder is gone.
        DataError: a file of the model version was changed.
    """
    with needs_extra("serve"):
        from tunesmith.models.artifact import open_artifact
    from tunesmith.evaluate.calibration import load_calibrator
    from tunesmith.serve.predictor import Predictor

    deployment = deploy(project)
    version = project.store.get(ModelVersion, deployment.variants[CHAMPION])
    artifact = open_artifact(project.root / version.path)
    return Predictor(artifact.engine(project.root), load_calibrator(artifact.calibrator), deployment, CHAMPION, project.store)


def predict(project: Project, texts: Sequence[str]) -> list[Prediction]:
    """Answer texts with the champion; every prediction is on disk before it is returned."""
    predictor = load_predictor(project)
    with project.step("predict") as done:
        answers = predictor.predict(texts, project.progress.advance)
        done(f"{len(answers):,} answers by {predictor.model_version_id}")
        return answers


# feedback -> the next dataset version


def renew(project: Project) -> Outcome:
    """Turn new judgements into the next dataset version, train on it, and ask the gate on the same frozen test split.

    Raises:
        RefusedError: there are fewer new judgements than `review.min_feedback`.
        NotFoundError: there is no dataset version yet.
    """
    if newest_dataset(project) is None:
        raise NotFoundError("There is no dataset version to renew.", hint="tunesmith run")
    head = prepare(project)  # whatever changed in the sources is a version of its own
    taken = {judgement for version in project.store.all(DatasetVersion) for judgement in version.feedback}
    harvest = harvest_records(project.store, project.store.feedback(after=taken), _records(project, head))
    if len(harvest.records) >= project.config.review.min_feedback:
        head = _prepare(project, head, harvest)
    elif not head.feedback or _gate_has_decided(project, head):  # else it is a renewal that was killed: go on with it
        raise RefusedError(
            f"A renewal needs at least review.min_feedback = {project.config.review.min_feedback} new judgements with a right answer. "
            f"Received: {len(harvest.records)}.",
            hint="tunesmith review next",
        )
    return finish(project, head)


def _gate_has_decided(project: Project, dataset: DatasetVersion) -> bool:
    runs = {run.id for run in project.store.all(Run) if run.dataset_version_id == dataset.id}
    return any(project.store.looks_of(version.id) for version in project.store.all(ModelVersion) if version.run_id in runs)


def compare_datasets(project: Project, old_id: str, new_id: str) -> Difference:
    """Say which records two dataset versions differ in."""
    old, new = (project.store.get(DatasetVersion, version) for version in (old_id, new_id))
    return diff(_records(project, old), _records(project, new))


def nearest_records(project: Project, text: str, dataset: DatasetVersion, k: int = 3) -> pl.DataFrame:
    """Return the train records of a dataset version that are most like a text, with their source and line."""
    return nearest(text, _records(project, dataset), k)
