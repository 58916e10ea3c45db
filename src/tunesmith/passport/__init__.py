"""A passport for people who change over: reads files of Axolotl, LLaMA-Factory and TRL and writes tunesmith.yaml.

    read -> sheet (kept, renamed, defaulted, not_supported) -> tunesmith.yaml

Every key of the file is told, and every default of the other program that changes results: porting a file by hand fails on
what it does not say. Each peer's module names the version and the source files that its table was read from; the keys that a
peer knows are in the .txt files beside them. Data is not read and nothing is fetched.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.config import load_config
from tunesmith.errors import ConfigError
from tunesmith.files import write_text
from tunesmith.passport.axolotl import AXOLOTL
from tunesmith.passport.llamafactory import LLAMA_FACTORY
from tunesmith.passport.read import read_foreign, whose
from tunesmith.passport.sheet import Entry, Peer, Sheet, Status
from tunesmith.passport.trl import TRL
from tunesmith.passport.write import placeholders, project_text

__all__ = ["Entry", "Passport", "Status", "import_config", "write_project"]

PEERS: dict[str, Peer] = {peer.name: peer for peer in (AXOLOTL, LLAMA_FACTORY, TRL)}


class Passport(BaseModel):
    """What an import says and writes.

    Attributes:
        peer: `axolotl`, `llamafactory` or `trl`.
        title: the peer with the version that its table is of.
        entries: what became of each key, in the order of the file, defaults after it.
        placeholders: keys of tunesmith.yaml that are left to fill in.
        text: the tunesmith.yaml.
    """

    model_config = ConfigDict(frozen=True)
    peer: str
    title: str
    entries: tuple[Entry, ...]
    placeholders: tuple[str, ...]
    text: str

    @property
    def counts(self) -> dict[Status, int]:
        """Status -> number of keys."""
        found = Counter(entry.status for entry in self.entries)
        return {status: found[status] for status in ("kept", "renamed", "defaulted", "not_supported")}


def import_config(path: Path, peer: str = "") -> Passport:
    """Translate a file.

    Args:
        path: A YAML file of Axolotl, LLaMA-Factory or TRL.
        peer: Whose it is; told from its keys when empty.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be read, or it is nobody's.
    """
    foreign = read_foreign(path)
    if peer and peer not in PEERS:
        raise ConfigError(f"--from must be one of {', '.join(PEERS)}. Received: {peer!r}.")
    found = PEERS[peer] if peer else whose(foreign, PEERS)
    sheet = Sheet(found, foreign.values, foreign.lines, path.parent)
    found.look(sheet)
    sheet.apply_rules()
    # In the order of the file; of equal lines, as they were told.
    entries = sorted(sheet.entries, key=lambda entry: (entry.line == 0, entry.line))
    project = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-") or "project"
    return Passport(
        peer=found.name, title=found.title, entries=tuple(entries), placeholders=tuple(placeholders(sheet)), text=project_text(sheet, path.name, project)
    )


def write_project(passport: Passport, out: Path) -> list[str]:
    """Write the project file and check it.

    Returns:
        What is left to fill in, a line each: what `tunesmith config check` says of it, and a commit that a hub name needs.

    Raises:
        ConfigError: there is a file already.
    """
    if out.exists():
        raise ConfigError(f"import writes a new project file. Received: {out}, which exists.", hint="tunesmith config import FILE --out OTHER.yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, passport.text)
    commit = ["model.model_revision: a hub name needs the commit that it means"] if "model.model_revision" in passport.placeholders else []
    return check(out) + commit


def check(out: Path) -> list[str]:
    """Return what is wrong with a project file, a line each."""
    try:
        load_config(out)
    except ConfigError as error:
        return error.message.splitlines()
    return []
