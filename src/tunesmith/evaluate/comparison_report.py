"""The report of a comparison: comparison.json for machines, comparison.html for people, from the same dict.

Keys are those of `candidates.compare_candidates`, and per candidate what was measured of its runs: `runs`, `strategy`,
`trainable_parameters`, `seconds` and `peak_memory_bytes` (a list entry a seed), `stored_bytes`, `forgetting` (optional),
`cost` (None where an hour has no price) and `eligible`; beside them `refused` (name -> why it could not be trained).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunesmith.evaluate import plots
from tunesmith.evaluate.report import environment, points
from tunesmith.files import write_json, write_text


def write_comparison(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write comparison.json and comparison.html, each by write-then-rename.

    Returns:
        Path of comparison.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", report)
    page = (
        _environment()
        .get_template("comparison.html.j2")
        .render(
            report=report,
            verdict=comparison_verdict(report),
            unit=unit_of(report),
            costs=any(row["cost"] for row in report["candidates"].values()),
            # Our own drawing, in which matplotlib has escaped the names already.
            picture=Markup(plots.candidates(report["candidates"], unit_of(report))),  # noqa: S704
        )
    )
    write_text(folder / "comparison.html", page)
    return folder / "comparison.html"


def comparison_verdict(report: Mapping[str, Any]) -> str:
    """Return the choice in one sentence."""
    if report["best"] is None:
        return "No candidate stays within the limits."
    gain, level_with = report["candidates"][report["best"]]["gain"], report["level_with_best"]
    figures = f"{_gain(gain['difference'], report['metric'])} [{_gain(gain['low'], report['metric'])}, {_gain(gain['high'], report['metric'])}]"
    of_cost = {"log_loss": "nats of log loss better", "business_cost": f"{report.get('currency', '')} a document cheaper"}
    unit = of_cost.get(report["metric"], f"points of {report['metric'].replace('_', ' ')}")
    beside = f" Level with it: {', '.join(level_with)}." if level_with else ""
    return f"Best on validation: {report['best']}, {figures} {unit} against the untuned model.{beside}"


def in_points(metric: str) -> bool:
    """Whether a metric is a ratio, whose differences are shown in percentage points."""
    return metric not in ("log_loss", "business_cost")


def unit_of(report: Mapping[str, Any]) -> str:
    """Return the unit of a gain."""
    return {"log_loss": "nats", "business_cost": f"{report.get('currency', '')} a document".strip()}.get(report["metric"], "points")


def _environment() -> Any:
    made = environment()
    made.filters["gain"] = _gain
    return made


def _gain(difference: float, metric: str) -> str:
    return points(difference) if in_points(metric) else f"{difference:+.3f}"
