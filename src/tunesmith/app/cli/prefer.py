"""Corrections as they come: prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, duration, open_project, show


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prefer)


def prefer(
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    run_id: Annotated[str, typer.Option("--run", help="Id of the run to go on from; the champion's when left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Run + feedback -> run: tune on pairs of answers (DPO) or on right and wrong ones (KTO)."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith prefer"):
        start = flow.starting_run(opened, run_id)
        found = flow.preferences(opened, start)
        made = flow.prefer(opened, start, found)
    value = {"run": made.model_dump(mode="json"), "rows": len(found.rows), "dropped": found.dropped}
    text = f"{made.id}: {made.strategy} from {start.id} on {flow.preferences_in_words(found)}, {duration(made.seconds)}"
    show(as_json, value, text, next_command=f"tunesmith register --run {made.id}")
