"""The command line: every command says what comes next, speaks JSON, and ends with its exit code."""

import errno
import json

import pytest

from tunesmith import flow
from tunesmith.entities import DatasetVersion, ModelVersion

WITHOUT = ("--set", "train.report_to=[]")


def test_every_stage_is_a_command_of_its_own_and_says_what_comes_next(tiny, cli):
    chain = ["prepare", "plan", "train", "evaluate", "calibrate", "register"]
    for command, following in zip(chain, [*chain[1:], "serve"], strict=True):
        result = cli(command, "-C", tiny.root, *WITHOUT)
        assert result.code == 0, result.err
        assert result.out.splitlines()[-1] == f"Next: tunesmith {following}"


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (("prepare",), {"id", "rows", "dropped", "sha256"}),
        (("plan",), {"rows", "tokens", "peak_memory_bytes", "trainable_share"}),
        (("train",), {"id", "train_loss", "weights_sha256"}),
        (("evaluate",), {"id", "n_test", "accuracy"}),
        (("calibrate",), {"metrics", "calibration", "provenance"}),
        (("register",), {"model_version", "verdict"}),
        (("run",), {"dataset_version", "run", "evaluation", "model_version", "verdict", "metrics", "paired", "report"}),
        (("predict", "student tuition"), {"prediction_id", "label", "confidence"}),
        (("config", "check"), {"project", "task", "data", "train"}),
    ],
)
def test_json_is_one_document_and_nothing_else(tiny, cli, command, keys):
    options = () if command[0] == "predict" else WITHOUT
    result = cli(*command, "-C", tiny.root, *options, "--json")
    assert result.code == 0, result.err
    assert keys <= result.json.keys()
    assert result.err == ""


def test_the_commands_that_look_speak_json_too(tiny, cli, tmp_path):
    prediction = cli("predict", "student tuition", "-C", tiny.root, "--json").json
    (version,) = cli("data", "log", "-C", tiny.root, "--json").json
    assert cli("review", "next", "-C", tiny.root, "--json").json["id"] == prediction["prediction_id"]
    diff = cli("data", "diff", version["id"], version["id"], "-C", tiny.root, "--json").json
    assert (diff["added"], diff["removed"], diff["changed"]) == ([], [], [])
    trace = cli("lineage", prediction["prediction_id"], "-C", tiny.root, "--json").json
    assert [node["id"][:3] for node in trace["ancestors"]] == ["prd", "dep", "mdl", "run", "dsv", "evl"]
    assert len(trace["nearest_records"]) == 3
    assert cli("config", "schema").json["title"] == "Config"
    assert {"key", "type", "default", "description"} == cli("config", "explain", "train", "--json").json[0].keys()
    assert cli("init", tmp_path / "new", "--json").json == {"file": str(tmp_path / "new" / "tunesmith.yaml")}


def test_the_outcome_of_a_run_is_told_with_the_gate_and_the_classical_baseline(tiny, cli):
    result = cli("run", "-C", tiny.root, *WITHOUT)
    assert result.code == 0
    for words in (
        "is trained",
        "round-trips",
        "predicted",
        "measured",
        "Accuracy",
        "classical baseline",
        "Gate: passed, better than the base model",
        "Report: ",
    ):
        assert words in result.out
    assert "train        done before" in result.err
    assert "Warning" not in result.err


def test_a_refused_gate_exits_4_and_says_why(tiny, cli):
    # Another registered model asks the gate anew; level with the classical baseline is not enough for it.
    demanding = ("--set", "registry.name=other", "--set", "registry.require_beats_classical=true")
    for _ in range(2):
        result = cli("run", "-C", tiny.root, *WITHOUT, *demanding, "--json")
        assert result.code == 4
        assert not result.json["verdict"]["passed"]
        assert "registry.require_beats_classical is set and it is level with the classical baseline" in result.json["verdict"]["reason"]
    assert cli("register", "-C", tiny.root, *WITHOUT, *demanding).code == 4
    assert tiny.store.alias("other", "champion") is None
    assert [version.name for version in tiny.store.all(ModelVersion)] == ["tiny", "other"]


# predict


def test_a_file_is_answered_in_its_order_with_its_ids(tiny, cli, tmp_path):
    texts = ["student tuition servicer", "a line\u2028separator in a credit card charge", "escrow house", "student tuition servicer"]
    rows = [{"id": name, "text": text, "more": 1} for name, text in zip(("b", "a", 7, "b"), texts, strict=True)]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    result = cli("predict", "--file", source, "--out", out, "-C", tiny.root)
    assert result.code == 0, result.err
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["b", "a", 7, "b"]
    assert all(list(answer) == ["id", "prediction_id", "label", "confidence", "accepted"] for answer in answers)
    assert [answer["label"] for answer in answers] == [found.label for found in flow.predict(tiny, texts)]
    assert len({answer["prediction_id"] for answer in answers}) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "text": "a"', ":2:22: not valid JSON: "),
        ('{"id": 1}', ":2: a row needs `id` and a `text` that is not empty. Received: "),
        ('{"id": 1, "text": " "}', ":2: a row needs `id` and a `text` that is not empty."),
        ('{"id": 1, "text": "\\ud800"}', "A text to predict must be UTF-8. Received: half of a surrogate pair at position 2."),
    ],
)
def test_a_file_with_a_bad_row_is_refused_whole(tiny, cli, tmp_path, line, message):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 0, "text": "fine"}\n' + line + "\n")
    result = cli("predict", "--file", source, "--out", out, "-C", tiny.root)
    assert result.code == 5
    assert message in result.err
    assert not out.exists()
    assert tiny.store.next_for_review() is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "predict takes one text, or --file and --out."),
        (("text", "--file", "x"), 2, "predict takes one text, or --file and --out."),
        (("--file", "x"), 2, "predict takes one text, or --file and --out."),
        (("--file", "nowhere.jsonl", "--out", "y"), 3, "--file must name a file. Received: nowhere.jsonl"),
        (("  ",), 5, "A text to predict must not be empty."),
    ],
)
def test_predict_without_something_to_answer(tiny, cli, arguments, code, message):
    result = cli("predict", *arguments, "-C", tiny.root)
    assert result.code == code
    assert message in result.err


# review


def test_judging_in_the_terminal(tiny, cli, monkeypatch):
    answers = flow.predict(tiny, ["tuition payment", "house lender", "purchase fraud"])
    queue = sorted(answers, key=lambda answer: (answer.confidence, answer.id))
    typed = iter(["?", "1", "s", "a"])
    monkeypatch.setattr("typer.prompt", lambda *_, **__: next(typed))
    result = cli("review", "next", "-C", tiny.root, "--reviewer", "ann")
    assert result.code == 0, result.err
    assert "Type a, s, q or a number from 1 to 3. Received: '?'." in result.out
    assert "2 judged. Nothing is left to judge." in result.out
    assert result.out.splitlines()[-1] == "Next: tunesmith renew"
    said = [(each.prediction_id, each.value, each.actor) for each in tiny.store.feedback()]
    assert said == [(queue[0].id, "card", "ann"), (queue[2].id, True, "ann")]


@pytest.mark.parametrize(("option", "kind", "value"), [(("--accept",), "boolean", True), (("--label", "loan"), "demonstration", "loan")])
def test_judging_without_being_asked(tiny, cli, option, kind, value):
    flow.predict(tiny, ["a", "b"])
    assert cli("review", "next", "-C", tiny.root, *option, "--json").json == {"judged": 1}
    assert [(said.kind, said.value) for said in tiny.store.feedback()] == [(kind, value)]


def test_skipping_and_wrong_labels(tiny, cli):
    flow.predict(tiny, ["a"])
    wrong = cli("review", "next", "-C", tiny.root, "--label", "s")
    assert wrong.code == 5
    assert "Received: 's'." in wrong.err
    assert cli("review", "next", "-C", tiny.root, "--accept", "--skip").code == 2
    assert cli("review", "next", "-C", tiny.root, "--skip", "--json").json == {"judged": 0}
    assert tiny.store.next_for_review() is None
    assert tiny.store.feedback() == []


def test_renew_without_judgements_is_refused(tiny, cli):
    result = cli("renew", "-C", tiny.root, *WITHOUT)
    assert result.code == 4
    assert "Next: tunesmith review next" in result.err


# What goes wrong


def test_errors_of_users_have_a_code_a_next_command_and_no_traceback(tmp_path, cli, finished):
    for arguments, code in (
        (("run", "-C", tmp_path), 3),
        (("lineage", "prd_0", "-C", finished.project.root), 3),
        (("data", "diff", "dsv_0", "dsv_1", "-C", finished.project.root), 3),
        (("register", "--run", "run_0", "-C", finished.project.root), 3),
        (("config", "explain", "trian"), 3),
        (("config", "check", "-C", finished.project.root, "--set", "train.lora_r=0"), 2),
        (("run", "--no-such-option"), 2),
        (("no-such-command",), 2),
    ):
        result = cli(*arguments)
        assert (arguments, result.code) == (arguments, code)
        assert "Traceback" not in result.err
        assert result.err.splitlines()[-1].startswith("Next: ")


def test_errors_speak_json_where_asked(tmp_path, cli):
    error = cli("run", "-C", tmp_path, "--json").json["error"]
    assert (error["kind"], error["exit_code"], error["hint"]) == ("NotFoundError", 3, "tunesmith init DIR")


def test_a_bug_keeps_its_traceback_and_exits_70(tiny, cli, monkeypatch):
    monkeypatch.setattr("tunesmith.flow.prepare", lambda *_, **__: 1 / 0)
    result = cli("prepare", "-C", tiny.root)
    assert result.code == 70
    assert "ZeroDivisionError" in result.err
    assert "This is a bug in Tunesmith." in result.err


def test_a_full_disk_is_no_bug(tiny, cli, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "records.parquet")

    monkeypatch.setattr("tunesmith.flow.prepare", full)
    result = cli("prepare", "-C", tiny.root)
    assert result.code == 6
    assert "No space left on device: 'records.parquet'" in result.err
    assert "Traceback" not in result.err


def test_control_c_says_that_the_command_continues(tiny, cli, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.flow.prepare", interrupt)
    result = cli("prepare", "-C", tiny.root)
    assert result.code == 130
    assert "Stopped. The same command continues where it was." in result.err


def test_no_command_shows_the_help(cli):
    result = cli()
    assert result.code == 2
    assert "Usage: tunesmith" in result.out + result.err
    assert not result.err.startswith("Error")


def test_init_writes_once(tmp_path, cli):
    first = cli("init", tmp_path / "my letters")
    assert first.code == 0
    assert first.out.splitlines()[-1] == f"Next: tunesmith config check -C {tmp_path / 'my letters'}"
    assert cli("config", "check", "-C", tmp_path / "my letters").code == 0
    written = (tmp_path / "my letters" / "tunesmith.yaml").read_bytes()
    assert cli("init", tmp_path / "my letters").code == 2
    assert (tmp_path / "my letters" / "tunesmith.yaml").read_bytes() == written


def test_prepare_fresh_starts_a_dataset_without_a_parent(tiny, cli):
    with (tiny.root / "data" / "records.csv").open("a") as file:
        file.write("a whole new letter about a student loan,loan\n")
    result = cli("prepare", "--fresh", "-C", tiny.root, "--json")
    assert result.json["parent"] is None
    assert len(tiny.store.all(DatasetVersion)) == 2
