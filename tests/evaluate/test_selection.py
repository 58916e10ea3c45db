"""The best of many looks better than it is: the correction says by how much, and does nothing where nothing was chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evaluate import selection
from tunesmith.evaluate.metrics import accuracy, check, log_loss, macro_f1


def worth_of_best(metric, y, candidates, **settings):
    """Do it by the probabilities that candidates give."""
    return selection.worth_of_best(metric.of_sums, [metric.rows(*check(y, each)) for each in candidates], **settings)


def answers_of(draw, y, right):
    """Return probabilities of a model that is right at a rate, by chance."""
    hit = draw.random(len(y)) < right
    answer = np.where(hit, y, (y + 1) % 3)
    return np.eye(3)[answer] * 0.7 + 0.1


def test_the_best_of_equal_models_is_worth_no_more_than_each():
    """Twenty models that are all right seven times in ten: the best one's own figure is too good, the corrected one is not."""
    draw = np.random.default_rng(0)
    naive, corrected, inside = [], [], 0
    for repeat in range(40):
        y = draw.integers(3, size=120)
        candidates = [answers_of(draw, y, 0.7) for _ in range(20)]
        naive.append(max(accuracy(y, each) for each in candidates))
        found = worth_of_best(accuracy, y, candidates, maximize=True, n_samples=300, seed=repeat)
        corrected.append(found.value)
        inside += found.low <= 0.7 <= found.high
    assert np.mean(naive) > 0.75
    assert np.mean(corrected) == pytest.approx(0.7, abs=0.01)
    assert inside >= 38, "an interval of 95 %, and rather too wide"


def test_a_clear_winner_keeps_its_figure():
    draw = np.random.default_rng(1)
    y = draw.integers(3, size=400)
    candidates = [answers_of(draw, y, right) for right in (0.5, 0.9, 0.5)]
    found = worth_of_best(accuracy, y, candidates, maximize=True, n_samples=500)
    assert found.value == pytest.approx(accuracy(y, candidates[1]), abs=0.01)


def test_less_is_better_where_the_metric_says_so():
    draw = np.random.default_rng(2)
    y = draw.integers(3, size=200)
    candidates = [answers_of(draw, y, right) for right in (0.4, 0.95)]
    worth = [worth_of_best(log_loss, y, candidates, maximize=maximize, n_samples=200).value for maximize in (False, True)]
    assert worth[0] == pytest.approx(log_loss(y, candidates[1]), abs=0.05)
    assert worth[1] == pytest.approx(log_loss(y, candidates[0]), abs=0.1)


@given(n=st.integers(2, 12), seed=st.integers(0, 99))
def test_one_candidate_of_few_records_has_a_figure_and_its_interval(n, seed):
    draw = np.random.default_rng(seed)
    y = draw.integers(3, size=n)
    found = worth_of_best(macro_f1, y, [answers_of(draw, y, 0.6)], maximize=True, n_samples=40, seed=seed)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(DataError, match=r"Received: 0 and 0\."):
        worth_of_best(accuracy, [0, 1, 2], [], maximize=True)
