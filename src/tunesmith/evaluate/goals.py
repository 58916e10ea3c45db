"""What a project set out to reach, beside what was measured.

A goal is a limit for one figure of the report, stated in `evaluate.goals` before the run. It is reached or missed by the
figure itself; whether the interval lies on the same side is said beside it, because a goal that was reached by luck is missed next time.
Goals inform: the gate alone decides about the alias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from tunesmith.section import Section


class GoalsSection(Section):
    """Limits for figures of the test split. The report says which are reached, by how much, and whether the interval is clear of the limit."""

    accuracy: float | None = Field(default=None, ge=0, le=1)
    """At least this accuracy."""
    macro_f1: float | None = Field(default=None, ge=0, le=1)
    """At least this macro F1."""
    false_positive_rate: float | None = Field(default=None, ge=0, le=1)
    """At most this false positive rate."""
    expected_calibration_error: float | None = Field(default=None, ge=0, le=1)
    """At most this expected calibration error, after calibration."""
    micro_f1: float | None = Field(default=None, ge=0, le=1)
    """Extraction: at least this micro F1."""
    hallucination_rate: float | None = Field(default=None, ge=0, le=1)
    """Extraction: at most this share of stated values that stand nowhere in the text."""
    valid_json_rate: float | None = Field(default=None, ge=0, le=1)
    """Extraction: at least this share of answers that are valid JSON without constraint."""
    latency_seconds: float | None = Field(default=None, gt=0)
    """At most this mean latency of one answer, in seconds."""
    gain_over_base: float | None = Field(default=None, ge=-1, le=1)
    """At least this much more accuracy (micro or token F1 of written answers) than the untuned model; 0.3 is 30 points."""
    against_classical: Literal["level", "wins"] | None = None
    """`wins`: the interval of the difference to the classical baseline lies above zero; `level`: it does not lie below."""


_AT_LEAST = ("accuracy", "macro_f1", "gain_over_base", "micro_f1", "valid_json_rate")


def check_goals(report: Mapping[str, Any], goals: GoalsSection) -> list[dict[str, Any]]:
    """Hold a report against its goals.

    Args:
        report: What report.json holds.
        goals: The limits; those that are not set are left out.

    Returns:
        Per goal: `name`, `rule` (at_least or at_most), `goal`, `value`, `low`, `high`, `reached`, `missed_by` (0 where it is reached),
        `is_clear` (the interval lies on the figure's side of the goal). Of `against_classical` the figure is the paired
        difference of accuracy and the goal is 0, held against the interval's end: its high end for `level`, its low end for `wins`.
    """
    checked, headline = [], report.get("headline", "accuracy")
    for name, goal in goals.model_dump(exclude_none=True).items():
        if name == "against_classical":
            if "paired_classical" not in report:
                continue  # a chat has no classical opponent
            difference = report["paired_classical"][headline]
            value, low, high = difference["difference"], difference["low"], difference["high"]
            held = low if goal == "wins" else high
            reached = held > 0 if goal == "wins" else held >= 0
            checked.append(_checked(f"{name}_{goal}", "at_least", 0.0, (value, low, high), reached, max(0.0, -held)) | {"is_clear": low > 0 or high < 0})
            continue
        if name == "gain_over_base":
            difference = report["paired"][headline]
            figure = (difference["difference"], difference["low"], difference["high"])
        elif name not in report["metrics"]:
            continue  # a figure of another kind of task
        else:
            measured = report["metrics"][name]["tuned"]
            figure = (measured["value"], measured["low"], measured["high"])
        at_least = name in _AT_LEAST
        short = goal - figure[0] if at_least else figure[0] - goal
        checked.append(_checked(name, "at_least" if at_least else "at_most", goal, figure, short <= 0, max(0.0, short)))
    return checked


def goals_in_words(checked: list[dict[str, Any]]) -> list[str]:
    """Write each goal as a line: name, goal, figure with interval, and reached or missed by how much."""
    lines = []
    for each in checked:
        rule = "at least" if each["rule"] == "at_least" else "at most"
        verdict = "reached" if each["reached"] else f"missed by {each['missed_by']:.3f}"
        doubt = "" if each["is_clear"] else ", within the interval"
        lines.append(f"{goal_name(each['name'])}: {rule} {each['goal']:g}; {each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}], {verdict}{doubt}")
    return lines


def goal_name(name: str) -> str:
    """Return a goal's name for people."""
    words = {
        "gain_over_base": "Above the untuned model",
        "against_classical_level": "Against the classical baseline: level",
        "against_classical_wins": "Against the classical baseline: above",
        "micro_f1": "Micro F1",
        "valid_json_rate": "Valid JSON, unconstrained",
        "macro_f1": "Macro F1",
        "latency_seconds": "Latency of one answer, seconds",
    }
    return words.get(name, name.replace("_", " ").capitalize())


def _checked(name: str, rule: str, goal: float, figure: tuple[float, float, float], reached: bool, missed_by: float) -> dict[str, Any]:
    value, low, high = figure
    return {
        "name": name,
        "rule": rule,
        "goal": goal,
        "value": value,
        "low": low,
        "high": high,
        "reached": bool(reached),
        "missed_by": missed_by,
        "is_clear": not low < goal < high,
    }
