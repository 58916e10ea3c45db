"""`tunesmith predict` and `tunesmith serve`: answers from the champion."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, console, open_project, show
from tunesmith.errors import BackendError

if TYPE_CHECKING:
    from tunesmith.entities import Prediction


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(predict)
    app.command()(serve)


def predict(
    text: Annotated[str, typer.Argument(help="The text to answer; leave it out with --file.")] = "",
    file: Annotated[Path | None, typer.Option("--file", help="JSON lines with `id` and `text`.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the answers to --file go, in the same order.")] = None,
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Answer one text, or a file of texts, with the champion."""
    from tunesmith import flow
    from tunesmith.errors import ConfigError, NotFoundError
    from tunesmith.files import write_text

    if bool(text) == bool(file) or bool(file) != bool(out):
        raise ConfigError("predict takes one text, or --file and --out.", hint='tunesmith predict "TEXT", or: tunesmith predict --file x.jsonl --out y.jsonl')
    if file is None or out is None:
        answer = flow.predict(open_project(project, None, as_json=True), [text])[0]
        by = "" if answer.route_confidence is None else f", adapter {answer.adapter}, route {answer.route_confidence:.2f}"
        review = {True: ", needs no review", False: ", needs review", None: ""}[answer.accepted]
        text = "\n".join([f"{answer.label}  (confidence {answer.confidence:.2f}{by}{review})", *(f"  {field}" for field in answer.fields)])
        return show(as_json, _answer(answer), text, next_command=f"tunesmith lineage {answer.id}")
    rows = read_rows(file)
    if not out.parent.is_dir():
        raise NotFoundError(f"--out must lie in a folder that exists. Received: {out}.", hint=f"mkdir -p {out.parent}")
    answers = flow.predict(open_project(project, None, as_json=as_json), [row["text"] for row in rows])
    lines = [json.dumps({"id": row["id"], **_answer(answer)}, ensure_ascii=False) for row, answer in zip(rows, answers, strict=True)]
    write_text(out, "".join(f"{line}\n" for line in lines))
    return show(as_json, {"rows": len(rows), "out": str(out)}, f"{len(rows):,} answers in {out}", next_command="tunesmith review next")


def _answer(prediction: Prediction) -> dict[str, Any]:
    routed = {} if prediction.route_confidence is None else {"adapter": prediction.adapter, "route_confidence": prediction.route_confidence}
    fields = {"fields": [field.model_dump(mode="json") for field in prediction.fields]} if prediction.fields else {}
    told = {"prediction_id": prediction.id, "label": prediction.label, "confidence": prediction.confidence, "accepted": prediction.accepted}
    return {**told, **routed, **fields}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines of `id` and `text`.

    Raises:
        NotFoundError: the file does not exist.
        DataError: a line is not such a row; nothing was answered.
    """
    from tunesmith.errors import DataError, NotFoundError

    if not file.is_file():
        raise NotFoundError(f"--file must name a file. Received: {file}, which is none.")
    rows = []
    try:
        # Not splitlines: it also splits at U+2028, which may stand inside a JSON string.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} must be UTF-8. Received: byte {error.object[error.start]:#04x} at offset {error.start}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number}:{error.colno}: not valid JSON: {error.msg}.") from None
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("text"), str) or not row["text"].strip():
            raise DataError(f"{file}:{number}: a row needs `id` and a `text` that is not empty. Received: {line[:80]}")
        rows.append(row)
    return rows


def serve(project: ProjectOption = Path(), overrides: SetOption = None) -> None:
    """Answer over HTTP: POST /v1/classify, /v1/chat/completions, /v1/feedback; GET /healthz, /docs."""
    from tunesmith import flow
    from tunesmith.errors import MissingExtraError

    try:
        import uvicorn

        from tunesmith.serve.http import check_exposure, create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from None

    opened = open_project(project, overrides)
    section = opened.config.serve
    check_exposure(section)
    predictor = flow.load_predictor(opened)
    app = create_app(predictor, opened.store, section, opened.config.model_name)
    with _listen(section.host, section.port) as listening:
        address = f"http://{section.host}:{listening.getsockname()[1]}"
        console.print(f"{opened.config.model_name} ({predictor.model_version_id}) answers on {address}, documented at /docs. Stop with Ctrl-C.", markup=False)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket ourselves, so that the port is known where a free one was asked for, and an error is one of ours."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        rule = f"serve.host {host} and serve.port {port} must be free to listen on"
        raise BackendError(f"{rule}. Received: {error.strerror}.", hint="tunesmith serve --set serve.port=0") from None
