import numpy as np
import pytest
from simulation import LABELS, simulated

from tunesmith.evaluate.calibration import softmax
from tunesmith.evaluate.conformal import fit_cutoff, sets, sets_on_test


def drawn(seed, n, sharpness=4.0):
    """Labels and probabilities of a model that is far too sure."""
    y = np.random.default_rng(seed).choice(3, size=n, p=[0.6, 0.3, 0.1])
    return y, softmax(simulated(y, 3, 1.2, seed + 1_000_000, sharpness))


@pytest.mark.parametrize(("n", "coverage"), [(50, 0.9), (300, 0.8)])
def test_sets_cover_as_often_as_asked_over_calibration_sets(n, coverage):
    y, probabilities = drawn(0, 20_000)
    covered = []
    for seed in range(1, 401):
        cutoff = fit_cutoff(*drawn(seed, n), coverage)
        covered.append(sets(probabilities, cutoff)[np.arange(len(y)), y].mean())
    # Between coverage and coverage + 1 / (n + 1), whatever the model: Vovk et al. 2005.
    assert coverage - 0.006 <= np.mean(covered) <= coverage + 1 / (n + 1) + 0.006


def test_the_cutoff_is_the_order_statistic():
    y = np.zeros(9, dtype=int)
    right = np.linspace(0.1, 0.9, 9)
    probabilities = np.column_stack([right, 1 - right])
    assert fit_cutoff(y, probabilities, 0.8) == pytest.approx(0.2)  # ceil(10 * 0.8) = 8th largest
    assert fit_cutoff(y, probabilities, 0.95) == 0.0  # nine records can't show it: every label


def test_the_answer_is_always_in_its_set():
    inside = sets([[0.4, 0.3, 0.3], [0.1, 0.8, 0.1]], 0.9)
    assert inside.tolist() == [[True, False, False], [False, True, False]]


def test_sizes_and_labels_are_counted():
    y, probabilities = drawn(5, 500)
    shown = sets_on_test(0.05, y, probabilities, LABELS, coverage=0.9, n_samples=200)
    inside = sets(probabilities, 0.05)
    assert sum(shown["sizes"]) == 500
    assert shown["mean_size"]["value"] == pytest.approx(inside.sum(axis=1).mean())
    assert [row["n"] for row in shown["per_label"]] == np.bincount(y).tolist()
    assert shown["coverage"]["value"] == pytest.approx(inside[np.arange(500), y].mean())
