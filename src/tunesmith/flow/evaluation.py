"""run -> evaluation -> calibrator and report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.entities import Evaluation, Run, content_id, utc_now
from tunesmith.errors import NotFoundError
from tunesmith.files import write_json
from tunesmith.flow.dataset import dataset_of
from tunesmith.flow.fields import calibrate_fields
from tunesmith.flow.groundedness import ask_judge
from tunesmith.flow.report import confidences, make_report
from tunesmith.flow.routing import Routing, route
from tunesmith.flow.scoring import is_written, judge_file, keep_confidence, score_all
from tunesmith.flow.suites import suites_of
from tunesmith.project import Project, needs_extra

# Bump when the same inputs would score or report otherwise.
STEP_VERSION = 2

FIELDS_VERSION = 1
"""Of extractions alone: bump when the same answer would have another confidence in its fields."""

REPORTED = {"goals", "max_forgetting", "slices", "business", "judge", "suites"}
"""Keys of `evaluate` that change the report alone: no model answers again for them."""


def evaluate(project: Project, run: Run) -> Evaluation:
    """Score the base model, the tuned model and a classical baseline on the same test records, and ask the judge of a chat.

    Scores are kept as files as soon as they are complete, so that a killed evaluation goes on where it stopped.
    """
    settings = project.config.evaluate.model_dump(mode="json", exclude={"batch_size", *REPORTED})
    also = [FIELDS_VERSION] if project.config.task.type == "extraction" else []
    identity = content_id("evl", run.id, settings, STEP_VERSION, *also)
    found = project.store.find(Evaluation, identity)
    if found:
        with project.step("evaluate") as done:
            done(f"{found.id}: {100 * found.accuracy:.1f} % accuracy on {found.n_test:,} test records", skipped=True)
        ask_judge(project, dataset_of(project, run), project.root / found.path)
        return found
    with needs_extra("train"), project.step("evaluate") as done:
        started = time.monotonic()
        dataset = dataset_of(project, run)
        folder = project.state / "evaluations" / identity
        folder.mkdir(parents=True, exist_ok=True)
        keep_confidence(project, folder)
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
    ask_judge(project, dataset, folder)
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
        routing: The router and the children of the run, measured; None where one adapter answers all.
        fields: Of an extraction, field -> its calibrator; see `fields.Fields`.
    """

    calibrator: dict[str, Any]
    report: dict[str, Any]
    html: Path
    routing: Routing | None = None
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)


def calibrate(project: Project, evaluation: Evaluation) -> Calibration:
    """Fit the calibrator on the calibration split, choose it there, and write the report that shows it on test."""
    folder = project.root / evaluation.path
    reported = project.config.evaluate.model_dump(mode="json", include=REPORTED - {"suites"}, exclude_none=True)
    run = project.store.get(Run, evaluation.run_id)
    routing = route(project, run, evaluation)
    suites = suites_of(project, evaluation)
    also: list[Any] = [*([routing.id] if routing else []), *([suites] if suites else [])]
    settings = content_id("cal", project.config.calibrate.model_dump(mode="json"), reported, *also, STEP_VERSION)
    file = folder / "calibrator.json"
    if file.exists() and (saved := json.loads(file.read_text(encoding="utf-8")))["settings"] == settings and (folder / "report.html").exists():
        with project.step("calibrate") as done:
            done(f"{saved['calibrator']['method']}", skipped=True)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return Calibration(saved["calibrator"], report, folder / "report.html", routing, saved.get("fields", {}))
    with needs_extra("train"):
        from tunesmith.evaluate.calibration import choose_calibrator
        from tunesmith.evaluate.goals import check_goals
        from tunesmith.evaluate.report import PLOTS_FOLDER, write_report
        from tunesmith.evaluate.suites import compare_suites
    with project.step("calibrate") as done:
        dataset = dataset_of(project, run)
        section, asked = project.config.calibrate, project.config.evaluate
        _, logits, y = confidences(project, dataset, folder / "tuned-calibration.parquet")
        judges = "written" if is_written(project) else "label"
        calibrator, table = choose_calibrator(logits, y, section.method, asked.seed, n_bins=section.n_bins, judges=judges)
        report = make_report(project, run, dataset, evaluation, calibrator, table)
        if routing:
            report["routing"] = routing.report
        if suites:
            levels: dict[str, Any] = {"level": asked.confidence_level, "n_samples": asked.bootstrap_samples, "seed": asked.seed}
            report["suites"] = compare_suites(suites, **levels)
        if (fields := calibrate_fields(project, dataset, folder)).report:
            report["fields"] = fields.report
        report["goals"] = check_goals(report, asked.goals)
        html = write_report(folder, report)
        project.trackers.log_metrics(run.id, {f"test/{name}": by_model["tuned"]["value"] for name, by_model in report["metrics"].items()}, run.steps)
        for shown in (html, folder / PLOTS_FOLDER):
            project.trackers.log_artifacts(run.id, shown, "report")
        write_json(file, {"settings": settings, "calibrator": calibrator.to_dict(), "fields": fields.calibrators})  # last: it marks the step as done
        before, after = (report["calibration"][when]["value"] for when in ("before", "after"))
        done(f"{report['calibration']['method']}: expected calibration error {before:.3f} -> {after:.3f} on test")
        return Calibration(calibrator.to_dict(), report, html, routing, fields.calibrators)
