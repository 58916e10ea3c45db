import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from tunesmith.evaluate.intervals import Bootstrap
from tunesmith.evaluate.ranks import auprc, auroc


@st.composite
def scored(draw):
    """Labels and probabilities with many equal scores."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = numbers.integers(3, size=draw(st.integers(6, 40)))
    coarse = numbers.integers(1, draw(st.sampled_from([3, 10, 1000])), size=(len(y), 3)).astype(float)
    return y, coarse / coarse.sum(axis=1, keepdims=True), numbers


def one_against_the_rest(score, y, probabilities, weights=None):
    occurs = [label for label in range(3) if (weights if weights is not None else np.ones(len(y)))[y == label].sum() > 0]
    if len(occurs) < 2:
        return 0.0
    return np.mean([score(y == label, probabilities[:, label], sample_weight=weights) for label in occurs])


@settings(deadline=None)
@given(scored())
def test_areas_equal_scikit_learn_with_ties_and_weights(case):
    y, probabilities, numbers = case
    weights = numbers.integers(0, 4, size=len(y)).astype(float)
    for area, theirs in ((auroc, roc_auc_score), (auprc, average_precision_score)):
        assert area(y, probabilities) == pytest.approx(one_against_the_rest(theirs, y, probabilities))
        if weights.any():
            assert area.of_weights(y, probabilities)(weights[None, :])[0] == pytest.approx(one_against_the_rest(theirs, y, probabilities, weights))


def test_resampled_areas_are_those_of_the_resampled_records():
    numbers = np.random.default_rng(0)
    y, probabilities = numbers.integers(3, size=50), numbers.dirichlet([1, 1, 1], size=50)
    replicates = Bootstrap(50, n_samples=20, seed=7).replicates_of_weights(auroc.of_weights(y, probabilities))
    draw = np.random.default_rng(7)
    for replicate in replicates:
        rows = draw.integers(50, size=50)
        assert replicate == pytest.approx(auroc(y[rows], probabilities[rows]))


def test_whole_documents_are_drawn():
    numbers = np.random.default_rng(1)
    y, probabilities = numbers.integers(3, size=30), numbers.dirichlet([1, 1, 1], size=30)
    once = Bootstrap(30, n_samples=20, seed=3).replicates_of_weights(auprc.of_weights(y, probabilities))
    doubled = Bootstrap(60, n_samples=20, seed=3, groups=np.repeat(np.arange(30), 2))
    twice = doubled.replicates_of_weights(auprc.of_weights(np.repeat(y, 2), np.repeat(probabilities, 2, axis=0)))
    np.testing.assert_allclose(once, twice)
