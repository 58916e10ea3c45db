"""What a process tells the one that started it: a JSON object a line, behind a prefix, on its standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

PREFIX = "tunesmith> "

FOLLOWS_PARENT = "TUNESMITH_FOLLOWS_PARENT"
"""Environment variable of processes whose standard input is a pipe from their parent: when it closes, they end."""


def tell(what: dict[str, Any]) -> None:
    """Tell it in one write, so that the lines of several processes do not mix."""
    sys.stdout.write(f"{PREFIX}{json.dumps(what)}\n")
    sys.stdout.flush()


def heard(line: str) -> dict[str, Any] | None:
    """Return what a line tells, or None where it is something else."""
    return dict(json.loads(line.removeprefix(PREFIX))) if line.startswith(PREFIX) else None
