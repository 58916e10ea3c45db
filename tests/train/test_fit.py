import json
import math

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import get_scheduler

from tunesmith.errors import BackendError, ConfigError
from tunesmith.files import file_sha256
from tunesmith.models.engine import Engine
from tunesmith.models.weights import load_model
from tunesmith.train.alarms import Alarms
from tunesmith.train.batches import encode_rows
from tunesmith.train.checkpoint import newest_checkpoint
from tunesmith.train.fit import fit
from tunesmith.train.optimizer import rate_factor
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy

DEFAULTS = {"max_length": 160, "lora_r": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_train_epochs": 2, "logging_steps": 1, "save_steps": 4}


def train(folder, records, prompt, base, model, report=lambda *_: None, **settings):
    section = TrainSection(**(DEFAULTS | settings))
    return fit(encode_rows(records, prompt, section), prompt.prefix, base, model, section, folder, report)


@pytest.fixture
def run(tmp_path, records, prompt, base, model):
    """Train on the tiny model into a folder of that name; returns what fit returns."""

    def start(name, *, records=records, model=model, **settings):
        return train(tmp_path / name, records, prompt, base, model, **settings)

    return start


def losses(folder):
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "weights" / "adapter_model.safetensors")


def test_the_loss_goes_down_and_the_answers_get_better(tmp_path, run, records, prompt, base, model):
    fitted = run("a", num_train_epochs=10)
    logged = [line["loss"] for line in losses(tmp_path / "a")]
    assert fitted.steps == len(logged) == 60
    assert fitted.train_loss == pytest.approx(sum(logged[-6:]) / 6)
    assert fitted.train_loss < 0.6 * logged[0]
    assert fitted.tokens == 10 * sum(len(prompt.prefix) + length for length in encode_rows(records, prompt, TrainSection(**DEFAULTS)).lengths)
    assert fitted.peak_memory_bytes > 50e6
    assert 0 < fitted.seconds < 600
    truth = [prompt.task.names.index(label) for label in records["label"]]

    def accuracy(adapter):
        return (Engine(base, prompt, model, weights=adapter).score(records["text"].to_list()).argmax(axis=1) == truth).mean()

    assert accuracy(tmp_path / "a" / "weights") > accuracy(None) + 0.3


def test_the_same_seed_gives_the_same_bits(tmp_path, run):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(name, seed=seed)
    a, b, c = (file_sha256(tmp_path / name / "weights" / "adapter_model.safetensors") for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("forward", ["fast", "plain"])
def test_accumulation_is_the_full_batch(tmp_path, run, records, model, forward):
    records = records.head(21)  # the last group is short
    chosen = model.model_copy(update={"forward": forward})
    for name, size, accumulate in (("full", 8, 1), ("parts", 2, 4)):
        run(name, records=records, model=chosen, per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, group_by_length=False)
    full, parts = losses(tmp_path / "full"), losses(tmp_path / "parts")
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in full], rel=1e-4)
    assert [line["grad_norm"] for line in parts] == pytest.approx([line["grad_norm"] for line in full], rel=1e-3)
    for name, expected in weights(tmp_path / "full").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], expected, rtol=1e-2, atol=1e-4, msg=name)


def test_fast_and_plain_learn_the_same(tmp_path, run, model):
    for forward in ("fast", "plain"):
        run(forward, model=model.model_copy(update={"forward": forward}))
    fast, plain = ([line["loss"] for line in losses(tmp_path / forward)] for forward in ("fast", "plain"))
    assert fast == pytest.approx(plain, rel=1e-3)


def test_max_steps_ends_the_run_and_the_last_step_is_saved(tmp_path, run):
    assert run("a", max_steps=3, save_steps=50).steps == 3
    assert newest_checkpoint(tmp_path / "a").name == "checkpoint-3.safetensors"


def test_old_checkpoints_go(tmp_path, run):
    run("a", save_steps=2, save_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "a").glob("checkpoint-*")) == ["checkpoint-10.safetensors", "checkpoint-12.safetensors"]


def test_the_adapter_folder_holds_safetensors_and_text(tmp_path, run):
    run("a", max_steps=1)
    assert sorted(path.name for path in (tmp_path / "a" / "weights").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not (tmp_path / "a" / ".weights").exists()


def test_the_report_gets_each_logged_step(run):
    seen = []
    run("a", report=lambda step, n, figures: seen.append((step, n, sorted(figures))), logging_steps=5, save_steps=50)
    figures = ["grad_norm", "learning_rate", "loss"]
    assert seen == [(1, 12, figures), (5, 12, figures), (10, 12, figures), (12, 12, figures)]


@pytest.mark.parametrize("lr_scheduler_type", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_and_takes_its_shape(tmp_path, run, lr_scheduler_type):
    run("a", lr_scheduler_type=lr_scheduler_type, warmup_ratio=0.25)
    rates = [line["learning_rate"] for line in losses(tmp_path / "a")]
    assert rates[:3] == sorted(rates[:3])
    assert max(rates) == pytest.approx(1e-2)
    assert (rates[-1] == rates[4]) is (lr_scheduler_type == "constant")


def test_finished_and_run_again_is_finished(tmp_path, run):
    first = run("a")
    before, adapter = losses(tmp_path / "a"), file_sha256(tmp_path / "a" / "weights" / "adapter_model.safetensors")
    again = run("a")
    assert (again.steps, again.train_loss) == (first.steps, first.train_loss)
    assert losses(tmp_path / "a") == before
    assert file_sha256(tmp_path / "a" / "weights" / "adapter_model.safetensors") == adapter


def test_never_resume_starts_again(tmp_path, run):
    run("a", max_steps=8)
    run("a", max_steps=6, resume_from_checkpoint="never", seed=5)
    run("b", max_steps=6, seed=5)
    assert [line["step"] for line in losses(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (tmp_path / "a").glob("checkpoint-*")) == ["checkpoint-4.safetensors", "checkpoint-6.safetensors"]
    a, b = (file_sha256(tmp_path / name / "weights" / "adapter_model.safetensors") for name in "ab")
    assert a == b


def test_a_loss_that_is_not_finite_names_step_and_rows(run, records):
    with pytest.raises(BackendError, match=r"The loss must stay finite. Received (nan|inf) at step [2-4], in the batch of rec_\d+") as error:
        run("a", learning_rate=1e30, max_grad_norm=1e30, warmup_ratio=0)
    assert error.value.exit_code == 6
    assert error.value.hint.startswith("tunesmith train --set train.learning_rate=")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("nothing",), "must name linear modules of the base model"),
        (("lm_head",), "must be inside the layers"),
        (("q_proj", "embed_tokens"), "must be inside"),
    ],
)
def test_modules_that_cannot_be_adapted(base, model, modules, message):
    with pytest.raises(ConfigError, match=message):
        load_strategy(TrainSection(lora_target_modules=modules)).prepare(load_model(base, model))


def test_the_seed_decides_the_adapters(base, model):
    def drawn(seed):
        adapted = load_strategy(TrainSection(seed=seed)).prepare(load_model(base, model))
        return torch.cat([parameter.flatten() for parameter in adapted.parameters() if parameter.requires_grad])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_one_row_is_a_step_an_epoch(run):
    one = pl.DataFrame({"id": ["rec_0"], "text": ["x"], "label": ["loan"], "weight": [1.0]})
    assert run("a", records=one, gradient_accumulation_steps=3).steps == 2


def test_adapters_in_the_last_layers_only(base, model):
    section = TrainSection(lora_layers=1)
    adapted = load_strategy(section).prepare(load_model(base, model))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".layers.")[1].split(".")[0] for name in trained} == {"1"}
    assert len(trained) == 2 * 7, "A and B of every linear module of one layer"


def test_a_loss_that_explodes_names_step_and_rows(run, model):
    """Finite, but worse than a uniform guess: a rate of 1 on all weights leaves nothing of what they were."""
    plain = model.model_copy(update={"forward": "plain"})
    with pytest.raises(BackendError, match=r"mean loss of 8 steps must stay below that of a uniform guess.* at step \d+, in the batch of rec_\d+") as error:
        run("a", model=plain, strategy="full", learning_rate=1.0, max_grad_norm=1e9, warmup_ratio=0, num_train_epochs=20)
    assert error.value.hint == "tunesmith train --set train.learning_rate=3.3e-01"


@settings(max_examples=300)
@given(st.lists(st.floats(0, 6.2), min_size=1, max_size=60))
def test_no_run_below_a_uniform_guess_is_alarmed(losses):
    alarms = Alarms(600, 1e-3)
    for step, loss in enumerate(losses, 1):
        alarms.check_loss(loss, step, ["rec_1"])


@settings(max_examples=300)
@given(st.lists(st.floats(0, 6.2), min_size=24, max_size=60), st.integers(0, 59), st.floats(6.2, 25))
def test_one_hard_batch_is_no_explosion(losses, at, hard):
    alarms = Alarms(600, 1e-3)
    for step, loss in enumerate([*losses[:at], hard, *losses[at:]], 1):
        alarms.check_loss(min(loss, 3.5) if loss != hard else loss, step, ["rec_1"])


def test_the_alarm_is_the_same_after_a_kill():
    def alarmed(kill_after):
        alarms = Alarms(600, 1e-3)
        for step, loss in enumerate([2.0] * 20 + [30.0] * 20, 1):
            try:
                alarms.check_loss(loss, step, ["rec_1"])
            except BackendError:
                return step
            if step == kill_after:
                alarms = Alarms(600, 1e-3, json.loads(json.dumps(alarms.losses)))
        return None

    assert {alarmed(at) for at in (None, 3, 12, 22)} == {22}


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_ratio", [0, 0.25, 0.3])
def test_learning_rates_are_those_of_transformers(kind, warmup_ratio):
    section = TrainSection(lr_scheduler_type=kind, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(kind if kind != "constant" else "constant_with_warmup", optimizer, math.ceil(warmup_ratio * 17), 17)
    for number in range(17):
        assert rate_factor(number, 17, section) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()
