"""MLflow as a projection of the store: runs, metrics, registered models and aliases for people who live there.

Everything is found by the tag `tunesmith.id` before it is made, so each call can be repeated: what a crash left undone is
done by the next command. SQLite and a local folder by default; `MLFLOW_TRACKING_URI` points to a server.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.entities import DatasetVersion
from tunesmith.errors import BackendError, MissingExtraError
from tunesmith.tracking import Status, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_ID_TAG = "tunesmith.id"


class MlflowTracker:
    """One MLflow tracking store and registry.

    Args:
        folder: Where mlflow.db and the artifacts go when no server is set.
        experiment: Name of the MLflow experiment.

    Raises:
        MissingExtraError: MLflow is not installed.
        BackendError: the tracking store cannot be reached.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ModuleNotFoundError:
            raise MissingExtraError("mlflow", "train") from None
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        try:
            self._client: MlflowClient = MlflowClient(self.uri)
            found = self._client.get_experiment_by_name(experiment)
            artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "mlartifacts").as_uri()
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=artifacts)
        except MlflowException as error:
            told = without_secrets(f"MLflow at {self.uri} cannot be used: {error}")
            raise BackendError(told, hint="Set train.report_to: [] to work without MLflow.") from error
        self._runs: dict[str, str] = {}
        self._watching: dict[str, SystemMetricsMonitor] = {}

    def run(self, noun_id: str) -> str:
        """Return the MLflow run id of a run, creating it where missing."""
        if noun_id not in self._runs:
            self._runs[noun_id] = self._found_or_made(noun_id)
        return self._runs[noun_id]

    def _found_or_made(self, noun_id: str) -> str:
        found = self._client.search_runs([self._experiment], f"tags.`{_ID_TAG}` = '{noun_id}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        return str(self._client.create_run(self._experiment, tags={_ID_TAG: noun_id}, run_name=noun_id).info.run_id)

    def begin(self, noun_id: str, params: Mapping[str, Any], dataset: DatasetVersion | None) -> None:
        """Open a run: its settings once, the dataset version as its input, and every 10 seconds what the machine does."""
        from mlflow.entities import Param
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        run_id = self.run(noun_id)
        known = self._client.get_run(run_id)
        self._client.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in params.items() if key not in known.data.params])
        if dataset and not known.inputs.dataset_inputs:
            self._client.log_inputs(run_id, datasets=[_dataset_input(dataset)])
        if noun_id not in self._watching:
            self._client.update_run(run_id, status="RUNNING")  # one that was ended before goes on
            self._watching[noun_id] = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)
            self._watching[noun_id].start()

    def log_metrics(self, noun_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Write figures of one step."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.run(noun_id), metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def log_artifacts(self, noun_id: str, path: Path, name: str) -> None:
        """Copy a file or a folder into the run's artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.run(noun_id), str(path), name)
        else:
            self._client.log_artifact(self.run(noun_id), str(path), name)

    def set_parent(self, noun_id: str, parent_id: str) -> None:
        """Show a run as a child of another one."""
        self._client.set_tag(self.run(noun_id), "mlflow.parentRunId", self.run(parent_id))

    def finish(self, noun_id: str, status: Status) -> None:
        """Mark a run as ended, and watch the machine no more."""
        if noun_id in self._watching:
            self._watching.pop(noun_id).finish()
        self._client.set_terminated(self.run(noun_id), status=status)

    def register(self, name: str, noun_id: str, run_noun_id: str, folder: Path, tags: Mapping[str, str]) -> int:
        """Register a model version's folder once.

        Returns:
            MLflow's version number.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._version(name, noun_id)
        if found is not None:
            return found
        run_id = self.run(run_noun_id)
        self._client.log_artifacts(run_id, str(folder), f"models/{noun_id}")
        source = f"{self._client.get_run(run_id).info.artifact_uri}/models/{noun_id}"
        made = self._client.create_model_version(name, source, run_id, tags={_ID_TAG: noun_id, **tags})
        return int(made.version)

    def _version(self, name: str, noun_id: str) -> int | None:
        versions = self._client.search_model_versions(f"name = '{name}'")
        return next((int(version.version) for version in versions if version.tags.get(_ID_TAG) == noun_id), None)

    def set_alias(self, name: str, alias: str, noun_id: str) -> None:
        """Point an alias to a registered model version; does nothing when it points there already."""
        version = self._version(name, noun_id)
        if version is not None:
            self._client.set_registered_model_alias(name, alias, str(version))

    def alias(self, name: str, alias: str) -> str | None:
        """Return the id of the model version that an alias points to in MLflow, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(name, alias).tags.get(_ID_TAG))
        except MlflowException:
            return None


def _dataset_input(dataset: DatasetVersion) -> DatasetInput:
    """Describe a dataset version by id, digest, place and counts; nothing is read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    described = Dataset(
        name=dataset.id,
        digest=dataset.sha256[:36],  # as much as MLflow takes
        source_type="local",
        source=json.dumps({"uri": f"{dataset.path}/records.parquet"}),
        profile=json.dumps({"rows": dataset.rows, "dropped": dataset.dropped, "labels": list(dataset.labels)}),
    )
    return DatasetInput(described, tags=[InputTag("mlflow.data.context", "training")])
