import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.acceptance import Acceptance, acceptance_on_test, busiest_threshold, confidence_auroc, coverage_risk, guarantee

ERROR, DELTA = 0.05, 0.1


def answers(draw, n, too_sure=1.0):
    """Confidences and whether the answer was wrong: right with probability confidence ** too_sure."""
    confidence = draw.beta(8, 0.7, size=n)
    return confidence, draw.random(n) >= confidence**too_sure


class Truth:
    """The share of wrong answers, and of answers, from each confidence on: of a million of them."""

    def __init__(self, too_sure):
        confidence, wrong = answers(np.random.default_rng(0), 1_000_000, too_sure)
        order = np.argsort(-confidence)
        self._confidence, self._error = confidence[order], np.cumsum(wrong[order]) / np.arange(1, len(wrong) + 1)

    def error(self, threshold):
        return self._error[max(0, np.searchsorted(-self._confidence, -threshold, side="right") - 1)]

    def most_accepted(self):
        return np.flatnonzero(self._error <= ERROR)[-1] / len(self._error)


@pytest.mark.parametrize("n", [200, 800])
@pytest.mark.parametrize("too_sure", [1.0, 3.0])
def test_the_guarantee_holds_in_1_minus_delta_of_1000_redrawn_calibration_sets(n, too_sure):
    draw = np.random.default_rng([n, int(too_sure)])
    truth, broken, accepted = Truth(too_sure), 0, []
    for _ in range(1000):
        found = guarantee(answers(draw, 300, too_sure), answers(draw, n, too_sure), max_error=ERROR, delta=DELTA)
        broken += found.threshold is not None and truth.error(found.threshold) > ERROR
        accepted.append(found.accepted / n)
    assert broken / 1000 <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 1000)
    if n == 800 and too_sure == 1.0:
        assert np.mean(accepted) > 0.5 * truth.most_accepted()  # a guarantee that accepts nothing is easily kept


def test_without_a_proof_the_guarantee_would_break():
    """The threshold at which calibration just has the asked share of errors breaks the promise about half of the time."""
    draw, truth, broken = np.random.default_rng(2), Truth(1.0), 0
    for _ in range(200):
        confidence, wrong = answers(draw, 400)
        order = np.argsort(-confidence)
        at = np.flatnonzero(np.cumsum(wrong[order]) / np.arange(1, 401) <= ERROR)
        broken += len(at) > 0 and truth.error(confidence[order][at[-1]]) > ERROR
    assert broken / 200 > 2 * DELTA


def test_nothing_is_accepted_where_nothing_can_be_shown():
    draw = np.random.default_rng(3)
    few = guarantee(answers(draw, 50), answers(draw, 20), max_error=0.01, delta=0.05)
    assert few.threshold is None
    assert not few.accepts(np.ones(3)).any()
    shown = acceptance_on_test(few, *answers(draw, 100))
    assert shown["share"]["value"] == 0
    assert shown["error"] is None


def test_a_sure_model_has_all_its_answers_accepted():
    confidence = np.full(300, 0.99)
    found = guarantee((confidence, np.zeros(300)), (confidence, np.zeros(300)))
    assert (found.accepted, found.errors) == (300, 0)
    assert found.p_value == pytest.approx(0.95**300)


def test_what_was_seen_on_test_is_shown():
    found = Acceptance("guarantee", 0.8, 0.05, 0.05, 100, 50, 1, 0.04, 3)
    shown = acceptance_on_test(found, [0.9, 0.85, 0.8, 0.7], [False, True, False, True])
    assert (shown["share"]["value"], shown["error"]["value"]) == (0.75, pytest.approx(1 / 3))
    assert shown["curve"][-1] == {"share": 1.0, "error": 0.5, "low": pytest.approx(0.150, abs=1e-3), "high": pytest.approx(0.850, abs=1e-3)}
    assert shown["excess"] > 0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99, 1.0, 1.5])
def test_reviewers_get_no_more_than_they_can_look_at(share):
    confidence = np.random.default_rng(0).random(200)
    threshold = busiest_threshold(confidence, share)
    reviewed = 200 if threshold is None else int((confidence < threshold).sum())
    assert reviewed == min(200, int(200 * share))


def test_the_curve_is_that_of_a_loop():
    draw = np.random.default_rng(4)
    confidence, wrong = answers(draw, 200)
    for point in coverage_risk(confidence, wrong):
        top = np.argsort(-confidence, kind="stable")[: round(point["share"] * 200)]
        assert point["error"] == pytest.approx(wrong[top].mean())


def test_input_that_breaks_a_rule_is_refused():
    with pytest.raises(DataError, match="needs records"):
        guarantee(([0.5], [True, False]), ([0.5], [True]))
    with pytest.raises(DataError, match="finite confidence"):
        guarantee(([np.nan], [True]), ([0.5], [True]))


def test_how_well_confidence_tells_right_from_wrong_is_the_area_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(5)
    confidence, wrong = answers(draw, 300)
    confidence = np.round(confidence, 2)  # with ties
    found = confidence_auroc(confidence, wrong)
    assert found["value"] == pytest.approx(roc_auc_score(~wrong, confidence))
    assert found["low"] < found["value"] < found["high"]
    by_document = confidence_auroc(confidence, wrong, groups=np.arange(300) // 3)
    assert by_document["value"] == found["value"]
    assert by_document["low"] != found["low"]


def test_a_confidence_that_is_the_same_for_all_tells_nothing_and_one_wrong_answer_little():
    wrong = np.arange(40) == 7
    assert confidence_auroc(np.full(40, 0.9), wrong)["value"] == 0.5
    rare = confidence_auroc(np.where(wrong, 0.1, 0.9), wrong)
    assert (rare["low"], rare["value"]) == (1, 1)  # resamples without the wrong one say nothing
    assert confidence_auroc([0.5, 0.6], [False, False]) is None
    assert confidence_auroc([0.5, 0.6], [True, True]) is None
