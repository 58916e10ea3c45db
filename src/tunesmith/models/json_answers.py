"""Answers that are JSON objects of a stated schema: read, checked and written in one way everywhere.

The schema is an object of flat properties: texts (with `enum` where few are possible), numbers, integers, booleans, and
lists of texts. An answer is written with the schema's order of keys and one space after commas and colons, so that equal
answers are equal texts; a property that an answer lacks is written as null, or as an empty list. Loads no torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_SCALARS: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,)}


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check that a schema is one that answers can be written for.

    Raises:
        ValueError: says the rule and what was received.
    """
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        example = "{type: object, properties: {person: {type: array, items: {type: string}}}}"
        raise ValueError(f"json_schema must be an object with properties, for example {example}; received {schema!r:.80}")
    for name, rule in properties.items():
        kind = rule.get("type") if isinstance(rule, Mapping) else None
        is_list_of_texts = kind == "array" and isinstance(rule.get("items"), Mapping) and rule["items"].get("type") == "string"
        if kind not in _SCALARS and not is_list_of_texts:
            raise ValueError(f"property {name} of json_schema must be a string, number, integer, boolean, or an array of strings; received {rule!r:.80}")


def parse_answer(schema: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """Return the answer that a text holds, keys in the schema's order, or None where it is not JSON of the schema.

    A property may be absent or null; one that the schema does not know makes the answer invalid.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    properties: Mapping[str, Any] = schema["properties"]
    if not isinstance(value, dict) or not value.keys() <= properties.keys():
        return None
    answer = {name: value.get(name) for name in properties}
    return answer if all(_fits(rule, answer[name]) for name, rule in properties.items()) else None


def write_answer(schema: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Write an answer as the model learns it."""
    empty: dict[str, Any] = {name: [] if rule["type"] == "array" else None for name, rule in schema["properties"].items()}
    return json.dumps({name: empty[name] if answer.get(name) is None else answer[name] for name in empty}, ensure_ascii=False)


def why_invalid(schema: Mapping[str, Any], text: str) -> str:
    """Return why a text is no answer of the schema, empty where it is one."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return "" if parse_answer(schema, text) is not None else f"does not fit task.json_schema, whose properties are {', '.join(schema['properties'])}"


def answer_values(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (property, value) of everything that an answer states, each element of a list by itself."""
    values = []
    for name, value in answer.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one != "":
                values.append((name, one if isinstance(one, str) else json.dumps(one)))
    return values


class FieldValue(Protocol):
    """A field and what it holds; None for nothing."""

    @property
    def field(self) -> str:
        """The property."""

    @property
    def value(self) -> str | None:
        """One value."""


@dataclass(frozen=True)
class Stated:
    """Something that an answer states of a field.

    Attributes:
        field: The property.
        value: What it holds, of a list one element; None says that it holds nothing.
        start: Where that stands in the answer's text.
        end: Where it ends, exclusive.
    """

    field: str
    value: str | None
    start: int
    end: int


def stated_in(schema: Mapping[str, Any], text: str) -> list[Stated]:
    """Return what an answer states, in its order: each element of a list by itself, and an empty field too. Empty where it is no answer of the schema."""
    if parse_answer(schema, text) is None:
        return []
    found: dict[str, list[Stated]] = {}
    at = text.index("{") + 1
    while (at := _skip(text, at, ",")) < len(text) and text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = at = _skip(text, at, ":")
        value, end = _DECODER.raw_decode(text, start)
        own = []
        if isinstance(value, list):
            at = start + 1
            while text[at := _skip(text, at, ",")] != "]":
                one, stop = _DECODER.raw_decode(text, at)
                own += [Stated(name, one, at, stop)] if one else []
                at = stop
        elif value is not None and value != "":
            own = [Stated(name, value if isinstance(value, str) else json.dumps(value), start, end)]
        found[name], at = own or [Stated(name, None, start, end)], end  # of a key that stands there twice the last one counts
    return [one for own in found.values() for one in own]


def held_by(stated: Sequence[FieldValue], answer: Mapping[str, Any] | None) -> list[bool]:
    """Return for each thing stated whether another answer says it too, after normalisation: the same value of that field, or that it holds nothing.

    Args:
        stated: See `stated_in`. A value that is stated twice must be held twice.
        answer: The other answer, parsed; None, which is none, holds nothing of it.
    """
    if answer is None:
        return [False] * len(stated)
    values = Counter((field, plain(value)) for field, value in answer_values(answer))
    filled, held = {field for field, _ in values}, []
    for one in stated:
        held.append(one.field not in filled if one.value is None else values[one.field, plain(one.value)] > 0)
        if one.value is not None:
            values[one.field, plain(one.value)] -= 1
    return held


_DECODER = json.JSONDecoder()


def _skip(text: str, at: int, sign: str) -> int:
    """Return where the next thing stands, behind white space and at most one sign."""
    while at < len(text) and (text[at].isspace() or text[at] == sign):
        at += 1
    return at


@dataclass(frozen=True)
class AnswerRule:
    """Judges the right answers of an extraction as the data have them.

    Args:
        schema: `task.json_schema`.
    """

    schema: Mapping[str, Any]

    def why_invalid(self, label: str) -> str:
        """Return why a label is no answer of the schema, empty where it is one."""
        return why_invalid(self.schema, label)

    def values(self, label: str) -> list[str]:
        """Return every text that a valid label states; numbers and booleans may be written in other ways in the source."""
        texts = {name for name, rule in self.schema["properties"].items() if rule["type"] in ("string", "array") and "enum" not in rule}
        return [value for name, value in answer_values(parse_answer(self.schema, label) or {}) if name in texts]


def plain(text: str) -> str:
    """Return a text as it is looked for in another one: case, white space and typographic quotes make no difference."""
    return re.sub(r"\s+", " ", text.translate(_QUOTES)).strip().casefold()


_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\u00ad": "", "–": "-"})  # noqa: RUF001 - they are what is replaced


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema that constrained decoding follows: every property in order, none besides, scalars may be null."""
    properties = {name: dict(rule) if rule["type"] == "array" else {"anyOf": [dict(rule), {"type": "null"}]} for name, rule in schema["properties"].items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _fits(rule: Mapping[str, Any], value: Any) -> bool:
    if value is None:
        return True
    if rule["type"] == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    is_right = isinstance(value, _SCALARS[rule["type"]]) and (rule["type"] == "boolean") == isinstance(value, bool)
    return is_right and ("enum" not in rule or value in rule["enum"])
