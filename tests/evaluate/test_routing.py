"""What adapters bring and what the router loses, on answers that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evaluate.routing import choose_threshold, pick, routing_figures
from tunesmith.models.router import PARENT, Routes

ADAPTERS = ["a", "b", PARENT]


def test_the_threshold_is_where_most_answers_are_right_and_in_the_middle_of_equals():
    """Child a is right where the router is surer than 0.6, the parent always below it."""
    confidence = np.array([0.3, 0.4, 0.5, 0.8, 0.9, 0.95])
    right = {"a": confidence > 0.6, PARENT: confidence < 0.6}
    assert choose_threshold(Routes(("a",) * 6, confidence), right) == 0.64  # of 0.50 to 0.79
    # Where the child is never right the parent answers everything; where it always is, it answers everything.
    never, always = np.zeros(6, dtype=bool), np.ones(6, dtype=bool)
    assert choose_threshold(Routes(("a",) * 6, confidence), {"a": never, PARENT: always}) >= 0.95
    assert choose_threshold(Routes(("a",) * 6, confidence), {"a": always, PARENT: never}) < 0.3


@given(st.lists(st.tuples(st.sampled_from(ADAPTERS), st.floats(0, 1), *[st.booleans()] * 3), min_size=1, max_size=30))
def test_no_threshold_does_better_on_the_rows_that_chose_it(rows):
    names, confidence, *columns = zip(*rows, strict=True)
    routes, right = Routes(names, np.array(confidence)), {name: np.array(column) for name, column in zip(ADAPTERS, columns, strict=True)}

    def n_right(threshold):
        return pick(routes.adapters(threshold, ADAPTERS), right).sum()

    chosen = choose_threshold(routes, right)
    assert 0 <= chosen <= 1
    assert all(n_right(chosen) >= n_right(each / 100) for each in range(101))


def test_who_answers_decides_and_who_has_no_answers_is_told():
    of_adapter = {"a": np.array([1, 2]), PARENT: np.array([3, 4])}
    assert pick(("a", PARENT), of_adapter).tolist() == [1, 4]
    with pytest.raises(DataError, match="Received none of: b"):
        pick(("a", "b"), of_adapter)


# Eight texts of type a, four of type b, four of a type that has no child. Label 0 is always right.
TYPES = ["a"] * 8 + ["b"] * 4 + [""] * 4
TRUE = ["a"] * 8 + ["b"] * 4 + [PARENT] * 4
RIGHT, WRONG = np.array([0.9, 0.1]), np.array([0.2, 0.8])


def figures(routed, confidence, served=("a", "b"), threshold=0.5):
    of = {
        "a": [RIGHT if true == "a" else WRONG for true in TRUE],  # right on its own type alone
        "b": [RIGHT if true == "b" else WRONG for true in TRUE],
        PARENT: [RIGHT if number % 2 else WRONG for number in range(16)],  # right on every second text
    }
    probabilities = {name: np.array(rows) for name, rows in of.items()}
    y = np.zeros(16, dtype=np.int64)
    return routing_figures(Routes(tuple(routed), np.array(confidence)), TRUE, TYPES, probabilities, y, served, threshold, n_samples=200)


def values(found):
    return {name: figure["value"] for name, figure in found["end_accuracy"].items()}


def test_a_router_without_mistakes_has_no_regret():
    found = figures(TRUE, [0.9] * 16)
    assert values(found) == {"parent": 8 / 16, "true_routes": 14 / 16, "predicted_routes": 14 / 16}
    assert found["accuracy"]["value"] == 1
    assert found["abstained"]["value"] == 0
    assert (found["regret"]["difference"], found["regret"]["p_value"]) == (0, 1)
    assert found["gain"]["difference"] == 6 / 16
    assert [(row["document_type"], row["n_test"], row["predicted_routes"]) for row in found["document_types"]] == [("a", 8, 1), ("b", 4, 1), ("", 4, 0.5)]


def test_regret_is_what_wrong_routes_and_abstaining_cost():
    """Two texts of b go to a; two texts of a are unsure and go to the parent, which is right on one of them."""
    routed, confidence = [*TRUE], [0.9] * 16
    routed[8:10] = ["a", "a"]
    confidence[0:2] = [0.5, 0.4]
    found = figures(routed, confidence)
    assert found["accuracy"]["value"] == 14 / 16
    assert found["abstained"]["value"] == 2 / 16
    assert values(found)["predicted_routes"] == (14 - 2 - 1) / 16
    assert found["regret"]["difference"] == pytest.approx(3 / 16)
    assert found["regret"]["low"] <= 3 / 16 <= found["regret"]["high"]


def test_a_child_that_is_not_served_answers_nothing_with_any_route():
    found = figures(TRUE, [0.9] * 16, served=("b",))
    assert values(found) == {"parent": 8 / 16, "true_routes": (4 + 4 + 2) / 16, "predicted_routes": (4 + 4 + 2) / 16}
    nobody = figures(TRUE, [0.9] * 16, served=())
    assert set(values(nobody).values()) == {8 / 16}
    assert nobody["gain"]["difference"] == 0


def test_the_error_of_raw_confidences_is_measured_on_the_same_answers():
    of = {name: np.tile([0.9, 0.1], (16, 1)) for name in ADAPTERS}
    sure = {name: np.tile([1.0, 0.0], (16, 1)) for name in ADAPTERS}
    found = routing_figures(Routes(tuple(TRUE), np.array([0.9] * 16)), TRUE, TYPES, of, np.zeros(16, dtype=np.int64), ("a", "b"), 0.5, raw=sure, n_samples=200)
    assert found["calibration_error"]["value"] == pytest.approx(0.1)
    assert found["calibration_error_before"]["value"] == 0
    assert "calibration_error_before" not in figures(TRUE, [0.9] * 16)
