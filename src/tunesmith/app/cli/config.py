"""`tunesmith init` and `tunesmith config explain | schema | check | import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, console, show

if TYPE_CHECKING:
    from rich.table import Table

    from tunesmith.passport import Passport


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    group = typer.Typer(help="Look at the project file.", no_args_is_help=True)
    group.command()(explain)
    group.command()(schema)
    group.command()(check)
    group.command("import")(import_file)
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


def import_file(
    file: Annotated[Path, typer.Argument(help="A YAML file of Axolotl, LLaMA-Factory or TRL.")],
    peer: Annotated[str, typer.Option("--from", metavar="PEER", help="axolotl, llamafactory or trl; told from the keys when left out.")] = "",
    out: Annotated[Path, typer.Option(help="The project file to write; it must not exist.")] = Path("tunesmith.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Turn a file of Axolotl, LLaMA-Factory or TRL into a tunesmith.yaml, and say what became of each key."""
    from tunesmith.passport import import_config, write_project

    made = import_config(file, peer)
    left = write_project(made, out)
    if as_json:
        return show(True, made.model_dump(mode="json", exclude={"text"}) | {"counts": made.counts, "file": str(out), "left_to_settle": left})
    console.print(_entries_table(made), soft_wrap=False)
    counts = made.counts
    told = f"{counts['kept']} kept, {counts['renamed']} renamed, {counts['defaulted']} defaulted there, {counts['not_supported']} not supported"
    lines = [f"{made.title}: {told}.", f"Wrote {out}."]
    if left:
        lines += ["Left to fill in:", *(f"  {line}" for line in left)]
    command = f"tunesmith config check -C {out}"
    show(False, None, "\n".join(lines), next_command=f"fill in the lines above, then: {command}" if left else command)
    return None


def _entries_table(made: Passport) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    colours = {"kept": "green", "renamed": "cyan", "defaulted": "yellow", "not_supported": "red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, options in (("line", {"justify": "right"}), ("key", {}), ("there", {}), ("", {}), ("here", {}), ("note", {"ratio": 1})):
        table.add_column(name, **options)
    for entry in made.entries:
        here = f"{entry.ours}: {_short(entry.written)}" if entry.written is not None else entry.ours
        dim = "" if entry.changes_results else "dim"
        status = f"[{colours[entry.status]}]{entry.status.replace('_', ' ')}[/]"
        table.add_row(str(entry.line or ""), escape(entry.key), escape(_short(entry.value)), status, escape(here), escape(entry.note), style=dim)
    return table


def _short(value: object) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 48 else text[:45] + "..."
