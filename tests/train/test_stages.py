import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import ConfigError
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.weights import load_model, load_tuned
from tunesmith.train.settings import StageSection, TrainSection
from tunesmith.train.stages import StageData, begin_with, merge, mix_replay, pack_texts, stage_data
from tunesmith.train.strategies import load_strategy

texts = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=60), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(texts, st.integers(4, 40))
def test_packing_supervises_every_token_once_but_the_first(tokenizer, some, max_length):
    stream = [token for text in some for token in (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)]
    rows = pack_texts(some, tokenizer, max_length)
    assert [token for answer in rows.answers for token in answer] == stream[1:]
    assert all(1 + len(answer) <= max_length for answer in rows.answers)
    joined = [token for row in range(len(rows)) for token in rows.prompts[row]]
    assert joined == [stream[at] for at in range(0, len(stream) - 1, max_length - 1)]


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


def records(n):
    return pl.DataFrame(
        {"text": [f"letter {number} about my card and my account" for number in range(n)], "label": [f"answer {number}" for number in range(n)]}
    )


@pytest.mark.parametrize("objective", ["text", "instruction"])
def test_what_is_held_out_is_not_learnt(tokenizer, objective):
    stage = StageSection(name="domain", path="x", objective=objective)
    data = stage_data(records(120), stage, TrainSection(max_length=160), tokenizer)
    assert data.continuations
    rows = data.rows
    if objective == "text":  # rows go on where the one before ended
        learnt = tokenizer.decode([*rows.prompts[0], *(token for answer in rows.answers for token in answer)])
    else:
        learnt = "".join(tokenizer.decode(prompt) for prompt in rows.prompts)
    held = [context or continuation for context, continuation in zip(data.contexts, data.continuations, strict=True)]
    for number in range(120):
        text = f"letter {number} about my card and my account"
        assert (text in learnt) != any(text in each for each in held)


@pytest.mark.parametrize("objective", ["text", "instruction"])
def test_what_is_cached_is_what_was_made(tokenizer, tmp_path, objective):
    made = []

    def make():
        made.append(stage_data(records(120), StageSection(name="domain", path="x", objective=objective), TrainSection(max_length=160), tokenizer))
        return made[0]

    first, second = (StageData.cached(tmp_path / "tokens" / "tok_1", make) for _ in range(2))
    assert len(made) == 1
    for found in (first, second):
        assert (found.contexts, found.continuations) == (made[0].contexts, made[0].continuations)
        assert [*found.rows.prompts] == made[0].rows.prompts
        assert [*map(tuple, found.rows.answers)] == made[0].rows.answers
        assert (found.rows.record_ids, found.rows.weights, found.rows.excess) == (made[0].rows.record_ids, made[0].rows.weights, made[0].rows.excess)


def test_too_few_texts_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="some 20 texts"):
        stage_data(records(2), StageSection(name="domain", path="x"), TrainSection(), tokenizer)


def test_replay_takes_its_share_of_each_earlier_stage(tokenizer):
    own, first, second = (pack_texts([letter * 300], tokenizer, 20) for letter in ("a b ", "c d ", "e f "))
    mixed = mix_replay(own, [first, second], 0.5, seed=1)
    added = mixed.answers[len(own) :]
    assert mixed.answers[: len(own)] == own.answers
    assert len(added) == round(0.5 * len(own))
    assert sum(answer in first.answers for answer in added) in (len(added) // 2, (len(added) + 1) // 2)
    assert mix_replay(own, [first], 0, seed=1) is own
    assert mix_replay(own, [first, second], 0.5, seed=1).answers == mixed.answers


def trained(base, model, section, folder):
    """A LoRA whose B is no longer zero, saved as a run saves it."""
    strategy = load_strategy(section)
    prepared = strategy.prepare(load_model(base, model), [])
    torch.manual_seed(3)
    for name, parameter in prepared.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    strategy.save(prepared, folder, torch.float32)
    return prepared


def test_continued_weights_are_those_of_the_stage_before(base, model, tmp_path):
    section = TrainSection(lora_r=4)
    first = trained(base, model, section, tmp_path / "first")
    second = load_strategy(section).prepare(load_model(base, model), [])
    begin_with(second, tmp_path / "first")
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_weights_of_another_shape_are_refused_with_the_way_out(base, model, tmp_path):
    trained(base, model, TrainSection(lora_r=4), tmp_path / "first")
    other = load_strategy(TrainSection(lora_r=8)).prepare(load_model(base, model), [])
    with pytest.raises(ConfigError, match="strategy and shape") as raised:
        begin_with(other, tmp_path / "first")
    assert "merge" in raised.value.hint


def test_a_merged_model_says_what_base_and_adapter_say(base, model, tmp_path):
    trained(base, model, TrainSection(lora_r=4), tmp_path / "first")
    whole = merge(base, model, tmp_path / "first", tmp_path / "whole")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        before = load_tuned(base, model, tmp_path / "first").eval()(ids).logits
        after = load_model(whole, model).eval()(ids).logits
        untouched = load_model(base, model).eval()(ids).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(before, untouched, atol=1e-2)
    assert load_tokenizer(whole).get_vocab() == load_tokenizer(base).get_vocab()
