"""Every way to make a run faster or smaller leaves what is learnt as it is, and can be turned off."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.errors import ConfigError
from tunesmith.train.batches import encode_rows
from tunesmith.train.fit import fit
from tunesmith.train.plan import make_plan
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy
from tunesmith.train.trunk import TRUNK_FILE

SETTINGS = {"max_length": 160, "lora_r": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_train_epochs": 2, "logging_steps": 1, "save_steps": 4}


class Killed(Exception):
    pass


@pytest.fixture
def run(tmp_path, records, prompt, base, model):
    """Train on the tiny model; returns the losses, and the adapter's weights in one vector."""

    def start(name, *, forward="fast", attn_implementation="auto", kill_at=None, **settings):
        section = TrainSection(**(SETTINGS | settings))

        def report(step, n_steps, figures):
            if step == kill_at:
                raise Killed

        chosen = model.model_copy(update={"forward": forward, "attn_implementation": attn_implementation})
        fit(encode_rows(records, prompt, section), prompt.prefix, base, chosen, section, tmp_path / name, report)
        learnt = load_file(tmp_path / name / "weights" / "adapter_model.safetensors")
        lines = [json.loads(line) for line in (tmp_path / name / "losses.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines], torch.cat([learnt[key].flatten() for key in sorted(learnt)])

    return start


@pytest.mark.parametrize(
    ("forward", "settings", "trick"),
    [
        ("plain", {}, {"packing": True}),
        ("plain", {"strategy": "prefix"}, {"packing": True}),
        ("plain", {"group_by_length": False, "gradient_accumulation_steps": 2}, {"packing": True}),
        ("fast", {"lora_layers": 1}, {"activation_cache": True}),
        ("fast", {"lora_layers": 1, "gradient_accumulation_steps": 3}, {"activation_cache": True}),
        ("fast", {}, {"chunked_loss": False}),
        ("fast", {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}),
        ("plain", {}, {"gradient_checkpointing": True}),
    ],
)
def test_what_is_learnt_is_equal(run, forward, settings, trick):
    losses, weights = run("without", forward=forward, **settings)
    others, other_weights = run("with", forward=forward, **settings, **trick)
    assert others == pytest.approx(losses, rel=2e-4)
    assert (other_weights - weights).norm() < 5e-3 * weights.norm()


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"strategy": "prefix"}])
def test_each_attention_learns_the_same(run, settings):
    losses, weights = run("eager", forward="plain", attn_implementation="eager", **settings)
    others, other_weights = run("sdpa", forward="plain", attn_implementation="sdpa", **settings)
    assert others == pytest.approx(losses, rel=2e-4)
    assert (other_weights - weights).norm() < 5e-3 * weights.norm()


def test_long_answers_learn_the_same_in_parts(monkeypatch, run):
    losses, weights = run("without", chunked_loss=False)
    monkeypatch.setattr("tunesmith.train.answer_loss.answer_loss.__kwdefaults__", {"is_chunked": True, "part_logits": 4000})
    others, other_weights = run("with")
    assert others == pytest.approx(losses, rel=2e-4)
    assert (other_weights - weights).norm() < 5e-3 * weights.norm()


def test_accumulated_gradients_are_those_of_the_full_batch(run):
    losses, weights = run("whole", per_device_train_batch_size=8, group_by_length=False)
    others, other_weights = run("parts", per_device_train_batch_size=2, gradient_accumulation_steps=4, group_by_length=False)
    assert others == pytest.approx(losses, rel=1e-4)
    assert (other_weights - weights).norm() < 5e-3 * weights.norm()


def test_a_run_that_keeps_its_trunk_resumes_to_the_same_bits(tmp_path, run):
    settings = {"lora_layers": 1, "activation_cache": True}
    losses, weights = run("whole", **settings)
    with pytest.raises(Killed):
        run("killed", kill_at=6, **settings)
    assert (tmp_path / "killed" / TRUNK_FILE).exists()
    resumed, other_weights = run("killed", **settings)
    assert resumed == losses
    assert torch.equal(other_weights, weights)
    assert not (tmp_path / "killed" / TRUNK_FILE).exists()


@pytest.mark.parametrize(("forward", "settings"), [("fast", {}), ("plain", {"lora_layers": 1})])
def test_a_trunk_is_refused_where_there_is_none(run, forward, settings):
    with pytest.raises(ConfigError, match=r"activation_cache needs the fast pass, and layers without adapters"):
        run("a", forward=forward, activation_cache=True, **settings)


def test_the_plan_counts_the_disk_of_the_trunk(records, prompt, base, model):
    plans = [make_plan(records, prompt, base, model, TrainSection(**SETTINGS, lora_layers=1, activation_cache=kept)) for kept in (False, True)]
    rows = encode_rows(records, prompt, TrainSection(**SETTINGS))
    read = len(prompt.prefix) + sum(rows.lengths) - len(rows)
    assert plans[1].disk_bytes - plans[0].disk_bytes == read * 32 * 4


@pytest.mark.parametrize("trick", ["packing", "torch_compile"])
def test_tricks_of_the_plain_pass_take_the_plain_pass(trick):
    assert not load_strategy(TrainSection(**{trick: True})).fits_fast_pass
    assert load_strategy(TrainSection()).fits_fast_pass


def test_packing_reads_less(records, prompt, base, model):
    plain = model.model_copy(update={"forward": "plain"})
    settings = SETTINGS | {"group_by_length": False, "max_length": 400}
    alone, together = (make_plan(records, prompt, base, plain, TrainSection(**settings, packing=packed)) for packed in (False, True))
    assert together.padding_share < alone.padding_share
    assert together.seconds.expected < alone.seconds.expected


def test_a_compiled_pass_learns_the_same(monkeypatch, run):
    losses, _ = run("without", forward="plain")
    compiled = []

    def compiles(module, **options):  # without the compiler of the system, which takes a minute
        compiled.append(options)
        return torch._dynamo.optimize("eager", dynamic=True)(module)

    monkeypatch.setattr(torch, "compile", compiles)
    others, _ = run("with", forward="plain", torch_compile=True)
    assert compiled == [{"dynamic": True}]
    assert others == pytest.approx(losses, rel=2e-4)
