"""Preference tuning: TRL learns on the tokens that are served, from the model that was served, and can be killed."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from test_fit import train as train_supervised

from tunesmith.errors import BackendError
from tunesmith.models.engine import Engine, load_tokenizer
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import load_model, load_tuned, weights_file
from tunesmith.testing import tiny_rows
from tunesmith.train.preference import encode_answers, encode_pairs, make_trainer, n_tokens, newest_checkpoint, prefer
from tunesmith.train.preference_settings import PreferSection

LABELS = ("card", "loan", "mortgage")
SECTION = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "learning_rate": 3e-3, "save_steps": 2}


@pytest.fixture(scope="module")
def plain(model) -> ModelSection:
    return model.model_copy(update={"forward": "plain"})


@pytest.fixture(scope="module")
def supervised(records, prompt, base, plain, tmp_path_factory):
    """Strategy -> weights of a short supervised run."""
    made = {}

    def weights(strategy):
        if strategy not in made:
            folder = tmp_path_factory.mktemp(strategy)
            settings = {"strategy": strategy, "max_steps": 6, "learning_rate": {"lora": 1e-2, "full": 1e-3, "prefix": 1e-1}[strategy]}
            train_supervised(folder, records, prompt, base, plain, **settings)
            made[strategy] = folder / "weights"
        return made[strategy]

    return weights


@pytest.fixture(scope="module")
def pairs():
    """Twelve corrections: the right label was not what the model had said."""
    rows = tiny_rows(60)[48:]
    return [text for text, _ in rows], [label for _, label in rows], [LABELS[(LABELS.index(label) + 1) % 3] for _, label in rows]


def label_scores(base, prompt, model, weights, texts):
    """Log-probability of each label's answer, shape (n_texts, 3), by the engine that serves."""
    return Engine(base, prompt, model, weights=weights).score(texts).astype(float)


def nats(model, prompts, answers):
    """Sum of the log-probabilities of answers, one row at a time and without padding."""
    found = []
    for before, after in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + after])).logits[0, -len(after) - 1 : -1]
        found.append(float(torch.log_softmax(logits.float(), -1)[range(len(after)), after].sum()))
    return np.array(found)


def tune(columns, prompt, base, model, weights, folder, *, report=lambda *_: None, **settings):
    section = PreferSection(**SECTION | settings)
    return prefer(columns, load_tokenizer(base), base, model, weights, section, folder, report, lambda *_: None)


def trainer_of(columns, base, model, weights, folder, **settings):
    section = PreferSection(**SECTION | settings)
    whole = (weights / "model.safetensors").exists()
    start = load_model(weights, model) if whole else load_tuned(base, model, weights, is_trainable=True)
    return make_trainer(start, columns, load_tokenizer(base), model, section, folder, lambda *_: None, lambda *_: None)


def test_trl_learns_on_the_tokens_that_are_served(prompt, base, plain, supervised, pairs, tmp_path):
    texts, chosen, rejected = pairs
    long = [*texts[:3], " ".join(texts)]  # the last one is cut, as in serving
    trainer = trainer_of(encode_pairs(long, chosen[:4], rejected[:4], prompt), base, plain, supervised("lora"), tmp_path)
    seen = {}
    for batch in trainer.get_train_dataloader():
        for ids, attended, completed in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
            seen[tuple(ids[attended.bool()].tolist())] = tuple(ids[completed.bool()].tolist())
    served = {}
    for text, right, wrong in zip(long, chosen, rejected, strict=False):
        before = prompt.prefix + prompt.rows([text])[0]
        for label in (right, wrong):
            answer = prompt.answers[LABELS.index(label)]
            served[(*before, *answer)] = answer
    assert seen == served
    assert all(len(row) <= prompt.max_length for row in seen)
    assert all(answer[-1] == prompt.tokenizer.eos_token_id for answer in seen.values())


@pytest.mark.parametrize("strategy", ["lora", "full", "prefix"])
def test_the_reference_is_the_supervised_model_not_its_base(strategy, prompt, base, plain, supervised, pairs, tmp_path):
    columns = encode_pairs(*pairs, prompt)
    trainer = trainer_of(columns, base, plain, supervised(strategy), tmp_path)
    told = np.array(trainer.train_dataset["ref_chosen_logps"])
    assert told == pytest.approx(nats(load_tuned(base, plain, supervised(strategy)).eval(), columns["prompt_ids"], columns["chosen_ids"]), abs=1e-3)
    untuned = nats(load_model(base, plain), columns["prompt_ids"], columns["chosen_ids"])
    assert np.abs(told - untuned).min() > 0.05
    assert trainer.ref_model is None
    assert [name for name, _ in trainer.model.named_parameters() if ".ref." in name] == []


@pytest.mark.parametrize(
    ("strategy", "dtype", "settings"),
    [("lora", "bfloat16", {}), ("full", "bfloat16", {}), ("lora", "float32", {"use_dora": True}), ("qlora", "float32", {}), ("qlora", "bfloat16", {})],
)
def test_other_precisions_and_adapters_learn_from_where_they_stood(strategy, dtype, settings, records, prompt, base, plain, pairs, tmp_path):
    if strategy == "qlora":
        pytest.importorskip("bitsandbytes")
    own = plain.model_copy(update={"dtype": dtype, "load_in_4bit": strategy == "qlora"})
    train_supervised(
        tmp_path / "first", records, prompt, base, own, strategy=strategy, max_steps=6, learning_rate=1e-2 if strategy != "full" else 1e-3, **settings
    )
    columns = encode_pairs(*pairs, prompt)
    tune(columns, prompt, base, own, tmp_path / "first" / "weights", tmp_path / "second", learning_rate=3e-3 if strategy != "full" else 3e-4)
    lines = [json.loads(line) for line in (tmp_path / "second" / "losses.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-2)

    def margins(name):
        model = load_tuned(base, own, tmp_path / name / "weights").eval()
        return nats(model, columns["prompt_ids"], columns["chosen_ids"]) - nats(model, columns["prompt_ids"], columns["rejected_ids"])

    assert (margins("second") - margins("first")).mean() > 0.2


def test_answers_that_are_written_end_with_the_stop_token(base):
    schema = {"type": "object", "properties": {"product": {"type": "string"}, "urgent": {"type": "boolean"}}}
    task = TaskSection(type="extraction", instruction="Find.", json_schema=schema, max_answer_tokens=60)
    prompt = Prompt(load_tokenizer(base), task, 300)
    columns = encode_pairs(["a letter"], ['{"urgent": true, "product": "loan"}'], ['{"product":"card","urgent":true}'], prompt)
    for name, product in (("chosen_ids", "loan"), ("rejected_ids", "card")):
        *answer, stop = columns[name][0]
        assert stop == prompt.tokenizer.eos_token_id
        assert json.loads(prompt.tokenizer.decode(answer)) == {"product": product, "urgent": True}
    assert columns["prompt_ids"] == [prompt.prefix + prompt.rows(["a letter"])[0]]


@pytest.mark.parametrize("strategy", ["lora", "full", "prefix"])
def test_dpo_raises_the_margin_of_the_chosen_answers(strategy, prompt, base, plain, supervised, pairs, tmp_path):
    texts, chosen, rejected = pairs
    rate = {"lora": 3e-3, "full": 3e-4, "prefix": 3e-2}[strategy]
    tuned = tune(encode_pairs(*pairs, prompt), prompt, base, plain, supervised(strategy), tmp_path, learning_rate=rate)
    assert (tuned.steps, math.isfinite(tuned.train_loss)) == (9, True)

    def margins(weights):
        scores = label_scores(base, prompt, plain, weights, texts)
        rows = range(len(texts))
        return scores[rows, [LABELS.index(label) for label in chosen]] - scores[rows, [LABELS.index(label) for label in rejected]]

    before, after = margins(supervised(strategy)), margins(tmp_path / "weights")
    assert (after - before).mean() > 0.3
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # the model still is its reference
    assert lines[-1]["rewards/margins"] > 0
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == sorted(path.name for path in supervised(strategy).iterdir())


def test_kto_raises_right_answers_and_lowers_wrong_ones(prompt, base, plain, supervised, pairs, tmp_path):
    texts, right, wrong = (column[:6] for column in pairs)
    said, are_right = [*right, *wrong[:3]], [True] * 6 + [False] * 3
    columns = encode_answers([*texts, *texts[:3]], said, are_right, prompt, PreferSection(method="kto", **SECTION))
    tune(columns, prompt, base, plain, supervised("lora"), tmp_path, method="kto", num_train_epochs=8)
    prompts, answers = columns["prompt_ids"], columns["completion_ids"]
    before, after = (nats(load_tuned(base, plain, weights).eval(), prompts, answers) for weights in (supervised("lora"), tmp_path / "weights"))
    good = np.array(columns["label"])
    assert (after - before)[good].mean() > 0 > (after - before)[~good].mean()


def test_kto_reads_each_row_beside_another_answer_of_its_batch(prompt, pairs):
    section = PreferSection(method="kto", **SECTION)
    texts, right, _ = pairs
    columns = encode_answers(texts, right, [True] * 12, prompt, section)
    assert sorted(columns["prompt_ids"]) == sorted(prompt.prefix + row for row in prompt.rows(texts))
    for at in range(0, 12, 4):
        own, other = columns["completion_ids"][at : at + 4], columns["KL_completion_ids"][at : at + 4]
        assert other == [own[-1], *own[:-1]]
    assert columns == encode_answers(texts, right, [True] * 12, prompt, section)
    assert columns != encode_answers(texts, right, [True] * 12, prompt, section.model_copy(update={"seed": 1}))


@pytest.mark.parametrize(("method", "strategy"), [("dpo", "lora"), ("kto", "lora"), ("dpo", "prefix"), ("dpo", "full")])
def test_a_killed_run_continues_to_the_same_weights(method, strategy, prompt, base, plain, supervised, pairs, tmp_path):
    section = PreferSection(method=method, **SECTION)
    texts, right, wrong = pairs
    both = ([*texts, *texts], [*right, *wrong], [True] * 12 + [False] * 12)
    columns = encode_pairs(*pairs, prompt) if method == "dpo" else encode_answers(*both, prompt, section)

    def stop(step, *_):
        if step == 6:
            raise KeyboardInterrupt

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = tune(columns, prompt, base, plain, supervised(strategy), whole, method=method)
    with pytest.raises(KeyboardInterrupt):
        tune(columns, prompt, base, plain, supervised(strategy), killed, method=method, report=stop)
    assert newest_checkpoint(killed).name == "checkpoint-4"
    (killed / "checkpoint-6").mkdir()  # half written
    steps = []
    again = tune(columns, prompt, base, plain, supervised(strategy), killed, method=method, report=lambda step, *_: steps.append(step))
    assert steps[0] == 5
    assert (again.steps, again.train_loss, again.tokens) == (expected.steps, expected.train_loss, expected.tokens)
    assert weights_file(killed / "weights").read_bytes() == weights_file(whole / "weights").read_bytes()
    assert expected.tokens == 3 * n_tokens(columns)
    assert list(killed.glob("checkpoint-*")) == []


def test_a_loss_that_is_no_number_stops_the_run(prompt, base, plain, supervised, pairs, tmp_path):
    with pytest.raises(BackendError, match=r"The loss must be a finite number\. Received nan at step"):
        tune(encode_pairs(*pairs, prompt), prompt, base, plain, supervised("full"), tmp_path, learning_rate=1e30, max_grad_norm=1e30)


def test_kto_needs_others_in_its_batch():
    with pytest.raises(ValueError, match="per_device_train_batch_size must be 2 or more for kto"):
        PreferSection(method="kto", per_device_train_batch_size=1)
