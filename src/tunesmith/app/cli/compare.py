"""Which way to train is best on these data: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, duration, open_project, show


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Train every candidate with every seed, measure, and choose the best on validation."""
    from tunesmith import flow
    from tunesmith.evaluate.comparison_report import comparison_verdict

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith compare"):
        comparison = flow.compare(opened, flow.prepare(opened))
    report = comparison.report
    text = f"\n{_table(report)}\n\n{comparison_verdict(report)}\nReport: {comparison.html}"
    best = report["best"]
    chosen = opened.config.compare.candidates[best].model_dump(mode="json", include=opened.config.compare.candidates[best].model_fields_set) if best else {}
    settings = " ".join(f"--set train.{key}={value}" for key, value in chosen.items())
    show(as_json, report | {"id": comparison.id, "html": str(comparison.html)}, text, next_command=f"tunesmith run {settings}" if best else "")


def _table(report: dict[str, Any]) -> str:
    from tunesmith.evaluate.comparison_report import in_points, unit_of

    scale, digits = (100, 1) if in_points(report["metric"]) else (1, 3)
    header = f"  {'':<14}{f'gain, {unit_of(report)}':>26}{'time':>16}{'memory':>10}{'forgetting':>26}{'stored':>10}{'cost':>8}"
    lines = [header]
    for name, row in report["candidates"].items():
        gain = row["gain"]
        figures = f"{scale * gain['difference']:+.{digits}f} [{scale * gain['low']:+.{digits}f}, {scale * gain['high']:+.{digits}f}]"
        rise = row.get("forgetting", {}).get("cross_entropy", {}).get("difference")
        lost = f"{rise['difference']:+.3f} [{rise['low']:+.3f}, {rise['high']:+.3f}]" if rise else "-"
        seconds = sum(row["seconds"]) / len(row["seconds"])
        cost = f"{row['cost']:.2f}" if row["cost"] else "-"
        memory, stored = f"{max(row['peak_memory_bytes']) / 1e9:.1f} GB", f"{row['stored_bytes'] / 1e6:.0f} MB"
        lines.append(f"  {name:<14}{figures:>26}{duration(seconds):>16}{memory:>10}{lost:>26}{stored:>10}{cost:>8}")
    lines += [f"  {name:<14}could not be trained: {why}" for name, why in report["refused"].items()]
    return "\n".join(lines)
