"""Corrections as they came make a run that the usual arrows work on; nothing held out is learnt from."""

import json
import sys

import nouns
import polars as pl
import pytest

from tunesmith import flow
from tunesmith.data.freeze import read_records
from tunesmith.entities import Evaluation, ModelVersion, Run
from tunesmith.errors import ConfigError, DataError, MissingExtraError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.lineage import walk
from tunesmith.project import Project
from tunesmith.testing import tiny_rows

HELD_BACK = tiny_rows(300)[240:]  # the project has the first 240
QUICK = ("train.report_to=[]", "prefer.max_steps=3", "evaluate.forgetting=false")


def load(root, *settings):
    return Project.load(root, [*QUICK, *settings])


def wrong(label):
    return nouns.LABELS[(nouns.LABELS.index(label) + 1) % 3]


def correct(project, text, answered, kind, value):
    made = nouns.prediction(text, answered)
    project.store.put(made)
    return project.store.put_feedback(nouns.judgement(made.id, kind, value))


@pytest.fixture
def corrected(tiny):
    """A project whose champion was corrected on ten new texts, and on every text that is held out."""
    for text, label in HELD_BACK[:10]:
        correct(tiny, text, wrong(label), "demonstration", label)
    records = read_records(tiny.root, flow.newest_dataset(tiny)).filter(pl.col("split") != "train")
    for text, label in records.select("text", "label").iter_rows():
        correct(tiny, f"  {text.replace(' ', '  ')}", wrong(label), "demonstration", label)
    return tiny


def test_no_text_that_is_held_out_is_learnt_from(corrected):
    project = load(corrected.root)
    held_out = read_records(project.root, flow.newest_dataset(project)).filter(pl.col("split") != "train")
    found = flow.preferences(project, flow.starting_run(project))
    assert {row.text for row in found.rows} == {text for text, _ in HELD_BACK[:10]}
    assert found.dropped == {"text of a held-out split": len(held_out)}
    assert set(held_out["split"]) == {"validation", "calibration", "test"}
    assert f"10 pairs, {len(held_out)} dropped: text of a held-out split" == flow.preferences_in_words(found)


def test_the_usual_arrows_work_on_what_came_out(corrected, cli):
    champion = corrected.store.get(ModelVersion, corrected.store.alias("tiny", "champion"))
    settings = [part for each in QUICK for part in ("--set", each)]
    first = cli("prefer", "-C", corrected.root, *settings)
    assert first.code == 0
    run = corrected.store.all(Run)[-1]
    assert f"Next: tunesmith register --run {run.id}" in first.out
    assert f"{run.id}: dpo from {champion.run_id} on 10 pairs" in first.out
    assert (run.strategy, run.parent, run.steps) == ("dpo", champion.run_id, 3)
    parent = corrected.store.get(Run, champion.run_id)
    assert run.dataset_version_id == parent.dataset_version_id
    weights = corrected.root / run.path / "weights" / "adapter_model.safetensors"
    assert run.weights_sha256 == file_sha256(weights) != parent.weights_sha256

    again = cli("prefer", "-C", corrected.root, *settings, "--json")
    assert (again.json["run"]["id"], again.json["rows"]) == (run.id, 10)
    assert {node.id for node in walk(corrected.store, corrected.root, run.feedback[0]).made} == {run.id}
    assert {parent.id, *run.feedback} <= {node.id for node in walk(corrected.store, corrected.root, run.id).nodes}

    judged = cli("register", "--run", run.id, "-C", corrected.root, *settings, "--json")
    assert judged.code in (0, 4)  # three steps may or may not be better
    evaluation = corrected.store.all(Evaluation)[-1]
    report = json.loads((corrected.root / evaluation.path / "report.json").read_text())
    assert (evaluation.run_id, report["training"]["settings"]["method"]) == (run.id, "dpo")
    if "verdict" in judged.json:
        assert judged.json["verdict"]["opponent"] == champion.id
        assert judged.json["model_version"]["run_id"] == run.id
    else:
        assert "Candidates are chosen on validation" in judged.json["error"]["message"]


def test_booleans_teach_kto(corrected):
    text, label = HELD_BACK[20]
    correct(corrected, text, wrong(label), "boolean", False)
    correct(corrected, HELD_BACK[21][0], HELD_BACK[21][1], "boolean", True)
    project = load(corrected.root, "prefer.method=kto")
    found = flow.preferences(project, flow.starting_run(project))
    assert (sum(row.is_right for row in found.rows), len(found.rows)) == (11, 22)
    run = flow.prefer(project)
    assert (run.strategy, run.steps) == ("kto", 3)
    assert run.id != flow.prefer(load(corrected.root, "prefer.method=kto", "prefer.beta=0.2", "prefer.max_steps=1")).id


def test_a_file_of_pairs_teaches_too(tiny):
    rows = [{"prompt": text, "chosen": label, "rejected": wrong(label)} for text, label in HELD_BACK[:4]]
    rows += [{"prompt": "a", "chosen": "card", "rejected": "mortgages"}, {"prompt": "b", "chosen": "card", "rejected": "card"}]
    (tiny.root / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    project = load(tiny.root, "prefer.path=pairs.jsonl")
    found = flow.preferences(project, flow.starting_run(project))
    assert len(found.rows) == 4
    assert found.dropped == {"answer is none of the labels": 1, "both answers are the same": 1}
    kto = load(tiny.root, "prefer.path=pairs.jsonl", "prefer.method=kto")
    assert len(flow.preferences(kto, flow.starting_run(kto)).rows) == 11


def test_without_corrections_the_error_says_where_they_come_from(tiny):
    with pytest.raises(DataError, match=r"dpo learns from a text with a right and a wrong answer: .* at least one\. Received: none") as raised:
        flow.prefer(load(tiny.root))
    assert "tunesmith review next, or POST /v1/feedback" in raised.value.hint
    correct(tiny, HELD_BACK[0][0], HELD_BACK[0][1], "demonstration", HELD_BACK[0][1])  # it was right
    with pytest.raises(DataError, match="Received: none"):
        flow.prefer(load(tiny.root))
    with pytest.raises(NotFoundError, match=r"prefer\.path must name a file"):
        flow.prefer(load(tiny.root, "prefer.path=none.csv"))


def test_what_to_go_on_from_must_fit(tiny):
    with pytest.raises(NotFoundError, match="No finished run run_0"):
        flow.starting_run(load(tiny.root), "run_0")
    with pytest.raises(NotFoundError, match="No model version of other is champion yet"):
        flow.starting_run(load(tiny.root, "registry.name=other"))
    with pytest.raises(ConfigError, match=r"was trained with train\.strategy: lora, .* Received: full"):
        flow.starting_run(load(tiny.root, "train.strategy=full"))


def test_a_missing_trl_names_the_extra(corrected, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "tunesmith.train.preference", raising=False)
    with pytest.raises(MissingExtraError) as raised:
        flow.prefer(load(corrected.root))
    assert raised.value.hint == "pip install 'tunesmith[preference]'"
