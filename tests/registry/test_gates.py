"""The gate: better by more than luck, and luck is rationed."""

import nouns
import numpy as np
import pytest

from tunesmith.errors import RefusedError
from tunesmith.registry.gates import error_spent, judge, judge_children, refuse_unless_best, split_digest
from tunesmith.registry.settings import RegistrySection
from tunesmith.store import Store

N = 200
IDS = [f"rec_{number}" for number in range(N)]
GOOD, POOR = np.arange(N) < 160, np.arange(N) < 100


@pytest.fixture
def store(tmp_path):
    return Store.at(tmp_path / "store.db")


def ask(store, challenger="mdl_1", opponent="base", correct=GOOD, against=POOR, *, ids=IDS, classical="level", **settings):
    return judge(
        store,
        RegistrySection(**settings),
        "letters",
        "champion",
        challenger=challenger,
        opponent=opponent,
        record_ids=ids,
        challenger_right=correct.astype(float),
        opponent_right=against.astype(float),
        against_classical=classical,
    )


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.4])
def test_all_looks_together_spend_the_budget(budget):
    spent = [error_spent(budget, look) for look in range(1, 100_001)]
    assert budget * 0.9999 < sum(spent) < budget
    assert spent == sorted(spent, reverse=True)


def test_the_first_one_must_beat_the_base_model(store):
    refused = ask(store, "mdl_1", correct=POOR)
    assert not refused.passed
    assert refused.reason.startswith("not shown to be better than the base model: +0.0 points of accuracy [+0.0, +0.0] on 200 test records")
    assert store.alias("letters", "champion") is None
    passed = ask(store, "mdl_2")
    assert passed.passed
    assert passed.low > 0
    assert passed.difference == pytest.approx(0.3)
    assert store.alias("letters", "champion") == "mdl_2"


def test_a_worse_challenger_leaves_the_champion_where_it_is(store):
    ask(store, "mdl_1")
    refused = ask(store, "mdl_2", "mdl_1", correct=POOR, against=GOOD)
    assert not refused.passed
    assert "not shown to be better than the champion mdl_1: -30.0 points" in refused.reason
    assert store.alias("letters", "champion") == "mdl_1"


def test_a_look_that_was_taken_is_remembered_and_not_spent_again(store):
    first = ask(store)
    again = ask(store, correct=POOR)
    assert again == first
    assert len(store.looks("letters", split_digest(IDS))) == 1
    second = ask(store, "mdl_2")
    assert (first.look, second.look) == (1, 2)
    assert 1 - second.level == pytest.approx(error_spent(0.05, 2))
    assert second.high - second.low > first.high - first.low


def test_looks_count_by_test_split_whatever_the_order_of_its_rows(store):
    ask(store)
    assert ask(store, "mdl_2", ids=IDS[::-1]).look == 2
    assert ask(store, "mdl_3", ids=[*IDS[:-1], "rec_new"]).look == 1


@pytest.mark.parametrize(
    ("classical", "passed", "words"),
    [("wins", True, "better than"), ("level", False, "and it is level with the classical"), ("loses", False, "and it loses against the classical")],
)
def test_require_beats_classical(store, classical, passed, words):
    verdict = ask(store, classical=classical, require_beats_classical=True)
    assert verdict.passed is passed
    assert words in verdict.reason
    assert (store.alias("letters", "champion") == "mdl_1") is passed


class LooksInMemory:
    """The looks of a store, without a disk to wait for."""

    def __init__(self):
        self.rows = []

    def looks(self, name, test_sha256):
        return [row for row in self.rows if row["test_sha256"] == test_sha256]

    def put_look(self, *, moves_alias, **row):
        self.rows.append(row)


def test_a_model_that_is_no_better_is_promoted_less_often_than_the_budget_says():
    """A/A: challenger and opponent are right with the same chance; four looks at each of 150 test splits."""
    rng, budget, n_rows, n_trials = np.random.default_rng(0), 0.4, 40, 150
    store = LooksInMemory()
    promoted = 0
    for trial in range(n_trials):
        ids = [f"rec_{trial}_{row}" for row in range(n_rows)]
        against = rng.random(n_rows) < 0.7
        verdicts = [ask(store, f"mdl_{trial}_{look}", "mdl_0", rng.random(n_rows) < 0.7, against, ids=ids, error_budget=budget) for look in range(4)]
        promoted += any(verdict.passed for verdict in verdicts)
    # One side of the interval is at stake, so about half of the budget is used; 3 standard errors on top. Looks that did
    # not share the budget would promote 1 - 0.8**4 = 59 % of the time.
    assert 0 < promoted / n_trials < budget / 2 + 3 * np.sqrt(0.2 * 0.8 / n_trials)


def test_candidates_are_chosen_on_validation():
    refuse_unless_best("run_1", {"run_1": 0.8, "run_2": 0.8, "run_3": 0.1})
    with pytest.raises(RefusedError, match=r"run_1 with 80\.0 % there; run_2 has 90\.0 %") as raised:
        refuse_unless_best("run_1", {"run_1": 0.8, "run_2": 0.9})
    assert raised.value.hint == "tunesmith register --run run_2"


def test_looks_of_a_model_version_are_found(store):
    store.put(nouns.model_version())
    ask(store)
    (row,) = store.looks_of("mdl_1")
    assert (row["opponent_id"], row["verdict"]["passed"], row["error_spent"]) == ("base", True, error_spent(0.05, 1))


# Children


def ask_children(store, right, *, parent="run_p", ids=IDS, **children):
    names = children or {name: f"run_{name}" for name in right}
    found = judge_children(store, RegistrySection(), "letters", parent=parent, children=names, record_ids=ids, right=right)
    return {each.document_type: each for each in found}


def pair(only_child, only_parent, both=50):
    """Answers where the child alone, or the parent alone, is right so many times."""
    child = np.array([True] * only_child + [False] * only_parent + [True] * both)
    parent = np.array([False] * only_child + [True] * only_parent + [True] * both)
    return child, parent


def test_a_child_is_served_where_it_beats_its_parent_and_only_there(store):
    found = ask_children(store, {"better": pair(30, 2), "level": pair(5, 5), "worse": pair(2, 30)})
    assert [name for name, verdict in found.items() if verdict.served] == ["better"]
    assert found["better"].difference == pytest.approx(28 / 82)
    assert found["better"].low > 0
    assert found["worse"].p_value < 0.05  # it differs for certain, in the wrong direction
    assert store.alias("letters", "champion") is None


def test_more_children_make_it_harder_for_each(store):
    """Exact McNemar of 8 to 0 is 0.0078: enough for one child, not for six that were looked at together."""
    one = ask_children(store, {"a": pair(8, 0)})
    assert one["a"].served
    six = ask_children(store, {name: pair(8, 0) if name == "a" else pair(1, 1) for name in "abcdef"}, ids=IDS[:-1])
    assert six["a"].p_value == pytest.approx(6 * one["a"].p_value)
    assert not six["a"].served


def test_a_look_at_children_is_remembered_and_another_one_spends_less(store):
    first = ask_children(store, {"a": pair(8, 0)})
    assert ask_children(store, {"a": pair(0, 8)}) == first  # the same runs on the same rows: what was said stands
    second = ask_children(store, {"a": pair(8, 0)}, a="run_other")
    assert (first["a"].look, second["a"].look) == (1, 2)
    assert second["a"].error_spent == pytest.approx(first["a"].error_spent / 4)
    assert ask(store, "mdl_1").look == 1  # the champion's gate has a budget of its own


@pytest.mark.parametrize("n_children", [1, 5])
def test_children_that_are_no_better_are_seldom_served(tmp_path, n_children):
    """Over many families in which no child differs from its parent, any is served no more often than the look may err."""
    draw, wrong, n = np.random.default_rng(n_children), 0, 300
    spent = error_spent(RegistrySection().error_budget, 1)
    store = Store.at(tmp_path / "store.db")
    for family in range(n):
        right = {f"t{number}": (draw.random(80) < 0.7, draw.random(80) < 0.7) for number in range(n_children)}
        found = judge_children(
            store, RegistrySection(), f"m{family}", parent="run_p", children=dict.fromkeys(right, "run_c"), record_ids=IDS, right=right, n_samples=10
        )
        wrong += any(verdict.served for verdict in found)
    assert wrong <= n * spent + 3 * np.sqrt(n * spent)
