import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tunesmith.errors import DataError
from tunesmith.evaluate import metrics

N_LABELS = 4


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, from none of a label to all of it."""
    draw_numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 40))
    y = draw_numbers.integers(draw(st.integers(1, N_LABELS)), size=n)
    return y, draw_numbers.dirichlet([draw(st.sampled_from([0.1, 1.0, 5.0]))] * N_LABELS, size=n)


@settings(deadline=None)
@given(scored())
def test_metrics_equal_scikit_learn(case):
    y, probabilities = case
    predicted, labels = probabilities.argmax(axis=1), range(N_LABELS)
    assert metrics.accuracy(y, probabilities) == pytest.approx(sk.accuracy_score(y, predicted))
    assert metrics.macro_f1(y, probabilities) == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert metrics.weighted_f1(y, probabilities) == pytest.approx(sk.f1_score(y, predicted, average="weighted"))
    assert metrics.matthews_correlation(y, probabilities) == pytest.approx(sk.matthews_corrcoef(y, predicted), abs=1e-9)
    assert metrics.false_negative_rate(y, probabilities) == pytest.approx(1 - sk.recall_score(y, predicted, labels=np.unique(y), average="macro"))
    assert metrics.TopK(2)(y, probabilities) == pytest.approx(sk.top_k_accuracy_score(y, probabilities, k=2, labels=labels))
    assert metrics.log_loss(y, probabilities) == pytest.approx(sk.log_loss(y, probabilities, labels=labels))
    assert metrics.brier(y, probabilities) == pytest.approx(sk.brier_score_loss(y, probabilities, labels=labels, scale_by_half=False))
    np.testing.assert_array_equal(metrics.confusion_matrix(y, probabilities), sk.confusion_matrix(y, predicted, labels=labels))
    names = list("abcd")
    table = metrics.per_class(y, probabilities, names)
    expected = sk.classification_report(y, predicted, labels=labels, target_names=names, output_dict=True, zero_division=0)
    for row in table:
        theirs = expected[row["label"]]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            [theirs[key] for key in ("precision", "recall", "f1-score", "support")]
        )


@settings(deadline=None)
@given(scored())
def test_false_positive_rate_is_the_mean_over_one_against_the_rest(case):
    y, probabilities = case
    rates = []
    for label in range(N_LABELS):
        negative = y != label
        rates.append(np.mean(probabilities.argmax(axis=1)[negative] == label) if negative.any() else 0.0)
    assert metrics.false_positive_rate(y, probabilities) == pytest.approx(np.mean(rates))


@settings(deadline=None)
@given(scored(), st.integers(2, 20))
def test_calibration_error_is_the_weighted_gap_of_its_bins(case, n_bins):
    y, probabilities = case
    bins = metrics.reliability(y, probabilities, n_bins=n_bins)
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["count"])
    assert metrics.ExpectedCalibrationError(n_bins)(y, probabilities) == pytest.approx(gaps / len(y))
    assert sum(row["count"] for row in bins) == len(y)
    for row in bins:
        assert (row["confidence"] is None) == (row["count"] == 0)
        if row["count"]:
            assert row["low"] < row["confidence"] + 1e-12 <= row["high"] + 2e-12


def test_bins_of_equal_mass_hold_as_many_answers_each():
    draw = np.random.default_rng(0)
    y, probabilities = draw.integers(3, size=90), draw.dirichlet([1, 1, 1], size=90)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    chunks = np.split(np.argsort(confidence), 9)
    expected = np.mean([abs(confidence[chunk].mean() - hit[chunk].mean()) for chunk in chunks])
    assert metrics.ExpectedCalibrationError(9, equal_mass=True)(y, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("n_bins", [5, 7, 10, 15])
def test_bins_are_open_on_the_left_and_closed_on_the_right(n_bins):
    edges = np.array([b / n_bins for b in range(n_bins + 1)])
    np.testing.assert_array_equal(metrics.bin_of(edges, n_bins), [0, *range(n_bins)])
    np.testing.assert_array_equal(metrics.bin_of(np.nextafter(edges[:-1], 1), n_bins), range(n_bins))


def test_fifteen_bins_unless_told():
    assert metrics.expected_calibration_error.n_bins == 15


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_not():
    sure = np.eye(3)[[0, 1, 2]]
    perfect, wrong = np.arange(3), np.array([1, 2, 0])
    assert [m(perfect, sure) for m in (metrics.accuracy, metrics.macro_f1)] == [1, 1]
    assert [m(perfect, sure) for m in (metrics.false_positive_rate, metrics.expected_calibration_error, metrics.log_loss, metrics.brier)] == [0, 0, 0, 0]
    assert metrics.expected_calibration_error(wrong, sure) == 1
    assert metrics.brier(wrong, sure) == 2
    assert np.isfinite(metrics.log_loss(wrong, sure))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("y", "probabilities", "rule"),
    [
        ([], np.empty((0, 2)), "must fit each other"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], "must fit each other"),
        ([0], [0.5], "must fit each other"),
        ([2], [[0.5, 0.5]], "indices from 0 to 1"),
        ([-1], [[0.5, 0.5]], "indices from 0 to 1"),
        ([0.0], [[0.5, 0.5]], "indices from 0 to 1"),
        ([0], [[np.nan, 0.5]], "sum to 1"),
        ([0], [[50, 50]], "sum to 1"),
        ([0], [[0.5, 0.6]], "sum to 1"),
        ([0], [[1.5, -0.5]], "sum to 1"),
    ],
)
def test_input_that_breaks_a_rule_is_refused(y, probabilities, rule):
    with pytest.raises(DataError, match=rule):
        metrics.accuracy(y, probabilities)
