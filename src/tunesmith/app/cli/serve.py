"""`tunesmith predict` and `tunesmith serve`: answers from the champion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, console, open_project, show

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
    from tunesmith.errors import ConfigError

    if bool(text) == (file is not None) or (file is None) != (out is None):
        raise ConfigError("predict takes one text, or --file and --out.", hint='tunesmith predict "TEXT", or: tunesmith predict --file x.jsonl --out y.jsonl')
    if file is None:
        answer = flow.predict(open_project(project, None, as_json=True), [text])[0]
        return show(as_json, _answer(answer), f"{answer.label}  (confidence {answer.confidence:.2f})", next_command=f"tunesmith lineage {answer.id}")
    assert out is not None
    rows = read_rows(file)
    answers = flow.predict(open_project(project, None, as_json=as_json), [row["text"] for row in rows])
    write_rows(out, [{"id": row["id"], **_answer(answer)} for row, answer in zip(rows, answers, strict=True)])
    return show(as_json, {"rows": len(rows), "out": str(out)}, f"{len(rows):,} answers in {out}", next_command="tunesmith review next")


def _answer(prediction: Prediction) -> dict[str, Any]:
    return {"prediction_id": prediction.id, "label": prediction.label, "confidence": prediction.confidence}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines of `id` and `text`.

    Raises:
        NotFoundError: the file does not exist.
        DataError: a line is not such a row; nothing was answered.
    """
    from tunesmith.errors import DataError, NotFoundError

    if not file.exists():
        raise NotFoundError(f"--file must name a file. Received: {file}, which does not exist.")
    rows = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
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


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines by write-then-rename."""
    partial = file.with_name(f".{file.name}.part")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)


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
    console.print(f"{opened.config.model_name} ({predictor.model_version_id}) answers on http://{section.host}:{section.port}, documented at /docs. Stop with Ctrl-C.", markup=False)
    uvicorn.run(app, host=section.host, port=section.port, log_level="warning")
