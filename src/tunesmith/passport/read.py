"""Reads a foreign YAML file, safely, and tells whose it is.

Nothing in the file is run or constructed: tags are refused, aliases cannot blow it up, and size, depth and the number of
values are bounded. YAML 1.2 is read; what YAML 1.1 reads otherwise (yes, on, 1e-4 as text) is settled where a value is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tunesmith.errors import ConfigError, NotFoundError
from tunesmith.passport.sheet import Peer

_MOST_BYTES = 2**20
_MOST_VALUES = 20_000
_MOST_DEPTH = 32
_OTHERWISE = "tunesmith config import FILE --from axolotl, or llamafactory, or trl"


@dataclass(frozen=True)
class Foreign:
    """A file as it was read.

    Attributes:
        path: the file.
        values: its keys.
        lines: key path -> line, from 1.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[tuple[str | int, ...], int]


def read_foreign(path: Path) -> Foreign:
    """Read a file.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is too large or too deep, not UTF-8, not YAML, or no mapping of keys; with line and column.
    """
    if not path.is_file():
        raise NotFoundError(f"No file {path}.", hint=_OTHERWISE)
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{path.name}: must be {_MOST_BYTES // 2**20} MiB at most. Received: {path.stat().st_size:,} bytes.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: must be UTF-8. Received: byte {error.object[error.start]:#04x} at offset {error.start}.") from None
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError(f"{path.name}:{where}: not valid YAML: {error.problem or error.context}.") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{path.name}:1:1: not valid YAML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path.name}:1:1: must be nested {_MOST_DEPTH} levels at most.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}:1:1: must be a mapping of keys. Received: {type(tree).__name__}.", hint=_OTHERWISE)
    lines: dict[tuple[str | int, ...], int] = {}
    values = _Plain(path.name, lines).of(tree, (), (1, 1))
    return Foreign(path, values, lines)


class _Plain:
    """Copies the tree into plain values and notes where each stands."""

    def __init__(self, name: str, lines: dict[tuple[str | int, ...], int]) -> None:
        self._name, self._lines, self._seen = name, lines, 0

    def of(self, node: Any, at: tuple[str | int, ...], where: tuple[int, int]) -> Any:
        self._seen += 1
        line, column = where
        if self._seen > _MOST_VALUES:
            raise ConfigError(f"{self._name}:{line}:{column}: must hold {_MOST_VALUES:,} values at most, aliases written out.")
        if len(at) > _MOST_DEPTH:
            raise ConfigError(f"{self._name}:{line}:{column}: must be nested {_MOST_DEPTH} levels at most.")
        tag = getattr(node, "tag", None)
        if isinstance(node, TaggedScalar) or (tag is not None and tag.value):
            raise ConfigError(f"{self._name}:{line}:{column}: must hold plain values. Received: the tag {tag.value if tag else ''}.")
        if isinstance(node, dict):
            found: dict[str, Any] = {}
            for key, value in node.items():
                place = self._place(node, key, where)
                if not isinstance(key, str):
                    raise ConfigError(f"{self._name}:{place[0]}:{place[1]}: keys must be text. Received: {key!r}.")
                self._lines[*at, key] = place[0]
                found[key] = self.of(value, (*at, key), place)
            return found
        if isinstance(node, list):
            return [self._item(node, position, value, at, where) for position, value in enumerate(node)]
        return _scalar(node)

    def _item(self, node: Any, position: int, value: Any, at: tuple[str | int, ...], where: tuple[int, int]) -> Any:
        line, column = node.lc.item(position) if hasattr(node, "lc") else (where[0] - 1, where[1] - 1)
        self._lines[*at, position] = line + 1
        return self.of(value, (*at, position), (line + 1, column + 1))

    @staticmethod
    def _place(node: Any, key: Any, where: tuple[int, int]) -> tuple[int, int]:
        try:
            line, column = node.lc.key(key)
        except (AttributeError, KeyError, TypeError):  # a key that came by a merge
            return where
        return line + 1, column + 1


def _scalar(node: Any) -> Any:
    """Return a plain value of what ruamel wraps to remember its spelling."""
    if node is None or isinstance(node, bool):
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return bool(node) if type(node).__name__ == "ScalarBoolean" else str(node)


def whose(foreign: Foreign, peers: Mapping[str, Peer]) -> Peer:
    """Return the peer that knows most of a file's keys.

    Raises:
        ConfigError: none knows half of them, or two know as many.
    """
    known = {name: sum(key in peer.keys for key in foreign.values) for name, peer in peers.items()}
    most = max(known.values())
    best = [name for name, count in known.items() if count == most]
    told = ", ".join(f"{peers[name].title} {count}" for name, count in known.items())
    if 2 * most < len(foreign.values) or most == 0:
        raise ConfigError(
            f"{foreign.path.name}: must be a file of {', '.join(p.title for p in peers.values())}. Received: keys that they know: {told}.", hint=_OTHERWISE
        )
    if len(best) > 1:
        raise ConfigError(f"{foreign.path.name}: must be one peer's file. Received: keys that they know: {told}.", hint=_OTHERWISE)
    return peers[best[0]]
