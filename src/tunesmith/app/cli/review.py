"""`tunesmith review next`: judge predictions in the terminal, the least certain first."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, console, open_project, show


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
    from tunesmith.review import queue

    if accept + bool(label) + skip > 1:
        raise ConfigError("Choose one of --accept, --label and --skip.")
    opened = open_project(project, None, as_json=True)
    labels, actor = opened.config.task.names, reviewer or getpass.getuser()
    judged = 0
    while (prediction := opened.store.next_for_review()) is not None:
        if accept or label or skip:
            choice = "a" if accept else "s" if skip else label
        elif as_json:
            return show(True, prediction.model_dump(mode="json"))
        else:
            console.print(f"\n{prediction.text[:1500]}\n", markup=False)
            console.print(f"Answer: {prediction.label}  (confidence {prediction.confidence:.2f}, {prediction.id})", markup=False)
            for number, name in enumerate(labels, start=1):
                console.print(f"  {number}  {name}", markup=False)
            choice = typer.prompt("[a]ccept, number of the right label, [s]kip, [q]uit", default="a")
        choice = labels[int(choice) - 1] if choice.isdigit() and 0 < int(choice) <= len(labels) else choice
        if choice == "q":
            break
        if choice == "s":
            queue.skip(opened.store, prediction, actor)
        elif choice in ("a", prediction.label):
            queue.accept(opened.store, prediction, actor)
        elif choice in labels or label:
            queue.correct(opened.store, prediction, choice, labels, actor)
        else:
            console.print(f"Type a, s, q or a number from 1 to {len(labels)}. Received: {choice!r}.", markup=False)
            continue
        judged += 1
        if accept or label or skip:
            break
    done = "Nothing is left to judge." if prediction is None else ""
    return show(as_json, {"judged": judged}, f"{judged} judged. {done}".strip(), next_command="tunesmith renew" if judged else 'tunesmith predict "TEXT"')
