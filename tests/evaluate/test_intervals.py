import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from scipy.stats import permutation_test as scipy_permutation_test

from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import Bootstrap, Interval, mcnemar, permutation_test, wilson
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


@pytest.mark.parametrize("doubt", [0.0, 0.05, 0.2])
def test_the_interval_of_a_calibration_error_covers_the_truth(doubt):
    """Percentiles do not where the error is small: resamples are noisier than the records, and noise makes gaps larger."""
    draw, bootstrap, n_bins = np.random.default_rng(4), Bootstrap(300, n_samples=200, seed=4), expected_calibration_error.n_bins
    within = np.arange(300) * n_bins // 300
    confidence = np.linspace(0.5, 0.95, 300)
    covered, by_percentiles = 0, 0
    for _ in range(300):
        gaps = np.zeros((300, n_bins + 1))
        gaps[np.arange(300), within], gaps[:, -1] = confidence - (draw.random(300) < confidence - doubt), 1
        found, percentiles = (bootstrap.interval(expected_calibration_error.of_sums, gaps, method=each) for each in ("distance", "percentile"))
        assert 0 <= found.low <= found.value <= found.high
        covered += found.low <= doubt <= found.high
        by_percentiles += percentiles.low <= doubt <= percentiles.high
    assert covered / 300 > 0.93
    assert doubt > 0.1 or by_percentiles / 300 < 0.5, "the case is worth a test"


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


SAMPLES = {
    "exponential": (lambda draw, n: draw.exponential(size=n), 1.0),
    "log-normal": (lambda draw, n: draw.lognormal(size=n), np.exp(0.5)),
    "rare events": (lambda draw, n: (draw.random(n) < 0.05).astype(float), 0.05),
    "common events": (lambda draw, n: (draw.random(n) < 0.3).astype(float), 0.3),
    "uniform": (lambda draw, n: draw.random(n), 0.5),
}


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("n", [20, 50, 200, 600])
@pytest.mark.parametrize("kind", SAMPLES)
def test_an_interval_covers_93_to_97_percent_or_says_that_it_does_not_hold(kind, n, method):
    sample, truth = SAMPLES[kind]
    draw, resamples, replications = np.random.default_rng(n), Bootstrap(n, n_samples=500, seed=1), 400
    covered, held = 0, 0
    for _ in range(replications):
        rows = counted(sample(draw, n))
        found = resamples.interval(mean_of_sums, rows, method=method)
        covered += found.low <= truth <= found.high
        held += resamples.holds(mean_of_sums, rows)
    noise = 2 * np.sqrt(0.05 * 0.95 / replications)  # of the simulation itself
    assert held < replications / 2 or 0.93 - noise <= covered / replications <= 0.97 + noise
    if kind == "log-normal" and n <= 50:
        assert held < 0.2 * replications  # here it covers 85 to 90 percent
    if kind == "uniform" and n >= 50:
        assert held == replications


def test_wilson_covers_small_samples_on_average_over_rates():
    draw = np.random.default_rng(5)
    for n in (10, 20, 50):
        rates = draw.random(REPLICATIONS)
        hits = draw.binomial(n, rates)
        covered = np.mean([(found := wilson(int(k), n)).low <= rate <= found.high for k, rate in zip(hits, rates, strict=True)])
        assert covered == pytest.approx(0.95, abs=FOUR_SIGMA)


def test_bca_equals_scipy():
    values = np.random.default_rng(0).exponential(size=200)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    ours = Bootstrap(200, n_samples=20_000, seed=2).interval(mean_of_sums, counted(values), method="bca")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_permutations_equal_scipy():
    draw = np.random.default_rng(3)
    first, second = draw.normal(0.15, 1, size=60), draw.normal(0, 1, size=60)
    theirs = scipy_permutation_test((first, second), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    assert permutation_test(mean_of_sums, counted(first), counted(second), n_samples=20_000, seed=2) == pytest.approx(theirs, abs=0.015)


def test_permutations_alarm_as_seldom_as_the_level_says_on_few_skewed_rows():
    draw, alarms, replications = np.random.default_rng(4), 0, 600
    for number in range(replications):
        shared = draw.lognormal(size=15)
        first, second = (counted(shared * draw.lognormal(size=15)) for _ in range(2))
        alarms += permutation_test(mean_of_sums, first, second, n_samples=199, seed=number) <= 0.05
    assert alarms / replications <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / replications)


def test_permutations_swap_documents_as_a_whole():
    draw = np.random.default_rng(6)
    by_document = counted(draw.normal(size=12)), counted(draw.normal(size=12))
    rows = [np.repeat(given, 20, axis=0) for given in by_document]
    clustered = permutation_test(mean_of_sums, *rows, groups=np.repeat(np.arange(12), 20), seed=1)
    assert clustered == permutation_test(mean_of_sums, *by_document, seed=1)
    assert permutation_test(mean_of_sums, *rows, seed=1) != clustered


def test_permutations_need_the_same_rows():
    with pytest.raises(DataError, match="same rows for both"):
        permutation_test(mean_of_sums, np.ones((3, 2)), np.ones((4, 2)))
