"""Each strategy learns, resumes to the same bits, and is read again as it was trained."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.errors import ConfigError
from tunesmith.files import file_sha256
from tunesmith.models.batch import scoring_batch
from tunesmith.models.engine import Engine, forward_pass, resolve
from tunesmith.models.weights import fits_fast_pass, load_model, load_tuned, weights_file
from tunesmith.train.batches import encode_rows
from tunesmith.train.fit import fit
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy

DEFAULTS = {"max_length": 160, "lora_r": 4, "per_device_train_batch_size": 8, "num_train_epochs": 20, "logging_steps": 1, "save_steps": 5}
VARIANTS = {
    "full": {"strategy": "full", "learning_rate": 1e-2},
    "lora": {"strategy": "lora", "learning_rate": 1e-2},
    "dora": {"strategy": "lora", "learning_rate": 1e-2, "use_dora": True},
    "rslora": {"strategy": "lora", "learning_rate": 1e-2, "use_rslora": True},
    "pissa": {"strategy": "lora", "learning_rate": 1e-2, "init_lora_weights": "pissa"},
    "loraplus": {"strategy": "lora", "learning_rate": 3e-3, "loraplus_lr_ratio": 4.0},
    "qlora": {"strategy": "qlora", "learning_rate": 1e-2},
    "prefix": {"strategy": "prefix", "learning_rate": 0.1, "num_virtual_tokens": 16, "num_train_epochs": 30},
}


@pytest.fixture
def train(tmp_path, records, prompt, base, model):
    """Train a variant into a folder of that name; returns the folder and the resolved section `model`."""

    def start(variant, name="run", *, stop_after=None, **settings):
        section = TrainSection(**(DEFAULTS | VARIANTS[variant] | settings))
        strategy = load_strategy(section)
        resolved = resolve(model.model_copy(update={"forward": "auto", "load_in_4bit": strategy.load_in_4bit}), base, fits_fast_pass=strategy.fits_fast_pass)

        def report(step, steps, figures):
            if step == stop_after:
                raise KeyboardInterrupt

        fit(encode_rows(records, prompt, section), prompt.prefix, base, resolved, section, tmp_path / name, report)
        return tmp_path / name, resolved

    return start


@pytest.fixture
def answers(records, prompt, base):
    """Return the scores of all records, by weights as they answer."""

    def score(section, weights):
        fits = weights is None or fits_fast_pass(weights)
        section = resolve(section.model_copy(update={"forward": "auto"}), base, fits_fast_pass=fits)
        return Engine(base, prompt, section, weights=weights).score(records["text"].to_list())

    return score


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_and_is_read_again(train, answers, records, prompt, variant):
    folder, section = train(variant)
    logged = losses(folder)
    assert np.mean(logged[-5:]) < 0.75 * logged[0]
    truth = [prompt.task.names.index(label) for label in records["label"]]
    scores = answers(section, folder / "weights")
    right = (scores.argmax(axis=1) == truth).mean()
    assert right > (answers(section, None).argmax(axis=1) == truth).mean() + 0.1
    assert not list((folder / "weights").glob("*.bin")), "safetensors only"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_continues_to_the_same_bits(train, variant):
    whole, _ = train(variant, "whole", num_train_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(variant, "killed", num_train_epochs=2, stop_after=8)
    killed, _ = train(variant, "killed", num_train_epochs=2)
    assert losses(killed) == losses(whole)
    assert file_sha256(weights_file(killed / "weights")) == file_sha256(weights_file(whole / "weights"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_answers_is_what_was_trained(train, base, records, prompt, variant):
    """The trained model in memory and the weights on disk, in the pass that answers, give the same scores."""
    folder, resolved = train(variant, num_train_epochs=1)
    fast = resolve(resolved.model_copy(update={"forward": "auto"}), base, fits_fast_pass=fits_fast_pass(folder / "weights"))
    plain = resolved.model_copy(update={"forward": "plain"})
    texts = records["text"].to_list()[:8]
    by_plain = Engine(base, prompt, plain, weights=folder / "weights").score(texts)
    by_fast = Engine(base, prompt, fast, weights=folder / "weights").score(texts)
    np.testing.assert_allclose(by_fast, by_plain, atol=2e-4)
    assert fast.forward == ("plain" if variant in ("dora", "prefix", "qlora") else "fast")


def test_what_is_trained(base, model):
    def trained(**settings):
        made = load_strategy(TrainSection(**settings)).prepare(load_model(base, model))
        return sum(p.numel() for p in made.parameters() if p.requires_grad), sum(p.numel() for p in load_model(base, model).parameters())

    full, everything = trained(strategy="full")
    assert full == everything
    n_layers, kv_width = 2, 2 * 8
    assert trained(strategy="prefix", num_virtual_tokens=5)[0] == 5 * n_layers * 2 * kv_width
    lora, dora = trained(lora_r=2)[0], trained(lora_r=2, use_dora=True)[0]
    outputs = n_layers * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert dora == lora + outputs, "one magnitude an output"


def test_virtual_tokens_start_as_the_prompt_is_read(base, model, prompt):
    """With as many virtual tokens as the prefix has, the model answers at first as if the prefix stood there twice."""
    n = len(prompt.prefix)
    made = load_strategy(TrainSection(strategy="prefix", num_virtual_tokens=n)).prepare(load_model(base, model), prompt.prefix)
    with torch.no_grad():
        ids = torch.tensor([prompt.prefix])
        twice = load_model(base, model)(input_ids=torch.cat([ids, ids], dim=1)).logits[:, n:]
        virtual = made(input_ids=ids).logits
    torch.testing.assert_close(virtual, twice, atol=1e-4, rtol=1e-4)


def test_pissa_is_stored_as_a_plain_adapter_of_twice_the_rank(train):
    folder, _ = train("pissa", num_train_epochs=1)
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "weights" / "adapter_model.safetensors").items() if "q_proj" in name}
    assert {shape[0] for name, shape in shapes.items() if "lora_A" in name} == {8}
    assert json.loads((folder / "weights" / "adapter_config.json").read_text())["init_lora_weights"] is True


def test_four_bits_take_a_quarter_of_the_memory(base, model):
    def linear_bytes(section):
        return sum(p.numel() * p.element_size() for name, p in load_model(base, section).named_parameters() if "proj" in name)

    assert linear_bytes(model.model_copy(update={"load_in_4bit": True})) * 8 == linear_bytes(model), "float32 has 32 bits a weight"


def test_rates_of_loraplus(train, tmp_path):
    train("loraplus", num_train_epochs=1)
    plain, _ = train("lora", "plain", num_train_epochs=1, learning_rate=3e-3)
    assert losses(tmp_path / "run") != losses(plain)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "lroa"}, "must be one of full, lora, qlora, prefix"),
        ({"strategy": "qlora", "init_lora_weights": "pissa"}, "needs base weights that are not quantised"),
    ],
)
def test_what_does_not_go_together_is_refused(base, model, settings, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        load_strategy(TrainSection(**settings)).prepare(load_model(base, model))


@pytest.mark.parametrize(("strategy", "rate"), [("full", 5e-5), ("lora", 1e-3), ("qlora", 1e-3), ("prefix", 1e-2)])
def test_each_strategy_has_its_usual_learning_rate(strategy, rate):
    assert TrainSection(strategy=strategy).learning_rate == rate
    assert TrainSection(strategy=strategy, learning_rate=0.5).learning_rate == 0.5


def test_a_pass_in_two_precisions_has_gradients_in_float32(base, model, prompt):
    """Strategy `full`: masters in float32, products in bfloat16."""
    learner = load_strategy(TrainSection(strategy="full")).prepare(load_model(base, model))
    section = model.model_copy(update={"dtype": "bfloat16", "forward": "plain"})
    logits = forward_pass(learner, section).logits(scoring_batch(prompt.prefix, prompt.rows(["my mortgage"])))
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in learner.parameters() if parameter.grad is not None} == {torch.float32}


def test_weights_are_told_by_their_files(tmp_path, base, model):
    with pytest.raises(Exception, match="Received: neither"):
        load_tuned(base, model, tmp_path)
