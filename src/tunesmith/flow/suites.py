"""run -> what its base and its tuned model reach on tasks of the harness, kept in the evaluation's folder and shown in its report."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.entities import Evaluation, Run, content_id
from tunesmith.errors import ConfigError
from tunesmith.files import write_json
from tunesmith.flow.scoring import is_encoder
from tunesmith.project import Project, needs_extra

SUITES_FOLDER = "suites"

# Bump when the same model would reply otherwise.
STEP_VERSION = 2


def run_suites(project: Project, evaluation: Evaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    """Let the base and the tuned model of an evaluation do tasks of the harness, or find them done, and return what `suites_of` does.

    Args:
        project: The project.
        evaluation: The evaluation whose report shall show them.
        names: Tasks or groups of the harness, or of `evaluate.suites.path`.

    Raises:
        ConfigError: the base model is an encoder.
        MissingExtraError: the harness is not installed.
        NotFoundError, DataError, BackendError: a task does not exist, has no data, or cannot be run.
    """
    if is_encoder(project):
        raise ConfigError("Suites need a model that writes. Received: an encoder with a classification head.", hint="tunesmith evaluate")
    section = project.config.evaluate.suites
    with project.step("suites") as done, needs_extra("suites"):
        from tunesmith.evaluate.suites import Suites
        from tunesmith.models.weights import WEIGHTS_FOLDER

        run = project.store.get(Run, evaluation.run_id)
        suites = Suites(section, project.root / section.path if section.path else None, tuple(names))
        asked = {name: suites.id_of(name) for name in names}
        replied: dict[str, dict[str, Any]] = {name: {} for name in names}
        n_new = 0
        for who, weights in (("base", None), ("tuned", project.root / run.path / WEIGHTS_FOLDER)):
            answering = project.answering(weights)
            model_id = [project.base.sha256, run.weights_sha256 if weights else "", answering.dtype, answering.load_in_4bit]
            model = None
            for name in names:
                file = project.state / "scores" / f"{content_id('ste', asked[name], model_id, STEP_VERSION)}.json"
                if not file.exists():
                    from tunesmith.models.harness import HarnessModel

                    model = model or HarnessModel(project.base.path, answering, weights=weights, batch_size=section.batch_size)
                    unfinished = file.with_suffix(".jsonl")
                    model.keep_in(unfinished, lambda at, n, what=f"{who} model, {name}": project.progress.advance(at, n, what))  # type: ignore[misc]
                    write_json(file, suites.run(name, model))
                    unfinished.unlink()
                    n_new += 1
                replied[name][who] = json.loads(file.read_text(encoding="utf-8"))
            del model
            gc.collect()  # before the next one is loaded
        for name in names:
            file = _folder(project, evaluation) / f"{content_id('ste', name)}.json"
            file.parent.mkdir(exist_ok=True)
            write_json(file, replied[name])
        done(f"{', '.join(names)}: base and tuned model", skipped=not n_new)
    return suites_of(project, evaluation)


def suites_of(project: Project, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return what was replied to every task that was asked for, by task name: base and tuned -> what `Suites.run` returned."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in _folder(project, evaluation).glob("*.json")]
    return sorted(found, key=lambda of_task: str(of_task["tuned"]["task"]))


def _folder(project: Project, evaluation: Evaluation) -> Path:
    return project.root / evaluation.path / SUITES_FOLDER
