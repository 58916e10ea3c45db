"""An encoder with a classification head goes through the same loop as a model that writes."""

import numpy as np
import polars as pl
import pytest

from tunesmith import flow
from tunesmith.data.freeze import read_records
from tunesmith.entities import DatasetVersion, ModelVersion, Run
from tunesmith.errors import ConfigError
from tunesmith.evaluate.predict_split import SplitScores
from tunesmith.models.artifact import open_artifact
from tunesmith.project import Project
from tunesmith.testing import tiny_encoder_project

WITHOUT = "train.report_to=[]"


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    project = Project.load(tiny_encoder_project(tmp_path_factory.mktemp("encoder")), [WITHOUT])
    return project, flow.run(project)


def test_the_loop_makes_a_champion(looped):
    project, outcome = looped
    metrics = outcome.calibration.report["metrics"]["accuracy"]
    assert outcome.verdict.passed
    assert metrics["tuned"]["low"] > metrics["base"]["high"]
    assert outcome.run.strategy == "full"
    assert project.store.alias("tiny", "champion") == outcome.model_version.id


def test_the_report_says_what_untuned_is_and_why_no_forgetting(looped):
    project, outcome = looped
    report = outcome.calibration.report
    records = read_records(project.root, outcome.dataset)
    train, test = (records.filter(pl.col("split") == split)["label"].to_list() for split in ("train", "test"))
    most = max(project.config.task.names, key=train.count)
    assert report["metrics"]["accuracy"]["base"]["value"] == pytest.approx(test.count(most) / len(test))
    assert "forgetting" not in report
    assert [note.split()[0] for note in report["notes"]] == ["An", "Forgetting"]
    html = outcome.calibration.html.read_text()
    assert all(note in html for note in report["notes"])


def test_what_is_registered_answers_as_what_was_evaluated(looped):
    project, outcome = looped
    version = project.store.get(ModelVersion, outcome.model_version.id)
    engine = open_artifact(project.root / version.path, version.sha256).engine(project.root)
    kept = SplitScores.load(project.root / outcome.evaluation.path / "tuned-test.parquet")
    texts = pl.DataFrame({"id": kept.ids}).join(read_records(project.root, outcome.dataset), on="id", maintain_order="left")["text"].to_list()
    assert np.allclose(engine.score(texts), kept.logits, atol=1e-5)
    (answer,) = flow.predict(project, ["mortgage escrow lender refinance house foreclosure"])
    assert answer.label == "mortgage"
    assert set(answer.scores) == {"card", "loan", "mortgage"}


def test_run_again_nothing_is_done(looped):
    project, outcome = looped
    again = flow.run(Project.load(project.root, [WITHOUT]))
    assert (again.run.id, again.evaluation.id, again.model_version.id) == (outcome.run.id, outcome.evaluation.id, outcome.model_version.id)
    assert [len(project.store.all(kind)) for kind in (DatasetVersion, Run, ModelVersion)] == [1, 1, 1]


def test_what_needs_a_model_that_writes_is_refused_at_once(looped):
    project, outcome = looped
    keys = ["train.strategy=prefix", "train.lora_dropout=0.1", "evaluate.max_forgetting=0.1", "task.examples=[{text: a letter, label: card}]"]
    changed = project.changed(keys)
    with pytest.raises(ConfigError, match=r"encoder is an encoder with a classification head") as error:
        flow.plan(changed, outcome.dataset)
    assert error.value.message.splitlines()[1:] == [
        "train.strategy must be full or lora. Received: prefix.",
        "train.lora_dropout must be 0. Received: 0.1.",
        "task.examples must be empty, since it reads the text alone. Received: 1.",
        "evaluate.max_forgetting must be empty, since forgetting is measured on text that a model writes. Received: 0.1.",
    ]
    with pytest.raises(ConfigError, match=r"by train.strategy full or lora. Received: model.load_in_4bit, or train.strategy qlora"):
        flow.plan(project.changed(["train.strategy=qlora"]), outcome.dataset)
    with pytest.raises(ConfigError, match=r"needs a model that writes. Received: encoder, an encoder"):
        flow.starting_run(project)


def test_the_plan_says_that_nothing_is_written(looped, cli):
    project, _ = looped
    told = cli("plan", "-C", project.root)
    assert "stop token none: an encoder writes nothing" in told.out
