"""The HTTP door: classify, chat completions in OpenAI's format, feedback, health.

Every answer carries a prediction id that is on disk before the answer leaves. Bodies are limited before they are parsed.
On loopback no key is asked unless one is set; elsewhere the service does not start without one. Keys are compared in
constant time, as hashes, and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import time
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.entities import Feedback, Prediction
from tunesmith.errors import ConfigError, DataError, NotFoundError, RefusedError, TunesmithError
from tunesmith.serve.predictor import Predictor
from tunesmith.serve.settings import ServeSection
from tunesmith.store import Store

_STATUS = {ConfigError: 400, DataError: 422, NotFoundError: 404, RefusedError: 403}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClassifyRequest(_Body):
    """One text to classify."""

    text: str = Field(min_length=1)
    model: str | None = Field(default=None, description="Name of the registered model; only the served one is known.")


class ClassifyResponse(BaseModel):
    """The answer, its calibrated confidence, and the id to send feedback to."""

    prediction_id: str
    label: str
    confidence: float = Field(ge=0, le=1)
    confidence_raw: float = Field(ge=0, le=1)
    model_version_id: str
    adapter: str = Field(default="", description="Which adapter answered: a document type, or parent; empty where there is one only.")
    route_confidence: float | None = Field(default=None, ge=0, le=1, description="How sure the router was of the route; null without a router.")
    accepted: bool | None = Field(default=None, description="Whether the answer needs no review, by the model version's threshold; null where it has none.")


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """OpenAI's chat completion request; the last user message is the text. Sampling parameters are accepted and change nothing."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    n: int = Field(default=1, ge=1, le=1)


class FeedbackRequest(_Body):
    """A judgement on a prediction. Sending it again with the same event_id changes nothing."""

    prediction_id: str
    event_id: str = Field(min_length=1, max_length=200)
    kind: Literal["boolean", "float", "comment", "demonstration"]
    value: bool | FiniteFloat | str
    actor: str = Field(default="", max_length=200)


class FeedbackResponse(BaseModel):
    """The stored judgement."""

    feedback_id: str
    event_id: str


def create_app(predictor: Predictor, store: Store, section: ServeSection, model_name: str) -> FastAPI:
    """Build the service.

    Args:
        predictor: Answers.
        store: Takes feedback.
        section: Limits and the key's environment variable.
        model_name: Name of the registered model, as callers give it in `model`.
    """
    app = FastAPI(title="Tunesmith", summary=f"Serves {model_name}", version=predictor.model_version_id)
    key_digest = _digest(os.environ.get(section.api_key_env, ""))
    has_key = bool(os.environ.get(section.api_key_env))

    app.add_middleware(_LimitBody, max_bytes=section.max_request_bytes)

    @app.exception_handler(TunesmithError)
    async def show(request: Request, error: TunesmithError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return _problem(status, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer would send the whole text back.
        rules = (f"{'.'.join(str(part) for part in found['loc'][1:]) or 'body'}: {found['msg']}" for found in error.errors())
        return _problem(422, "; ".join(rules), "See /docs.")

    async def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if has_key and not hmac.compare_digest(_digest(given), key_digest):
            raise _Unauthorised

    @app.exception_handler(_Unauthorised)
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return _problem(401, "The request must carry the API key.", "Send the header Authorization: Bearer KEY.")

    def check_model(name: str | None) -> None:
        if name not in {None, model_name, predictor.model_version_id}:
            raise NotFoundError(f"model must be {model_name!r} or {predictor.model_version_id!r}. Received: {name!r}.")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the service is up and which model version answers."""
        return {"status": "ok", "model": model_name, "model_version_id": predictor.model_version_id, "deployment_id": predictor.deployment.id}

    @app.post("/v1/classify", dependencies=[Depends(authorised)])
    def classify(body: ClassifyRequest) -> ClassifyResponse:
        """Answer one text with a label and its calibrated confidence."""
        check_model(body.model)
        if not predictor.labels:
            raise DataError("classify needs a model with a label space. Received: one that writes its answers.", hint="POST /v1/chat/completions")
        found = predictor.predict([body.text])[0]
        return ClassifyResponse(
            prediction_id=found.id,
            label=found.label,
            confidence=found.confidence,
            confidence_raw=found.confidence_raw,
            model_version_id=found.model_version_id,
            adapter=found.adapter,
            route_confidence=found.route_confidence,
            accepted=found.accepted,
        )

    @app.post("/v1/chat/completions", dependencies=[Depends(authorised)])
    def chat_completions(body: ChatRequest) -> dict[str, Any]:
        """Answer the last user message in OpenAI's format; `tunesmith` holds the prediction id and the calibrated confidences of answer and fields."""
        check_model(body.model)
        if body.stream:
            raise DataError("stream must be false: an answer is stored whole.", hint="Leave stream out.")
        texts = [message.content for message in body.messages if message.role == "user"]
        if not texts:
            raise DataError("messages must hold a message with the role user. Received none.")
        return _completion(predictor.predict([texts[-1]])[0], model_name)

    @app.post("/v1/feedback", dependencies=[Depends(authorised)])
    def feedback(body: FeedbackRequest) -> FeedbackResponse:
        """Store a judgement on a prediction, once for its event_id."""
        stored = store.put_feedback(Feedback.judge(predictor.labels, **body.model_dump()))
        return FeedbackResponse(feedback_id=stored.id, event_id=stored.event_id)

    return app


def check_exposure(section: ServeSection) -> None:
    """Refuse to listen beyond loopback without an API key.

    Raises:
        RefusedError: names the variable to set.
    """
    try:
        is_loopback = ipaddress.ip_address(section.host).is_loopback
    except ValueError:
        is_loopback = section.host == "localhost"
    if not is_loopback and not os.environ.get(section.api_key_env):
        raise RefusedError(
            f"Beyond loopback the service needs an API key. Received: serve.host {section.host} and no {section.api_key_env}.",
            hint=f"export {section.api_key_env}=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')",
        )


class _LimitBody:
    """ASGI middleware that reads a body up to a limit before anything parses it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                problem = _problem(413, f"A request must hold at most {self._max_bytes:,} bytes. Received more.", "Send one text a request.")
                return await problem(scope, receive, send)
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return await self._app(scope, replay, send)


class _Unauthorised(Exception):  # noqa: N818 - not an error of ours: only a signal to the handler above
    pass


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _problem(status: int, message: str, hint: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "hint": hint}}, status_code=status)


def _completion(prediction: Prediction, model_name: str) -> dict[str, Any]:
    return {
        "id": prediction.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model_name,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": prediction.label}, "finish_reason": "stop", "logprobs": None}],
        "tunesmith": {
            "prediction_id": prediction.id,
            "label": prediction.label,
            "confidence": prediction.confidence,
            "model_version_id": prediction.model_version_id,
            "adapter": prediction.adapter,
            "route_confidence": prediction.route_confidence,
            "accepted": prediction.accepted,
            "fields": [field.model_dump(mode="json") for field in prediction.fields],
        },
    }
