"""Where runs can be watched: MLflow, Weights & Biases, or both; a small seam with the same calls for each.

The store decides; a tracker is a projection of it. So one that cannot be opened says so before anything is trained, and one
that fails later is told once and left out: the run goes on, its figures are in its folder, and the next command goes on
telling. Nothing that looks like a secret reaches a tracker or a message: passwords in addresses, and values of environment
variables that are named like keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from tunesmith import plugins
from tunesmith.entities import DatasetVersion
from tunesmith.errors import BackendError, TunesmithError

Status = Literal["FINISHED", "KILLED", "FAILED"]

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?$", re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SHORTEST_SECRET = 6


class Tracker(Protocol):
    """One place where runs are shown. Runs are named by their ids; each call may be repeated after a kill."""

    def __init__(self, folder: Path, project: str) -> None:
        """Take the folder for what is kept locally, and the project's name.

        Raises:
            MissingExtraError: its package is not installed.
            BackendError: it cannot be reached.
        """

    def begin(self, noun_id: str, params: Mapping[str, Any], dataset: DatasetVersion | None) -> None:
        """Open a run, or go on with it, with its settings and what it learns from; begin to watch the machine."""

    def log_metrics(self, noun_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Show figures of one step."""

    def log_artifacts(self, noun_id: str, path: Path, name: str) -> None:
        """Copy a file or a folder to the run."""

    def set_parent(self, noun_id: str, parent_id: str) -> None:
        """Show a run as a child of another one; before its `begin` where that is still to come."""

    def finish(self, noun_id: str, status: Status) -> None:
        """Mark a run as ended."""


@runtime_checkable
class Registry(Protocol):
    """A tracker that registers models, too."""

    def register(self, name: str, noun_id: str, run_noun_id: str, folder: Path, tags: Mapping[str, str]) -> int:
        """Register a model version's folder once; return its number there."""

    def set_alias(self, name: str, alias: str, noun_id: str) -> None:
        """Point an alias to a registered model version."""


class Trackers:
    """All trackers of a project, told the same; none is fine.

    Args:
        opened: Name -> tracker.
        warn: Is told, once, that a tracker failed and is left out.
    """

    def __init__(self, opened: Mapping[str, Tracker], warn: Callable[[str], None]) -> None:
        self._trackers, self._warn = dict(opened), warn

    def __getitem__(self, name: str) -> Any:
        return self._trackers[name]

    def begin(self, noun_id: str, params: Mapping[str, Any], dataset: DatasetVersion | None = None) -> None:
        """Open a run everywhere.

        Raises:
            BackendError: a tracker cannot.
        """
        shown = {key: without_secrets(value) if isinstance(value, str) else value for key, value in params.items()}
        for name, tracker in self._trackers.items():
            try:
                tracker.begin(noun_id, shown, dataset)
            except TunesmithError:
                raise
            except Exception as error:
                others = ", ".join(other for other in self._trackers if other != name)
                raise BackendError(
                    f"{name} must be able to show a run before it starts. Received: {without_secrets(str(error))}", hint=f"Set train.report_to: [{others}]."
                ) from error

    def log_metrics(self, noun_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Show figures of one step."""
        self._tell(lambda tracker: tracker.log_metrics(noun_id, metrics, step))

    def log_artifacts(self, noun_id: str, path: Path, name: str) -> None:
        """Copy a file or a folder to a run."""
        self._tell(lambda tracker: tracker.log_artifacts(noun_id, path, name))

    def set_parent(self, noun_id: str, parent_id: str) -> None:
        """Show a run as a child of another one."""
        self._tell(lambda tracker: tracker.set_parent(noun_id, parent_id))

    def finish(self, noun_id: str, status: Status = "FINISHED") -> None:
        """Mark a run as ended."""
        self._tell(lambda tracker: tracker.finish(noun_id, status))

    def register(self, name: str, noun_id: str, run_noun_id: str, folder: Path, tags: Mapping[str, str]) -> None:
        """Register a model version's folder where models can be registered."""
        self._tell(lambda tracker: tracker.register(name, noun_id, run_noun_id, folder, tags) if isinstance(tracker, Registry) else None)

    def set_alias(self, name: str, alias: str, noun_id: str) -> None:
        """Point an alias to a registered model version."""
        self._tell(lambda tracker: tracker.set_alias(name, alias, noun_id) if isinstance(tracker, Registry) else None)

    def _tell(self, call: Callable[[Tracker], Any]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # of whatever kind: a library and a network are below
                del self._trackers[name]
                self._warn(f"{name} failed and is left out until the next command; nothing else is: {without_secrets(str(error))}")


def open_trackers(names: tuple[str, ...], folder: Path, project: str, warn: Callable[[str], None]) -> Trackers:
    """Open the trackers that `train.report_to` names.

    Raises:
        MissingExtraError: a tracker's package is not installed.
        BackendError: a tracker cannot be reached.
    """
    return Trackers({name: plugins.load("tracker", name)(folder, project) for name in names}, warn)


def without_secrets(text: str) -> str:
    """Return a text without passwords in addresses and without values of environment variables that are named like secrets."""
    secrets = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _PASSWORD_IN_ADDRESS.sub("***", text)
