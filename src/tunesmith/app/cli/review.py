"""`tunesmith review next | export | import`: judge predictions in the terminal, and records in a labelling tool."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, console, open_project, show

if TYPE_CHECKING:
    from tunesmith.entities import Prediction
    from tunesmith.project import Project


class ToolFormat(StrEnum):
    """Labelling tools that a file can be for."""

    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"
    CSV = "csv"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Judge predictions and records.", no_args_is_help=True)
    group.command("next")(review_next)
    group.command("export")(review_export)
    group.command("import")(review_import)
    app.add_typer(group, name="review")


def review_next(
    project: ProjectOption = Path(),
    reviewer: Annotated[str, typer.Option("--reviewer", help="Who judges; the user of this machine when left out.")] = "",
    accept: Annotated[bool, typer.Option("--accept", help="Accept the answer without asking.")] = False,
    label: Annotated[str, typer.Option("--label", help="Give the right label without asking.")] = "",
    skip: Annotated[bool, typer.Option("--skip", help="Skip the prediction without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the least certain prediction that nobody judged, then accept, correct or skip it."""
    from tunesmith.errors import ConfigError

    if accept + bool(label) + skip > 1:
        raise ConfigError("Choose one of --accept, --label and --skip.")
    opened = open_project(project, None, as_json=True)
    actor = reviewer or getpass.getuser()
    given = Choice("accept" if accept else "skip" if skip else "correct", label) if accept or label or skip else None
    judged, ended = 0, False
    while not ended and (prediction := opened.store.next_for_review()) is not None:
        if given is None and as_json:
            return show(True, prediction.model_dump(mode="json"))
        choice = given or _ask(prediction, opened.config.task.names)
        if choice.action != "quit":
            _carry_out(choice, opened, prediction, actor)
            judged += choice.action != "skip"
        ended = given is not None or choice.action == "quit"
    done = "" if ended else " Nothing is left to judge."
    return show(as_json, {"judged": judged}, f"{judged} judged.{done}", next_command="tunesmith renew" if judged else 'tunesmith predict "TEXT"')


@dataclass(frozen=True)
class Choice:
    """What a reviewer decided; `label` is the right answer of a correction."""

    action: Literal["accept", "correct", "skip", "quit"]
    label: str = ""


def _ask(prediction: Prediction, labels: Sequence[str]) -> Choice:
    """Show a prediction and ask until the answer is a choice."""
    console.print(f"\n{prediction.text[:1500]}\n", markup=False)
    console.print(f"Answer: {prediction.label}  (confidence {prediction.confidence:.2f}, {prediction.id})", markup=False)
    for field in sorted(prediction.fields, key=lambda field: field.confidence):
        console.print(f"  {field}", markup=False)
    for number, name in enumerate(labels, start=1):
        console.print(f"  {number}  {name}", markup=False)
    keys = {"a": Choice("accept"), "s": Choice("skip"), "q": Choice("quit")}
    keys |= {str(number): Choice("correct", name) for number, name in enumerate(labels, start=1)}
    while (typed := typer.prompt("[a]ccept, number of the right label, [s]kip, [q]uit", default="a").strip()) not in keys:
        console.print(f"Type a, s, q or a number from 1 to {len(labels)}. Received: {typed!r}.", markup=False)
    return keys[typed]


def _carry_out(choice: Choice, project: Project, prediction: Prediction, actor: str) -> None:
    from tunesmith.review import queue

    if choice.action == "skip":
        queue.skip(project.store, prediction, actor)
    elif choice.action == "accept":
        queue.accept(project.store, prediction, actor)
    else:
        queue.correct(project.store, prediction, choice.label, project.config.task.names, actor)


def review_export(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    form: Annotated[ToolFormat, typer.Option("--format", help="Which tool it is for.")] = ToolFormat.CSV,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most items to write, the most urgent first.")] = None,
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write the review items that want a label to a file for a labelling tool."""
    from tunesmith.flow.review import export_review

    n_items, files = export_review(open_project(project, None, as_json=True), file, form.value, limit)
    text = f"{n_items:,} items in {', '.join(map(str, files))}" if n_items else "No review item wants a label."
    show(as_json, {"items": n_items, "files": [str(each) for each in files]}, text, next_command=f"tunesmith review import {file}")


def review_import(
    file: Annotated[Path, typer.Argument(help="A file of the labelling tool, or the CSV filled in.")],
    reviewer: Annotated[str, typer.Option("--reviewer", help="Who labelled, for rows that name nobody.")] = "",
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Read what reviewers said about review items."""
    from dataclasses import asdict

    from tunesmith.flow.review import import_review, review_state

    opened = open_project(project, None, as_json=True)
    imported, n_new = import_review(opened, file, reviewer)
    state = review_state(opened)
    n_open = len(state.open_items)
    lines = [
        f"{n_new:,} new labels of {len(imported.labels):,}; {imported.n_unlabelled:,} rows without one.",
        f"{n_open:,} of {len(state.items):,} items want a label.",
    ]
    lines += [f"  row {row.row} was not used: {row.reason}: {row.evidence}" for row in imported.rejected]
    if state.agreement:
        lines.append(
            f"Krippendorff's alpha {state.agreement.alpha:.3f} ({state.agreement.low:.3f} to {state.agreement.high:.3f}), {state.agreement.n_items:,} items."
        )
    value: dict[str, Any] = {"new": n_new, "labels": len(imported.labels), "unlabelled": imported.n_unlabelled, "open": n_open}
    value |= {"rejected": [asdict(row) for row in imported.rejected], "agreement": asdict(state.agreement) if state.agreement else None}
    show(as_json, value, "\n".join(lines), next_command="tunesmith review export FILE" if n_open else "tunesmith prepare")
