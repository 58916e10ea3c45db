"""Figures of other libraries on the same inputs."""

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from netcal.metrics import ECE
from simulation import simulated
from sklearn.base import BaseEstimator, ClassifierMixin

from tunesmith.evaluate.acceptance import at_threshold
from tunesmith.evaluate.calibration import softmax
from tunesmith.evaluate.conformal import fit_cutoff, sets
from tunesmith.evaluate.metrics import ExpectedCalibrationError

Y = np.random.default_rng(0).integers(3, size=600)
PROBABILITIES = softmax(simulated(Y, 3, 1.4, 1, 2.0))


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its probabilities."""

    classes_ = np.arange(3)

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return np.asarray(x)

    def predict(self, x):
        return np.asarray(x).argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("n_bins", [5, 10, 15])
def test_the_calibration_error_is_that_of_netcal(n_bins):
    assert ExpectedCalibrationError(n_bins)(Y, PROBABILITIES) == pytest.approx(ECE(n_bins).measure(PROBABILITIES, Y), abs=1e-6)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_prediction_sets_are_those_of_mapie(coverage):
    calibration, test = slice(0, 300), slice(300, 600)
    theirs = SplitConformalClassifier(Given(), confidence_level=coverage, conformity_score="lac", prefit=True)
    theirs.conformalize(PROBABILITIES[calibration], Y[calibration])
    _, inside = theirs.predict_set(PROBABILITIES[test])
    ours = PROBABILITIES[test] >= fit_cutoff(Y[calibration], PROBABILITIES[calibration], coverage)
    np.testing.assert_array_equal(ours, inside[:, :, 0])
    assert (sets(PROBABILITIES[test], 1.0).sum(axis=1) == 1).all()  # ours are never empty


def test_the_exact_test_of_a_threshold_is_sharper_than_the_bound_that_mapie_uses():
    draw = np.random.default_rng(1)
    for errors in (0, 2, 5, 9):
        wrong = draw.permutation(np.arange(200) < errors)
        ours = at_threshold("guarantee", 0.0, (np.ones(200), wrong), max_error=0.05).p_value
        theirs = compute_hoeffding_bentkus_p_value(np.array([errors / 200]), 200, 0.05).item()
        assert ours <= theirs + 1e-12
        assert ours > theirs / np.e / 1.01  # Bentkus' bound is e times the binomial tail
