"""Options that every command has, and how results are shown."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tunesmith.project import Project

ProjectOption = Annotated[Path, typer.Option("--project", "-C", help="The project's folder or its tunesmith.yaml.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, for example train.learning_rate=1e-4. Repeatable.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]

console = Console(highlight=False, soft_wrap=True)


def open_project(path: Path, overrides: list[str] | None, *, as_json: bool = False) -> Project:
    """Load a project that shows its progress on the terminal."""
    from tunesmith.app.cli.progress import TerminalProgress
    from tunesmith.project import Progress, Project

    return Project.load(path, overrides or (), Progress() if as_json else TerminalProgress(Console(file=sys.stderr, highlight=False)))


def show(as_json: bool, value: Any, text: str = "", *, next_command: str = "") -> None:
    """Print a result: as JSON for machines, or as text with the next command to type."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
        return
    if text:
        console.print(text, markup=False)
    if next_command:
        console.print(f"Next: {next_command}", style="dim", markup=False)


def duration(seconds: float) -> str:
    """Write a time span: 8.1 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return time.strftime("%M min %S s", time.gmtime(seconds)).lstrip("0")
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
