"""One foreign file on its way to tunesmith.yaml: what was found, what became of each key, what is written.

A peer's module looks at a `Sheet` and says of every key of the file one of four things:

    kept           the same key, or a value that already holds here
    renamed        another key of ours, or the value in another form
    defaulted      the key is not in the file, and what it means there changes results: written out, or said
    not_supported  with the reason and what to do instead

A value is written only if our schema takes it; what the schema refuses is `not_supported` with the schema's own words. So
the tables of the peers may name keys that Tunesmith does not have yet. Values of secrets are never shown or written.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tunesmith.config import field_of
from tunesmith.train.settings import TrainSection

Status = Literal["kept", "renamed", "defaulted", "not_supported"]
Convert = Callable[[Any], Any]
"""Turns a peer's value into ours. Raises ValueError where there is none; its text says what to do instead."""

_SECRET = re.compile(r"(api_?key|secret|passw|credential|webhook|(hub|auth|hf|ms|om|access|push_to_hub)_token)", re.IGNORECASE)
_NOT_SET = object()
HOLDS = "Empty, off, or what holds here anyway: nothing is written."
"""Note of a key whose value means nothing else here."""


class Entry(BaseModel):
    """What became of one key.

    Attributes:
        key: as the file spells it, `datasets[0].type` inside a list.
        line: line of the key in the file, from 1; 0 where it is not there.
        value: what the file says, or what the peer takes by default.
        status: see the module.
        ours: the key of tunesmith.yaml that says the same; empty where there is none.
        written: what is written there; None where nothing is.
        note: the reason, what differs, what to do instead.
        changes_results: whether another model comes out where the key is left out; False for speed, memory, names and logs.
    """

    model_config = ConfigDict(frozen=True)
    key: str
    line: int = 0
    value: Any = None
    status: Status
    ours: str = ""
    written: Any = None
    note: str = ""
    changes_results: bool = True


@dataclass(frozen=True)
class Rule:
    """What a peer's key means here.

    Attributes:
        ours: key of tunesmith.yaml; empty where there is none.
        convert: makes our value of theirs.
        default: what the peer takes where the key is absent or null; left out where that changes nothing here.
        neutral: values that say what holds here anyway, where `ours` is empty. True and False are not 1 and 0.
        note: said with every value; the reason where `ours` is empty.
        instead: what to do, where `ours` is empty.
        changes_results: see `Entry`.
    """

    ours: str = ""
    convert: Convert = lambda value: value
    default: Any = _NOT_SET
    neutral: tuple[Any, ...] = (None, False)
    note: str = ""
    instead: str = ""
    changes_results: bool = True


@dataclass(frozen=True)
class Peer:
    """A program whose files are read.

    Attributes:
        name: as `--from` spells it.
        title: as people do, with the version that the tables were read from.
        rules: key -> what it means here.
        groups: (pattern of whole keys, rule), tried in order where no rule has the key.
        look: what depends on several keys: strategy, data, precision, warm-up. It takes its keys with `Sheet.take`.
        unknown: what the peer does with a key that it does not know.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    groups: Sequence[tuple[str, Rule]]
    look: Callable[[Sheet], None]
    unknown: str

    @cached_property
    def keys(self) -> frozenset[str]:
        """Every key that the peer knows."""
        lines = files("tunesmith.passport").joinpath(f"{self.name}.txt").read_text(encoding="utf-8").splitlines()
        return frozenset(line for line in lines if line and not line.startswith("#")) | self.rules.keys()


@dataclass
class Sheet:
    """The file, and what was said of it so far.

    Attributes:
        peer: whose file it is.
        values: the file's keys.
        lines: key path -> line.
        folder: where the file stands, for files that it names.
        entries: what became of each key.
        draft: key path of tunesmith.yaml -> value.
        comments: key path -> what stands behind it.
        sources: `data.sources`, each with a comment for some of its keys.
    """

    peer: Peer
    values: dict[str, Any]
    lines: dict[tuple[str | int, ...], int]
    folder: Any
    entries: list[Entry] = field(default_factory=list)
    draft: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    sources: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def take(self, key: str) -> Any:
        """Return a key's value and leave it out of the rules; None where it is absent."""
        self._taken.add(key)
        return self.values.get(key)

    def take_number(self, key: str) -> float | None:
        """Take a key that holds a number; one that does not is told as not supported, and is None."""
        value = self.take(key)
        try:
            return None if value is None else number(value)
        except ValueError as error:
            self.tell(key, "not_supported", str(error))
            return None

    def carry(self, key: str, ours: str, convert: Convert, note: str = "", *, default: Any = None) -> None:
        """Take a key and write it as ours, or the peer's default where it is absent; no default writes nothing."""
        value = self.take(key)
        if value is None:
            if default is not None:
                self.write(key, ours, default, note, given=default, default=True)
            return
        try:
            self.write(key, ours, convert(value), note)
        except ValueError as error:
            self.tell(key, "not_supported", f"{error} {note}", ours=ours)

    def has(self, key: str) -> bool:
        """Whether the file sets a key."""
        return self.values.get(key) is not None

    def tell(
        self, key: str, status: Status, note: str = "", *, ours: str = "", written: Any = None, value: Any = _NOT_SET, changes_results: bool = True
    ) -> None:
        """Say what became of a key."""
        if value is _NOT_SET:
            value = self.values.get(key)
        if is_secret(key) and value is not None:
            note = "A secret: it belongs in an environment variable. " + note
        value = _without_secrets(value, key)
        line = self.lines.get(_path(key.partition(":")[0]), 0)
        self.entries.append(
            Entry(key=key, line=line, value=value, status=status, ours=ours, written=written, note=note.strip(), changes_results=changes_results)
        )

    def write(self, key: str, ours: str, value: Any, note: str = "", *, given: Any = _NOT_SET, default: bool = False, changes_results: bool = True) -> bool:
        """Put a value into the draft, if our schema takes it, and say so.

        Args:
            key: The peer's key.
            ours: Ours.
            value: Ours.
            note: Said with it.
            given: The peer's value, where it is not what the file says under the key.
            default: Whether it is the peer's default, not in the file. Nothing is said where ours is the same.
            changes_results: See `Entry`.

        Returns:
            Whether it was written, or needs not be.
        """
        if default and (ours in self.draft or value == default_of(ours, self.draft)):
            return True
        refused = refusal(ours, value, self.draft)
        if refused:
            self.tell(key, "not_supported", f"{refused} {note}", ours=ours, value=given, changes_results=changes_results)
            return False
        self.draft[ours] = value
        if default:
            self.comments[ours] = f"{self.peer.title}'s default; Tunesmith's is {default_of(ours, self.draft)}"
        status: Status = "defaulted" if default else "kept" if _last(ours) == _last(key) else "renamed"
        if status == "renamed":
            self.comments[ours] = key
        self.tell(key, status, note, ours=ours, written=value, value=given, changes_results=changes_results)
        return True

    def apply_rules(self) -> None:
        """Say of every key that nobody took what its rule says, then of every absent key what its default changes."""
        for key, value in self.values.items():
            if key not in self._taken:
                self._apply(key, value)
        for key, rule in self.peer.rules.items():
            if rule.default is not _NOT_SET and not self.has(key) and key not in self._taken:
                self._apply_default(key, rule)
        told = {re.split(r"[\[:]", entry.key)[0] for entry in self.entries}
        for key, value in self.values.items():
            if key not in told:  # taken together with another one
                empty = value is None or value is False or value in ([], {}, "")
                self.tell(key, "kept" if empty else "not_supported", HOLDS if empty else "Says nothing here beside the other keys.", changes_results=not empty)

    def _apply(self, key: str, value: Any) -> None:
        rule = self.peer.rules.get(key) or next((rule for pattern, rule in self.peer.groups if re.fullmatch(pattern, key)), None)
        if rule is None:
            return self._tell_unknown(key)
        changes = rule.changes_results
        if isinstance(value, str) and "${" in value:
            return self.tell(key, "not_supported", f"An interpolation. Write its value into {_file(self)} and import it again.", changes_results=changes)
        if value is None and rule.default is not _NOT_SET:
            return None  # as if it were absent
        if not rule.ours:
            if any(value is neutral or (value == neutral and type(value) is type(neutral)) for neutral in rule.neutral):
                return self.tell(key, "kept", HOLDS, changes_results=False)
            return self.tell(key, "not_supported", f"{rule.note} {rule.instead}", changes_results=changes)
        if value is None:
            return self.tell(key, "kept", HOLDS, changes_results=False)
        try:
            converted = rule.convert(value)
        except ValueError as error:
            return self.tell(key, "not_supported", f"{error} {rule.note}", ours=rule.ours, changes_results=changes)
        self.write(key, rule.ours, converted, rule.note, changes_results=changes)
        return None

    def _apply_default(self, key: str, rule: Rule) -> None:
        if rule.ours:
            self.write(key, rule.ours, rule.convert(rule.default), rule.note, given=rule.default, default=True, changes_results=rule.changes_results)
        else:
            self.tell(key, "defaulted", f"{rule.note} {rule.instead}", value=rule.default, changes_results=rule.changes_results)

    def _tell_unknown(self, key: str) -> None:
        if key in self.peer.keys:
            return self.tell(key, "not_supported", f"{self.peer.title} knows it; Tunesmith has no such setting.")
        near = difflib.get_close_matches(key, self.peer.keys, n=1, cutoff=0.8)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        return self.tell(key, "not_supported", f"Not a key of {self.peer.title}, which {self.peer.unknown}.{meant}")


def is_secret(key: str) -> bool:
    """Whether a key holds something that must not be shown."""
    return _SECRET.search(_last(key)) is not None


def _without_secrets(value: Any, key: str) -> Any:
    """Return a value to show: secrets by the name of their key, and passwords inside addresses, are replaced by stars."""
    if isinstance(value, dict):
        return {name: _without_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, key) for item in value]
    if value is not None and not isinstance(value, bool) and is_secret(key):
        return "***"
    return re.sub(r"//[^/@\s]+@", "//***@", value) if isinstance(value, str) else value


def refusal(ours: str, value: Any, draft: Mapping[str, Any]) -> str:
    """Say why our schema refuses a value beside what the draft holds, or nothing where it takes it."""
    found = field_of(ours)
    if found is None:
        return "Tunesmith has no such setting."
    try:
        kind: Any = found.annotation
        TypeAdapter(Annotated[kind, *found.metadata] if found.metadata else kind).validate_python(value)
        if ours.startswith("train."):  # rules of the section, such as the names of strategies
            TrainSection.model_validate({_last(key): held for key, held in draft.items() if key.startswith("train.")} | {_last(ours): value})
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        return f"Tunesmith's {ours}: {message[0].lower() + message[1:]}."
    return ""


def default_of(ours: str, draft: Mapping[str, Any]) -> Any:
    """Return our default of a key, or None where it has none; it may depend on the strategy."""
    found = field_of(ours)
    if found is None or found.is_required():
        return None
    if ours.startswith("train."):
        return getattr(TrainSection(strategy=draft.get("train.strategy", "lora")), _last(ours))
    return found.get_default(call_default_factory=True)


def _path(key: str) -> tuple[str | int, ...]:
    parts = re.findall(r"[^.\[\]]+", key)
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _file(sheet: Sheet) -> str:
    return f"the {sheet.peer.title} file"


# How values are spelt there


def number(value: Any) -> float:
    """Return a number, a whole one as it is; YAML 1.1 reads 1e-4 as text."""
    if isinstance(value, bool):
        raise ValueError("Must be a number.")
    if isinstance(value, int):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("Must be a number.") from None


def whole(value: Any) -> int:
    """Return a whole number; 3.0 is one."""
    found = number(value)
    if isinstance(found, float) and not found.is_integer():
        raise ValueError("Must be a whole number here.")
    return int(found)


def boolean(value: Any) -> bool:
    """Return a boolean; YAML 1.1 reads yes and on as true."""
    if isinstance(value, bool):
        return value
    spelt = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if not isinstance(value, str) or value.lower() not in spelt:
        raise ValueError("Must be true or false.")
    return spelt[value.lower()]


def is_on(value: Any) -> bool:
    """Whether a switch is on; absent is off."""
    try:
        return value is not None and boolean(value)
    except ValueError:
        return False


def names(value: Any) -> list[str]:
    """Return a list of names: a list, or text with commas."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError("Must be a name or a list of names.")
    return [item.strip() for item in found if item.strip()]
