"""`tunesmith lineage ID`: where something comes from and what was made from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, open_project, show

if TYPE_CHECKING:
    from tunesmith.lineage import Node
    from tunesmith.project import Project


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lineage)


def lineage(
    noun_id: Annotated[str, typer.Argument(metavar="ID", help="Id of any noun: prd_..., mdl_..., run_..., dsv_..., rec_..., doc_..., fbk_...")],
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Print the chain from an answer back to its data, and forward to what it touched."""
    from tunesmith.lineage import walk

    opened = open_project(project, None, as_json=True)
    trace = walk(opened.store, opened.root, noun_id)
    nearest = _nearest(opened, trace.nodes) if noun_id.startswith("prd_") else []
    lines = [f"{'  ' * node.depth}{node.id}  {node.summary}" for node in trace.nodes]
    if nearest:
        rows = (f"  {row['id']}  {row['source']}:{row['source_line']}  {row['label']}  (score {row['score']:.1f})  {row['text'][:70]!r}" for row in nearest)
        lines += ["", "Nearest training records:", *rows]
    if trace.made:
        lines += ["", "Made from it:", *(f"  {node.id}  {node.summary}" for node in trace.made)]
    value = {"ancestors": [node.to_dict() for node in trace.nodes], "descendants": [node.to_dict() for node in trace.made], "nearest_records": nearest}
    show(as_json, value, "\n".join(lines))


def _nearest(project: Project, nodes: list[Node]) -> list[dict[str, Any]]:
    from tunesmith import flow
    from tunesmith.entities import DatasetVersion, Prediction

    text = next(node.noun.text for node in nodes if isinstance(node.noun, Prediction))
    dataset = next(node.noun for node in nodes if isinstance(node.noun, DatasetVersion))
    return flow.nearest_records(project, text, dataset).to_dicts()
