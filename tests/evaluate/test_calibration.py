import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from simulation import simulated
from sklearn.isotonic import IsotonicRegression

from tunesmith import plugins
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.calibration import TEMPERATURES, Beta, Isotonic, Platt, Temperature, Uncalibrated, choose_calibrator, load_calibrator, softmax
from tunesmith.evaluate.metrics import expected_calibration_error, log_loss

logits_of_records = st.integers(2, 5).flatmap(
    lambda n_labels: arrays(np.float64, st.tuples(st.integers(1, 6), st.just(n_labels)), elements=st.floats(-1e3, 1e3) | st.floats(-1e-15, 1e-15))
)
calibrators = st.one_of(
    st.just(Uncalibrated()),
    st.floats(*TEMPERATURES).map(Temperature),
    st.builds(Platt, slope=st.floats(0, 10), intercept=st.floats(-10, 10)),
    st.builds(Beta, a=st.floats(0, 10), b=st.floats(0, 10), c=st.floats(-10, 10)),
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 1)), min_size=1, max_size=5).map(
        lambda knots: Isotonic(*(tuple(sorted(side)) for side in zip(*knots, strict=True)))
    ),
)


@settings(deadline=None, max_examples=400)
@given(logits_of_records, calibrators)
def test_a_calibrator_never_changes_the_answer(logits, calibrator):
    probabilities = calibrator.probabilities(logits)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


@settings(deadline=None)
@given(logits_of_records)
def test_calibrators_that_do_nothing_return_softmax(logits):
    for neutral in (Uncalibrated(), Temperature(1.0), Platt(1.0, 0.0), Beta(1.0, 1.0, 0.0)):
        np.testing.assert_allclose(neutral.probabilities(logits), softmax(logits), atol=1e-9)


@given(calibrators)
def test_a_calibrator_survives_json(calibrator):
    assert load_calibrator(json.loads(json.dumps(calibrator.to_dict()))) == calibrator


def test_plug_ins_save_the_name_they_are_listed_under():
    for name in plugins.BUILT_IN["calibrator"]:
        assert plugins.load("calibrator", name).method == name


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found(true_temperature):
    draw = np.random.default_rng(1)
    honest = draw.normal(size=(20_000, 4)) * 2
    y = np.array((softmax(honest).cumsum(axis=1) > draw.random((20_000, 1))).argmax(axis=1))
    assert Temperature.fit(honest * true_temperature, y).temperature == pytest.approx(true_temperature, rel=0.05)


def test_fitting_lowers_the_loss_and_the_calibration_error():
    y = np.random.default_rng(0).integers(3, size=2000)
    logits = simulated(y, 3, skill=1.5, seed=1, sharpness=4)
    for kind in (Temperature, Platt, Beta, Isotonic):
        fitted = kind.fit(logits, y).probabilities(logits)
        assert log_loss(y, fitted) < log_loss(y, softmax(logits))
        assert expected_calibration_error(y, fitted) < 0.3 * expected_calibration_error(y, softmax(logits))


@pytest.mark.parametrize("kind", [Temperature, Platt, Beta, Isotonic])
@pytest.mark.parametrize("shift", [0, 1])
def test_all_right_or_all_wrong_still_gives_finite_parameters(kind, shift):
    y = np.arange(30) % 3
    fitted = kind.fit(np.eye(3)[(y + shift) % 3] * 5, y)
    assert np.isfinite([value for value in fitted.to_dict().values() if isinstance(value, float)]).all()
    if kind is not Temperature:  # whose range ends far from certainty, but not before float64's
        assert 0 < fitted.probabilities(np.eye(3) * 5).max() < 1  # thirty answers make nothing certain


def test_isotonic_equals_scikit_learn_between_its_ends():
    y = np.random.default_rng(0).integers(3, size=500)
    logits = simulated(y, 3, skill=1.5, seed=1, sharpness=4)
    confidence, right = softmax(logits).max(axis=1), (logits.argmax(axis=1) == y).astype(float)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(confidence, right).predict(confidence)
    ours = Isotonic.fit(logits, y).probabilities(logits).max(axis=1)
    inside = (theirs > 0.4) & (theirs < 0.97)  # with three labels no answer is below a third, and the ends are kept from certainty
    assert inside.sum() > 100
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.02)


def test_beta_bends_where_a_logistic_curve_cannot():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.5, 1, size=20_000)
    honest = confidence**6  # too sure everywhere but at the very end
    right = draw.random(20_000) < honest
    logits = np.column_stack([np.log(confidence), np.log1p(-confidence)])
    y = np.where(right, 0, 1)
    fitted = {kind: kind.fit(logits, y).right(logits[:, 0] - logits[:, 1]) for kind in (Platt, Beta)}
    errors = {kind: np.abs(curve - honest).mean() for kind, curve in fitted.items()}
    assert errors[Beta] < 0.01 < errors[Platt]


def test_auto_takes_the_lowest_cross_validated_log_loss():
    y = np.random.default_rng(0).integers(3, size=600)
    logits = simulated(y, 3, skill=1.5, seed=1, sharpness=4)
    calibrator, table = choose_calibrator(logits, y, "auto", 0)
    assert set(table) == {"none", "temperature", "platt", "beta", "isotonic"}
    assert calibrator.to_dict()["method"] == min(table, key=lambda name: table[name]["log_loss"]) != "none"
    assert choose_calibrator(logits, y, "auto", 0) == (calibrator, table)


def test_a_named_method_is_obeyed_and_the_table_stays_complete():
    y = np.random.default_rng(0).integers(3, size=100)
    calibrator, table = choose_calibrator(simulated(y, 3, 1.5, 1, 4), y, "none", 0)
    assert calibrator == Uncalibrated()
    assert len(table) == 5


def test_input_that_breaks_a_rule_is_refused():
    with pytest.raises(DataError, match="two records or more"):
        choose_calibrator(np.zeros((1, 2)), np.array([0]))
    with pytest.raises(DataError, match="finite logits"):
        choose_calibrator(np.full((3, 2), np.inf), np.array([0, 1, 0]))
    with pytest.raises(ConfigError, match="calibrator must be one of"):
        choose_calibrator(np.zeros((4, 2)), np.array([0, 1, 0, 1]), "temprature")


def test_serving_applies_a_calibrator_without_scipy():
    code = (
        "import sys; from tunesmith.evaluate.calibration import load_calibrator;"
        "load_calibrator({'method': 'platt', 'slope': 1, 'intercept': 0}).probabilities([[1.0, 2.0]]);"
        "sys.exit(any(name in sys.modules for name in ('scipy', 'sklearn', 'torch', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
