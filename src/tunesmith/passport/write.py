"""Writes the tunesmith.yaml of an imported file: our keys in our order, each with where it comes from, placeholders to fill in.

A placeholder is an empty value that our schema refuses, with a comment: `tunesmith config check` names its line until it is
filled in. What could not be carried over stands at the end as comments.
"""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from tunesmith.config import Config
from tunesmith.passport.sheet import Sheet
from tunesmith.section import Section

FILL_IN = "FILL IN"
_PLACEHOLDERS: tuple[tuple[str, Any, str], ...] = (
    ("task.instruction", "", "what the model is told, for example: Say what kind of document this is."),
    ("task.labels", [], "the answers as the data spells them, for example: [invoice, contract, letter]"),
    ("model.model_name_or_path", "", "a local folder, a hub name with model_revision, or package:NAME/FILE.gguf"),
)


def placeholders(sheet: Sheet) -> list[str]:
    """Return the keys that are left to fill in, in the order of the file."""
    paths = [f"data.sources.{position}.path" for position, (source, _) in enumerate(sheet.sources or [({"path": ""}, {})]) if not source["path"]]
    revision = ["model.model_revision"] if _needs_revision(sheet) else []
    task, model = ([key for key, _, _ in part if key not in sheet.draft] for part in (_PLACEHOLDERS[:2], _PLACEHOLDERS[2:]))
    return task + paths + model + revision


def project_text(sheet: Sheet, name: str, project: str) -> str:
    """Return the file.

    Args:
        sheet: What is written.
        name: Name of the file that was imported.
        project: Name of the project.
    """
    tree = CommentedMap()
    tree["project"] = project
    values = dict(sheet.draft)
    comments = dict(sheet.comments)
    for key, empty, hint in _PLACEHOLDERS:
        if key not in values:
            values[key], comments[key] = empty, f"{FILL_IN}: {hint}"
    for section in ("task", "data", "model", *(name for name in Config.model_fields if name not in ("project", "task", "data", "model"))):
        keys = _in_order(section, values)
        if section == "data":
            tree[section] = CommentedMap()
            tree[section]["sources"] = _sources(sheet)
            told = (
                "rows of messages, conversations, instruction and output, or prompt and completion are told from their columns; else: text_column, label_column"
            )
            tree[section].yaml_set_comment_before_after_key("sources", before=told, indent=2)
        for key in keys:
            place = tree.setdefault(section, CommentedMap())
            last = key.partition(".")[2]
            place[last] = _plain(values[key])
            if key in comments:
                place.yaml_add_eol_comment(_one_line(comments[key]), last)
        if section == "model" and _needs_revision(sheet):
            tree[section].yaml_set_comment_before_after_key(
                "model_name_or_path", before="model_revision: FILL IN, the commit that the hub name means", indent=2
            )
    name = _one_line(name)
    head = (
        f"# Imported from {name} ({sheet.peer.title}). `tunesmith config import {name} --out OTHER.yaml` tells again what became of each key.\n"
        f"# Lines with {FILL_IN} wait for you; `tunesmith config check` names them.\n\n"
    )
    return head + _dumped(tree) + _not_carried(sheet)


def _in_order(section: str, values: dict[str, Any]) -> list[str]:
    kind = Config.model_fields[section].annotation
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
    return [f"{section}.{name}" for name in fields if f"{section}.{name}" in values]


def _sources(sheet: Sheet) -> CommentedSeq:
    rows = CommentedSeq()
    for source, comments in sheet.sources or [({"path": ""}, {"path": f"{FILL_IN}: a CSV, JSON, JSONL or Parquet file, or a folder of documents"})]:
        row = CommentedMap()
        for key, value in source.items():
            row[key] = _plain(value)
            if key in comments:
                row.yaml_add_eol_comment(_one_line(comments[key]), key)
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        made = CommentedMap({key: _plain(item) for key, item in value.items()})
        made.fa.set_flow_style()
        return made
    if isinstance(value, list | tuple):
        listed = CommentedSeq([_plain(item) for item in value])
        listed.fa.set_flow_style()
        return listed
    return value


def _dumped(tree: CommentedMap) -> str:
    yaml = YAML(typ="rt")
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(tree, out)
    return re.sub(r"(?m)^(?=[a-z]+:$)", "\n", out.getvalue())


def _not_carried(sheet: Sheet) -> str:
    lines = [entry for entry in sheet.entries if entry.status == "not_supported"]
    if not lines:
        return ""
    lines.sort(key=lambda entry: not entry.changes_results)
    told = [f"#   {entry.key}: {_one_line(str(entry.value))[:80]}: {_one_line(entry.note)}" for entry in lines]
    return "\n".join(("\n# Not carried over; what changes results comes first.", *told, ""))


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _needs_revision(sheet: Sheet) -> bool:
    """Whether the base model is a hub name without its commit."""
    name = str(sheet.draft.get("model.model_name_or_path", ""))
    return "model.model_revision" not in sheet.draft and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
