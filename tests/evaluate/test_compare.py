import numpy as np
import pytest
from simulation import LABELS

from tunesmith.errors import DataError
from tunesmith.evaluate.compare import compare, worst_mistakes
from tunesmith.evaluate.intervals import mcnemar, wilson

NAMES = {
    *("accuracy", "macro_f1", "weighted_f1", "matthews_correlation", "top_3_accuracy", "false_positive_rate", "false_negative_rate"),
    *("log_loss", "brier", "auroc", "auprc", "expected_calibration_error", "expected_calibration_error_equal_mass"),
}


def keys(tree):
    return {key: keys(value) if isinstance(value, dict) else None for key, value in tree.items()}


def test_the_keys_are_the_contract(truth, scores, latencies):
    interval, difference = dict.fromkeys(("value", "low", "high")), dict.fromkeys(("difference", "low", "high", "p_value"))
    result = compare(scores, truth, LABELS, latencies=latencies, n_samples=200)
    names = NAMES | {"latency_seconds"}
    assert keys(result) == {
        "metrics": {name: dict.fromkeys(("base", "classical", "tuned"), interval) for name in names},
        "paired": dict.fromkeys(names, difference),
        "paired_classical": dict.fromkeys(names, difference),
        "classical_verdict": None,
        "uncertain": None,
        "n_test": None,
        "per_class": None,
        "confusion": {"labels": None, "counts": None},
    }
    assert set(compare(scores, truth, LABELS, n_samples=200)["metrics"]) == NAMES


def test_differences_are_tuned_minus_the_opponent(truth, scores, latencies):
    result = compare(scores, truth, LABELS, latencies=latencies, n_samples=200)
    for opponent, key in (("base", "paired"), ("classical", "paired_classical")):
        for name, by_model in result["metrics"].items():
            assert result[key][name]["difference"] == pytest.approx(by_model["tuned"]["value"] - by_model[opponent]["value"])


def test_accuracy_has_the_wilson_interval_and_the_exact_p_value(truth, scores):
    result = compare(scores, truth, LABELS, n_samples=200)
    right = {name: probabilities.argmax(axis=1) == truth for name, probabilities in scores.items()}
    assert result["metrics"]["accuracy"]["tuned"] == wilson(int(right["tuned"].sum()), len(truth)).to_dict()
    assert result["paired"]["accuracy"]["p_value"] == mcnemar(right["tuned"], right["base"])


def test_grouped_rows_widen_the_interval(truth, scores):
    plain = compare(scores, truth, LABELS, n_samples=400)
    doubled = compare(
        {name: np.repeat(given, 4, axis=0) for name, given in scores.items()},
        np.repeat(truth, 4),
        LABELS,
        n_samples=400,
        groups=np.repeat(np.arange(len(truth)), 4),
    )
    for name in NAMES:
        assert doubled["paired"][name]["low"] == pytest.approx(plain["paired"][name]["low"], abs=1e-4)  # bins of equal mass cut between equal rows
        assert doubled["paired"][name]["p_value"] == pytest.approx(plain["paired"][name]["p_value"], abs=0.06), name


def test_metrics_with_too_few_records_for_their_interval_are_named(truth, scores):
    few = compare({name: given[:25] for name, given in scores.items()}, truth[:25], LABELS, n_samples=200)
    assert "macro_f1" in few["uncertain"]
    assert "accuracy" not in few["uncertain"]  # Wilson's holds
    assert "weighted_f1" not in compare(scores, truth, LABELS, n_samples=200)["uncertain"]


@pytest.mark.parametrize(("tuned", "classical", "verdict"), [(0.9, 0.5, "wins"), (0.5, 0.9, "loses"), (0.7, 0.7, "level")])
def test_the_verdict_follows_the_interval_of_the_paired_accuracy(tuned, classical, verdict):
    draw = np.random.default_rng(0)
    y = draw.integers(2, size=300)

    def scored(skill):
        right = draw.random(300) < skill
        return np.eye(2)[np.where(right, y, 1 - y)]

    scores = {"base": scored(0.5), "classical": scored(classical), "tuned": scored(tuned)}
    result = compare(scores, y, ["no", "yes"], n_samples=500)
    paired = result["paired_classical"]["accuracy"]
    assert result["classical_verdict"] == verdict
    assert (verdict == "level") == (paired["low"] <= 0 <= paired["high"])


def test_worst_mistakes_are_the_surest_wrong_answers():
    y, probabilities = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.2, 0.8]])
    found = worst_mistakes(list("abcd"), ["x" * 500] * 4, y, probabilities, ["no", "yes"], max_characters=10)
    assert [(row["id"], row["truth"], row["answer"], row["confidence"]) for row in found] == [("c", "yes", "no", 0.95), ("b", "no", "yes", 0.7)]
    assert found[0]["text"] == "x" * 10 + " …"


def test_models_that_are_missing_are_named(truth, scores):
    with pytest.raises(DataError, match="base, classical, tuned"):
        compare({"tuned": scores["tuned"]}, truth, LABELS)
    with pytest.raises(DataError, match="base, classical, tuned"):
        compare(scores, truth, LABELS, latencies={"tuned": [0.1]})
