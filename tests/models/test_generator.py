import numpy as np
import pytest

from tunesmith.models.confidence import WIDEST, agreement_logit, likelihood_logit, right_logits
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.generator import Generator
from tunesmith.models.json_answers import parse_answer, stated_in, write_answer
from tunesmith.models.settings import ConfidenceSection, ModelSection, TaskSection
from tunesmith.models.tokens import Prompt

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"type": "string", "enum": ["card", "loan"]}, "words": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}},
}
CLOSED = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["card", "loan"]},
        "words": {"type": "array", "items": {"type": "string", "enum": ["by", "of the bank"]}, "maxItems": 3},
        "urgent": {"type": "boolean"},
    },
}
"""Answers of which end whatever the model prefers."""
TEXTS = ["my card was charged", "a loan " * 20, "x", "nobody answered and I called them again about it"]


def generator(base, *, task="extraction", batch_size=4, forward="fast", max_answer_tokens=60, schema=SCHEMA, **confidence):
    schema = {"json_schema": schema} if task == "extraction" else {}
    section = TaskSection(type=task, instruction="Find.", max_answer_tokens=max_answer_tokens, **schema)
    model = ModelSection(model_name_or_path=str(base), dtype="float32", forward=forward)
    return Generator(base, Prompt(load_tokenizer(base), section, 300), model, batch_size=batch_size, confidence=ConfidenceSection(**confidence))


@pytest.fixture(scope="module")
def made(base):
    return generator(base)


def test_an_answer_that_ends_is_json_of_the_schema_as_training_writes_it(made):
    written = made.write(TEXTS)
    for answer, ended in zip(written.answers, written.ended, strict=True):
        if ended:
            assert answer == write_answer(SCHEMA, parse_answer(SCHEMA, answer))
        else:
            assert answer.startswith('{"kind": ')  # cut in the middle of a long one
    assert made.write(TEXTS, constrained=False).answers != written.answers  # a model with random weights writes no JSON


def test_answers_do_not_depend_on_their_neighbours(base, made):
    alone = generator(base, batch_size=1)
    assert alone.write(TEXTS).answers == made.write(TEXTS).answers


def read_alone(base, made, written):
    """Yield row, answer's tokens and the logits that the plain pass gives at each, one text at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model, prompt = AutoModelForCausalLM.from_pretrained(base).eval(), made.prompt
    for row, text in enumerate(TEXTS[:2]):
        ids = prompt.prefix + prompt.rows([text])[0]
        answer = prompt.encode([written.answers[row]])[0]
        if len(answer) + int(written.ended[row]) != written.tokens[row]:
            continue  # the model wrote the same text with other tokens
        answer = [*answer, prompt.tokenizer.eos_token_id] if written.ended[row] else answer
        with torch.no_grad():
            yield row, answer, model(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]


def test_the_likelihood_is_that_of_the_answer_alone(base, made):
    written, n_read = made.write(TEXTS[:2]), 0
    for row, answer, logits in read_alone(base, made, written):
        expected = sum(float(step[token]) for step, token in zip(logits.log_softmax(1), answer, strict=True))
        assert written.logit[row] == pytest.approx(float(likelihood_logit(expected, len(answer))), rel=1e-4)
        n_read += 1
    assert n_read


@pytest.mark.parametrize("task", ["extraction", "chat"])
def test_the_margin_is_that_of_the_closest_choice_among_allowed_tokens(base, task):
    made = generator(base, task=task, method="margin")
    written, n_read = made.write(TEXTS[:2]), 0
    for row, answer, logits in read_alone(base, made, written):
        rule, gaps = made._rule(constrained=True), []
        follows = rule(1) if rule else None
        for step, token in zip(logits.clone(), answer, strict=True):
            if follows:
                follows.forbid([0], step[None])
                follows.take(0, token)
            others = [float(step[other]) for other in range(len(step)) if other != token]
            gaps.append(float(step[token]) - max(others))
        assert written.logit[row] == pytest.approx(min(gaps), abs=1e-3)
        assert (max(gaps) == np.inf) == (task == "extraction"), "a schema leaves no choice in places"
        n_read += 1
    assert n_read


@pytest.mark.parametrize("method", ["likelihood", "margin"])
def test_a_field_is_as_sure_as_the_tokens_of_its_value_among_allowed_ones(base, method):
    """Read one text at a time by the plain pass; which tokens are a value's is seen from the text that they add."""
    made = generator(base, method=method, schema=CLOSED)
    written, n_read = made.write(TEXTS[:2]), 0
    for row, answer, logits in read_alone(base, made, written):
        follows, given, margins, pieces = made._rule(constrained=True)(1), [], [], []
        for at, (step, token) in enumerate(zip(logits.clone(), answer, strict=True)):
            follows.forbid([0], step[None])
            follows.take(0, token)
            others = step.clone()
            others[token] = float("-inf")
            given.append(float(step.log_softmax(0)[token]))
            margins.append(min(float(step[token] - others.max()), WIDEST))
            before, after = (made.prompt.tokenizer.decode(answer[:n], skip_special_tokens=True) for n in (at, at + 1))
            pieces.append(range(len(before), len(after)))
        stated = stated_in(CLOSED, written.answers[row])
        assert [(one.field, one.value) for one in stated] == [(one.field, one.value) for one in written.fields[row]]
        for one, found in zip(stated, written.fields[row], strict=True):
            touching = [at for at, piece in enumerate(pieces) if piece.start < one.end and piece.stop > one.start]
            expected = min(margins[at] for at in touching) if method == "margin" else float(likelihood_logit(sum(given[at] for at in touching), 1))
            assert found.logit == pytest.approx(expected, rel=1e-3, abs=1e-3)
            n_read += 1
    assert n_read


def test_agreement_is_asked_of_each_field(base, monkeypatch):
    monkeypatch.setattr("tunesmith.models.generator.field_agreement", lambda schema, stated, samples: [place / 10 for place in range(len(stated))])
    written = generator(base, method="agreement", samples=3, schema=CLOSED).write(TEXTS)
    assert any(written.fields)
    for own in written.fields:
        assert [one.logit for one in own] == pytest.approx(agreement_logit(np.arange(len(own)) / 10, 3))


def test_only_an_extraction_has_fields_and_only_where_asked(base):
    made = generator(base, schema=CLOSED)
    assert generator(base, task="chat").write(TEXTS).fields == ()
    assert made.write(TEXTS, with_confidence=False).fields == ()
    written = made.write(TEXTS)
    assert made.answer(TEXTS).fields == written.fields
    assert [bool(own) for own in written.fields] == [parse_answer(CLOSED, answer) is not None for answer in written.answers]
    assert any(written.fields)


def test_every_measure_is_the_same_by_fast_and_plain_pass_and_beside_any_neighbour(base):
    for method in ("likelihood", "margin", "agreement"):
        made = generator(base, method=method, samples=3, schema=CLOSED).write(TEXTS)
        plain, alone = (generator(base, method=method, samples=3, schema=CLOSED, **how).write(TEXTS) for how in ({"forward": "plain"}, {"batch_size": 1}))
        assert made.answers == plain.answers == alone.answers
        assert np.allclose(made.logit, plain.logit, rtol=1e-3, atol=1e-3)
        assert np.allclose(made.logit, alone.logit, rtol=1e-3, atol=1e-3)
        for fields in zip(made.fields, plain.fields, alone.fields, strict=True):
            first, *others = ([one.logit for one in own] for own in fields)
            assert all(np.allclose(first, other, rtol=1e-3, atol=1e-3) for other in others)


def test_samples_follow_the_seed(base):
    chat = {"task": "chat", "method": "agreement", "samples": 4, "max_answer_tokens": 12}
    first, again, other = (generator(base, **chat, seed=seed).write(TEXTS).logit for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_samples_follow_the_schema_and_are_compared_with_the_answer(base, monkeypatch):
    compared = {}
    monkeypatch.setattr("tunesmith.models.generator.agreement", lambda schema, answer, samples: compared.setdefault(answer, samples) and 0.5)
    written = generator(base, method="agreement", samples=3).write(TEXTS)
    assert set(compared) == set(written.answers)
    assert written.logit == pytest.approx(agreement_logit(np.full(4, 0.5), 3))
    for samples in compared.values():
        assert len(set(samples)) == 3
        assert all(parse_answer(SCHEMA, sample) is not None or sample.startswith('{"kind": ') for sample in samples)


def test_samples_of_a_cold_model_are_its_first_choice(base):
    cold = generator(base, task="chat", method="agreement", samples=2, temperature=1e-4, max_answer_tokens=12).write(TEXTS)
    assert cold.logit == pytest.approx(agreement_logit(np.ones(4), 2))


@pytest.mark.parametrize("method", ["likelihood", "margin", "agreement"])
def test_the_answer_says_how_sure_it_is(base, method):
    made = generator(base, method=method, samples=2)
    answered = made.answer(TEXTS)
    assert answered.names == ("right", "wrong")
    assert answered.chosen.tolist() == [0] * 4
    assert np.isfinite(answered.logits).all()
    assert (answered.logits == right_logits(made.write(TEXTS).logit)).all()
    assert not made.write(TEXTS, with_confidence=False).logit.any()


@pytest.mark.parametrize("method", ["likelihood", "agreement"])
def test_progress_ends_at_all_texts(base, method):
    heard = []
    generator(base, method=method).write(TEXTS, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (4, 4)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
