"""The arrows put together: one turn of the loop, and the next one with what people said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.entities import DatasetVersion, Evaluation, ModelVersion, Run
from tunesmith.errors import NotFoundError, RefusedError
from tunesmith.flow.adapters import train_adapters
from tunesmith.flow.dataset import newest_dataset, next_version, prepare, read
from tunesmith.flow.evaluation import Calibration, calibrate, evaluate
from tunesmith.flow.parts import Part
from tunesmith.flow.registration import register
from tunesmith.project import Project
from tunesmith.review.harvest import harvest_records

if TYPE_CHECKING:
    from tunesmith.registry.gates import Verdict


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


def finish(project: Project, dataset: DatasetVersion, parts: Sequence[Part] = ()) -> Outcome:
    """Go from a dataset version to a registered model: plan, train, evaluate, calibrate, register. Arguments as in `train_adapters`."""
    trained = train_adapters(project, dataset, parts)
    evaluation = evaluate(project, trained)
    calibration = calibrate(project, evaluation)
    version, verdict = register(project, trained, evaluation, calibration)
    return Outcome(dataset, trained, evaluation, calibration, version, verdict)


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
    harvest = harvest_records(project.store, project.store.feedback(after=taken), read(project, head))
    if len(harvest.records) >= project.config.review.min_feedback:
        head = next_version(project, head, harvest)
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
