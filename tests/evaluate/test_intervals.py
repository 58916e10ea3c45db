import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, Interval, mcnemar, wilson
from tunesmith.evaluate.metrics import accuracy, counted, expected_calibration_error, false_positive_rate, macro_f1, mean_of_sums

REPLICATIONS = 1500
FOUR_SIGMA = 4 * np.sqrt(0.05 * 0.95 / REPLICATIONS)  # 2.25 points: a right interval fails once in 16,000 seeds


@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.6, 0.999))
def test_wilson_equals_scipy(successes, n, level):
    successes = min(successes, n)
    theirs = binomtest(successes, n).proportion_ci(level, method="wilson")
    ours = wilson(successes, n, level)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_mcnemar_equals_the_binomial_test_on_discordant_rows(rows):
    first, second = np.array(rows).T
    discordant, wins = int(np.sum(first != second)), int(np.sum(first & ~second))
    expected = binomtest(wins, discordant).pvalue if discordant else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_wilson_covers_the_truth_as_often_as_it_says():
    hits = np.random.default_rng(1).binomial(200, 0.77, size=REPLICATIONS)
    covered = np.mean([(found := wilson(int(k), 200)).low <= 0.77 <= found.high for k in hits])
    assert covered == pytest.approx(0.95, abs=FOUR_SIGMA)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    draw, bootstrap = np.random.default_rng(2), Bootstrap(400, n_samples=400, seed=2)
    covered = 0
    for _ in range(REPLICATIONS):
        found = bootstrap.interval(mean_of_sums, counted(draw.random(400) < 0.7))
        covered += found.low <= 0.7 <= found.high
    assert covered / REPLICATIONS == pytest.approx(0.95, abs=FOUR_SIGMA)


def test_two_equal_models_differ_as_seldom_as_the_level_says():
    draw, bootstrap = np.random.default_rng(3), Bootstrap(400, n_samples=400, seed=3)
    by_interval, by_p = 0, 0
    for _ in range(REPLICATIONS):
        shared = draw.random(400) < 0.5  # half of the records decide themselves, as with real models
        first, second = (np.where(shared, 1.0, draw.random(400) < 0.5) for _ in range(2))
        found = bootstrap.difference(mean_of_sums, counted(first), counted(second))
        by_interval += found.excludes_zero
        by_p += found.p_value < 0.05
    assert by_interval / REPLICATIONS == pytest.approx(0.05, abs=FOUR_SIGMA)
    assert by_p / REPLICATIONS == pytest.approx(0.05, abs=FOUR_SIGMA)


def test_a_cluster_is_drawn_as_a_whole():
    draw = np.random.default_rng(4)
    by_document = draw.random(60) < 0.7
    rows, groups = counted(np.repeat(by_document, 10).astype(float)), np.repeat(np.arange(60), 10)
    clustered = Bootstrap(600, groups=groups, seed=1).interval(mean_of_sums, rows)
    naive = Bootstrap(600, seed=1).interval(mean_of_sums, rows)
    one_a_document = Bootstrap(60, seed=1).interval(mean_of_sums, counted(by_document.astype(float)))
    # Ten copies of a row say no more than one row does.
    assert (clustered.low, clustered.high) == (one_a_document.low, one_a_document.high)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_resampled_figures_equal_those_of_the_resampled_rows(truth, scores):
    bootstrap = Bootstrap(len(truth), n_samples=300, seed=9)
    draw = np.random.default_rng(9)
    drawn = [draw.integers(len(truth), size=len(truth)) for _ in range(300)]
    for metric in (accuracy, macro_f1, false_positive_rate, expected_calibration_error):
        by_hand = np.quantile([metric(truth[rows], scores["tuned"][rows]) for rows in drawn], [0.025, 0.975])
        found = bootstrap.interval(metric.of_sums, metric.rows(truth, scores["tuned"]))
        assert (found.low, found.high) == pytest.approx(tuple(by_hand))
        assert found.value == pytest.approx(metric(truth, scores["tuned"]))


def test_a_model_does_not_differ_from_itself(truth, scores):
    rows = macro_f1.rows(truth, scores["tuned"])
    found = Bootstrap(len(truth), n_samples=200).difference(macro_f1.of_sums, rows, rows)
    assert found.to_dict() == {"difference": 0, "low": 0, "high": 0, "p_value": 1}
    assert not found.excludes_zero


def test_the_seed_decides_the_interval(truth, scores):
    rows = accuracy.rows(truth, scores["tuned"])
    first, again, other = (Bootstrap(len(truth), n_samples=500, seed=seed).interval(accuracy.of_sums, rows) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_an_interval_excludes_zero_when_it_lies_on_one_side():
    assert Interval(0.1, 0.05, 0.2).excludes_zero
    assert Interval(-0.1, -0.2, -0.05).excludes_zero
    assert not Interval(0.1, 0.0, 0.2).excludes_zero


def test_a_thousand_rows_take_seconds():
    draw = np.random.default_rng(5)
    y, probabilities = draw.integers(8, size=1000), draw.dirichlet(np.ones(8), size=1000)
    start = time.process_time()
    bootstrap = Bootstrap(1000)
    for metric in (accuracy, macro_f1, false_positive_rate, expected_calibration_error) * 3:
        bootstrap.interval(metric.of_sums, metric.rows(y, probabilities))
    assert time.process_time() - start < 5


def test_input_that_breaks_a_rule_is_refused():
    with pytest.raises(DataError, match="0 <= successes <= n"):
        wilson(3, 2)
    with pytest.raises(DataError, match="0 <= successes <= n"):
        wilson(0, 0)
    with pytest.raises(DataError, match="same rows"):
        mcnemar([True], [True, False])
    with pytest.raises(DataError, match="needs rows"):
        Bootstrap(0)
    with pytest.raises(DataError, match="one group a row"):
        Bootstrap(3, groups=[1, 2])
    with pytest.raises(DataError, match="resamples 3 rows"):
        Bootstrap(3).interval(mean_of_sums, counted(np.zeros(4)))
