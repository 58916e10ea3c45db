import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.confidence import agreement, agreement_logit, draws, field_agreement, likelihood_logit, right_logits, word_f1
from tunesmith.models.json_answers import stated_in

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"type": "string"}, "names": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}},
}
TEXTS = st.text(alphabet="ab c", max_size=4)
ANSWERS = st.builds(
    lambda kind, names, n: json.dumps({"kind": kind, "names": names, "n": n}),
    st.none() | TEXTS,
    st.lists(TEXTS, max_size=3),
    st.none() | st.integers(0, 2),
)


@given(answer=ANSWERS, samples=st.lists(ANSWERS | st.just("no JSON"), min_size=1, max_size=6), order=st.randoms())
def test_agreement_is_a_ratio_and_the_order_of_samples_is_no_matter(answer, samples, order):
    share = agreement(SCHEMA, answer, samples)
    assert 0 <= share <= 1
    shuffled = order.sample(samples, len(samples))
    assert agreement(SCHEMA, answer, shuffled) == pytest.approx(share)
    assert agreement(SCHEMA, answer, [answer] * 3) == 1
    assert agreement(SCHEMA, answer, [*samples, answer]) >= share - 1e-12


def test_agreement_is_counted_field_by_field_after_normalisation():
    answer = json.dumps({"kind": "Loan", "names": ["Ann", "Bo"], "n": 1})
    same = json.dumps({"kind": " loan", "names": ["bo", "ANN"], "n": 1})
    other = json.dumps({"kind": "card", "names": ["Ann"], "n": 1})
    assert agreement(SCHEMA, answer, [same]) == 1
    assert agreement(SCHEMA, answer, [other]) == pytest.approx(1 / 3)
    # Of three samples one says the kind, one the names, two the number: the last one was cut off and says nothing.
    assert agreement(SCHEMA, answer, [same, other, '{"kind": "Loa']) == pytest.approx((1 + 1 + 2) / 9)


def test_answers_in_words_agree_by_the_f1_of_their_words():
    assert agreement({}, "a card was lost", ["A card was lost.", "nothing"]) == 0.5
    assert word_f1("a b", "b c") == 0.5
    assert word_f1("", "") == 1
    assert word_f1("", "a") == 0


@given(shares=st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_more_agreement_is_more_confidence_and_never_certainty(shares):
    logit = agreement_logit(np.array(shares) / 5, 5)
    assert np.isfinite(logit).all()
    assert (np.sign(np.subtract.outer(logit, logit)) == np.sign(np.subtract.outer(shares, shares))).all()
    assert abs(logit).max() < 2.5


def test_the_likelihood_is_a_mean_over_tokens():
    assert likelihood_logit([2 * np.log(0.5), 6 * np.log(0.5)], [2, 6]) == pytest.approx([0, 0])
    assert np.isfinite(likelihood_logit([0.0, -1e9], [3, 3])).all()


def test_a_field_is_as_sure_as_samples_agree_on_it():
    schema = {"type": "object", "properties": {"who": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}}}
    stated = stated_in(schema, '{"who": ["Ann", "Bo"], "n": null}')
    samples = ['{"who": ["ann"], "n": null}', '{"who": ["Bo", "Ann"], "n": 3}', '{"who": [', '{"who": [], "n": null}']
    assert field_agreement(schema, stated, samples) == [0.5, 0.25, 0.5]
    assert field_agreement(schema, [], samples) == []


def test_logits_are_of_right_and_wrong():
    logits = right_logits([0.5, -2])
    assert logits.tolist() == [[0.5, 0.0], [-2.0, 0.0]]
    assert logits.dtype == np.float32


@given(text=st.text(max_size=20), seed=st.integers(0, 5))
def test_random_numbers_follow_from_text_and_seed(text, seed):
    drawn = draws(text, 3, 7, seed)
    assert drawn.shape == (3, 7)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert (drawn == draws(text, 3, 7, seed)).all()
    assert (drawn != draws(f"{text}.", 3, 7, seed)).any()
    assert (drawn != draws(text, 3, 7, seed + 1)).any()
    assert (drawn[0] != drawn[1]).any()
