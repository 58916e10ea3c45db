"""`tunesmith init` and `tunesmith config explain | schema | check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, console, show


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    group = typer.Typer(help="Look at the project file.", no_args_is_help=True)
    group.command()(explain)
    group.command()(schema)
    group.command()(check)
    app.add_typer(group, name="config")


def init(folder: Annotated[Path, typer.Argument(help="Folder to make.")], as_json: JsonOption = False) -> None:
    """Write a commented tunesmith.yaml."""
    from tunesmith.app.cli.template import project_file
    from tunesmith.config import FILE_NAME
    from tunesmith.errors import ConfigError
    from tunesmith.files import write_text

    file = folder / FILE_NAME
    if file.exists():
        raise ConfigError(f"init writes a new project file. Received: {file}, which exists.", hint=f"tunesmith config check -C {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, project_file(folder.resolve().name))
    show(as_json, {"file": str(file)}, f"Wrote {file}. Put your labelled rows where data.sources says.", next_command=f"tunesmith config check -C {folder}")


def explain(key: Annotated[str, typer.Argument(help="Show only this key and those below it, for example train.")] = "", as_json: JsonOption = False) -> None:
    """Describe every key of the project file, with type and default."""
    from rich.markup import escape
    from rich.padding import Padding

    from tunesmith.config import explain as explain_keys

    rows = explain_keys(key)
    if as_json:
        return show(True, rows)
    for row in rows:
        facts = ", ".join(part for part in (row["type"], f"default {row['default']}" if row["default"] not in ("", "required") else row["default"]) if part)
        console.print(f"[bold]{escape(row['key'])}[/bold]  [dim]{escape(facts)}[/dim]")
        if row["description"]:
            console.print(Padding(escape(row["description"]), (0, 0, 0, 4)), soft_wrap=False)
    return None


def schema() -> None:
    """Print the JSON schema of the project file, for editors."""
    from tunesmith.config import schema as json_schema

    show(True, json_schema())


def check(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check the project file and list all its errors at once."""
    from tunesmith.project import Project

    config = Project.load(project, overrides or ()).config
    show(as_json, config.model_dump(mode="json"), f"{config.project}: the project file is right.", next_command="tunesmith run")
