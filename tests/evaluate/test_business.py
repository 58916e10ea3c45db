import numpy as np
import pytest

from tunesmith.errors import ConfigError
from tunesmith.evaluate import business
from tunesmith.evaluate.business import BusinessCost, WrittenCost, cheapest_threshold, cost_matrix
from tunesmith.evaluate.metrics import answers, check
from tunesmith.evaluate.settings import BusinessSection, ConfusionCost, CurrentProcess, ValueCosts
from tunesmith.evaluate.written import count_answers

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


def business_case(section, labels, y, scores, accepted, **settings):
    """Reckon the money table of labels."""
    matrix = cost_matrix(section, labels)
    costs = {model: BusinessCost(matrix).values(*check(y, given)) for model, given in scores.items()}
    return business.business_case(section, costs, answers(scores["tuned"]) != np.asarray(y), accepted, **settings)


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

    found = cheapest_threshold(SECTION, confidence, matrix[y, probabilities.argmax(axis=1)])
    best = min(cost(threshold) for threshold in [*confidence, 2.0])
    assert cost(2.0 if found is None else found) == pytest.approx(best)


def test_reviewing_all_is_cheapest_where_the_model_is_always_wrong():
    assert cheapest_threshold(SECTION, [1.0, 1.0], [10.0, 10.0]) is None


def test_the_cost_is_a_metric():
    metric = BusinessCost(cost_matrix(SECTION, LABELS))
    assert metric([0, 2], scored([1, 1])) == pytest.approx(30)


def test_costs_that_name_nothing_are_told():
    with pytest.raises(ConfigError, match=r"Received: mortgage\."):
        cost_matrix(BusinessSection(error_cost=1, costs=(ConfusionCost(truth="mortgage", answer="*", cost=1),)), LABELS)
    with pytest.raises(ConfigError, match="error_cost"):
        cost_matrix(BusinessSection(), LABELS)


SCHEMA = {"type": "object", "properties": {"person": {"type": "array", "items": {"type": "string"}}, "place": {"type": "string"}, "n": {"type": "integer"}}}
VALUES = ValueCosts(wrong=4, hallucinated=20, missing=1)
TEXT = "Ann met Bob and Cy in Rome at 7."
RIGHT = '{"person": ["Ann", "Bob"], "place": "Rome", "n": 7}'


@pytest.mark.parametrize(
    ("answer", "cost"),
    [
        (RIGHT, 0),
        ('{"person": ["bob", "ANN"], "place": "Rome", "n": 7}', 0),  # order and case make no difference
        ('{"person": ["Ann", "Cy"], "place": "Rome", "n": 7}', 4),  # one in the place of another: wrong, and nothing is missing
        ('{"person": ["Ann", "Dora"], "place": "Rome", "n": 7}', 20),  # the same, but it stands nowhere
        ('{"person": ["Ann", "Bob", "Cy", "Dora"], "place": "Rome", "n": 7}', 24),
        ('{"person": ["Ann"], "place": null, "n": 7}', 2),
        ('{"person": ["Rome", "Ann", "Bob"], "place": null, "n": 7}', 5),  # a value too many of one property replaces none of another
        ('{"person": ["Ann", "Bob"], "place": "Rome", "n": 8}', 4),  # a number is looked for nowhere
        ("no JSON", 4),  # it states nothing: four values are missing
    ],
)
def test_each_mistake_in_a_value_costs_its_kind(answer, cost):
    counts = count_answers("extraction", SCHEMA, [answer], [RIGHT], [TEXT])
    section = BusinessSection(error_cost=10, values=VALUES)
    assert WrittenCost(section, "extraction").values(counts).tolist() == [cost]
    assert WrittenCost(BusinessSection(error_cost=10), "extraction").values(counts).tolist() == [10 if cost else 0]


def test_a_chat_costs_what_answers_do_that_are_not_all_right():
    counts = count_answers("chat", {}, ["It is late.", "it is LATE", "no"], ["It is late"] * 3, [""] * 3)
    metric = WrittenCost(BusinessSection(error_cost=6), "chat")
    assert metric.values(counts).tolist() == [0, 0, 6]
    assert metric.of_sums(metric.rows(counts).sum(axis=0)) == pytest.approx(2)


def test_the_money_table_of_an_extraction_by_hand():
    counts = {
        model: count_answers("extraction", SCHEMA, [RIGHT, answer] * 40, [RIGHT] * 80, [TEXT] * 80)
        for model, answer in (("base", "no JSON"), ("tuned", '{"person": ["Ann", "Cy"], "place": "Rome", "n": 7}'))
    }
    section = SECTION.model_copy(update={"values": VALUES, "costs": ()})
    costs = {model: WrittenCost(section, "extraction").values(own) for model, own in counts.items()}
    case = business.business_case(section, costs, counts["tuned"]["f1"] < 1, np.array([True, False] * 40), n_samples=200)
    per_1000 = {way: cost["value"] for way, cost in case["per_1000"].items()}
    assert per_1000["base"] == pytest.approx(2000)
    assert per_1000["tuned"] == pytest.approx(1000 * (2 + 0.5))
    # Each second one is reviewed: 4 minutes at .5, and a tenth of the reviewer's answers wrong at 10.
    assert per_1000["tuned_with_review"] == pytest.approx(1000 * (1.5 + 0.5))
    assert case["break_even_error"] == pytest.approx(1.0)  # a mistake of 4 costs less than what today does


@pytest.mark.parametrize(
    ("section", "kind", "told"),
    [
        (BusinessSection(), "extraction", "error_cost"),
        (BusinessSection(error_cost=1, values=VALUES), "chat", r"values belongs to a task of type extraction\. Received: it for chat"),
        (SECTION, "extraction", r"costs belongs to a task of type classification\. Received: it for extraction"),
    ],
)
def test_costs_of_another_kind_of_task_are_told(section, kind, told):
    with pytest.raises(ConfigError, match=told):
        WrittenCost(section, kind)


def test_costs_of_values_are_none_of_a_classification():
    with pytest.raises(ConfigError, match="values belongs to a task of type extraction"):
        cost_matrix(BusinessSection(error_cost=1, values=VALUES), LABELS)
