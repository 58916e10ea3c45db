"""MLflow shows what the store decided, however often it is told."""

import shutil

import pytest
from mlflow import MlflowClient

from tunesmith import flow
from tunesmith.errors import BackendError
from tunesmith.tracking.mlflow import MlflowTracker


@pytest.fixture(scope="module")
def client(finished):
    return MlflowClient(finished.project.trackers["mlflow"].uri)


def test_the_run_is_there_with_its_settings_losses_and_scores(finished, client):
    run = finished.outcome.run
    (found,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["tunesmith.id"] == run.id
    assert found.data.params["train.learning_rate"] == "0.01"
    assert found.data.params["dataset_version"] == run.dataset_version_id
    assert found.data.metrics["test/accuracy"] == pytest.approx(finished.outcome.evaluation.accuracy)
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert losses[-1].step == run.steps


def test_the_registered_version_and_the_alias_follow_the_store(finished, client):
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["tunesmith.id"] == finished.project.store.alias("tiny", "champion") == finished.outcome.model_version.id
    artifacts = client.list_artifacts(version.run_id, f"models/{finished.outcome.model_version.id}")
    assert {"weights", "calibrator.json", "chat_template.jinja", "manifest.json", "model.json"} <= {each.path.rsplit("/")[-1] for each in artifacts}


def test_telling_it_again_changes_nothing(finished, client):
    before = [(version.version, version.last_updated_timestamp) for version in client.search_model_versions("name = 'tiny'")]
    flow.register(finished.project, finished.outcome.run, finished.outcome.evaluation)
    assert [(version.version, version.last_updated_timestamp) for version in client.search_model_versions("name = 'tiny'")] == before


def test_what_a_kill_left_undone_is_done_by_the_next_command(finished, tmp_path):
    """A store that is ahead of an empty MLflow: as after a kill between the two, or a lost mlflow.db."""
    from tunesmith.project import Project

    root = shutil.copytree(finished.project.root, tmp_path / "tiny")
    (root / ".tunesmith" / "mlflow.db").unlink()
    project = Project.load(root)
    flow.run(project)
    assert project.trackers["mlflow"].alias("tiny", "champion") == finished.outcome.model_version.id


def test_an_alias_that_nobody_set(finished):
    assert finished.project.trackers["mlflow"].alias("tiny", "challenger") is None


def test_a_server_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(BackendError, match="MLflow at nonsense://nowhere cannot be used"):
        MlflowTracker(tmp_path, "letters")
