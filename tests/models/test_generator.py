import numpy as np
import pytest

from tunesmith.models.answered import likelihood_logits
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.generator import Generator
from tunesmith.models.json_answers import parse_answer, write_answer
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"type": "string", "enum": ["card", "loan"]}, "words": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}},
}
TEXTS = ["my card was charged", "a loan " * 20, "x", "nobody answered and I called them again about it"]


def generator(base, *, task="extraction", batch_size=4, forward="fast", max_answer_tokens=60):
    schema = {"json_schema": SCHEMA} if task == "extraction" else {}
    section = TaskSection(type=task, instruction="Find.", max_answer_tokens=max_answer_tokens, **schema)
    model = ModelSection(model_name_or_path=str(base), dtype="float32", forward=forward)
    return Generator(base, Prompt(load_tokenizer(base), section, 300), model, batch_size=batch_size)


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


def test_the_likelihood_is_that_of_the_answer_alone(base, made):
    """By the plain pass, one text at a time, of exactly the tokens that were written."""
    import torch
    from transformers import AutoModelForCausalLM

    written = made.write(TEXTS[:2])
    model, prompt = AutoModelForCausalLM.from_pretrained(base).eval(), made.prompt
    for row, text in enumerate(TEXTS[:2]):
        ids = prompt.prefix + prompt.rows([text])[0]
        answer = prompt.encode([written.answers[row]])[0]
        if len(answer) + int(written.ended[row]) != written.tokens[row]:
            continue  # the model wrote the same text with other tokens
        answer = [*answer, prompt.tokenizer.eos_token_id] if written.ended[row] else answer
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *answer]])).logits[0].log_softmax(1)
        expected = sum(float(logits[len(ids) + at - 1, token]) for at, token in enumerate(answer))
        assert written.log_probability[row] == pytest.approx(expected, rel=1e-4)


def test_fast_and_plain_pass_state_the_same_likelihood(base, made):
    plain = generator(base, forward="plain").write(TEXTS)
    assert plain.answers == made.write(TEXTS).answers
    assert np.allclose(plain.log_probability, made.write(TEXTS).log_probability, rtol=1e-4)


def test_the_answer_says_how_sure_it_is(made):
    answered = made.answer(TEXTS)
    assert answered.names == ("right", "wrong")
    assert answered.chosen.tolist() == [0] * 4
    assert np.isfinite(answered.logits).all()
    written = made.write(TEXTS)
    assert np.allclose(answered.logits, likelihood_logits(written.log_probability, written.tokens))
    order = np.argsort(written.log_probability / written.tokens)
    assert np.all(np.diff(answered.logits[order, 0]) >= 0)


def test_progress_ends_at_all_texts(made):
    heard = []
    made.write(TEXTS, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (4, 4)
