import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.goals import GoalsSection, check_goals, goals_in_words
from tunesmith.evaluate.report import render


def one(report, **goals):
    (checked,) = check_goals(report, GoalsSection(**goals))
    return checked


@given(goal=st.floats(0.001, 0.999))
def test_a_goal_is_reached_exactly_when_nothing_is_missing(report, goal):
    for name, sign in (("accuracy", 1), ("macro_f1", 1), ("expected_calibration_error", -1), ("false_positive_rate", -1), ("gain_over_base", 1)):
        checked = one(report, **{name: goal})
        assert checked["reached"] == (sign * (checked["value"] - goal) >= 0) == (checked["missed_by"] == 0)
        assert checked["reached"] or checked["missed_by"] == pytest.approx(abs(checked["value"] - goal))
        assert checked["is_clear"] == (not checked["low"] < goal < checked["high"])


@pytest.mark.parametrize(
    ("low", "high", "level", "wins"),
    [(0.01, 0.05, True, True), (-0.01, 0.05, True, False), (-0.05, -0.01, False, False)],
)
def test_level_and_wins_are_told_by_the_interval(report, low, high, level, wins):
    changed = copy.deepcopy(report)
    changed["paired_classical"]["accuracy"] |= {"difference": (low + high) / 2, "low": low, "high": high}
    assert one(changed, against_classical="level")["reached"] is level
    assert one(changed, against_classical="wins")["reached"] is wins
    assert one(changed, against_classical="wins")["missed_by"] == (0 if wins else -low)


def test_a_miss_is_said_with_by_how_much(report):
    value = report["metrics"]["accuracy"]["tuned"]["value"]
    checked = check_goals(report, GoalsSection(accuracy=1.0, expected_calibration_error=1.0))
    missed, reached = goals_in_words(checked)
    assert f"missed by {1 - value:.3f}" in missed
    assert "reached" in reached
    page = render({**report, "goals": checked})
    assert f"missed by {1 - value:.3f}" in page
    assert "<h2>Goals</h2>" not in render(report)


def test_goals_that_are_not_set_are_not_shown(report):
    assert check_goals(report, GoalsSection()) == []
