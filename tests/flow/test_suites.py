"""Tasks of lm-evaluation-harness on the tiny model: own ones with local data, no network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tunesmith import flow
from tunesmith.entities import Run
from tunesmith.errors import ConfigError, DataError, MissingExtraError, NotFoundError
from tunesmith.evaluate.suites import compare_suites
from tunesmith.flow.scoring import engine
from tunesmith.flow.suites import suites_of
from tunesmith.project import Project
from tunesmith.testing import tiny_encoder_project

pytest.importorskip("lm_eval")

EXAMPLE = Path(__file__).parents[2] / "examples" / "suites"
ROWS = [json.loads(line) for line in (EXAMPLE / "office.jsonl").read_text(encoding="utf-8").splitlines()]
TASKS = ["office_words", "office_prose", "office_answers"]


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    root = shutil.copytree(finished.project.root, tmp_path_factory.mktemp("suites") / "tiny")
    shutil.copytree(EXAMPLE, root / "tasks")
    return Project.load(root, ["train.report_to=[]", "evaluate.suites.path=tasks"])


@pytest.fixture(scope="module")
def evaluation(project, finished):
    return flow.evaluate(project, project.store.get(Run, finished.outcome.run.id))


@pytest.fixture(scope="module")
def done(project, evaluation):
    return {of_task["tuned"]["task"]: of_task for of_task in flow.run_suites(project, evaluation, TASKS)}


def test_the_figures_are_those_of_the_models_that_answer(project, evaluation, done):
    """What the harness makes of its requests is what our own pass says of the same texts."""
    for who, run in (("base", None), ("tuned", project.store.get(Run, evaluation.run_id))):
        own = engine(project, run)
        pairs = [(row["question"], f" {choice}") for row in ROWS for choice in row["choices"]]
        nats = own.log_probabilities(*map(list, zip(*pairs, strict=True)))[:, 0].reshape(len(ROWS), -1)
        right = nats.argmax(axis=1) == [row["answer"] for row in ROWS]
        figures = done["office_words"][who]["rows"]["office_words"]["metrics"]
        assert figures["acc"]["value"] == pytest.approx(right.mean())
        assert figures["acc"]["rows"] == [[float(hit), 1.0] for hit in right]
        assert figures["acc"]["stderr"] == pytest.approx(right.std(ddof=1) / np.sqrt(len(right)))
        texts = [row["text"] for row in ROWS]
        prose = own.log_probabilities([project.prompt.tokenizer.bos_token] * len(texts), texts)[:, 0]
        bits = -prose.sum() / np.log(2) / sum(len(text.encode()) for text in texts)
        assert done["office_prose"][who]["rows"]["office_prose"]["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-4)


def test_the_report_shows_them_with_intervals_and_keeps_them(project, evaluation, done):
    report = flow.calibrate(project, evaluation).report
    rows = {(row["task"], row["metric"]): row for row in report["suites"]}
    assert set(rows) == {("office_words", "acc"), ("office_words", "acc_norm"), ("office_prose", "bits_per_byte"), ("office_answers", "exact_match")}
    words = rows["office_words", "acc"]
    assert words["n"] == 20
    assert 0 <= words["tuned"]["low"] <= words["tuned"]["value"] <= words["tuned"]["high"] <= 1
    assert words["paired"]["difference"] == pytest.approx(words["tuned"]["value"] - words["base"]["value"])
    assert rows["office_answers", "exact_match"]["tuned"]["high"] > 0  # no certainty from twenty wrong answers
    prose = rows["office_prose", "bits_per_byte"]
    assert prose["higher_is_better"] is False
    assert prose["tuned"]["low"] < prose["tuned"]["value"] < prose["tuned"]["high"]
    assert prose["paired"]["low"] <= prose["paired"]["difference"] == pytest.approx(prose["tuned"]["value"] - prose["base"]["value"])
    page = (project.root / evaluation.path / "report.html").read_text(encoding="utf-8")
    assert "office_words" in page
    assert "What else can it do?" in page
    again = flow.calibrate(project, flow.evaluate(project, project.store.get(Run, evaluation.run_id)))
    assert again.report["suites"] == report["suites"]


def test_what_was_done_is_not_done_again_and_a_changed_file_is(project, evaluation, done, monkeypatch):
    from tunesmith.models import harness

    made = []
    monkeypatch.setattr(harness, "HarnessModel", lambda *args, **kwargs: made.append(args) or pytest.fail("a model was loaded"))
    flow.run_suites(project, evaluation, TASKS)
    assert made == []
    monkeypatch.undo()
    data = project.root / "tasks" / "office.jsonl"
    kept = data.read_text(encoding="utf-8")
    data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[:10]), encoding="utf-8")
    try:
        changed = {each["tuned"]["task"]: each for each in flow.run_suites(project, evaluation, ["office_words"])}
    finally:
        data.write_text(kept, encoding="utf-8")
    assert changed["office_words"]["tuned"]["rows"]["office_words"]["n"] == 10
    flow.run_suites(project, evaluation, ["office_words"])
    assert suites_of(project, evaluation)[-1]["tuned"]["rows"]["office_words"]["n"] == 20


def test_a_killed_suite_goes_on(project, evaluation, monkeypatch):
    from tunesmith.models import harness

    fewer = project.changed(["evaluate.suites.limit=16", "evaluate.suites.batch_size=1"])  # one part is sixteen requests
    asked, below = [], harness.HFLM.loglikelihood

    def counted(self, requests, disable_tqdm=False):
        asked.append(len(requests))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return below(self, requests, disable_tqdm=disable_tqdm)

    monkeypatch.setattr(harness.HFLM, "loglikelihood", counted)
    with pytest.raises(KeyboardInterrupt):
        flow.run_suites(fewer, evaluation, ["office_words"])
    assert asked == [16, 16, 16]
    flow.run_suites(fewer, evaluation, ["office_words"])
    assert sum(asked) == 16 + 2 * 16 * 4  # base and tuned, four choices each, and the part that was lost
    row = compare_suites(suites_of(fewer, evaluation))[0]
    assert {each["limit"] for each in compare_suites(suites_of(fewer, evaluation)) if each["task"] == "office_words"} == {16}
    assert not list((project.state / "scores").glob("*.jsonl"))
    assert row["harness"].startswith("lm-eval ")


def test_the_command_shows_both_models(cli, project, done):
    result = cli(
        "evaluate", "-C", project.root, "--suite", "office_words, office_answers", "--set", "evaluate.suites.path=tasks", "--set", "train.report_to=[]"
    )
    assert result.code == 0, result.err
    assert "office_words" in result.out
    assert "report.html" in result.out


def test_a_task_that_does_not_exist_names_the_nearest(project, evaluation):
    with pytest.raises(NotFoundError, match="No task 'office_wrds'") as raised:
        flow.run_suites(project, evaluation, ["office_wrds"])
    assert raised.value.hint == "tunesmith evaluate --suite office_words"
    with pytest.raises(NotFoundError, match=r"evaluate\.suites\.path must be a folder"):
        flow.run_suites(project.changed(["evaluate.suites.path=nowhere"]), evaluation, ["office_words"])


def test_a_task_without_its_data_is_told(project, evaluation):
    (project.root / "tasks" / "lost.yaml").write_text(
        (EXAMPLE / "office_words.yaml").read_text(encoding="utf-8").replace("office_words", "lost").replace("office.jsonl", "lost.jsonl"), encoding="utf-8"
    )
    with pytest.raises(DataError, match="The data of lost must be readable"):
        flow.run_suites(project, evaluation, ["lost"])


def test_without_the_harness_the_extra_is_named(project, evaluation, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="lm_eval") as raised:
        flow.run_suites(project, evaluation, ["office_words"])
    assert raised.value.hint == "pip install 'tunesmith[suites]'"


def test_an_encoder_has_no_suites(tmp_path):
    project = Project.load(tiny_encoder_project(tmp_path / "tiny"), ["train.report_to=[]"])
    with pytest.raises(ConfigError, match="Suites need a model that writes"):
        flow.run_suites(project, None, ["office_words"])


def figure(value, stderr, values=()):
    return {"value": value, "stderr": stderr, "higher_is_better": True, "aggregate": "mean" if values else None, "rows": [[value, 1.0] for value in values]}


def of_task(base, tuned, name="t"):
    def made(given):
        return {"task": name, "harness": "lm-eval 0", "limit": None, "rows": {name: {"n": 40, "num_fewshot": 0, "version": "1", "metrics": {"acc": given}}}}

    return {"base": made(base), "tuned": made(tuned)}


def test_intervals_and_paired_differences_by_hand():
    hits, misses = [1.0] * 30 + [0.0] * 10, [0.0] * 40
    rows = compare_suites([of_task(figure(0.0, 0.0, misses), figure(0.75, 0.07, hits))], n_samples=300)
    assert rows[0]["tuned"]["low"] == pytest.approx(0.75 - 1.959964 * 0.07)
    assert rows[0]["base"]["low"] == 0
    assert 0.05 < rows[0]["base"]["high"] < 0.12  # Wilson
    assert rows[0]["paired"]["difference"] == 0.75
    assert rows[0]["paired"]["p_value"] < 1e-6
    two = compare_suites([of_task(figure(0.0, 0.0, misses), figure(0.1, 0.05, [1.0] * 4 + [0.0] * 36), name) for name in ("a", "b")], n_samples=300)
    assert two[0]["paired"]["p_value"] == pytest.approx(min(1, 2 * 2 * 0.5**4))  # exact McNemar, twice by Holm
    none = compare_suites([of_task(figure(3.0, None), figure(2.0, 0.1))])
    assert none[0]["base"]["low"] is None
    assert none[0]["paired"] is None
