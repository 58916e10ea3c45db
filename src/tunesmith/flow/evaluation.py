"""run -> evaluation -> calibrator and report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.entities import DatasetVersion, Evaluation, Run, content_id, utc_now
from tunesmith.errors import NotFoundError
from tunesmith.files import write_json
from tunesmith.flow.dataset import dataset_of
from tunesmith.flow.scoring import base_probes_file, base_scores_file, in_order, is_written, judge_file, score_all, truth
from tunesmith.flow.training import PLAN_FILE, run_plan
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.evaluate.settings import EvaluateSection

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
    with needs_extra("train"), project.step("evaluate") as done:
        started = time.monotonic()
        dataset = dataset_of(project, run)
        folder = project.state / "evaluations" / identity
        folder.mkdir(parents=True, exist_ok=True)
        score_all(project, run, dataset, folder)
        judged = judge_file(project, dataset, folder / "tuned-test.parquet")
        evaluation = Evaluation(
            id=identity,
            run_id=run.id,
            dataset_version_id=dataset.id,
            path=str(folder.relative_to(project.root)),
            n_test=len(judged.ids),
            accuracy=float((judged.right == 1).mean()),
            seconds=time.monotonic() - started,
            created_at=utc_now(),
        )
        project.store.put(evaluation)
        done(f"{evaluation.id}: {100 * evaluation.accuracy:.1f} % accuracy on {evaluation.n_test:,} test records")
        return evaluation


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
        from tunesmith.evaluate.report import PLOTS_FOLDER, write_report
    with project.step("calibrate") as done:
        run = project.store.get(Run, evaluation.run_id)
        dataset = dataset_of(project, run)
        section = project.config.calibrate
        logits, y = _confidences(project, dataset, folder / "tuned-calibration.parquet")
        judges = "written" if is_written(project) else "label"
        calibrator, table = choose_calibrator(logits, y, section.method, project.config.evaluate.seed, n_bins=section.n_bins, judges=judges)
        report = _report(project, run, dataset, evaluation, calibrator, table)
        report["goals"] = check_goals(report, project.config.evaluate.goals)
        html = write_report(folder, report)
        project.trackers.log_metrics(run.id, {f"test/{name}": by_model["tuned"]["value"] for name, by_model in report["metrics"].items()}, run.steps)
        for shown in (html, folder / PLOTS_FOLDER):
            project.trackers.log_artifacts(run.id, shown, "report")
        write_json(file, {"settings": settings, "calibrator": calibrator.to_dict()})  # last: it marks the step as done
        before, after = (report["calibration"][when]["value"] for when in ("before", "after"))
        done(f"{report['calibration']['method']}: expected calibration error {before:.3f} -> {after:.3f} on test")
        return Calibration(calibrator.to_dict(), report, html)


def _confidences(project: Project, dataset: DatasetVersion, file: Path) -> tuple[Any, Any]:
    """Return logits and right columns of a file of answers: over the label space, or over right and wrong of a written answer."""
    if is_written(project):
        from tunesmith.evaluate.score_written import WrittenScores
        from tunesmith.models.answered import likelihood_logits

        written = WrittenScores.load(file)
        return likelihood_logits(written.log_probability, written.tokens), (judge_file(project, dataset, file).right < 1).astype(int)
    from tunesmith.evaluate.predict_split import SplitScores

    scores = SplitScores.load(file)
    return scores.logits, truth(project, dataset, scores)


def _report(project: Project, run: Run, dataset: DatasetVersion, evaluation: Evaluation, calibrator: Any, table: dict[str, Any]) -> dict[str, Any]:
    """Put the report together: the tuned model as it will answer, that is calibrated, beside base and classical as they are."""
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.compare import calibration_effect

    section, n_bins = project.config.evaluate, project.config.calibrate.n_bins
    folder = project.root / evaluation.path
    logits, y = _confidences(project, dataset, folder / "tuned-test.parquet")
    before, after = softmax(logits), calibrator.probabilities(logits)
    common: dict[str, Any] = {"level": section.confidence_level, "n_samples": section.bootstrap_samples, "seed": section.seed}
    latencies = json.loads((folder / "latencies.json").read_text())
    made = run_plan(project, run) if (project.root / run.path / PLAN_FILE).exists() else None  # preference tuning has no plan
    compared = (_compare_written if is_written(project) else _compare_labels)(project, dataset, folder, after, latencies, common)
    return {
        "title": f"{project.config.project}: {project.config.task.instruction}",
        "created_at": utc_now(),
        "confidence_level": section.confidence_level,
        "labels": list(project.config.task.names),
        **compared,
        **calibration_effect(before, after, y, method=calibrator.to_dict()["method"], table=table, n_bins=n_bins, **common),
        **_forgotten(project, folder, section),
        "data": {"rows": dataset.rows, "dropped": dataset.dropped},
        "training": {
            "settings": (project.config.train if made else project.config.prefer).model_dump(mode="json"),
            "figures": {
                "steps": run.steps,
                "tokens": run.tokens,
                "supervised_tokens": run.supervised_tokens,
                "train_loss": run.train_loss,
                **({"trainable_parameters": made.trainable_parameters, "all_parameters": made.all_parameters, "records_cut": len(made.excess)} if made else {}),
            },
            "seconds": _beside(run.seconds, made and made.seconds),
            "peak_memory_bytes": _beside(run.peak_memory_bytes, made and made.peak_memory_bytes),
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


def _compare_labels(project: Project, dataset: DatasetVersion, folder: Path, after: Any, latencies: Any, common: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.compare import compare, worst_mistakes
    from tunesmith.evaluate.predict_split import SplitScores

    tuned = SplitScores.load(folder / "tuned-test.parquet")
    test = in_order(project, dataset, tuned.ids)
    base, classical = SplitScores.load(base_scores_file(project, test)), SplitScores.load(folder / "classical-test.parquet")
    y, names = truth(project, dataset, tuned), project.config.task.names
    scores = {"base": softmax(base.logits), "classical": softmax(classical.logits), "tuned": after}
    compared = compare(scores, y, names, latencies=latencies, n_bins=project.config.calibrate.n_bins, **common)
    return compared | {"mistakes": worst_mistakes(list(tuned.ids), test["text"].to_list(), y, after, names)}


def _compare_written(project: Project, dataset: DatasetVersion, folder: Path, after: Any, latencies: Any, common: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.evaluate.compare_written import compare_written, worst_answers
    from tunesmith.evaluate.score_written import FREE, WrittenScores

    task = project.config.task
    tuned = WrittenScores.load(folder / "tuned-test.parquet")
    test = in_order(project, dataset, tuned.ids)
    base_file = base_scores_file(project, test)
    answers = {"base": WrittenScores.load(base_file).answers, "tuned": tuned.answers}
    free = {}
    if task.type == "extraction":
        answers["classical"] = WrittenScores.load(folder / "classical-test.parquet").answers
        free = {
            "base": WrittenScores.load(base_file.with_name(f"{base_file.stem}{FREE}.parquet")).answers,
            "tuned": WrittenScores.load(folder / f"tuned-test{FREE}.parquet").answers,
        }
    rights, texts = test["label"].to_list(), test["text"].to_list()
    compared = compare_written(answers, free, rights, texts, task_type=task.type, schema=task.json_schema, latencies=latencies, **common)
    f1 = judge_file(project, dataset, folder / "tuned-test.parquet").right
    return compared | {"mistakes": worst_answers(list(tuned.ids), texts, rights, tuned.answers, after[:, 0], f1)}


def _forgotten(project: Project, folder: Path, section: EvaluateSection) -> dict[str, Any]:
    from tunesmith.evaluate.forgetting import ProbeScores, forgetting
    from tunesmith.evaluate.score_models import PROBES_FILE

    if not section.forgetting:
        return {}
    before, after = ProbeScores.load(base_probes_file(project)), ProbeScores.load(folder / PROBES_FILE)
    found = forgetting(before, after, level=section.confidence_level, n_samples=section.bootstrap_samples, seed=section.seed)
    return {"forgetting": found | {"budget": section.max_forgetting}}


def _beside(measured: float, predicted: Any) -> dict[str, float]:
    if predicted is None:
        return {"measured": measured}
    return {"measured": measured, "predicted": predicted.expected, "predicted_low": predicted.low, "predicted_high": predicted.high}
