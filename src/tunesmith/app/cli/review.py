"""`tunesmith review next`: judge predictions in the terminal, the least certain first."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, console, open_project, show

if TYPE_CHECKING:
    from tunesmith.entities import Prediction
    from tunesmith.project import Project


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Judge predictions.", no_args_is_help=True)
    group.command("next")(review_next)
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
