"""tunesmith.yaml -> one typed Config, or all of its errors at once.

Every error reads `file:line:column: key: rule. Received: value`, with "did you mean" for an unknown key. `--set
train.learning_rate=1e-4` passes the same check. Nothing here touches the disk but the file itself.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tunesmith.data.settings import DataSection
from tunesmith.errors import ConfigError, NotFoundError
from tunesmith.evaluate.settings import CalibrateSection, EvaluateSection
from tunesmith.launch.settings import LaunchSection
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.registry.settings import RegistrySection
from tunesmith.review.settings import ReviewSection
from tunesmith.section import Section
from tunesmith.serve.settings import ServeSection
from tunesmith.train.preference_settings import PreferSection
from tunesmith.train.settings import NOT_LEARNT, CompareSection, RouterSection, SweepSection, TrainKeys, TrainSection

FILE_NAME = "tunesmith.yaml"

# What a run depends on, so that a sweep may search it. All trials share one dataset version, or their scores could not be compared.
_SWEPT = ("task", "model", "train")


class Config(Section):
    """One project. The keys are the stages, in flow order."""

    project: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the project: letters, digits, dot, dash and underscore."""
    task: TaskSection
    """What is decided about each document."""
    data: DataSection
    """documents -> records -> dataset version."""
    model: ModelSection
    """The base model."""
    train: TrainSection = TrainSection()
    """dataset version -> run."""
    router: RouterSection = RouterSection()
    """text -> the adapter that answers it."""
    launch: LaunchSection = LaunchSection()
    """On how many processes and machines a run trains."""
    compare: CompareSection = CompareSection()
    """Several ways to train, measured on the same data."""
    sweep: SweepSection = SweepSection()
    """Many runs -> the best settings, chosen on validation."""
    evaluate: EvaluateSection = EvaluateSection()
    """run -> evaluation."""
    calibrate: CalibrateSection = CalibrateSection()
    """evaluation -> honest confidence."""
    registry: RegistrySection = RegistrySection()
    """run + evaluation -> model version."""
    serve: ServeSection = ServeSection()
    """model version -> deployment -> prediction."""
    review: ReviewSection = ReviewSection()
    """prediction -> feedback -> the next records."""
    prefer: PreferSection = PreferSection()
    """run + feedback -> a run that prefers the answers that people gave."""

    @field_validator("evaluate")
    @classmethod
    def _confidence_fits_the_task(cls, value: EvaluateSection, info: ValidationInfo) -> EvaluateSection:
        task = info.data.get("task")
        if task and task.type == "classification" and value.confidence.method != "likelihood":
            raise ValueError(f"confidence.method is about written answers; a classification has that of its label; received {value.confidence.method}")
        return value

    @property
    def model_name(self) -> str:
        """Name under which runs are registered."""
        return self.registry.name or self.project


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a project file.

    Args:
        path: The YAML file.
        overrides: `key.path=value` strings; values are YAML.

    Raises:
        NotFoundError: the file does not exist.
        ConfigError: one or more rules are broken; the message lists all of them, a line each.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"No project file at {path}.", hint="tunesmith init DIR") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: must be UTF-8. Received: byte {error.object[error.start]:#04x} at offset {error.start}.") from None
    tree = _parse(text, path.name)
    positions = dict(_positions(tree, ()))
    given = _plain(tree)
    for override in overrides:
        _override(given, positions, override)
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # pydantic also reports a list as too short when one of its items failed: say only the cause.
        causes = [item for item in found if not any(_is_inside(other["loc"], item["loc"]) for other in found)]
        causes.sort(key=lambda item: _position(item["loc"], positions))
        lines = [_describe(item, positions, path.name) for item in causes]
        raise ConfigError("\n".join(dict.fromkeys(lines)), hint="tunesmith config explain") from None
    if wrong := list(dict.fromkeys(_sweep_errors(config.sweep, given, positions, path.name))):
        raise ConfigError("\n".join(wrong), hint="tunesmith config explain sweep")
    return config


def _sweep_errors(sweep: SweepSection, given: dict[str, Any], positions: dict[tuple[str | int, ...], tuple[int, int]], name: str) -> Iterator[str]:
    """Yield what is wrong with the keys of a sweep, and with each value that they may take, put in its place."""
    known = [row["key"] for row in explain() if row["type"] != "section" and row["key"].partition(".")[0] in _SWEPT and "[]" not in row["key"]]
    for key, values in sweep.parameters.items():
        loc = next((loc for loc in positions if loc[:2] == ("sweep", "parameters") and ".".join(map(str, loc[2:])) == key), ("sweep", "parameters"))
        where = f"{_place(loc, positions, name)}: sweep.parameters.{key}"
        if key.partition(".")[0] not in _SWEPT:
            yield f"{where}: must be a key below {', '.join(_SWEPT)}."
        elif key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            yield f"{where}: unknown key." + (f" Did you mean '{near[0]}'?" if near else "")
        elif key.removeprefix("train.") in NOT_LEARNT or key.startswith("train.adapters"):
            yield f"{where}: changes nothing that is learnt."
        else:
            for value in values.ends:
                changed = copy.deepcopy({part: given[part] for part in given if part != "sweep"})
                _override(changed, {}, f"{key}={json.dumps(value)}")
                try:
                    Config.model_validate(changed)
                except ValidationError as error:
                    yield from (f"{where}: {_rule(item)}" for item in error.errors(include_url=False))


def _parse(text: str, name: str) -> CommentedMap:
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError(f"{name}:{where}: not valid YAML: {error.problem or error.context}.") from None
    except YAMLError as error:
        raise ConfigError(f"{name}:1:1: not valid YAML: {error}.") from None
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{name}:1:1: must be a mapping of keys. Received: {type(tree).__name__}.", hint="tunesmith init DIR")
    return tree


def _positions(node: object, at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], tuple[int, int]]]:
    """Yield key path -> (line, column), both counted from 1."""
    children: Iterator[tuple[Any, Any]] | enumerate[Any]
    if isinstance(node, CommentedMap):
        children = iter(node.items())
    elif isinstance(node, CommentedSeq):
        children = enumerate(node)
    else:
        return
    for key, value in children:
        line, column = node.lc.key(key) if isinstance(node, CommentedMap) else node.lc.item(key)
        yield (*at, key), (line + 1, column + 1)
        yield from _positions(value, (*at, key))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _override(given: dict[str, Any], positions: dict[tuple[str | int, ...], tuple[int, int]], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set must read KEY.PATH=VALUE. Received: {override!r}.", hint="tunesmith config explain")
    try:
        parsed = _plain(YAML(typ="safe").load(value))
    except YAMLError:
        raise ConfigError(f"--set {key}: the value is not valid YAML. Received: {value!r}.") from None
    *parents, last = key.split(".")
    node: Any = given
    for position, parent in enumerate(parents):
        node = _child(node, parent)
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {key}: '{'.'.join(parents[: position + 1])}' holds no keys.", hint="tunesmith config explain")
    if isinstance(node, list):
        raise ConfigError(f"--set {key}: give the whole list, as {'.'.join(parents)}=[...].")
    node[last] = parsed
    positions[tuple(key.split("."))] = (0, 0)


def _child(node: Any, key: str) -> Any:
    if isinstance(node, list):
        return node[int(key)] if key.isdigit() and int(key) < len(node) else None
    return node.setdefault(key, {})


def _position(loc: tuple[str | int, ...], positions: dict[tuple[str | int, ...], tuple[int, int]]) -> tuple[int, int]:
    """Return where a key stands, or the nearest section around it that is there."""
    while loc and loc not in positions:
        loc = loc[:-1]
    return positions.get(loc, (1, 1))


def _describe(item: Any, positions: dict[tuple[str | int, ...], tuple[int, int]], name: str) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "the file"
    return f"{_place(item['loc'], positions, name)}: {key}: {_rule(item)}"


def _place(loc: tuple[str | int, ...], positions: dict[tuple[str | int, ...], tuple[int, int]], name: str) -> str:
    line, column = _position(loc, positions)
    return "--set" if line == 0 else f"{name}:{line}:{column}"


def _rule(item: Any) -> str:
    """Say the rule that was broken and what was received."""
    match item["type"]:
        case "extra_forbidden":
            known = _keys_at(item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            return f"unknown key. Did you mean '{near[0]}'?" if near else f"unknown key. Known: {', '.join(known)}."
        case "missing":
            return "required, and missing."
        case "value_error":
            return f"{item['ctx']['error']}."
        case _:
            return f"{item['msg'][0].lower()}{item['msg'][1:]}. Received: {_short(item['input'])}."


def _is_inside(loc: Sequence[str | int], outer: Sequence[str | int]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _keys_at(loc: Sequence[str | int]) -> list[str]:
    """Return the keys that a section knows, following a key path from the root."""
    model: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        found = _section_of(model.model_fields[part].annotation)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_of(argument))), None)


def field_of(key: str) -> FieldInfo | None:
    """Return the field that a key path like `train.learning_rate` names, or None where the schema has no such key."""
    model: type[BaseModel] | None = Config
    field = None
    for part in key.split("."):
        if model is None or part not in model.model_fields:
            return None
        field = model.model_fields[part]
        model = _section_of(field.annotation)
    return field


def explain(prefix: str = "") -> list[dict[str, str]]:
    """List every key with its type, default and description.

    Args:
        prefix: Only keys that start with this path, for example `train`.

    Raises:
        NotFoundError: no key starts with the prefix.
    """
    rows = list(_explain(Config, ""))
    chosen = [row for row in rows if row["key"] == prefix or row["key"].startswith(f"{prefix}.") or not prefix]
    if not chosen:
        near = difflib.get_close_matches(prefix, [row["key"] for row in rows], n=1)
        raise NotFoundError(f"No key {prefix!r}.", hint=f"tunesmith config explain {near[0]}" if near else "tunesmith config explain")
    return chosen


def _explain(model: type[BaseModel], at: str) -> Iterator[dict[str, str]]:
    for name, field in model.model_fields.items():
        key = f"{at}{name}"
        section = _section_of(field.annotation)
        many = section is not None and "tuple" in str(field.annotation)
        named = section is not None and get_origin(field.annotation) is dict
        default = "required" if field.is_required() else "" if section else _short(field.default if field.default_factory is None else field.default_factory())  # type: ignore[call-arg]
        kind = "list" if many else "mapping" if named else "section" if section else _type_name(field.annotation)
        yield {"key": key, "type": kind, "default": default, "description": field.description or ""}
        is_told = at != "" and section is TrainKeys  # the keys of `train`, which are described there
        if section and not is_told:
            yield from _explain(section, f"{key}[]." if many else f"{key}.KEY." if named else f"{key}.")


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def schema() -> dict[str, Any]:
    """Return the JSON schema of tunesmith.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
