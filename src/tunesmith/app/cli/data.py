"""`tunesmith data log | show | diff | audit | push | pull | checkout | withdraw`: dataset versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, open_project, show


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Look at dataset versions, send and fetch them, and take documents out of them.", no_args_is_help=True)
    for command in (log, show_version, diff, audit, push, pull, checkout, withdraw):
        group.command("show" if command is show_version else command.__name__)(command)
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


VersionArgument = Annotated[str, typer.Argument(metavar="[ID]", help="Id of a dataset version.")]


def show_version(version: VersionArgument = "", project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """Show what a dataset version holds: its labels, what was dropped and why, and what share of it people saw. The newest one without an id."""
    from tunesmith.flow.versions import show_dataset

    found = show_dataset(open_project(project, None, as_json=True), version)
    splits = found.labels.columns[1:]
    width = max((len(label) for label in found.labels["label"]), default=5)
    lines = [
        f"{found.version.id}  {found.version.created_at[:19]}  {found.version.reason}  (parent {found.version.parent or 'none'})",
        f"  {'label':<{width}}" + "".join(f"{name:>14}" for name in splits),
        *(f"  {row['label']:<{width}}" + "".join(f"{row[name]:>14,}" for name in splits) for row in found.labels.iter_rows(named=True)),
        f"  {'all':<{width}}" + "".join(f"{found.version.rows.get(name, 0):>14,}" for name in splits),
        f"People saw {found.expert_share:.1%} of the records.",
    ]
    lines += [
        f"  dropped {row['count']:>8,}  {row['reason']:<20} for example {row['source']}:{row['source_line']}: {row['evidence']}"
        for row in found.dropped.iter_rows(named=True)
    ]
    show(as_json, found.to_dict(), "\n".join(lines), next_command=f"tunesmith lineage {found.version.id}")


def audit(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Look for label errors, outliers, noise and unsure OCR in the newest dataset version, and open a review item for each."""
    from tunesmith import flow
    from tunesmith.errors import NotFoundError

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith data audit"):
        dataset = flow.newest_dataset(opened)
        if dataset is None:
            raise NotFoundError("There is no dataset version yet.", hint="tunesmith prepare")
        found = flow.audit(opened, dataset)
    lines = [f"  {count:>7,} {reason}" for reason, count in found.reasons.items()]
    lines.append(f"  about {found.label_error_rate:.1%} of the train labels do not fit their text, by estimate")
    lines += [f"  {item.score:.2f}  {item.reason:<12} {item.target_id}  {item.evidence['why']}: {item.text[:80]!r}" for item in found.items[:5]]
    items = [item.model_dump(mode="json") for item in found.items]
    value = {"items": items, "label_error_rate": found.label_error_rate, "new": found.new}
    show(as_json, value, "\n".join(lines), next_command="tunesmith review export items.csv --format csv")


def push(version: VersionArgument = "", project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """Send a dataset version, or all of them, to the DVC remote of data.dvc_remote."""
    from tunesmith.flow import versions

    sent = versions.push(open_project(project, None, as_json=True), version)
    show(as_json, {"files": sent}, f"{sent} files sent.", next_command="git push")


def pull(version: VersionArgument = "", project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """Fetch a dataset version, or all that git knows here, from the DVC remote of data.dvc_remote."""
    from tunesmith.flow import versions

    opened = open_project(project, None, as_json=True)
    with opened.lock("tunesmith data pull"):
        there = versions.pull(opened, version)
    text = "\n".join(f"{each.id}  {sum(each.rows.values()):>8,} records  {each.reason}" for each in there)
    show(as_json, [each.model_dump(mode="json") for each in there], text, next_command="tunesmith data show")


def checkout(
    version: Annotated[str, typer.Argument(metavar="ID", help="Id of a dataset version.")], project: ProjectOption = Path(), as_json: JsonOption = False
) -> None:
    """Put the files of a dataset version back as they were frozen."""
    from tunesmith.flow import versions

    opened = open_project(project, None, as_json=True)
    with opened.lock("tunesmith data checkout"):
        changed = versions.checkout(opened, version)
    show(as_json, {"changed": changed}, f"{version} is {'put back' if changed else 'in place'}.", next_command=f"tunesmith data show {version}")


def withdraw(
    document: Annotated[str, typer.Argument(metavar="DOC", help="Id of a document or of one of its records, its source, or SOURCE:LINE.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it is taken back.")] = "",
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """List all that a document touched, and prepare the dataset version without it. It stays out for good."""
    from tunesmith.flow import versions

    opened = open_project(project, None, as_json=as_json)
    with opened.lock("tunesmith data withdraw"):
        done = versions.withdraw(opened, document, reason, versions.this_user())
    lines = [f"{', '.join(done.document_ids)} touched {len(done.touched):,} things:", *(f"  {node.id}  {node.summary}" for node in done.touched)]
    lines += ["What was frozen or trained before still holds it. Delete it at its source, and take down the models above.", f"Without it: {done.version.id}"]
    lines += [
        f"task.examples[{number}] says its text in every prompt: take it out of {opened.file.name}, or training is refused; models above that show it, too."
        for number in done.examples
    ]
    show(as_json, done.to_dict(), "\n".join(lines), next_command="tunesmith config explain task.examples" if done.examples else "tunesmith train")
