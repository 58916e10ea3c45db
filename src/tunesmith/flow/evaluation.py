"""run -> evaluation -> calibrator and report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith.entities import DatasetVersion, Evaluation, Run, content_id, utc_now
from tunesmith.errors import NotFoundError
from tunesmith.files import write_json
from tunesmith.flow.dataset import dataset_of, read
from tunesmith.flow.training import run_plan
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.evaluate.forgetting import Probes, ProbeScores
    from tunesmith.evaluate.predict_split import SplitScores
    from tunesmith.evaluate.settings import EvaluateSection
    from tunesmith.models.engine import Engine

# Bump when the same inputs would score or report otherwise.
STEP_VERSION = 2


def evaluate(project: Project, run: Run) -> Evaluation:
    """Score the base model, the tuned model and a classical baseline on the same test records.

    Scores are kept as files as soon as they are complete, so that a killed evaluation goes on where it stopped.
    """
    settings = project.config.evaluate.model_dump(mode="json", exclude={"batch_size", "goals", "max_forgetting"})
    identity = content_id("evl", run.id, settings, STEP_VERSION)
    found = project.store.find(Evaluation, identity)
    if found:
        with project.step("evaluate") as done:
            done(f"{found.id}: {100 * found.accuracy:.1f} % accuracy on {found.n_test:,} test records", skipped=True)
        return found
    with needs_extra("train"):
        from tunesmith.evaluate.metrics import is_correct
    with project.step("evaluate") as done:
        started = time.monotonic()
        dataset = dataset_of(project, run)
        folder = project.state / "evaluations" / identity
        folder.mkdir(parents=True, exist_ok=True)
        scores = _all_scores(project, run, dataset, folder)
        test = scores["tuned-test"]
        correct = is_correct(truth(project, dataset, test), test.logits)
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

    records = read(project, dataset)
    return score_models(
        records,
        project.config.task.names,
        base=lambda: _engine(project, None),
        tuned=lambda: _engine(project, run),
        folder=folder,
        base_file=base_scores_file(project, records.filter(pl.col("split") == "test")),
        probes=_probes(project),
        base_probes_file=_base_probes_file(project),
        n_latencies=project.config.evaluate.latency_samples,
        progress=project.progress.advance,
    )


def score_validation(project: Project, dataset: DatasetVersion, run: Run | None) -> SplitScores:
    """Let a run, or the base model where it is None, answer the validation split; what was answered before is read again.

    Candidates are chosen by this, so that the test split stays unseen.
    """
    from tunesmith.evaluate.predict_split import SplitScores, score_split

    records = read(project, dataset).filter(pl.col("split") == "validation")
    file = project.root / run.path / "validation.parquet" if run else base_scores_file(project, records)
    if not file.exists():
        what = f"{run.id if run else 'base model'}, validation"
        engine = _engine(project, run)
        score_split(engine, records, project.config.task.names, lambda done, total: project.progress.advance(done, total, what)).save(file)
    return SplitScores.load(file)


def read_probes(project: Project, run: Run | None) -> ProbeScores:
    """Let a run, or the base model where it is None, read the probes of forgetting; what was read before is loaded."""
    from tunesmith.evaluate.forgetting import ProbeScores, score_probes

    file = project.root / run.path / "probes.json" if run else _base_probes_file(project)
    probes = _probes(project)
    if not file.exists() and probes:
        score_probes(_engine(project, run), probes).save(file)
    return ProbeScores.load(file)


def _engine(project: Project, run: Run | None) -> Engine:
    from tunesmith.models.engine import Engine
    from tunesmith.models.weights import WEIGHTS_FOLDER

    weights = project.root / run.path / WEIGHTS_FOLDER if run else None
    return Engine(project.base.path, project.prompt, project.answering(weights), weights=weights, batch_size=project.config.evaluate.batch_size)


def _probes(project: Project) -> Probes | None:
    from tunesmith.evaluate.forgetting import load_probes

    section = project.config.evaluate
    return load_probes(project.root / section.general_text if section.general_text else None) if section.forgetting else None


def _base_probes_file(project: Project) -> Path:
    """Name what the base model said about the probes by what it depends on."""
    probes, section = _probes(project), project.answering(None)
    read = [probes.texts, probes.questions] if probes else []
    key = content_id("prb", project.base.sha256, section.dtype, section.forward, read, STEP_VERSION)
    return project.state / "scores" / f"{key}.json"


def base_scores_file(project: Project, test: pl.DataFrame) -> Path:
    """Name the base model's scores by what they depend on: a later run on the same test records finds them."""
    prompt = (project.prompt.render(""), project.prompt.max_length, project.prompt.keep, [label.written for label in project.config.task.labels])
    section = project.answering(None)
    key = content_id("scr", project.base.sha256, section.dtype, section.forward, prompt, sorted(test["id"]), STEP_VERSION)
    folder = project.state / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key}.parquet"


def truth(project: Project, dataset: DatasetVersion, scores: SplitScores) -> Any:
    """Return the right label of each scored record, as indices."""
    from tunesmith.evaluate.predict_split import label_indices

    return label_indices(in_order(project, dataset, scores), project.config.task.names)


def in_order(project: Project, dataset: DatasetVersion, scores: SplitScores) -> pl.DataFrame:
    """Return the scored records in the order of the scores."""
    return pl.DataFrame({"id": list(scores.ids)}).join(read(project, dataset), on="id", how="left", maintain_order="left")


def evaluation_of(project: Project, run: Run) -> Evaluation:
    """Return the newest evaluation of a run.

    Raises:
        NotFoundError: the run was not evaluated.
    """
    found = [made for made in project.store.all(Evaluation) if made.run_id == run.id]
    if not found:
        raise NotFoundError(f"{run.id} was not evaluated.", hint="tunesmith evaluate")
    return found[-1]


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
    goals = project.config.evaluate.model_dump(mode="json", include={"goals", "max_forgetting"}, exclude_none=True)
    settings = content_id("cal", project.config.calibrate.model_dump(mode="json"), goals, STEP_VERSION)
    file = folder / "calibrator.json"
    if file.exists() and (saved := json.loads(file.read_text(encoding="utf-8")))["settings"] == settings and (folder / "report.html").exists():
        with project.step("calibrate") as done:
            done(f"{saved['calibrator']['method']}", skipped=True)
        return Calibration(saved["calibrator"], json.loads((folder / "report.json").read_text(encoding="utf-8")), folder / "report.html")
    with needs_extra("train"):
        from tunesmith.evaluate.calibration import choose_calibrator
        from tunesmith.evaluate.goals import check_goals
        from tunesmith.evaluate.predict_split import SplitScores
        from tunesmith.evaluate.report import write_report
    with project.step("calibrate") as done:
        run = project.store.get(Run, evaluation.run_id)
        dataset = dataset_of(project, run)
        scores = SplitScores.load(folder / "tuned-calibration.parquet")
        section = project.config.calibrate
        calibrator, table = choose_calibrator(
            scores.logits, truth(project, dataset, scores), section.method, project.config.evaluate.seed, n_bins=section.n_bins
        )
        report = _report(project, run, dataset, evaluation, calibrator, table)
        report["goals"] = check_goals(report, project.config.evaluate.goals)
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
    test = in_order(project, dataset, tuned)
    base = SplitScores.load(base_scores_file(project, test))
    classical = SplitScores.load(folder / "classical-test.parquet")
    y, names = truth(project, dataset, tuned), project.config.task.names
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
        **_forgotten(project, folder, section),
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
            "weights_sha256": run.weights_sha256,
        },
        "reproduce": "tunesmith run",
    }


def _forgotten(project: Project, folder: Path, section: EvaluateSection) -> dict[str, Any]:
    from tunesmith.evaluate.forgetting import ProbeScores, forgetting
    from tunesmith.evaluate.score_models import PROBES_FILE

    if not section.forgetting:
        return {}
    before, after = ProbeScores.load(_base_probes_file(project)), ProbeScores.load(folder / PROBES_FILE)
    found = forgetting(before, after, level=section.confidence_level, n_samples=section.bootstrap_samples, seed=section.seed)
    return {"forgetting": found | {"budget": section.max_forgetting}}


def _beside(measured: float, predicted: Any) -> dict[str, float]:
    return {"measured": measured, "predicted": predicted.expected, "predicted_low": predicted.low, "predicted_high": predicted.high}
