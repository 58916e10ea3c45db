import numpy as np
import pytest

from tunesmith.errors import ConfigError
from tunesmith.evaluate.business import BusinessCost, business_case, cheapest_threshold, cost_matrix
from tunesmith.evaluate.settings import BusinessSection, ConfusionCost, CurrentProcess

LABELS = ("loan", "card", "fraud")
SECTION = BusinessSection(
    error_cost=10,
    costs=(ConfusionCost(truth="fraud", answer="*", cost=200), ConfusionCost(truth="fraud", answer="card", cost=50)),
    minute_cost=0.5,
    review_minutes=4,
    reviewer_accuracy=0.9,
    documents_per_month=1000,
    running_cost_per_month=500,
    setup_cost=12_000,
    current=CurrentProcess(accuracy=0.8, minutes=6),
)


def scored(answers):
    return np.eye(3)[np.asarray(answers)]


def test_the_last_cost_that_fits_counts_and_right_answers_are_free():
    np.testing.assert_array_equal(cost_matrix(SECTION, LABELS), [[0, 10, 10], [10, 0, 10], [200, 50, 0]])


def test_the_money_table_by_hand():
    y = np.array([0, 1, 2, 2] * 50)
    tuned, base = scored([0, 0, 1, 2] * 50), scored([1, 1, 0, 0] * 50)
    accepted = np.array([True, False, True, True] * 50)
    case = business_case(SECTION, LABELS, y, {"base": base, "tuned": tuned}, accepted, n_samples=300)
    per_1000 = {way: cost["value"] for way, cost in case["per_1000"].items()}
    # Today: 6 minutes at .5 and a fifth wrong at 10. The model alone: 10 + 50 of four, and .5 to run it.
    assert per_1000["current"] == pytest.approx(1000 * (3 + 2))
    assert per_1000["base"] == pytest.approx(1000 * (10 + 200 + 200) / 4)
    assert per_1000["tuned"] == pytest.approx(1000 * (15 + 0.5))
    # The second of four is reviewed: 4 minutes at .5 and a tenth wrong at 10.
    assert per_1000["tuned_with_review"] == pytest.approx(1000 * (3 / 4 + 50 / 4 + 0.5))
    saving = case["saving_per_year"]["tuned_with_review"]
    assert saving["value"] == pytest.approx(12_000 * (5 - 13.75))
    assert saving["low"] < saving["value"] < saving["high"]
    assert case["months_to_break_even"]["tuned"]["value"] is None  # it never earns anything
    assert case["break_even_error"] == pytest.approx((5 - 0.5) / 30)


def test_a_saving_pays_the_set_up_back():
    y = np.array([0, 1] * 100)
    right = scored(y)
    case = business_case(SECTION, LABELS, y, {"tuned": right}, None, n_samples=200)
    assert case["saving_per_year"]["tuned"]["value"] == pytest.approx(12_000 * 4.5)
    assert case["months_to_break_even"]["tuned"]["value"] == pytest.approx(12 * 12_000 / (12_000 * 4.5))
    assert case["break_even_error"] is None  # it makes no mistakes


def test_models_are_compared_without_a_process_of_today():
    case = business_case(BusinessSection(error_cost=3), LABELS, [0, 1], {"tuned": scored([0, 0])}, None, n_samples=200)
    assert case["per_1000"]["tuned"]["value"] == pytest.approx(1500)
    assert set(case) == {"currency", "per_1000"}


def test_the_cheapest_threshold_is_that_of_a_search():
    draw = np.random.default_rng(0)
    y, probabilities = draw.integers(3, size=300), draw.dirichlet([2, 1, 1], size=300)
    matrix = cost_matrix(SECTION, LABELS)
    confidence = probabilities.max(axis=1)
    reviewed = 4 * 0.5 + 0.1 * 10

    def cost(threshold):
        accepted = confidence >= threshold
        return np.where(accepted, matrix[y, probabilities.argmax(axis=1)], reviewed).sum()

    found = cheapest_threshold(SECTION, LABELS, y, probabilities)
    best = min(cost(threshold) for threshold in [*confidence, 2.0])
    assert cost(2.0 if found is None else found) == pytest.approx(best)


def test_reviewing_all_is_cheapest_where_the_model_is_always_wrong():
    assert cheapest_threshold(SECTION, LABELS, [0, 0], scored([1, 2])) is None


def test_the_cost_is_a_metric():
    metric = BusinessCost(cost_matrix(SECTION, LABELS))
    assert metric([0, 2], scored([1, 1])) == pytest.approx(30)


def test_costs_that_name_nothing_are_told():
    with pytest.raises(ConfigError, match=r"Received: mortgage\."):
        cost_matrix(BusinessSection(error_cost=1, costs=(ConfusionCost(truth="mortgage", answer="*", cost=1),)), LABELS)
    with pytest.raises(ConfigError, match="error_cost"):
        cost_matrix(BusinessSection(), LABELS)
