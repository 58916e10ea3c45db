"""A step without numbers holds what the same step holds with them."""

import json

import pytest
import torch

from tunesmith.models.engine import forward_pass
from tunesmith.models.weights import load_model
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.batches import encode_rows
from tunesmith.train.dry_run import LiveBytes, dry_run
from tunesmith.train.learner import rows_batch
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy


def test_bytes_count_from_their_making_to_their_end():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        view = a[10:].view(-1, 2)
        assert live.now == 4000, "a view takes nothing"
        b = a + 1
        del a, b
        assert (live.now, live.peak) == (4000, 8000), "the view keeps its tensor"
        del view
        assert live.now == 0


@pytest.fixture
def dry(records, prompt, base, model):
    def count(chosen, *, forward="fast", **settings):
        section = TrainSection(max_length=160, excess_length_strategy="truncate", **settings)
        strategy, rows = load_strategy(section), encode_rows(records, prompt, section)
        batches = [lambda part=part: rows_batch(rows, part, prompt.prefix) for part in chosen]
        chosen_model, recomputes = model.model_copy(update={"forward": forward}), section.gradient_checkpointing
        return dry_run(base, chosen_model, strategy.prepare, batches, in_float32=strategy.in_float32, recomputes=recomputes)

    return count


@pytest.mark.parametrize(
    ("strategy", "forward", "more"),
    [
        ("lora", "fast", {}),
        ("lora", "fast", {"lora_layers": 1}),
        ("lora", "fast", {"gradient_checkpointing": True}),
        ("lora", "plain", {"gradient_checkpointing": True}),
        ("lora", "plain", {"lora_dropout": 0.1}),
        ("lora", "plain", {"use_dora": True}),
        ("full", "plain", {}),
        ("prefix", "plain", {}),
    ],
)
def test_what_is_counted_is_what_a_real_pass_holds(dry, records, prompt, base, model, strategy, forward, more):
    section = TrainSection(max_length=160, excess_length_strategy="truncate", strategy=strategy, **more)
    rows = encode_rows(records, prompt, section)
    counted = dry([range(8)], forward=forward, strategy=strategy, **more)
    learner = load_strategy(section).prepare(load_model(base, model)).train()
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    chosen = model.model_copy(update={"forward": forward})
    with LiveBytes() as live:
        for held in (*learner.parameters(), *learner.buffers()):
            live._add(held)
        passing = forward_pass(learner, chosen, recomputes=section.gradient_checkpointing)
        batch = rows_batch(rows, range(8), prompt.prefix)
        before = live.peak = live.now
        loss = answer_loss(passing, batch)
        gradients = torch.autograd.grad(loss, parameters)
    assert loss.item() > 0
    assert counted.passes == pytest.approx((live.peak - before,), rel=0.002)
    assert counted.trained == sum(gradient.nbytes for gradient in gradients)


@pytest.mark.parametrize("forward", ["fast", "plain"])
def test_layers_that_recompute_hold_less(records, prompt, base, model, tmp_path, forward):
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12, "layer_types": None}))
    section = TrainSection(max_length=160, excess_length_strategy="truncate")
    rows, chosen = encode_rows(records, prompt, section), model.model_copy(update={"forward": forward})
    held = {}
    for recomputes in (False, True):
        strategy = load_strategy(section)
        run = dry_run(tmp_path, chosen, strategy.prepare, [lambda: rows_batch(rows, range(16), prompt.prefix)], in_float32=False, recomputes=recomputes)
        held[recomputes] = run.passes[0]
    assert held[True] < 0.4 * held[False]


def test_weights_are_counted_once_and_in_their_precision(dry, base, model):
    parameters = sum(parameter.numel() for parameter in load_model(base, model).parameters())
    full = dry([], forward="plain", strategy="full")
    assert full.trained == 4 * parameters
    assert full.trained <= full.held < full.trained + 2000, "tables of the rotary embedding come on top"


def test_a_model_that_looks_at_numbers_is_estimated_by_formula(dry, monkeypatch):
    counted = dry([range(8)], forward="plain", strategy="full").passes[0]

    def looks(forward, batch, **_):
        return answer_loss(forward, batch) * (1 if batch.input_ids.max().item() > 3 else 2)

    monkeypatch.setattr("tunesmith.train.dry_run.answer_loss", looks)
    (estimated,) = dry([range(8)], forward="plain", strategy="full").passes
    assert counted / 3 < estimated < counted * 3


def test_equal_shapes_are_counted_once(dry):
    assert len(dry([range(4), range(4), range(8)]).passes) == 3
    small, again, large = dry([range(4), range(4), range(8)]).passes
    assert small == again < large


def test_four_bits_make_the_layers_smaller(base, model, dry):
    from tunesmith.train.dry_run import _four_bits_save
    from tunesmith.train.strategies import Lora

    learner = Lora(TrainSection()).prepare(load_model(base, model))
    saved, largest = _four_bits_save(learner)
    frozen = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)  # q and o, k and v, the MLP's three
    assert saved == pytest.approx(frozen * (4 - 0.5161), rel=1e-3)
    assert largest == 2 * 4 * 32 * 64
