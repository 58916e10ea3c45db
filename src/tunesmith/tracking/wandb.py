"""Weights & Biases as a projection of the store: settings, figures, the machine and reports of runs.

`WANDB_MODE=offline` needs no account and no network: files are written below the project's state folder, and `wandb sync`
sends them later. The registry is MLflow's; here runs are followed. Nothing is captured that the run does not tell: no
console output, no code, no git.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.entities import DatasetVersion
from tunesmith.errors import MissingExtraError
from tunesmith.tracking import Status


class WandbTracker:
    """One W&B project.

    Args:
        folder: Where files go, in `wandb/`.
        project: Name of the W&B project.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, folder: Path, project: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (("ERROR_REPORTING", "false"), ("SILENT", "true"), ("DATA_DIR", str(folder)), ("CACHE_DIR", str(folder / "wandb"))):
            os.environ.setdefault(f"WANDB_{name}", value)
        try:
            import wandb
        except ModuleNotFoundError:
            raise MissingExtraError("wandb", "wandb") from None
        self._wandb, self._folder, self._project = wandb, folder, project
        self._open: dict[str, Any] = {}
        self._parents: dict[str, str] = {}

    def begin(self, noun_id: str, params: Mapping[str, Any], dataset: DatasetVersion | None) -> None:
        """Open a run with its settings and the dataset version's digest and counts."""
        run = self._open[noun_id] = self._open.get(noun_id) or self._start(noun_id)
        described = {"dataset": {"id": dataset.id, "sha256": dataset.sha256, "rows": dataset.rows}} if dataset else {}
        run.config.update({**params, **described}, allow_val_change=True)

    def _start(self, noun_id: str) -> Any:
        settings = self._wandb.Settings(silent=True, console="off", save_code=False, disable_git=True)
        return self._wandb.init(
            project=self._project,
            id=noun_id,
            name=noun_id,
            group=self._parents.get(noun_id),
            dir=str(self._folder),
            resume="allow",
            reinit="create_new",  # a sweep and its trials are open at the same time
            settings=settings,
        )

    @contextmanager
    def _run(self, noun_id: str) -> Iterator[Any]:
        """Give the open run; one that has ended is opened for this alone."""
        if noun_id in self._open:
            yield self._open[noun_id]
            return
        run = self._start(noun_id)
        try:
            yield run
        finally:
            run.finish()

    def log_metrics(self, noun_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Show figures of one step."""
        with self._run(noun_id) as run:
            run.log(dict(metrics), step=step)

    def log_artifacts(self, noun_id: str, path: Path, name: str) -> None:
        """Copy a file or a folder to the run, as an artifact of its own."""
        artifact = self._wandb.Artifact(f"{noun_id}-{name}-{path.stem}", type="report")
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        with self._run(noun_id) as run:
            run.log_artifact(artifact)

    def set_parent(self, noun_id: str, parent_id: str) -> None:
        """Put a run into its parent's group, when it is opened next."""
        self._parents[noun_id] = parent_id

    def finish(self, noun_id: str, status: Status) -> None:
        """Close a run."""
        run = self._open.pop(noun_id, None)
        if run is not None:
            run.finish(exit_code=0 if status == "FINISHED" else 1)
