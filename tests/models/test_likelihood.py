import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.models.engine import forward_pass, load_tokenizer
from tunesmith.models.likelihood import log_probabilities
from tunesmith.models.settings import ModelSection

CONTEXTS = ["the company told me", "", "a", "my account was wrong and I called them " * 30]
CONTINUATIONS = [" that my account was wrong", "the letter was late", "x", " about it but nobody answered " * 40]


@pytest.fixture(params=["fast", "plain"])
def scored(request, base):
    section = ModelSection(model_name_or_path=str(base), dtype="float32", forward=request.param)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    return log_probabilities(forward_pass(model, section), load_tokenizer(base), CONTEXTS, CONTINUATIONS)


def test_they_are_those_of_transformers_one_text_at_a_time(scored, base):
    tokenizer, model = load_tokenizer(base), AutoModelForCausalLM.from_pretrained(base).eval()
    for row, (context, continuation) in enumerate(zip(CONTEXTS, CONTINUATIONS, strict=True)):
        before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (context, continuation))
        before, after = (before, after) if before else (after[:1], after[1:])
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *after]])).logits[0].float().log_softmax(1)
        expected = sum(float(logits[len(before) + at - 1, token]) for at, token in enumerate(after))
        assert scored[row, 0] == pytest.approx(expected, rel=1e-4)
        assert scored[row, 1] == len(after)


def test_a_text_of_one_token_without_context_says_nothing(base):
    section = ModelSection(model_name_or_path=str(base), dtype="float32", forward="plain")
    forward = forward_pass(AutoModelForCausalLM.from_pretrained(base).eval(), section)
    assert np.array_equal(log_probabilities(forward, load_tokenizer(base), [""], ["a"]), [[0, 0]])
