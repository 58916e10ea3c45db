"""The HTTP door on an engine whose answers are known: on disk first, once for an event id, closed to strangers."""

import hashlib
from dataclasses import replace

import nouns
import numpy as np
import pytest
from fastapi.testclient import TestClient

from tunesmith.entities import Prediction
from tunesmith.errors import RefusedError
from tunesmith.evaluate.calibration import Temperature
from tunesmith.models.answered import Answered
from tunesmith.serve.http import check_exposure, create_app
from tunesmith.serve.predictor import Predictor
from tunesmith.serve.settings import ServeSection
from tunesmith.store import Store


class Engine:
    """Gives a label 1 more for each time that its name stands in the text."""

    labels = nouns.LABELS

    def __init__(self):
        self.asked = 0

    def answer(self, texts, progress=None):
        self.asked += len(texts)
        logits = np.array([[float(text.count(label)) for label in self.labels] for text in texts], dtype=np.float32)
        chosen = logits.argmax(axis=1)
        return Answered(tuple(self.labels[label] for label in chosen), self.labels, logits, chosen)


@pytest.fixture
def store(tmp_path):
    store = Store.at(tmp_path / "store.db")
    store.put(nouns.deployment())
    return store


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def open_client(store, engine):
    def open_client(**settings):
        predictor = Predictor(engine, Temperature(2.0), nouns.deployment(), "champion", store)
        return TestClient(create_app(predictor, store, ServeSection(**settings), "letters"), raise_server_exceptions=False)

    return open_client


@pytest.fixture
def client(open_client):
    return open_client()


def error_of(response):
    return response.json()["error"]["message"]


# Answers


def test_classify_answers_with_a_calibrated_confidence_and_the_answer_is_on_disk(client, store):
    answer = client.post("/v1/classify", json={"text": "loan loan card"}).json()
    stored = store.get(Prediction, answer["prediction_id"])
    assert (answer["label"], answer["model_version_id"]) == ("loan", "mdl_1")
    logits = np.array([1.0, 2.0, 0.0])
    assert answer["confidence_raw"] == pytest.approx(np.exp(2) / np.exp(logits).sum())
    assert answer["confidence"] == pytest.approx(np.exp(1) / np.exp(logits / 2).sum())
    assert (stored.label, stored.confidence, stored.text) == (answer["label"], answer["confidence"], "loan loan card")
    assert stored.scores == {"card": 1.0, "loan": 2.0, "mortgage": 0.0}
    assert stored.text_sha256 == hashlib.sha256(b"loan loan card").hexdigest()


def test_nothing_is_answered_that_cannot_be_stored(client, store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "put", full)
    assert client.post("/v1/classify", json={"text": "loan"}).status_code == 500


def test_chat_completions_have_the_shape_that_openai_clients_read(client, store):
    messages = [{"role": "system", "content": "card card card"}, {"role": "user", "content": "card"}, {"role": "user", "content": "a loan"}]
    body = {"model": "letters", "messages": messages, "temperature": 0, "max_tokens": 5}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == "letters"
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "loan"}, "finish_reason": "stop", "logprobs": None}
    assert store.get(Prediction, answer["id"]).confidence == answer["tunesmith"]["confidence"]


class RoutedEngine(Engine):
    """Texts with a loan go to the adapter `loans`."""

    def answer(self, texts, progress=None):
        adapters = tuple("loans" if "loan" in text else "parent" for text in texts)
        return replace(super().answer(texts), adapters=adapters, route_confidence=np.full(len(texts), 0.75))


def test_an_answer_names_its_adapter_and_is_as_sure_as_the_calibrator_of_that_adapter_says(store):
    predictor = Predictor(RoutedEngine(), Temperature(2.0), nouns.deployment(), "champion", store, children={"loans": Temperature(0.5)})
    client = TestClient(create_app(predictor, store, ServeSection(), "letters"))
    logits = np.array([1.0, 0.0, 0.0])
    for text, adapter, temperature in (("a card", "parent", 2.0), ("a loan", "loans", 0.5)):
        answer = client.post("/v1/classify", json={"text": text}).json()
        assert (answer["adapter"], answer["route_confidence"]) == (adapter, 0.75)
        assert answer["confidence"] == pytest.approx(np.exp(1 / temperature) / np.exp(logits / temperature).sum())
        stored = store.get(Prediction, answer["prediction_id"])
        assert (stored.adapter, stored.route_confidence) == (adapter, 0.75)
    both = predictor.predict(["a loan", "a card"])
    assert [each.adapter for each in both] == ["loans", "parent"]
    assert both[0].confidence > both[1].confidence


@pytest.mark.parametrize("threshold", [0.5, 0.7, None])
def test_an_answer_says_whether_it_needs_review(store, threshold):
    def accepts(confidence):
        return threshold is not None and confidence >= threshold

    predictor = Predictor(Engine(), Temperature(2.0), nouns.deployment(), "champion", store, accepts=accepts)
    answer = TestClient(create_app(predictor, store, ServeSection(), "complaints")).post("/v1/classify", json={"text": "loan loan card"}).json()
    assert answer["confidence_raw"] == pytest.approx(0.665, abs=1e-3)
    assert answer["accepted"] is (threshold == 0.5)
    assert store.get(Prediction, answer["prediction_id"]).accepted is answer["accepted"]


def test_without_a_threshold_it_does_not_say(client):
    assert client.post("/v1/classify", json={"text": "loan"}).json()["accepted"] is None


def test_one_adapter_needs_no_name(client):
    answer = client.post("/v1/classify", json={"text": "loan"}).json()
    assert (answer["adapter"], answer["route_confidence"]) == ("", None)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("classify", {"text": ""}, 422, "text: String should have at least 1 character"),
        ("classify", {"text": " \n"}, 422, r"A text to predict must not be empty. Received: ' \n' at position 1."),
        ("classify", {}, 422, "text: Field required"),
        ("classify", {"text": "a", "txt": "b"}, 422, "txt: Extra inputs are not permitted"),
        ("classify", {"text": "a", "model": "other"}, 404, "model must be 'letters' or 'mdl_1'. Received: 'other'."),
        ("chat/completions", {"messages": []}, 422, "messages: List should have at least 1 item after validation, not 0"),
        ("chat/completions", {"messages": [{"role": "system", "content": "a"}]}, 422, "messages must hold a message with the role user. Received none."),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "stream": True},
            422,
            "stream must be false: an answer is stored whole.",
        ),
    ],
)
def test_bad_requests_are_told_the_rule_and_leave_nothing(client, store, path, body, status, message):
    response = client.post(f"/v1/{path}", json=body)
    assert (response.status_code, error_of(response)) == (status, message)
    assert store.next_for_review() is None


@pytest.mark.parametrize("body", [b'{"text": "\\ud800"}', b'{"text": NaN}', b"[]", b"{", b"\xff"])
def test_bodies_that_are_no_request_are_no_server_error(client, store, body):
    response = client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert store.next_for_review() is None


def test_a_body_over_the_limit_is_refused_before_it_is_parsed(open_client, engine):
    client = open_client(max_request_bytes=1_000)
    broken = b'{"text": "' + b"x" * 1_000
    response = client.post("/v1/classify", content=broken, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)) == (413, "A request must hold at most 1,000 bytes. Received more.")
    fits = client.post("/v1/classify", json={"text": "x" * 900})
    assert (fits.status_code, engine.asked) == (200, 1)


def test_a_body_of_unknown_length_is_limited_too(open_client, engine):
    client = open_client(max_request_bytes=1_000)
    response = client.post("/v1/classify", content=iter([b'{"text": "'] + [b"x" * 100] * 20), headers={"content-type": "application/json"})
    assert (response.status_code, engine.asked) == (413, 0)


# Feedback


@pytest.fixture
def said(client):
    prediction_id = client.post("/v1/classify", json={"text": "loan"}).json()["prediction_id"]
    return {"prediction_id": prediction_id, "event_id": "event-1", "kind": "demonstration", "value": "card", "actor": "tester"}


def test_feedback_counts_once_for_its_event_id(client, store, said):
    first, again = (client.post("/v1/feedback", json=said) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    (stored,) = store.feedback()
    assert (stored.id, stored.value, stored.prediction_id) == (first.json()["feedback_id"], "card", said["prediction_id"])


def test_an_event_id_with_another_content_is_refused(client, store, said):
    client.post("/v1/feedback", json=said)
    response = client.post("/v1/feedback", json=said | {"value": "loan"})
    assert (response.status_code, error_of(response)) == (422, "event_id must name one judgement. Received 'event-1' again with another content.")
    assert [each.value for each in store.feedback()] == ["card"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"value": "car"}, "A demonstration must be one of the labels: card; loan; mortgage. Received: 'car'."),
        ({"kind": "boolean"}, "The value of a boolean must be a boolean. Received: 'card'."),
        ({"kind": "float", "value": True}, "The value of a float must be a float. Received: True."),
        ({"event_id": ""}, "event_id: String should have at least 1 character"),
        ({"kind": "guess"}, "kind: Input should be 'boolean', 'float', 'comment' or 'demonstration'"),
    ],
)
def test_a_judgement_that_says_nothing_is_refused(client, store, said, changed, message):
    response = client.post("/v1/feedback", json=said | changed)
    assert (response.status_code, error_of(response)) == (422, message)
    assert store.feedback() == []


def test_feedback_may_come_before_its_prediction(client, store):
    response = client.post("/v1/feedback", json={"prediction_id": "prd_later", "event_id": "e", "kind": "boolean", "value": True})
    assert response.status_code == 200
    assert [each.prediction_id for each in store.feedback()] == ["prd_later"]


# Who may come in


def test_health_and_docs(client):
    health = client.get("/healthz").json()
    assert health == {"status": "ok", "model": "letters", "model_version_id": "mdl_1", "deployment_id": "dep_1"}
    assert client.get("/docs").status_code == 200
    assert {"/v1/classify", "/v1/chat/completions", "/v1/feedback", "/healthz"} == set(client.get("/openapi.json").json()["paths"])


@pytest.mark.parametrize("path", ["classify", "chat/completions", "feedback"])
@pytest.mark.parametrize(("header", "status"), [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Bearer secret"}, 422)])
def test_with_a_key_every_door_asks_for_it(open_client, monkeypatch, path, header, status):
    monkeypatch.setenv("TUNESMITH_API_KEY", "secret")
    response = open_client().post(f"/v1/{path}", json={}, headers=header)
    assert response.status_code == status
    assert "secret" not in response.text


def test_keys_are_compared_as_hashes_in_constant_time(open_client, monkeypatch):
    compared = []
    monkeypatch.setenv("TUNESMITH_API_KEY", "secret")
    monkeypatch.setattr("tunesmith.serve.http.hmac.compare_digest", lambda *digests: compared.append(digests) or True)
    open_client().post("/v1/classify", json={"text": "loan"}, headers={"Authorization": "Bearer guess"})
    assert compared == [tuple(hashlib.sha256(key).digest() for key in (b"guess", b"secret"))]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_key(host):
    check_exposure(ServeSection(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_beyond_loopback_a_key_is_needed(host, monkeypatch):
    with pytest.raises(RefusedError, match="Beyond loopback the service needs an API key"):
        check_exposure(ServeSection(host=host))
    monkeypatch.setenv("TUNESMITH_API_KEY", "secret")
    check_exposure(ServeSection(host=host))
