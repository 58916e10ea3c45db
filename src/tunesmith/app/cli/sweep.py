"""`tunesmith sweep`: the search for better settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, console, duration, open_project, show

if TYPE_CHECKING:
    from rich.table import Table

    from tunesmith.flow import Sweep


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sweep)


def sweep(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Dataset version -> many runs -> the best settings on validation; a killed sweep continues."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith sweep"):
        found = flow.sweep(opened, flow.prepare(opened))
    next_command = f"tunesmith run {' '.join(flags(found.overrides))}"
    if as_json:
        return show(True, found.to_dict() | {"next": next_command})
    console.print(_trials_table(found), soft_wrap=False)
    show(False, None, sweep_in_words(found), next_command=next_command)
    return None


def flags(overrides: list[str]) -> list[str]:
    """Write overrides as options for a shell."""
    import shlex

    return [f"--set {shlex.quote(override)}" for override in overrides]


def _trials_table(found: Sweep) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    colours = {"complete": "green", "pruned": "yellow", "failed": "red"}
    keys = list(found.best.values)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in (("trial", True), ("", False), (found.metric, True), *((key, True) for key in keys), ("time", True), ("run", False)):
        table.add_column(escape(name), justify="right" if right else "left", overflow="fold")
    for trial in found.trials:
        score = "" if trial.score is None else f"{trial.score:.4f}"
        values = [escape(_short(trial.values[key])) for key in keys]
        where = escape(trial.run_id if trial.state == "complete" else trial.reason)
        style = "bold" if trial.number == found.best.number else ""
        state = f"[{colours[trial.state]}]{trial.state}[/]"
        table.add_row(str(trial.number), state, score, *values, duration(trial.seconds), where, style=style)
    return table


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sweep_in_words(found: Sweep) -> str:
    """Write what a sweep found, and how far its best figure can be trusted."""
    ended = len(found.trials)
    lines = [f"Trial {found.best.number} is the best of {ended}: {found.metric} {found.best.score:.3f} on {found.n_validation:,} validation records."]
    if found.looks > 1:
        worth = found.worth
        lines.append(
            f"It was chosen among {found.looks} runs by the same records, and the best of many looks better than it is: "
            f"expect {worth.value:.3f} [{worth.low:.3f}, {worth.high:.3f}] on new ones."
        )
    lines.append("The test split was not looked at.")
    if ended < found.planned:
        lines.append(f"The time was up after {ended} of {found.planned} trials; raise sweep.timeout_hours to go on.")
    if found.importance:
        lines += ["", "Share of each key in the differences between trials:", *(f"  {share:>5.0%}  {key}" for key, share in found.importance.items())]
    lines += ["", "The best settings, to put into tunesmith.yaml:", *_yaml_lines(found.best.values)]
    return "\n".join(lines)


def _yaml_lines(values: dict[str, Any]) -> list[str]:
    """Write values as nested YAML, in the order of their keys."""
    lines: list[str] = []
    opened: list[str] = []
    for key, value in sorted(values.items()):
        *parents, name = key.split(".")
        shared = next((depth for depth, (old, new) in enumerate(zip(opened, parents, strict=False)) if old != new), min(len(opened), len(parents)))
        lines += [f"{'  ' * (depth + 1)}{parents[depth]}:" for depth in range(shared, len(parents))]
        lines.append(f"{'  ' * (len(parents) + 1)}{name}: {json.dumps(value, ensure_ascii=False)}")
        opened = parents
    return lines
