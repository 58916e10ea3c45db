import numpy as np
import pytest
from simulation import simulated

from tunesmith.evaluate.calibration import Temperature, Uncalibrated, fit_calibrators, softmax
from tunesmith.evaluate.calibration_effect import Answers, calibration_by, calibration_effect
from tunesmith.evaluate.metrics import expected_calibration_error
from tunesmith.evaluate.report import render


def test_it_measures_before_and_after(truth, scores):
    table = {"none": {"log_loss": 0.5, "expected_calibration_error": 0.1}}
    too_sure = softmax(simulated(truth, 3, 2.1, 3, sharpness=4))
    result = calibration_effect(too_sure, scores["tuned"], truth, method="temperature", table=table, n_samples=200)
    assert set(result) == {"calibration", "reliability"}
    assert set(result["calibration"]) == {"method", "before", "after", "table"}
    assert result["calibration"]["before"]["value"] > result["calibration"]["after"]["value"]
    assert result["calibration"]["table"] == table
    assert [sum(row["count"] for row in result["reliability"][when]) for when in ("before", "after")] == [len(truth)] * 2


def drawn(n, seed, sharpness):
    y = np.random.default_rng(seed).integers(3, size=n)
    return simulated(y, 3, 1.5, seed + 100, sharpness), y


def test_every_calibrator_is_measured_on_test_beside_none():
    (logits, y), (test_logits, test_y) = drawn(600, 1, 4.0), drawn(500, 2, 4.0)
    fitted = {name: each.probabilities(test_logits) for name, each in fit_calibrators(logits, y).items()}
    assert set(fitted) == {"none", "temperature", "platt", "beta", "isotonic"}
    table = {name: {"log_loss": 0.5, "expected_calibration_error": 0.1} for name in fitted}
    about = {"method": "temperature", "table": table, "n_samples": 300}
    found = calibration_effect(softmax(test_logits), fitted["temperature"], test_y, fitted=fitted, **about)["calibration"]
    assert found["on_test"]["none"] == {"error": found["before"], "change": None}
    assert found["on_test"]["temperature"]["error"] == found["after"]
    for name in ("temperature", "platt", "beta", "isotonic"):
        each = found["on_test"][name]
        assert each["error"]["value"] == pytest.approx(expected_calibration_error(test_y, fitted[name]))
        assert each["change"]["difference"] == pytest.approx(each["error"]["value"] - found["before"]["value"])
        assert each["change"]["high"] < 0
        assert each["change"]["p_value"] < 0.05


def of_two_kinds(n, seed):
    """Letters whose confidence is right, scans that are far too sure, and a few faxes."""
    (letters, first), (scans, second), (faxes, third) = drawn(n, seed, 1.0), drawn(n, seed + 1, 5.0), drawn(8, seed + 2, 1.0)
    values = ["letter"] * n + ["scan"] * n + ["fax"] * 8
    return Answers(values, np.concatenate([letters, scans, faxes]), np.concatenate([first, second, third]))


def test_a_slice_that_is_too_sure_gains_by_a_calibrator_of_its_own():
    calibration, test = of_two_kinds(500, 10), of_two_kinds(400, 20)
    common = Temperature.fit(calibration.logits, calibration.y)
    found = calibration_by(calibration, test, common, method="temperature", n_samples=300)
    rows = {row["name"]: row for row in found["slices"]}
    assert set(rows) == {"letter", "scan"}
    assert found["few"] == [{"name": "fax", "n_calibration": 8, "n_test": 8}]
    assert rows["scan"]["before"]["value"] > rows["scan"]["common"]["value"] > rows["scan"]["own"]["value"]
    for row in rows.values():  # one temperature for both makes letters less sure than they are, and scans still too sure
        assert row["change"]["high"] < 0
        assert row["change"]["difference"] == pytest.approx(row["own"]["value"] - row["common"]["value"])
    assert (rows["letter"]["n_calibration"], rows["letter"]["n_test"], rows["letter"]["method"]) == (500, 400, "temperature")


def test_equal_slices_raise_no_alarm_more_often_than_the_level_says():
    alarms = 0
    for seed in range(25):
        (logits, y), (test_logits, test_y) = drawn(400, 4 * seed, 2.0), drawn(400, 4 * seed + 2, 2.0)
        values = ["a", "b"] * 200
        common = Temperature.fit(logits, y)
        found = calibration_by(Answers(values, logits, y), Answers(values, test_logits, test_y), common, method="temperature", n_samples=200, seed=seed)
        alarms += any(row["change"]["p_value"] < 0.05 for row in found["slices"])
    assert alarms <= 5  # of 25; more has a chance below 1 % at the level of 5 %


def test_one_slice_is_no_slice():
    logits, y = drawn(100, 1, 1.0)
    for values in (["a"] * 100, [""] * 100, ["a"] * 50 + [None] * 50):
        assert calibration_by(Answers(values, logits, y), Answers(values, logits, y), Uncalibrated()) == {}


def test_the_page_shows_calibrators_on_test_and_slices(report):
    fitted = report["calibration"]
    one = {"value": 0.031, "low": 0.02, "high": 0.05}
    change = {"difference": -0.012, "low": -0.02, "high": -0.001, "p_value": 0.04}
    on_test = {"none": {"error": fitted["before"], "change": None}, "temperature": {"error": one, "change": change}}
    row = {"name": "invoice", "n_calibration": 120, "n_test": 240, "method": "platt", "before": one, "common": one, "own": one, "change": change}
    few = [{"name": "memo", "n_calibration": 3, "n_test": 9}]
    page = render(report | {"calibration": fitted | {"on_test": on_test, "by": "document_type", "slices": [row], "few": few}})
    for shown in ("Calibration error, test", "By document type", "invoice", "platt", "memo (3 calibration, 9 test)", "never by the test split"):
        assert shown in page
    assert "By document type" not in render(report)
