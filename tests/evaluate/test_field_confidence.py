"""Confidence of the fields of an extraction: what counts as right, whose calibrator, what the report says of it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.calibration import load_calibrator
from tunesmith.evaluate.field_confidence import MIN_OUTCOMES, StatedFields, calibrated, field_effect, fit_fields, stated_fields
from tunesmith.models.answered import FieldAnswer
from tunesmith.models.confidence import EVERY_FIELD, right_logits

SCHEMA = {"type": "object", "properties": {"who": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}}}


def drawn(n, seed, **slopes):
    """Return fields that are right with probability sigmoid(slope * logit), two of each document."""
    draw = np.random.default_rng(seed)
    fields = np.array([name for name in slopes for _ in range(n)])
    logit = draw.normal(2, 2, len(fields))
    right = draw.random(len(fields)) < 1 / (1 + np.exp(-np.array([slopes[name] for name in fields]) * logit))
    documents = np.array([f"doc_{place // 2}" for place in range(len(fields))])
    return StatedFields(fields, right_logits(logit).astype(np.float64), (~right).astype(np.int64), documents)


def test_what_is_stated_is_right_where_the_right_answer_holds_it():
    answers = [(FieldAnswer("who", "ANN", 1.0), FieldAnswer("who", "Bo", -1.0), FieldAnswer("n", None, 3.0)), (), (FieldAnswer("n", "7", 0.0),)]
    rights = [json.dumps({"who": ["Ann"], "n": None}), json.dumps({"who": [], "n": 1}), json.dumps({"who": [], "n": 8})]
    stated = stated_fields(SCHEMA, answers, rights, ["a", "b", "b"])
    assert stated.fields.tolist() == ["who", "who", "n", "n"]
    assert stated.y.tolist() == [0, 1, 0, 1]
    assert stated.logits.tolist() == [[1, 0], [-1, 0], [3, 0], [0, 0]]
    assert stated.documents.tolist() == ["a", "a", "a", "b"]


def test_a_field_has_a_calibrator_of_its_own_where_it_has_enough_of_both_outcomes():
    calibration = drawn(400, 0, often=0.2, rare=1.0)
    keep = (calibration.fields == "often") | (calibration.y == 0) | (np.cumsum((calibration.fields == "rare") & (calibration.y == 1)) < MIN_OUTCOMES)
    few = StatedFields(calibration.fields[keep], calibration.logits[keep], calibration.y[keep], calibration.documents[keep])
    fitted, table = fit_fields(few)
    assert set(fitted) == {EVERY_FIELD, "often"}
    assert "logistic" in table
    # Each by its own: the one that states too much is made less sure than the other.
    test = drawn(1, 1, often=0.2, rare=1.0, unseen=1.0)
    test = StatedFields(test.fields, right_logits([3.0] * 3).astype(np.float64), test.y, test.documents)
    sure = dict(zip(test.fields.tolist(), calibrated(fitted, test)[:, 0], strict=True))
    assert sure["rare"] == sure["unseen"]
    assert sure["often"] < sure["rare"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 6), st.floats(0, 1))
def test_any_number_of_fields_is_calibrated_or_none_is(seed, n, slope):
    stated = drawn(n, seed, one=slope)
    fitted, _ = fit_fields(stated)
    assert bool(fitted) == (n >= 2)
    if fitted:
        saved = json.loads(json.dumps({field: each.to_dict() for field, each in fitted.items()}))
        again = calibrated({field: load_calibrator(each) for field, each in saved.items()}, stated)
        assert (again == calibrated(fitted, stated)).all()
        assert ((again >= 0) & (again <= 1)).all()


def test_the_report_says_how_well_each_field_is_told():
    calibration, test = drawn(500, 0, often=0.2, rare=1.0), drawn(300, 1, often=0.2, rare=1.0)
    fitted, table = fit_fields(calibration)
    found = field_effect(fitted, table, calibration, test, n_samples=300)
    every, often, rare = found["rows"]
    assert [row["field"] for row in found["rows"]] == [EVERY_FIELD, "often", "rare"]
    assert (found["n"], found["n_records"], every["n"], every["n_calibration"], often["n"], often["n_calibration"]) == (600, 300, 600, 1000, 300, 500)
    assert often["auroc"]["high"] < rare["auroc"]["low"], "a steeper curve tells right from wrong better"
    assert often["after"]["value"] < often["before"]["value"]
    assert every["after"] == found["calibration"]["after"]
    assert often["right"]["value"] == pytest.approx(1 - test.y[test.fields == "often"].mean())
    for row in found["rows"]:
        for figure in (row["right"], row["auroc"], row["before"], row["after"]):
            assert 0 <= figure["low"] <= figure["high"] <= 1
    assert found["curve"][-1]["share"] == 1
    assert found["curve"][-1]["error"] == pytest.approx(test.y.mean())
    assert found["curve"][0]["error"] < found["curve"][-1]["error"]
    json.dumps(found, allow_nan=False)


def test_a_field_that_is_always_right_has_no_order():
    calibration, test = drawn(50, 0, one=1.0), drawn(50, 1, one=1.0)
    always = StatedFields(test.fields, test.logits, np.zeros(50, dtype=np.int64), test.documents)
    fitted, table = fit_fields(calibration)
    row = field_effect(fitted, table, calibration, always, n_samples=200)["rows"][1]
    assert row["auroc"] is None
    assert row["right"]["value"] == 1


def test_what_stands_in_one_document_is_one_draw():
    """The same answers in a tenth of the documents have wider intervals."""
    calibration, test = drawn(200, 0, one=0.5), drawn(200, 1, one=0.5)
    crowded = StatedFields(test.fields, test.logits, test.y, np.array([f"doc_{place // 20}" for place in range(200)]))
    fitted, table = fit_fields(calibration)
    wide, narrow = (field_effect(fitted, table, calibration, each, n_samples=200)["curve"] for each in (crowded, test))
    assert all(one["error"] == other["error"] and one["low"] <= other["low"] and one["high"] >= other["high"] for one, other in zip(wide, narrow, strict=True))
    assert wide[-1]["high"] - wide[-1]["low"] > 2 * (narrow[-1]["high"] - narrow[-1]["low"])
