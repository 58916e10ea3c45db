"""Evaluation while a model learns: what is measured, what it decides, and that a kill changes neither."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fit import DEFAULTS, losses, weights
from test_fit_killed import PROCESSES

from tunesmith.errors import BackendError, ConfigError, DataError
from tunesmith.files import file_sha256
from tunesmith.models.batch import training_batch
from tunesmith.models.engine import Engine, forward_pass, load_tokenizer
from tunesmith.models.settings import TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import load_tuned
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.batches import encode_rows
from tunesmith.train.fit import fit
from tunesmith.train.settings import TrainSection
from tunesmith.train.validation import Validation

SETTINGS = {"num_train_epochs": 4, "eval_steps": 3, "max_eval_samples": 16, "save_steps": 4}


def start(folder, records, prompt, base, model, report=lambda *_: None, **settings):
    """Train on the first 32 records, evaluate on the last 16."""
    section = TrainSection(**(DEFAULTS | SETTINGS | settings))
    validation = Validation.of(records.tail(16), prompt, section)
    return fit(encode_rows(records.head(32), prompt, section), prompt.prefix, base, model, section, folder, report, validation=validation)


@pytest.fixture
def run(tmp_path, records, prompt, base, model):
    return lambda name, **settings: start(tmp_path / name, records, prompt, base, settings.pop("model", model), **settings)


def evaluations(folder):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in losses(folder) if "eval_loss" in line]


@pytest.mark.parametrize("forward", ["fast", "plain"])
def test_the_figures_are_those_of_the_model_that_serves(tmp_path, run, records, prompt, base, model, forward):
    chosen = model.model_copy(update={"forward": forward})
    run("a", model=chosen, load_best_model_at_end=False)
    told = evaluations(tmp_path / "a")
    assert [line["step"] for line in told] == [3, 6, 9, 12, 15, 16], "every third step, and the last"
    asked = records.tail(16)
    truth = np.array([prompt.task.names.index(label) for label in asked["label"]])
    right = Engine(base, prompt, chosen, weights=tmp_path / "a" / "weights").score(asked["text"].to_list()).argmax(axis=1) == truth
    assert told[-1]["eval_accuracy"] == right.mean()
    answers = [prompt.answers[label] for label in truth]
    tuned = forward_pass(load_tuned(base, chosen, tmp_path / "a" / "weights").eval(), chosen)
    with torch.no_grad():
        loss = answer_loss(tuned, training_batch(prompt.prefix, prompt.rows(asked["text"].to_list()), answers)) / sum(map(len, answers))
    assert told[-1]["eval_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_evaluating_changes_nothing_that_is_learnt(tmp_path, run, model):
    plain = model.model_copy(update={"forward": "plain"})
    for name, settings in (("with", {}), ("without", {"eval_steps": None})):
        run(name, model=plain, lora_dropout=0.2, load_best_model_at_end=False, **settings)
    assert [line["loss"] for line in losses(tmp_path / "with") if "loss" in line] == [line["loss"] for line in losses(tmp_path / "without")]
    assert all(torch.equal(tensor, weights(tmp_path / "without")[name]) for name, tensor in weights(tmp_path / "with").items())


@pytest.mark.parametrize("metric", ["loss", "accuracy", "macro_f1"])
def test_the_best_step_is_the_result(tmp_path, run, metric):
    fitted = run("a", metric_for_best_model=metric, learning_rate=0.05)
    told = evaluations(tmp_path / "a")
    values = [line[f"eval_{metric}"] * (-1 if metric == "loss" else 1) for line in told]
    best = told[int(np.argmax(values))]["step"]  # the first of equals
    assert fitted.best_step == best
    run("b", metric_for_best_model=metric, learning_rate=0.05, load_best_model_at_end=False)
    kept = load_file(tmp_path / "a" / f"best-{best}.safetensors")
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(kept["weight." + name.replace(".weight", ".default.weight")], tensor), name
    assert (file_sha256(tmp_path / "a/weights/adapter_model.safetensors") == file_sha256(tmp_path / "b/weights/adapter_model.safetensors")) is (best == 16)


def test_it_stops_when_nothing_gets_better(tmp_path, run):
    fitted = run("a", learning_rate=1e-9, warmup_ratio=0, metric_for_best_model="accuracy", early_stopping_patience=2)
    assert [line["eval_accuracy"] for line in evaluations(tmp_path / "a")] == [evaluations(tmp_path / "a")[0]["eval_accuracy"]] * 3
    assert (fitted.steps, fitted.best_step) == (9, 3), "the first one, and two that were no better"
    assert fitted.tokens < run("b").tokens


def test_patience_needs_evaluations():
    with pytest.raises(ValueError, match="early_stopping_patience needs eval_steps"):
        TrainSection(early_stopping_patience=3)


def _start_and_die(arguments, at, settings):
    def report(step, *_):
        if step >= at:
            signal.raise_signal(signal.SIGKILL)

    start(*arguments, report, **settings)


def test_a_kill_changes_neither_the_best_step_nor_the_patience(tmp_path, run, records, prompt, base, model):
    settings = {"learning_rate": 0.1, "early_stopping_patience": 2, "num_train_epochs": 8}
    whole = run("whole", **settings)
    for at in (4, 7, 11, 13):
        process = PROCESSES.Process(target=_start_and_die, args=((tmp_path / "killed", records, prompt, base, model), at, settings))
        process.start()
        process.join(timeout=120)
        assert process.exitcode in (-signal.SIGKILL, 0)
    killed = run("killed", **settings)
    assert (killed.steps, killed.best_step) == (whole.steps, whole.best_step)
    assert whole.best_step < whole.steps < 32, "or the test shows nothing"
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "whole")
    hashes = [file_sha256(tmp_path / name / "weights" / "adapter_model.safetensors") for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]


def test_the_last_step_is_saved_before_its_evaluation_can_fail(tmp_path, run, monkeypatch):
    def fails(*_):
        raise BackendError("no metric today")

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "figures", fails)
        with pytest.raises(BackendError, match="no metric today"):
            run("a", eval_steps=100)
    assert (tmp_path / "a" / "checkpoint-16.safetensors").exists()
    assert run("a", eval_steps=100).steps == 16
    assert json.loads((tmp_path / "a" / "losses.jsonl").read_text().splitlines()[-1])["step"] == 16


def test_where_answers_are_written_their_loss_is_the_metric(tmp_path, records, base, model):
    prompt = Prompt(load_tokenizer(base), TaskSection(type="chat", instruction="Say what kind it is.", max_answer_tokens=12), 160)
    start(tmp_path / "a", records, prompt, base, model)
    assert {tuple(line) for line in evaluations(tmp_path / "a")} == {("step", "eval_loss")}
    first, *_, last = (line["eval_loss"] for line in evaluations(tmp_path / "a"))
    assert last < first
    with pytest.raises(ConfigError, match="must be loss where answers are written"):
        start(tmp_path / "b", records, prompt, base, model, metric_for_best_model="accuracy")


def test_an_empty_validation_split_is_named(records, prompt):
    with pytest.raises(DataError, match="needs records in the validation split"):
        Validation.of(records.clear(), prompt, TrainSection(eval_steps=1))
