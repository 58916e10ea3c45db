"""run + evaluation -> model version -> champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.entities import DatasetVersion, Evaluation, ModelVersion, Run, content_id, utc_now
from tunesmith.flow.dataset import dataset_of
from tunesmith.flow.evaluation import Calibration, calibrate
from tunesmith.flow.routing import ROUTED_FILE
from tunesmith.flow.scoring import Judged, answer_file, base_scores_file, confidence_of, in_order, is_written, judge_file
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.registry.gates import Verdict

CHAMPION = "champion"


def register(project: Project, run: Run, evaluation: Evaluation, calibration: Calibration | None = None) -> tuple[ModelVersion, Verdict]:
    """Register a run as a model version and ask the gate for the alias `champion`.

    Args:
        project: The project.
        run: What is registered.
        evaluation: What it scored.
        calibration: Its calibrator and report, where `calibrate` was called already.

    Returns:
        The model version, and the gate's verdict; a refused model version stays registered without the alias. With children the gate judges what the adapters
        answer together, each text by the one that the router picks.

    Raises:
        RefusedError: another run of the same dataset version is better on validation, or the run forgot more than its budget.
    """
    with needs_extra("train"):
        from tunesmith.registry.gates import judge, refuse_over_budget, refuse_unless_best
    calibration = calibration or calibrate(project, evaluation)
    with project.step("register") as done:
        refuse_unless_best(run.id, _validation_scores(project, run))
        if "forgetting" in calibration.report:
            refuse_over_budget(calibration.report["forgetting"], project.config.evaluate.max_forgetting)
        name = project.config.model_name
        version = _model_version(project, run, evaluation, calibration)
        dataset = dataset_of(project, run)
        tuned = judge_file(project, dataset, _test_answers(project, version, evaluation))
        holder = project.store.alias(name, CHAMPION)
        opponent, rival = _opponent(project, holder, version, dataset, tuned)
        verdict = judge(
            project.store,
            project.config.registry,
            name,
            CHAMPION,
            challenger=version.id,
            opponent=opponent,
            record_ids=tuned.ids,
            challenger_right=tuned.right,
            opponent_right=rival.right,
            measure="F1" if is_written(project) else "accuracy",
            against_classical=calibration.report["classical_verdict"],
            seed=project.config.evaluate.seed,
        )
        # Every time, so that what a kill left undone here is done by the next command.
        tags = {"tunesmith.run": run.id, "tunesmith.classical": verdict.against_classical or "none"}
        project.trackers.register(name, version.id, run.id, project.root / version.path, tags)
        if (current := project.store.alias(name, CHAMPION)) is not None:
            project.trackers.set_alias(name, CHAMPION, current)
        done(f"{version.id}, version {version.version} of {name}: {'champion' if verdict.passed else 'refused'}, {verdict.reason}")
        return version, verdict


def _opponent(project: Project, holder: str | None, version: ModelVersion, dataset: DatasetVersion, tuned: Judged) -> tuple[str, Judged]:
    """Return whom the gate compares with, and its answers to the same test rows: the champion, or the base model at first."""
    first = project.store.looks_of(version.id)
    if holder is not None and first and holder == version.id:
        holder = None if first[0]["opponent_id"] == "base" else first[0]["opponent_id"]
    test = in_order(project, dataset, tuned.ids)
    if holder is None:
        return "base", judge_file(project, dataset, base_scores_file(project, dataset, test))
    champion = project.store.get(ModelVersion, holder)
    own = project.store.get(Evaluation, champion.evaluation_id)
    rival = judge_file(project, dataset, _test_answers(project, champion, own))
    if rival.ids != tuned.ids:  # the test split grew since: the champion answers the new rows too
        from tunesmith.models.artifact import open_artifact

        file = project.state / "scores" / f"{content_id('chm', champion.id, sorted(tuned.ids))}.parquet"
        if not file.exists():
            answer_file(project, open_artifact(project.root / champion.path, champion.sha256).engine(project.root), test, file, "champion, test")
        rival = judge_file(project, dataset, file)
    return champion.id, rival


def _test_answers(project: Project, version: ModelVersion, evaluation: Evaluation) -> Path:
    """Return the file of what a model version answered to its test split."""
    return project.root / version.routing / ROUTED_FILE if version.routing else project.root / evaluation.path / "tuned-test.parquet"


def _validation_scores(project: Project, run: Run) -> dict[str, float]:
    """Return run id -> mean score on validation, of every evaluated run of the same dataset version."""
    dataset = dataset_of(project, run)
    return {
        evaluation.run_id: float(judge_file(project, dataset, project.root / evaluation.path / "tuned-validation.parquet").right.mean())
        for evaluation in project.store.all(Evaluation)
        if evaluation.dataset_version_id == dataset.id
    }


def _model_version(project: Project, run: Run, evaluation: Evaluation, calibration: Calibration) -> ModelVersion:
    from tunesmith.models.artifact import AcceptanceFile, ChildFile, ModelFile, RoutingFile, write_artifact
    from tunesmith.models.weights import WEIGHTS_FOLDER
    from tunesmith.registry.model_card import model_card

    name = project.config.model_name
    # Where no child passed its gate the run answers alone, as if it had none.
    routing = calibration.routing if calibration.routing and calibration.routing.children else None
    # The promise was tested on answers of the run alone, not on those of children.
    promised = {} if routing else {key: calibration.report["acceptance"][key] for key in AcceptanceFile.model_fields}
    also: list[Any] = [*([routing.id] if routing else []), *([calibration.fields] if calibration.fields else [])]
    identity = content_id("mdl", name, run.id, evaluation.id, calibration.calibrator, promised, *also)
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
        confidence=confidence_of(project.root / evaluation.path),
    )
    adapters = None
    if routing:
        children = [
            ChildFile(document_type=each, run_id=child.id, folder=f"children/{number}", calibrator=routing.calibrators[each])
            for number, (each, child) in enumerate(sorted(routing.children.items()), start=1)
        ]
        adapters = RoutingFile(threshold=routing.threshold, children=tuple(children))
    digest = write_artifact(
        folder,
        weights=project.root / run.path / WEIGHTS_FOLDER,
        model=model,
        calibrator=calibration.calibrator,
        chat_template=project.prompt.tokenizer.chat_template or "",
        card=model_card(model, run, dataset_of(project, run), calibration.report),
        routing=adapters,
        router=routing.router if routing else None,
        children={each: project.root / child.path / WEIGHTS_FOLDER for each, child in routing.children.items()} if routing else {},
        acceptance=AcceptanceFile.model_validate(promised) if promised else None,
        fields=calibration.fields,
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
        children={each: child.id for each, child in routing.children.items()} if routing else {},
        routing=str(routing.folder.relative_to(project.root)) if routing else "",
    )
    project.store.put(version)
    return version
