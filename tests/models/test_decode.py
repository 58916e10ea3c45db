"""Decoding step by step against the generate of transformers, which reads every row alone, whole and without a cache of ours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from tunesmith.models.batch import scoring_batch
from tunesmith.models.decode import FastSteps, PlainSteps, greedy, sample
from tunesmith.models.engine import PlainForward
from tunesmith.models.fast_llama import FastLlama
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model

STOP = 2
TOKENS = st.integers(3, 299)
ROWS = st.lists(st.lists(TOKENS, min_size=1, max_size=9), min_size=1, max_size=5)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def loaded(base, config=None):
    model = load_model(base, ModelSection(model_name_or_path=str(base), dtype="float32"))
    torch.manual_seed(1)
    return (get_peft_model(model, config) if config else model).eval()


def inner(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def steps_of(model, prefix, kind):
    if kind == "plain":
        return PlainSteps(model, None, prefix)
    return FastSteps(FastLlama(inner(model)), inner(model).lm_head.weight.detach(), prefix)


def generated(model, prefix, rows, stop, n_new):
    """Return what transformers writes to each row alone."""
    answers = []
    for row in rows:
        ids = torch.tensor([[*prefix, *row]])
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False, eos_token_id=stop, pad_token_id=stop)
        answers.append(made[0, ids.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("kind", ["fast", "plain"])
@settings(deadline=None, max_examples=25)
@given(prefix=st.lists(TOKENS, max_size=6), rows=ROWS, n_new=st.integers(1, 12), at=st.integers(0, 5), is_adapted=st.booleans())
def test_answers_are_those_of_transformers(base, kind, prefix, rows, n_new, at, is_adapted):
    lora = LoraConfig(r=3, target_modules=LINEAR, init_lora_weights=False, task_type="CAUSAL_LM")
    model = loaded(base, lora if is_adapted else None)
    said = generated(model, prefix, rows[:1], STOP, 6)[0]
    stop = said[min(at, len(said) - 1)]  # a token that the first row really says, so that some rows end early
    expected = generated(model, prefix, rows, stop, n_new)
    assert greedy(steps_of(model, prefix, kind), rows, stop=stop, n_new=n_new) == expected


def test_virtual_tokens_of_prefix_tuning_come_before_the_prefix(base):
    """Not against generate: that of PEFT 0.21 leaves the virtual tokens out with transformers 5.24."""
    model = loaded(base, PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=3.0)
    rows, forward = [[5, 6, 7], [8], [9, 10, 11, 12, 13]], PlainForward(model)
    expected = [[] for _ in rows]
    with torch.no_grad():
        for _ in range(8):
            for row, answer in zip(rows, expected, strict=True):
                answer.append(int(forward.logits(scoring_batch([20, 21], [row + answer])).argmax()))
    said = greedy(PlainSteps(model, None, [20, 21]), rows, stop=599, n_new=8)
    assert said == expected
    assert said != greedy(PlainSteps(inner(model), None, [20, 21]), rows, stop=599, n_new=8)


@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_rows_that_have_ended_leave_the_batch(base, kind):
    model = loaded(base)
    steps = steps_of(model, [4], kind)
    rows = [[number] for number in range(10, 26)]
    free = greedy(steps, rows, stop=STOP, n_new=1)
    stop = max({said[0] for said in free}, key=[said[0] for said in free].count)
    sizes = []
    begin = steps.begin

    def watched(rows, n_new):
        running = begin(rows, n_new)
        step = running.step
        running.step = lambda tokens: (sizes.append(len(tokens)), step(tokens))
        return running

    steps.begin = watched
    answers = greedy(steps, rows, stop=stop, n_new=6)
    lengths = [len(answer) for answer in answers]
    assert min(lengths) == 1
    assert sizes[-1] < len(rows)
    assert sum(sizes) < len(rows) * len(sizes)


def test_a_rule_that_allows_one_token_is_obeyed_and_told(base):
    class Counting:
        def __init__(self):
            self.said = {}

        def forbid(self, rows, logits):
            allowed = [30 + len(self.said.get(row, [])) for row in rows]
            keep = logits[range(len(rows)), allowed].clone()
            logits.fill_(float("-inf"))
            logits[range(len(rows)), allowed] = keep

        def take(self, row, token):
            self.said.setdefault(row, []).append(token)

    rule = Counting()
    answers = greedy(steps_of(loaded(base), [], "fast"), [[5], [6, 7]], stop=33, n_new=10, rule=rule)
    assert answers == [[30, 31, 32, 33]] * 2
    assert rule.said == {0: answers[0], 1: answers[1]}


def test_tied_candidates_are_settled_in_float32(base):
    """In bfloat16 a logit of 21 has steps of 1/8: the likeliest of near ones is found by computing them again."""
    model = load_model(base, ModelSection(model_name_or_path=str(base), dtype="bfloat16")).eval()
    steps = FastSteps(FastLlama(model), model.lm_head.weight.detach(), [4, 5])
    rows = [[first, last] for first in range(3, 60) for last in range(7, 400, 16)]
    states = steps.begin(rows, 1).states
    expected = (states @ model.lm_head.weight.float().t()).argmax(1).tolist()
    assert [answer[0] for answer in greedy(steps, rows, stop=STOP, n_new=1)] == expected
    rough = (states.to(torch.bfloat16) @ model.lm_head.weight.t()).argmax(1).tolist()
    assert rough != expected, "the case is worth a test"


def test_a_long_batch_is_read_in_parts(base, monkeypatch):
    steps = steps_of(loaded(base), [4, 5], "fast")
    rows = [[number] * 9 for number in range(3, 12)]
    whole = greedy(steps, rows, stop=STOP, n_new=5)
    monkeypatch.setattr("tunesmith.models.decode._PREFILL_TOKENS", 20)
    assert greedy(steps, rows, stop=STOP, n_new=5) == whole


@pytest.mark.parametrize("kind", ["fast", "plain"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_token_is_sampled_as_often_as_the_model_finds_it_probable(base, kind, temperature):
    """Draws that lie evenly in [0, 1) give each token its probability, to within one draw."""
    model, rows, k = loaded(base), [[5, 6, 7], [8]], 500
    even = np.broadcast_to((np.arange(k) + 0.5)[:, None] / k, (2, k, 1))
    found = sample(steps_of(model, [4], kind), rows, np.ascontiguousarray(even), temperature=temperature, stop=STOP, n_new=1)
    for row, answers in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = (model(torch.tensor([[4, *row]])).logits[0, -1] / temperature).softmax(0)
        seen = np.bincount([answer[0] for answer in answers], minlength=len(expected)) / k
        assert np.abs(seen - expected.numpy()).max() <= 1 / k + 1e-6


@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_samples_of_a_row_do_not_depend_on_the_others(base, kind):
    steps, rows = steps_of(loaded(base), [4, 5], kind), [[5, 6, 7], [8], [9, 10]]
    draws = np.random.default_rng(0).random((3, 4, 6))
    together = sample(steps, rows, draws, temperature=1.0, stop=STOP, n_new=6)
    assert together == [sample(steps, [row], own[None], temperature=1.0, stop=STOP, n_new=6)[0] for row, own in zip(rows, draws, strict=True)]
    assert len({tuple(answer) for answer in together[0]}) > 1
    assert all(
        answer == cold
        for row, cold in zip(sample(steps, rows, draws, temperature=1e-5, stop=STOP, n_new=6), greedy(steps, rows, stop=STOP, n_new=6), strict=True)
        for answer in row
    )


def test_samples_obey_the_rule(base):
    class Odd:
        def forbid(self, rows, logits):
            logits[:, ::2] = float("-inf")

        def take(self, row, token):
            taken.append(row)

    taken = []
    draws = np.random.default_rng(0).random((2, 3, 5))
    found = sample(steps_of(loaded(base), [], "fast"), [[5], [6, 7]], draws, temperature=1e3, stop=STOP, n_new=5, rule=Odd())
    assert all(token % 2 for answers in found for answer in answers for token in answer)
    assert sorted(set(taken)) == list(range(6))
