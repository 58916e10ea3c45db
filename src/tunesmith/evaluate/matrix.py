"""The selection matrix: candidates for a base model, which of them may be chosen, and why one is recommended.

A candidate is left out when its licence does not allow the stated use or is not known, when no strategy or precision fits the stated
device, or when its facts could not be read. Of the others that answered validation records untuned, those level with the best are
alike as far as these records can tell, and the smallest of them is recommended. How well a model answers untuned says little of how
well it learns: `tunesmith run` with each of the level ones does.

The report has `rows` (as measured, with `excluded`, the reasons, and `is_level`, whether it is level with the best), `choice`, `reasons`, `use` and `device`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluate.candidates import holm
from tunesmith.evaluate.intervals import mcnemar
from tunesmith.evaluate.report import environment
from tunesmith.files import write_json, write_text


def recommend(rows: Sequence[Mapping[str, Any]], *, device: str | None, use: str, level: float = 0.95) -> dict[str, Any]:
    """Choose a base model by the rule above.

    Args:
        rows: A candidate each: `name`, and `error` or `license`, `facts`, `fits`, `measured`.
        device: What it shall fit; None for anything.
        use: What its licence shall allow.
        level: Level at which candidates count as different, a ratio; McNemar's test, corrected by Holm.
    """
    shown = [dict(row) | {"excluded": _excluded(row, device, use), "is_level": False} for row in rows]
    may_be_chosen = [row for row in shown if not row["excluded"]]
    looked_at = [row for row in may_be_chosen if (row["measured"] or {}).get("zero_shot")]
    found: dict[str, Any] = {"rows": shown, "use": use, "device": device, "choice": None}
    if not looked_at:
        fit = ", ".join(row["name"] for row in may_be_chosen) or "none"
        return found | {"reasons": [f"No candidate that may be chosen answered validation records: facts alone choose nothing. These may be: {fit}."]}
    best = max(looked_at, key=lambda row: row["measured"]["zero_shot"]["value"])
    others = [row for row in looked_at if row is not best]
    p_values = holm([mcnemar(np.array(best["measured"]["right"]), np.array(row["measured"]["right"])) for row in others])
    best["is_level"] = True
    for row, p_value in zip(others, p_values, strict=True):
        row["is_level"] = p_value > 1 - level
    level_ones = [row for row in looked_at if row["is_level"]]
    chosen = min(level_ones, key=lambda row: row["facts"]["parameters"])
    zero_shot, n = chosen["measured"]["zero_shot"], len(chosen["measured"]["right"])
    value, low, high = (100 * zero_shot[key] for key in ("value", "low", "high"))
    reasons = [f"Untuned it is right on {value:.1f} % [{low:.1f}, {high:.1f}] of {n} validation records."]
    if len(level_ones) > 1:
        alike = ", ".join(row["name"] for row in level_ones if row is not chosen)
        reasons.append(f"Level with it on these records: {alike}; it is the smallest.")
    elif others:
        reasons.append("No other candidate that may be chosen is level with it.")
    terms = chosen["license"]
    conditions = f" under conditions: {terms['note']}" if terms["allows"] == "conditions" else ""
    reasons.append(f"Its licence, {terms['name']}, allows {use} use{conditions}.")
    if device:
        reasons.append(f"On {device} it trains with {', '.join(chosen['fits']['training'])} and serves as {', '.join(chosen['fits']['serving'])}.")
    return found | {"choice": chosen["name"], "reasons": reasons}


def _excluded(row: Mapping[str, Any], device: str | None, use: str) -> list[str]:
    if "error" in row:
        return [row["error"]]
    reasons = []
    if row["license"]["allows"] in ("no", "unknown"):
        said = "does not allow" if row["license"]["allows"] == "no" else "is not known to allow"
        reasons.append(f"its licence ({row['license']['name']}) {said} {use} use")
    if device and not (row["fits"]["training"] and row["fits"]["serving"]):
        what = " and ".join(name for name in ("training", "serving") if not row["fits"][name])
        reasons.append(f"its {what} does not fit {device}")
    return reasons


def write_matrix(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write selection.json and the decision page selection.html, each by write-then-rename; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "selection.json", report)
    made = environment()
    made.filters["gigabytes"] = lambda n_bytes: f"{n_bytes / 1e9:.1f}"
    made.filters["known"] = lambda answer: "unknown" if answer is None else "yes" if answer else "no"
    write_text(folder / "selection.html", made.get_template("selection.html.j2").render(report=report))
    return folder / "selection.html"
