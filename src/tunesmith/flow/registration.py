"""run + evaluation -> model version -> champion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.entities import DatasetVersion, Evaluation, ModelVersion, Run, content_id, utc_now
from tunesmith.flow.dataset import dataset_of
from tunesmith.flow.evaluation import Calibration, base_scores_file, calibrate, in_order, truth
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.evaluate.predict_split import SplitScores
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
        The model version, and the gate's verdict; a refused model version stays registered without the alias.

    Raises:
        RefusedError: another run of the same dataset version is better on validation, or the run forgot more than its budget.
    """
    with needs_extra("train"):
        from tunesmith.evaluate.metrics import is_correct
        from tunesmith.evaluate.predict_split import SplitScores
        from tunesmith.registry.gates import judge, refuse_over_budget, refuse_unless_best
    calibration = calibration or calibrate(project, evaluation)
    with project.step("register") as done:
        refuse_unless_best(run.id, _validation_accuracy(project, run))
        if "forgetting" in calibration.report:
            refuse_over_budget(calibration.report["forgetting"], project.config.evaluate.max_forgetting)
        name = project.config.model_name
        version = _model_version(project, run, evaluation, calibration)
        dataset = dataset_of(project, run)
        tuned = SplitScores.load(project.root / evaluation.path / "tuned-test.parquet")
        y = truth(project, dataset, tuned)
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
    test = in_order(project, dataset, tuned)
    if holder is None:
        return "base", SplitScores.load(base_scores_file(project, test))
    champion = project.store.get(ModelVersion, holder)
    own = project.store.get(Evaluation, champion.evaluation_id)
    scores = SplitScores.load(project.root / own.path / "tuned-test.parquet")
    if scores.ids != tuned.ids:  # the test split grew since: the champion answers the new rows too
        from tunesmith.models.artifact import open_artifact

        engine = open_artifact(project.root / champion.path, champion.sha256).engine(project.root)
        scores = score_split(engine, test, project.config.task.names, lambda at, n: project.progress.advance(at, n, "champion, test"))
    return champion.id, scores


def _validation_accuracy(project: Project, run: Run) -> dict[str, float]:
    """Return run id -> accuracy on validation, of every evaluated run of the same dataset version."""
    from tunesmith.evaluate.metrics import is_correct
    from tunesmith.evaluate.predict_split import SplitScores

    dataset = dataset_of(project, run)
    accuracy = {}
    for evaluation in project.store.all(Evaluation):
        if evaluation.dataset_version_id == dataset.id:
            scores = SplitScores.load(project.root / evaluation.path / "tuned-validation.parquet")
            accuracy[evaluation.run_id] = float(is_correct(truth(project, dataset, scores), scores.logits).mean())
    return accuracy


def _model_version(project: Project, run: Run, evaluation: Evaluation, calibration: Calibration) -> ModelVersion:
    from tunesmith.models.artifact import ModelFile, write_artifact
    from tunesmith.models.weights import WEIGHTS_FOLDER
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
        weights=project.root / run.path / WEIGHTS_FOLDER,
        model=model,
        calibrator=calibration.calibrator,
        chat_template=project.prompt.tokenizer.chat_template,
        card=model_card(model, run, dataset_of(project, run), calibration.report),
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
