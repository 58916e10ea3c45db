import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evaluate.calibration import choose_calibrator, load_calibrator
from tunesmith.evaluate.classical_extraction import fit_classical_extraction
from tunesmith.evaluate.compare_written import compare_written, worst_answers
from tunesmith.evaluate.intervals import wilson
from tunesmith.evaluate.report import render, verdict
from tunesmith.evaluate.score_written import WrittenScores
from tunesmith.evaluate.settings import EvaluateSection
from tunesmith.evaluate.written import FIGURES, are_valid, count_answers, count_chat, count_extraction, per_field
from tunesmith.models.confidence import likelihood_logit
from tunesmith.models.settings import ConfidenceSection

SCHEMA = {
    "type": "object",
    "properties": {"person": {"type": "array", "items": {"type": "string"}}, "bank": {"type": "string"}, "amount": {"type": "number"}},
}
TEXT = "Ann Lee and Bob owe 1000 dollars to First Bank."


def answer(**values):
    return json.dumps(values)


def figure(name, counts, task="extraction"):
    chosen = FIGURES[task][name]
    return float(chosen.of_sums(chosen.rows({key: np.array([value]) for key, value in counts.items()}).sum(axis=0)))


def test_the_counts_of_an_answer_by_hand():
    counts = count_extraction(
        SCHEMA, answer(person=["ann  lee", "Carl"], bank="First Bank"), answer(person=["Ann Lee", "Bob"], bank="First Bank", amount=1000), TEXT
    )
    assert counts["hits"] == 2
    assert counts["exact_hits"] == 1
    assert counts["stated"] == 3
    assert counts["right"] == 4
    assert counts["hallucinated"] == 1  # Carl stands nowhere in the text
    assert counts["missing_fields"] == 1  # amount
    assert figure("micro_f1", counts) == pytest.approx(4 / 7)
    assert figure("hallucination_rate", counts) == pytest.approx(1 / 3)
    assert figure("missing_field_rate", counts) == pytest.approx(1 / 3)
    assert counts["is_exact"] == 0


def test_a_value_is_counted_once_for_each_time_that_it_is_right():
    assert count_extraction(SCHEMA, answer(person=["Bob", "Bob", "Bob"]), answer(person=["Bob"]), TEXT)["hits"] == 1


def test_no_json_states_nothing_and_is_wrong_even_where_nothing_is_right():
    counts = count_extraction(SCHEMA, "I found no one.", answer(person=[]), TEXT)
    assert counts["stated"] == counts["is_exact"] == counts["f1"] == 0
    assert count_extraction(SCHEMA, answer(person=[]), answer(person=[]), TEXT)["f1"] == 1


values = st.fixed_dictionaries(
    {"person": st.lists(st.sampled_from(["Ann Lee", "Bob", "Carl", "ANN LEE"]), max_size=3), "bank": st.sampled_from(["First Bank", "", "X"])}
)


@given(values, values)
def test_figures_stay_in_their_range_and_the_right_answer_is_perfect(given_answer, right):
    counts = count_extraction(SCHEMA, json.dumps(given_answer), json.dumps(right), TEXT) | {"is_valid_unconstrained": 1.0}
    for name in FIGURES["extraction"]:
        assert 0 <= figure(name, counts) <= 1
    perfect = count_extraction(SCHEMA, json.dumps(right), json.dumps(right), TEXT)
    assert perfect["is_exact"] == perfect["f1"] == 1
    assert perfect["missing_fields"] == 0
    assert counts["hits"] <= min(counts["stated"], counts["right"])
    swapped = count_extraction(SCHEMA, json.dumps(right), json.dumps(given_answer), TEXT)
    assert swapped["hits"] == counts["hits"]


def test_words_of_a_chat():
    counts = count_chat("The loan is due in May. The moon is green cheese.", "The loan is due in May.", "This loan is due in the month of May.")
    assert counts["sentences"] == 2
    assert counts["ungrounded"] == 1
    assert counts["token_f1"] == pytest.approx(2 * 6 / (11 + 6))
    assert count_chat("May.", "may", "x")["is_exact"] == 1


def compared(tuned, base, classical=None, n_samples=300):
    rights = [answer(person=["Bob"])] * 30
    answers = {"base": base, "tuned": tuned} | ({"classical": classical} if classical else {})
    return compare_written(answers, {"base": base}, rights, [TEXT] * 30, task_type="extraction", schema=SCHEMA, n_samples=n_samples)


def test_the_comparison_says_who_wins_and_by_how_much():
    right, wrong, broken = answer(person=["Bob"]), answer(person=["Carl"]), "no json"
    found = compared([right] * 27 + [wrong] * 3, [wrong] * 10 + [broken] * 20, [wrong] * 30)
    assert found["classical_verdict"] == "wins"
    assert found["metrics"]["hallucination_rate"]["base"]["value"] == 1
    assert found["metrics"]["hallucination_rate"]["tuned"]["value"] == pytest.approx(0.1)
    assert found["metrics"]["valid_json_rate"]["base"]["value"] == pytest.approx(1 / 3)
    assert found["paired"]["micro_f1"]["low"] > 0
    all_valid = found["metrics"]["valid_json_rate"]["tuned"]
    assert all_valid["value"] == 1
    assert all_valid["low"] == pytest.approx(wilson(30, 30).low)
    report = {"title": "x", "confidence_level": 0.95, **found, "mistakes": []}
    assert "micro F1" not in verdict(report)
    assert "90.0" in verdict(report)
    page = render(report)
    assert "Hallucination rate" in page
    assert "Properties" in page
    assert "Confusion" not in page


def test_a_chat_has_no_classical_opponent():
    found = compare_written({"base": ["no"] * 9, "tuned": ["May"] * 9}, {}, ["May"] * 9, ["due in May"] * 9, task_type="chat", schema={}, n_samples=200)
    assert found["classical_verdict"] is None
    assert "untuned" in verdict(found)
    assert "classical" not in render({"title": "x", "confidence_level": 0.95, **found}).lower().replace("against classical", "")


def test_a_missing_model_is_told():
    with pytest.raises(DataError, match="base and tuned"):
        compare_written({"tuned": []}, {}, ["x"], ["y"], task_type="chat", schema={})


def test_the_surest_wrong_answers_come_first():
    worst = worst_answers(["a", "b", "c"], ["t"] * 3, ["r"] * 3, ["x"] * 3, [0.9, 0.5, 0.8], [1.0, 0.0, 0.5])
    assert [row["id"] for row in worst] == ["c", "b"]


def test_per_field_counts_each_property_by_itself():
    rows = per_field(SCHEMA, [answer(person=["Bob"], bank="X")], [answer(person=["Bob", "Ann Lee"], bank="First Bank")])
    by_name = {row["label"]: row for row in rows}
    assert by_name["person"]["recall"] == 0.5
    assert by_name["bank"]["f1"] == 0
    assert by_name["amount"]["support"] == 0


def test_valid_json():
    assert are_valid(SCHEMA, [answer(person=[]), "{", '{"person": 3}']).tolist() == [1, 0, 0]


NAMES = ["Smith", "Jones", "Brown", "Young", "Walker", "Baker"]


def test_the_classical_tagger_learns_where_names_stand_and_never_invents_one():
    texts = [f"Loan number {n} was given to Mr {NAMES[n % 6]} in the year {1900 + n} by him ." for n in range(60)]
    answers = [answer(person=[NAMES[n % 6]]) for n in range(60)]
    fitted = fit_classical_extraction(SCHEMA, texts[:40], answers[:40], texts[40:], answers[40:])
    unseen = ["Loan number 77 was given to Mr Zimmer in the year 1955 by him ."]
    written = fitted.write(unseen)
    counts = count_answers("extraction", SCHEMA, written, [answer(person=["Zimmer"])], unseen)
    assert counts["hits"].sum() == 1
    assert counts["hallucinated"].sum() == 0
    assert fit_classical_extraction(SCHEMA, texts[:5], [answer()] * 5, texts[:5], [answer()] * 5).write(unseen) == [answer(person=[], bank=None, amount=None)]


def test_the_likelihood_becomes_the_probability_of_being_right():
    draw = np.random.default_rng(0)
    score = draw.normal(2, 1, 800)
    right = draw.random(800) < 1 / (1 + np.exp(-(2 * score - 5)))  # sounds sure, and is right in half of the cases
    logits = np.column_stack([score, np.zeros(800)])
    calibrator, table = choose_calibrator(logits, (~right).astype(int), judges="written")
    assert calibrator.to_dict()["method"] == "logistic"
    assert set(table) == {"none", "logistic"}
    stated = load_calibrator(calibrator.to_dict()).probabilities(logits)[:, 0]
    assert stated.min() < 0.5
    assert abs(stated.mean() - right.mean()) < 0.02
    assert np.all(np.diff(stated[np.argsort(score)]) >= 0)


def test_answers_and_calibrators_from_before_there_was_a_choice_of_confidence_are_read(tmp_path):
    old = pl.DataFrame({"id": ["a", "b"], "answer": ["{}", "{}"], "log_probability": [4 * np.log(0.5), 0.0], "tokens": [4, 0]})
    old.write_parquet(tmp_path / "old.parquet")
    assert WrittenScores.load(tmp_path / "old.parquet").logit == pytest.approx(likelihood_logit([4 * np.log(0.5), 0.0], [4, 0]))
    assert load_calibrator({"method": "likelihood", "slope": 2.0, "intercept": 1.0}).to_dict() == {"method": "logistic", "slope": 2.0, "intercept": 1.0}
    assert "confidence" not in EvaluateSection().model_dump(), "an evaluation from before keeps its id"
    assert "confidence" in EvaluateSection(confidence=ConfidenceSection(method="margin")).model_dump()
