"""Which base model: models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, open_project, show


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(models)


def models(
    candidates: Annotated[
        list[str] | None,
        typer.Argument(metavar="BASE...", help="As model.model_name_or_path takes them, a folder with a config.json, family:NAME, or . for the project's own."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="What training and serving shall fit: h100-80gb, rtx-4090, cpu-16gb, ...")] = None,
    use: Annotated[str, typer.Option(help="What the licence shall allow: commercial or research.")] = "commercial",
    records: Annotated[int, typer.Option(min=0, help="Validation records that each candidate answers untuned; 0 for facts alone.")] = 100,
    ask_hub: Annotated[bool, typer.Option("--ask-hub", help="Ask the model hub for age, downloads and adapters.")] = False,
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare base models by licence, size, memory, support and a first look, and write a decision page."""
    from tunesmith import flow
    from tunesmith.errors import ConfigError
    from tunesmith.models.licenses import Use

    if use not in get_args(Use):
        raise ConfigError(f"--use must be commercial or research. Received: {use!r}.", hint="tunesmith models --use research")
    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith models"):
        selection = flow.select(opened, candidates or ["."], device=gpu, use=cast(Use, use), records=records, ask_hub=ask_hub)
    report = selection.report
    chosen = report["choice"]
    text = f"\n{_table(report)}\n\n{_choice(report)}\nReport: {selection.html}"
    next_command = "" if chosen in (None, opened.config.model.model_name_or_path) else f"tunesmith run --set model.model_name_or_path={chosen}"
    show(as_json, report | {"id": selection.id, "html": str(selection.html)}, text, next_command=next_command or "tunesmith compare")


def _table(report: dict[str, Any]) -> str:
    lines = [f"  {'':<34}{'parameters':>12}{'licence':>26}{'attention':>11}{'cache/token':>13}{'lora GB':>9}{'serve GB':>10}{'untuned':>22}"]
    for row in report["rows"]:
        name = row["name"] if len(row["name"]) <= 33 else f"...{row['name'][-30:]}"
        if "error" in row:
            lines.append(f"  {name:<34}{row['error']}")
            continue
        facts, looked = row["facts"], (row["measured"] or {}).get("zero_shot")
        zero_shot = f"{looked['value']:.3f} [{looked['low']:.3f}, {looked['high']:.3f}]" if looked else "unknown"
        lines.append(
            f"  {name:<34}{facts['parameters'] / 1e6:>10.1f} M{row['license']['name'][:25]:>26}{facts['attention']:>11}{facts['cache_bytes_per_token']:>11,} B"
            f"{row['training_bytes']['lora'] / 1e9:>9.1f}{row['serving_bytes']['bfloat16'] / 1e9:>10.1f}{zero_shot:>22}"
        )
        if row["excluded"]:
            lines.append(f"  {'':<4}left out: {'; '.join(row['excluded'])}")
    return "\n".join(lines)


def _choice(report: dict[str, Any]) -> str:
    head = f"Recommended: {report['choice']}." if report["choice"] else "No recommendation."
    return " ".join([head, *report["reasons"]])
