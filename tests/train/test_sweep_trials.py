"""What a sweep tries: the same values for the same seed, whenever it was killed, and an early end for what does badly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.train.settings import SweepSection
from tunesmith.train.sweep import Pruned, Study

PARAMETERS = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.lora_r": [4, 8],
    "train.num_train_epochs": {"low": 1, "high": 9},
    "train.lora_target_modules": ["all-linear", ["q_proj", "v_proj"]],
}
WHOLE = ["train.num_train_epochs"]


def study(folder, name="swp_a", **settings):
    return Study(folder / "sweeps.db", name, SweepSection(**({"parameters": PARAMETERS} | settings)), WHOLE)


def score(values):
    return values["train.learning_rate"] * 50 + (values["train.lora_r"] == 8)


def search(folder, n_trials, lost=(), **settings):
    """Ask and tell; the program dies after the asks whose numbers are lost, and is started again."""
    opened, asked = study(folder, **settings), 0
    while len(opened.trials) < n_trials:
        trial, asked = opened.ask(), asked + 1
        if asked in lost:
            opened = study(folder, **settings)
        else:
            opened.tell(trial, "complete", score=score(trial.values), run_id=f"run_{trial.number}", seconds=1.0)
    return opened


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Eleven trials of a search that nobody killed. From the ninth on, values come from a model of those before, not by chance alone."""
    return search(tmp_path_factory.mktemp("whole"), 11).trials


@settings(max_examples=3, deadline=None)
@given(lost=st.sets(st.integers(1, 14), min_size=1))
def test_kills_change_nothing_that_is_tried(tmp_path_factory, whole, lost):
    assert search(tmp_path_factory.mktemp("killed"), 11, lost).trials == whole
    assert [trial.number for trial in whole] == list(range(1, 12))


def test_values_are_those_that_were_asked_for_in_their_kind(whole):
    trials = whole
    assert all(1e-4 <= trial.values["train.learning_rate"] <= 1e-2 for trial in trials)
    assert all(type(trial.values["train.num_train_epochs"]) is int for trial in trials)
    assert {str(trial.values["train.lora_target_modules"]) for trial in trials} == {"all-linear", "['q_proj', 'v_proj']"}
    assert {trial.values["train.lora_r"] for trial in trials} == {4, 8}
    assert len({trial.values["train.learning_rate"] for trial in trials}) == 11


def test_another_seed_tries_others_and_another_sweep_knows_nothing(tmp_path, whole):
    assert search(tmp_path, 2, name="swp_b").trials == whole[:2]
    assert search(tmp_path, 2, name="swp_c", seed=1).trials != whole[:2]


def test_importance_is_told_of_enough_trials_only(tmp_path):
    opened = search(tmp_path, 15)
    assert opened.importance() == {}
    shares = search(tmp_path, 16).importance()
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "train.lora_r", "most of the score"


def play(opened, per_tenth):
    """Report the same figure at each tenth; returns the state."""
    trial = opened.ask()
    try:
        for tenth in range(1, 10):
            trial.report(tenth, per_tenth)
    except Pruned as reason:
        opened.tell(trial, "pruned", score=None, run_id="run_x", seconds=1.0, reason=str(reason))
    else:
        opened.tell(trial, "complete", score=per_tenth, run_id="run_x", seconds=1.0)
    return opened.trials[-1]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_what_is_worse_than_the_others_is_stopped_early(tmp_path, pruner):
    opened = study(tmp_path, pruner=pruner, metric="accuracy")
    good = [play(opened, value) for value in (-1.0, -1.1, -1.2, -1.3)]
    assert {trial.state for trial in good} == {"complete"} or pruner == "hyperband"
    bad = [play(opened, -9.0 - step) for step in range(4)]
    assert "pruned" in {trial.state for trial in bad}
    stopped = next(trial for trial in bad if trial.state == "pruned")
    assert stopped.score is None
    assert stopped.reason.startswith("worse than the others after ")


def test_less_is_better_where_the_metric_says_so(tmp_path):
    opened = study(tmp_path, metric="log_loss")
    assert [play(opened, value).state for value in (1.0, 1.1, 1.2, 1.3, 0.5, 9.0)] == ["complete"] * 5 + ["pruned"]


def test_without_a_pruner_all_go_on(tmp_path):
    opened = study(tmp_path, pruner="none")
    assert {play(opened, value).state for value in (1, 1, 1, 1, -99, -99)} == {"complete"}


def test_a_trial_that_was_to_be_stopped_when_it_was_killed_is_stopped_at_once(tmp_path):
    opened = study(tmp_path)
    for value in (1.0, 1.0, 1.0, 1.0):
        play(opened, value)
    trial = opened.ask()
    trial.report(1, -1.0)
    trial.report(2, -1.0)
    with pytest.raises(Pruned, match="after 3 of 10 parts"):
        trial.report(3, -1.0)
    again = study(tmp_path).ask()
    assert (again.number, again.values, again.last_tenth) == (trial.number, trial.values, 3)
    with pytest.raises(Pruned, match="after 3 of 10 parts"):
        again.check()
