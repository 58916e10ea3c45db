import json
import threading

import numpy as np
import pytest
from judge_stand_in import judge_service, said, sentence_of
from pydantic import ValidationError

from tunesmith.errors import BackendError, ConfigError, NotFoundError
from tunesmith.evaluate import judge as module
from tunesmith.evaluate.compare_written import compare_written
from tunesmith.evaluate.groundedness import Lexical, sentences_of
from tunesmith.evaluate.intervals import wilson
from tunesmith.evaluate.judge import INSTRUCTION, EndpointJudge
from tunesmith.evaluate.report import metric_names, render
from tunesmith.evaluate.settings import JudgeSection
from tunesmith.evaluate.written import count_chat

SOURCE = "The loan of Ann Lee is due in May."
PAIRS = [(SOURCE, f"Sentence number {n} is about the loan.") for n in range(6)]


def section(url, **changes):
    return JudgeSection(kind="endpoint", base_url=url, **{"model": "big", "timeout_seconds": 5, "concurrency": 3} | changes)


def made(url, folder, **changes):
    return EndpointJudge(section(url, **changes), folder, pause=0.01)


def odd_is_supported(request, _):
    return said("yes" if int(sentence_of(request).split()[2]) % 2 else " No.\n")


def test_it_asks_once_about_each_sentence_with_a_fixed_prompt_at_temperature_0(tmp_path):
    with judge_service(odd_is_supported) as (url, seen):
        judge, told = made(url, tmp_path), []
        judge.ask([*PAIRS, PAIRS[0]], lambda done, total: told.append((done, total)))
        assert judge.supports(SOURCE, [sentence for _, sentence in PAIRS]) == [False, True] * 3
        assert told == [(n, 6) for n in range(1, 7)]
        assert len(seen) == 6
        again = made(url, tmp_path)  # another process
        again.ask(PAIRS)
        assert again.supports(*[PAIRS[1][0], [PAIRS[1][1]]]) == [True]
        assert len(seen) == 6
    headers, request = seen[0]
    assert request["temperature"] == 0
    assert request["model"] == "big"
    assert request["messages"][0] == {"role": "system", "content": INSTRUCTION}
    assert SOURCE in request["messages"][1]["content"]
    assert "Authorization" not in headers


def test_another_model_address_or_prompt_is_another_judge(tmp_path, monkeypatch):
    files = {made("http://x/v1", tmp_path).file, made("http://y/v1", tmp_path).file, made("http://x/v1", tmp_path, model="small").file}
    monkeypatch.setattr(module, "PROMPT_VERSION", 99)
    assert len(files | {made("http://x/v1", tmp_path).file}) == 4
    with pytest.raises(NotFoundError, match="not asked about every sentence"):
        made("http://x/v1", tmp_path).supports(SOURCE, ["It is due."])


def test_a_reply_that_is_neither_yes_nor_no_is_counted_apart_and_kept(tmp_path):
    replies = ["yes", "Yes no", "not sure", "", "noyes", None]
    with judge_service(lambda request, _: said(replies[int(sentence_of(request).split()[2])])) as (url, seen):
        judge = made(url, tmp_path)
        judge.ask(PAIRS)
        assert judge.supports(SOURCE, [sentence for _, sentence in PAIRS]) == [True, None, None, None, None, None]
        made(url, tmp_path).ask(PAIRS)
        assert len(seen) == 6
    lines = [json.loads(line) for line in judge.file.read_text(encoding="utf-8").splitlines()]
    assert {line.get("received") for line in lines} == {None, "Yes no", "not sure", "nothing", "noyes"}


@pytest.mark.parametrize(
    ("reply", "supported"),
    [
        ("Yes.", True),
        ("**No**", False),
        ("Yes, because the source says so.", True),
        ("No. The source speaks of a bank.", False),
        ("no\n\nThe sentence adds a year", False),
        ("Answer: yes", None),
        ("<think>\nIt says no such thing... yes?\n</think>\n\nno", False),
        ("<think>\nyes", None),
        ("No one is named", None),
        ("Nothing is said", None),
        ("Yes or no", None),
        ("Yes. No.", None),
        ("No, not yes", None),
        ("Notably, yes", None),
        ("The sentence is supported", None),
        ("", None),
    ],
)
def test_a_reply_with_more_than_a_word_is_read_where_it_begins_with_it(tmp_path, reply, supported):
    other = [(SOURCE, "This one is plainly judged.")]
    with judge_service(lambda request, _: said("yes" if "plainly" in sentence_of(request) else reply)) as (url, _):
        judge = made(url, tmp_path)
        judge.ask([*other, PAIRS[0]])
    assert judge.supports(SOURCE, [PAIRS[0][1]]) == [supported]


def test_a_reply_that_an_earlier_release_could_not_read_is_read_again(tmp_path):
    with judge_service(lambda *_: said("yes")) as (url, seen):
        judge = made(url, tmp_path)
        judge.ask(PAIRS)
        lines = [json.loads(line) for line in judge.file.read_text(encoding="utf-8").splitlines()]
        old = [line | {"supported": None, "received": "No, it does not."} for line in lines]
        judge.file.write_text("".join(f"{json.dumps(line)}\n" for line in old), encoding="utf-8")
        again = made(url, tmp_path)
        again.ask(PAIRS)
        assert again.supports(SOURCE, [sentence for _, sentence in PAIRS]) == [False] * 6
        assert len(seen) == 6


def test_a_judge_that_never_replies_of_use_is_stopped_early_and_says_so(tmp_path):
    many = [(SOURCE, f"Sentence number {n}.") for n in range(200)]
    with judge_service(lambda *_: said("As an AI model, I think")) as (url, seen):
        with pytest.raises(BackendError, match=r"must reply yes or no. Received, 20 times of 20: something else, such as 'As an AI") as raised:
            made(url, tmp_path, concurrency=1).ask(many)
        assert "evaluate.judge.model" in raised.value.hint
        assert len(seen) <= 21
        with pytest.raises(BackendError, match="yes or no"):
            made(url, tmp_path).ask(many)
        assert len(seen) <= 21


def test_a_busy_service_is_asked_again(tmp_path):
    def reply(request, number):
        return (429, {"error": "slow down"}, {"Retry-After": "0.01"}) if number <= 2 else (503, {}, {}) if number == 3 else said("yes")

    with judge_service(reply) as (url, seen):
        judge = made(url, tmp_path, concurrency=1)
        judge.ask(PAIRS[:1])
        assert judge.supports(*[SOURCE, [PAIRS[0][1]]]) == [True]
        assert len(seen) == 4


@pytest.mark.parametrize("broken", [b"<html>a proxy</html>", {"choices": []}, {"choices": [{"message": {"content": 3}}]}, []])
def test_what_is_no_chat_completion_is_asked_again_and_then_told(tmp_path, broken):
    with judge_service(lambda *_: (200, broken, {})) as (url, seen):
        with pytest.raises(BackendError, match="at the last of 5 attempts"):
            made(url, tmp_path).ask(PAIRS[:1])
        assert len(seen) == 5


def test_a_refused_key_stops_at_once_names_the_next_command_and_shows_no_key(tmp_path, monkeypatch):
    key = "sk-very-secret"
    monkeypatch.setenv("JUDGE_KEY", key)
    with judge_service(lambda *_: (401, {"error": f"Incorrect API key provided: {key}"}, {})) as (url, seen):
        with pytest.raises(BackendError, match=r"must accept the key. Received: 401 Unauthorized") as raised:
            made(url, tmp_path, api_key_env="JUDGE_KEY", concurrency=1).ask(PAIRS)
        assert raised.value.hint == "export JUDGE_KEY=KEY, then: tunesmith evaluate"
        assert len(seen) <= 2
        assert seen[0][0]["Authorization"] == f"Bearer {key}"
        with pytest.raises(BackendError, match="must accept the key") as raised:
            made(url, tmp_path).ask(PAIRS)
        assert "api_key_env" in raised.value.hint
    assert key not in str(raised.value)
    assert not [file for file in tmp_path.rglob("*") if key in file.read_text(encoding="utf-8")]


def test_a_key_that_the_service_repeats_is_kept_nowhere(tmp_path, monkeypatch):
    key = "sk-very-secret"
    monkeypatch.setenv("JUDGE_KEY", key)
    for status in (400, 404, 500):
        with judge_service(lambda *_, status=status: (status, {"error": f"bad {key}"}, {})) as (url, _), pytest.raises(BackendError) as raised:
            made(url, tmp_path / str(status), api_key_env="JUDGE_KEY").ask(PAIRS)
        assert key not in str(raised.value) + raised.value.hint
    with judge_service(lambda *_: said(f"no {key}")) as (url, _), pytest.raises(BackendError) as raised:
        made(url, tmp_path / "said", api_key_env="JUDGE_KEY").ask(PAIRS)
    assert key not in str(raised.value)
    assert not [file for file in tmp_path.rglob("*.jsonl") if key in file.read_text(encoding="utf-8")]


def test_a_key_is_not_carried_to_another_address(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with judge_service(lambda *_: said("yes")) as (other, reached), judge_service(lambda *_: (307, {}, {"Location": f"{other}/chat/completions"})) as (url, _):
        with pytest.raises(BackendError, match="307"):
            made(url, tmp_path, api_key_env="JUDGE_KEY").ask(PAIRS)
        assert reached == []


def test_a_missing_key_is_told_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with judge_service(odd_is_supported) as (url, seen):
        with pytest.raises(ConfigError, match=r"JUDGE_KEY, named by evaluate.judge.api_key_env") as raised:
            made(url, tmp_path, api_key_env="JUDGE_KEY").ask(PAIRS)
        assert raised.value.hint == "export JUDGE_KEY=KEY"
        assert seen == []


def test_an_unknown_path_or_model_is_told(tmp_path):
    with judge_service(odd_is_supported) as (url, _), pytest.raises(BackendError, match=r"must serve big at .*Received: 404") as raised:
        made(url.removesuffix("/v1"), tmp_path).ask(PAIRS)
    assert "base_url" in raised.value.hint


def test_a_text_that_the_service_refuses_is_not_judged_and_stops_nothing(tmp_path):
    def reply(request, _):
        return (400, {"error": "context length exceeded"}, {}) if "number 2" in sentence_of(request) else said("yes")

    with judge_service(reply) as (url, _):
        judge = made(url, tmp_path)
        judge.ask(PAIRS)
        assert judge.supports(SOURCE, [sentence for _, sentence in PAIRS]).count(None) == 1


def test_a_silent_service_is_told_and_what_it_said_is_kept(tmp_path):
    wake = threading.Event()

    def reply(request, _):
        if "number 5" in sentence_of(request):
            wake.wait(10)
        return said("yes")

    with judge_service(reply) as (url, seen):
        try:
            with pytest.raises(BackendError, match=r"no reply within 0.3 s. What it said before is kept") as raised:
                made(url, tmp_path, timeout_seconds=0.3).ask(PAIRS)
        finally:
            wake.set()
        assert "it continues" in raised.value.hint
        asked = len(seen)
        judge = made(url, tmp_path, timeout_seconds=30)
        assert len(judge.missing(PAIRS)) == 1
        judge.ask(PAIRS)
        assert len(seen) == asked + 1
        assert judge.supports(SOURCE, [sentence for _, sentence in PAIRS]) == [True] * 6


def test_no_service_at_all_is_told(tmp_path):
    with judge_service(odd_is_supported) as (url, _):
        pass
    with pytest.raises(BackendError, match="must reply at"):
        made(url, tmp_path).ask(PAIRS[:1])


def test_half_a_line_of_a_killed_process_is_asked_again(tmp_path):
    with judge_service(odd_is_supported) as (url, seen):
        judge = made(url, tmp_path, concurrency=1)
        judge.ask(PAIRS)
        whole = judge.file.read_bytes()
        judge.file.write_bytes(whole[:-20])
        again = made(url, tmp_path)
        again.ask(PAIRS)
        assert len(seen) == 7
        assert again.supports(SOURCE, [PAIRS[5][1]]) == judge.supports(SOURCE, [PAIRS[5][1]])
        assert len(judge.file.read_text(encoding="utf-8").splitlines()) == 6


def test_sentences_with_odd_line_ends_are_kept_as_one_line(tmp_path):
    with judge_service(lambda *_: said("yes")) as (url, _):
        judge = made(url, tmp_path)
        judge.ask([(SOURCE, "It is\u2028due\x85in May.")])
        assert made(url, tmp_path).supports(SOURCE, ["It is\u2028due\x85in May."]) == [True]


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://user:secret@x/v1", "http://x/v1?key=secret", "x/v1"])
def test_an_address_with_a_key_in_it_is_refused(url):
    with pytest.raises(ValidationError):
        section(url)


def test_an_endpoint_needs_an_address_and_a_model():
    with pytest.raises(ValidationError, match="needs base_url and model"):
        JudgeSection(kind="endpoint", base_url="http://x/v1")
    assert JudgeSection().kind == "lexical"


class Fixed:
    """A judge that cannot tell of moons, and supports the rest."""

    name = "fixed, prompt 1"

    def supports(self, source, sentences):
        return [None if "moon" in sentence else True for sentence in sentences]


def test_what_was_not_judged_is_in_neither_count_and_shown():
    answers = {"base": ["The moon is green cheese."] * 5 + ["Cheese is yellow."] * 35, "tuned": ["The loan is due in May. Hello."] * 40}
    given = {"rights": ["May"] * 40, "texts": [SOURCE] * 40, "task_type": "chat", "schema": {}, "n_samples": 300}
    found = compare_written(answers, {}, judge=Fixed(), **given)
    base = found["judge"]["models"]["base"]
    assert (base["sentences"], base["unjudged"]) == (40, 5)
    assert base["unjudged_rate"]["value"] == base["ungrounded_at_most"]["value"] == pytest.approx(1 / 8)
    assert base["unjudged_rate"]["low"] < 1 / 8 < base["unjudged_rate"]["high"]
    assert base["agreement"]["value"] == 0  # no longer word of these sentences stands in the source
    assert found["metrics"]["ungrounded_rate"]["base"] == wilson(0, 35).to_dict()  # no certainty from 35 records
    assert found["judge"]["models"]["tuned"]["unjudged_rate"]["high"] == pytest.approx(wilson(0, 40).high)
    page = render({"title": "x", "confidence_level": 0.95, **found})
    assert "Sentences without support (fixed, prompt 1)" in page
    assert "Not judged" in page
    lexical = compare_written(answers, {}, **given)
    assert lexical["judge"]["name"] == "lexical"
    assert metric_names(lexical)["ungrounded_rate"] == "Sentences without support (lexical)"
    assert "evaluate.judge names a model" in render({"title": "x", "confidence_level": 0.95, **lexical})
    nothing = compare_written(answers | {"base": ["The moon."] * 40}, {}, judge=Fixed(), **given)
    assert "ungrounded_rate" not in nothing["metrics"]
    assert nothing["judge"]["models"]["base"]["unjudged"] == 40


def test_counts_by_hand():
    counts = count_chat("The moon rose. The loan is due in May. Hello there!", "x", SOURCE, Fixed())
    assert (counts["sentences"], counts["judged"], counts["unjudged"], counts["ungrounded"]) == (3, 2, 1, 0)
    assert counts["agreed"] == 1
    assert Lexical().supports(SOURCE, ["The loan is due in May.", "Ann owns ships.", "Hm."]) == [True, False, True]
    assert sentences_of("One. Two?  Three!\n...") == ["One.", "Two?", "Three!"]
    assert np.all([value >= 0 for value in counts.values()])
