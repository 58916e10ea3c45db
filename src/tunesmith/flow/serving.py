"""model version -> deployment -> prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tunesmith.entities import Deployment, ModelVersion, Prediction, content_id, utc_now
from tunesmith.errors import NotFoundError
from tunesmith.flow.registration import CHAMPION
from tunesmith.project import Project, needs_extra

if TYPE_CHECKING:
    from tunesmith.models.artifact import Artifact
    from tunesmith.serve.predictor import Predictor


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
    artifact = open_artifact(project.root / version.path, version.sha256)
    children = {child.document_type: load_calibrator(child.calibrator) for child in artifact.routing.children} if artifact.routing else {}
    return Predictor(
        artifact.engine(project.root),
        load_calibrator(artifact.calibrator),
        deployment,
        CHAMPION,
        project.store,
        children=children,
        accepts=_acceptance(artifact),
        fields={field: load_calibrator(saved) for field, saved in artifact.fields.items()},
    )


def _acceptance(artifact: Artifact) -> Callable[[float], bool] | None:
    if artifact.acceptance is None:
        return None
    threshold = artifact.acceptance.threshold
    return lambda confidence: threshold is not None and confidence >= threshold


def predict(project: Project, texts: Sequence[str]) -> list[Prediction]:
    """Answer texts with the champion; every prediction is on disk before it is returned."""
    predictor = load_predictor(project)
    with project.step("predict") as done:
        answers = predictor.predict(texts, project.progress.advance)
        done(f"{len(answers):,} answers by {predictor.model_version_id}")
        return answers
