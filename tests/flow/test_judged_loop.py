"""A chat whose sentences a model behind an address judges: asked once, continued, shown, and changed without a new answer."""

import json
import threading

import pytest
from judge_stand_in import judge_service, said, sentence_of

from tunesmith import flow
from tunesmith.errors import BackendError
from tunesmith.evaluate.groundedness import sentences_of
from tunesmith.flow.scoring import answers_in, base_scores_file, in_order
from tunesmith.project import Project
from tunesmith.testing import tiny_chat_project


@pytest.fixture(scope="module")
def service():
    """A judge that fails after ten sentences, until it is told to go on; that tells nothing of thanks."""
    healthy = threading.Event()

    def reply(request, number):
        if number > 10 and not healthy.is_set():
            return 401, {"error": "expired"}, {}
        return said("maybe" if sentence_of(request) == "Thank you." else "yes" if "About" in sentence_of(request) else "no")

    with judge_service(reply) as (url, seen):
        yield url, seen, healthy


@pytest.fixture(scope="module")
def project(tmp_path_factory, service):
    root = tiny_chat_project(tmp_path_factory.mktemp("chat") / "tiny")
    judge = json.dumps({"kind": "endpoint", "base_url": service[0], "model": "big", "concurrency": 1, "timeout_seconds": 20})
    return Project.load(root, ["train.report_to=[]", f"evaluate.judge={judge}"])


def pairs_of(project, evaluation):
    dataset = flow.newest_dataset(project)
    tuned = project.root / evaluation.path / "tuned-test.parquet"
    test = in_order(project, dataset, tuple(answers_in(project, tuned)))
    texts = dict(zip(test["id"], test["text"], strict=True))
    answers = [*answers_in(project, base_scores_file(project, dataset, test)).items(), *answers_in(project, tuned).items()]
    return {(texts[identity], sentence) for identity, answer in answers for sentence in sentences_of(answer)}


def test_a_judge_is_asked_once_about_each_sentence_and_named_in_the_report(project, service):
    _, seen, healthy = service
    run = flow.train_adapters(project, flow.prepare(project))
    with pytest.raises(BackendError, match="must accept the key"):
        flow.evaluate(project, run)
    assert len(seen) >= 11
    refused = len(seen) - 10
    healthy.set()
    evaluation = flow.evaluate(project, run)  # goes on
    pairs = pairs_of(project, evaluation)
    assert len(seen) == len(pairs) + refused
    assert len({(request["messages"][1]["content"]) for _, request in seen}) == len(pairs)

    report = flow.calibrate(project, evaluation).report
    assert report["judge"]["name"] == "big, prompt 1"
    tuned = report["judge"]["models"]["tuned"]
    assert tuned["unjudged"] > 0  # the thanks of the tuned model
    assert tuned["unjudged_rate"]["low"] < tuned["unjudged"] / tuned["sentences"] < tuned["unjudged_rate"]["high"] + 1e-9
    assert report["metrics"]["ungrounded_rate"]["tuned"]["value"] <= tuned["ungrounded_at_most"]["value"]

    asked = len(seen)
    assert flow.evaluate(project, run).id == evaluation.id
    flow.calibrate(project, evaluation)
    assert len(seen) == asked
    rows = [json.loads(line) for file in (project.root / evaluation.path).glob("jdg_*.jsonl") for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == len(pairs)


def test_another_judge_changes_the_report_and_no_answer(project):
    lexical = project.changed(["evaluate.judge.kind=lexical"])
    run = flow.train_adapters(lexical, flow.prepare(lexical))
    evaluation = flow.evaluate(lexical, run)
    report = flow.calibrate(lexical, evaluation).report
    assert report["provenance"]["evaluation"] == flow.evaluate(project, run).id == evaluation.id
    assert report["judge"]["name"] == "lexical"
    assert "evaluate.judge names a model" in (project.root / evaluation.path / "report.html").read_text(encoding="utf-8")
