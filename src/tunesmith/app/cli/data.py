"""`tunesmith data log | diff`: dataset versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, open_project, show


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Look at dataset versions.", no_args_is_help=True)
    group.command()(log)
    group.command()(diff)
    app.add_typer(group, name="data")


def log(project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """List dataset versions, newest first."""
    from tunesmith.entities import DatasetVersion

    versions = open_project(project, None, as_json=True).store.all(DatasetVersion)[::-1]
    lines = [
        f"{version.id}  {version.created_at[:19]}  {sum(version.rows.values()):>8,} records  {version.reason}  (parent {version.parent or 'none'})"
        for version in versions
    ]
    text = "\n".join(lines) or "No dataset version yet."
    next_command = f"tunesmith data diff {versions[1].id} {versions[0].id}" if len(versions) > 1 else "tunesmith run"
    show(as_json, [version.model_dump(mode="json") for version in versions], text, next_command=next_command)


def diff(
    old: Annotated[str, typer.Argument(help="Id of the older dataset version.")],
    new: Annotated[str, typer.Argument(help="Id of the newer dataset version.")],
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Say which records two dataset versions differ in."""
    from tunesmith import flow

    found = flow.compare_datasets(open_project(project, None, as_json=True), old, new)
    counts = [f"  {split:<12}{before:>8,} -> {after:>8,}" for split, before, after in found.counts.iter_rows()]
    shown = [
        f"  {sign} {row['id']}  {row['split']:<11} {row['label']}  {row['source']}:{row['source_line']}"
        for sign, rows in (("+", found.added), ("-", found.removed))
        for row in rows.head(10).iter_rows(named=True)
    ]
    changed = found.changed.head(10).iter_rows(named=True)
    shown += [f"  ~ {row['old_id']} -> {row['new_id']}  {row['cause']}: {row['old_label']} -> {row['new_label']}" for row in changed]
    text = "\n".join((f"{len(found.added):,} added, {len(found.removed):,} removed, {len(found.changed):,} changed", *counts, *shown))
    value = {name: getattr(found, name).to_dicts() for name in ("added", "removed", "changed", "counts")}
    show(as_json, value, text, next_command=f"tunesmith lineage {new}")
