"""On a GPU: the fast pass against transformers and PEFT, what it keeps, its decoding, and the whole loop on it."""

import json
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunesmith import flow
from tunesmith.models.batch import training_batch
from tunesmith.models.decode import FastSteps, PlainSteps, greedy
from tunesmith.models.engine import PlainForward, load_prompt
from tunesmith.models.fast_llama import FastLlama
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.weights import load_model
from tunesmith.project import Project
from tunesmith.testing import tiny_base, tiny_project, tiny_rows
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.batches import Rows
from tunesmith.train.fit import fit
from tunesmith.train.settings import TrainSection

PREFIX = [5, 6, 7]
PROMPTS = [[(11 * row + column) % 290 for column in range(length)] for row, length in enumerate((40, 3, 17, 64))]
ANSWERS = [[14, 2], [22, 23, 24, 2], [37, 2], [4, 2]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def adapted(base, dtype):
    model = load_model(base, ModelSection(model_name_or_path=str(base), dtype=dtype)).requires_grad_(False)
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))


def learnt(forward, model):
    """Return the loss of the rows and its gradients."""
    loss = answer_loss(forward, training_batch(PREFIX, PROMPTS, ANSWERS))
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def far(made, expected):
    """Return by how much gradients differ, relative to their size together."""
    return (sum((made[name] - expected[name]).square().sum() for name in expected) / sum(each.square().sum() for each in expected.values())).sqrt()


def test_loss_and_gradients_equal_those_of_transformers_in_float32(base):
    model = adapted(base, "float32")
    loss, gradients = learnt(PlainForward(model), model)
    fast_loss, fast_gradients = learnt(FastLlama(model.get_base_model()), model)
    torch.testing.assert_close(fast_loss, loss, rtol=1e-4, atol=1e-5)
    assert far(fast_gradients, gradients) < 1e-3


def test_bfloat16_rounds_no_farther_off_than_transformers_does(base):
    exact_loss, exact = learnt(PlainForward(model := adapted(base, "float32")), model)
    model = adapted(base, "bfloat16")
    loss, gradients = learnt(PlainForward(model), model)
    fast_loss, fast_gradients = learnt(FastLlama(model.get_base_model()), model)
    assert abs(fast_loss - exact_loss) < max(0.01 * exact_loss, 2 * abs(loss - exact_loss))
    assert far(fast_gradients, exact) < 2 * far(gradients, exact) + 0.01


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "plain"])
def test_recomputed_layers_learn_the_same(base, is_fast):
    found = []
    for recomputes in (False, True):
        model = adapted(base, "float32").train()
        if recomputes and not is_fast:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found.append(learnt(FastLlama(model.get_base_model(), recomputes=recomputes) if is_fast else PlainForward(model), model))
    (loss, gradients), (again, recomputed) = found
    torch.testing.assert_close(again, loss)
    assert far(recomputed, gradients) < 1e-4


def test_a_loss_in_parts_is_the_same(base):
    model, batch = adapted(base, "bfloat16"), training_batch(PREFIX, PROMPTS, ANSWERS)
    forward = FastLlama(model.get_base_model())
    whole, parts = (answer_loss(forward, batch, part_logits=n * len(forward.head())) for n in (100, 2))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)


def test_both_passes_write_the_same(base):
    model = adapted(base, "float32").eval()
    plain = greedy(PlainSteps(model, None, PREFIX), PROMPTS, stop=2, n_new=12)
    fast = FastLlama(model.get_base_model())
    assert greedy(FastSteps(fast, model.get_base_model().lm_head.weight.detach(), PREFIX), PROMPTS, stop=2, n_new=12) == plain


@pytest.mark.parametrize(
    ("strategy", "forward"),
    [
        ("lora", "fast"),
        ("lora", "plain"),
        ("full", "plain"),
        ("prefix", "plain"),
        pytest.param("qlora", "plain", marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes")),
    ],
)
def test_a_run_learns(base, tmp_path, strategy, forward):
    prompt = load_prompt(base, TaskSection(instruction="Sort the letter.", labels=("card", "loan", "mortgage")), 160, "start")
    texts, labels = zip(*tiny_rows(64), strict=True)
    rows = Rows([f"rec_{row}" for row in range(64)], prompt.rows(list(texts)), prompt.answers_of(list(labels)), [], [1.0] * 64)
    model = ModelSection(model_name_or_path=str(base), dtype="bfloat16", forward=forward, load_in_4bit=strategy == "qlora")
    steps = {"per_device_train_batch_size": 8, "max_steps": 16, "num_train_epochs": 4, "logging_steps": 1, "save_steps": 4}
    section = TrainSection(strategy=strategy, max_length=160, lora_r=4, **steps)
    fitted = fit(rows, prompt.prefix, base, model, section, tmp_path, lambda *_: None)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 16
    assert losses[-1] < losses[0]
    assert 0 < fitted.peak_memory_bytes < torch.cuda.get_device_properties(0).total_memory


def test_the_whole_loop_runs_and_answers(tmp_path):
    project = Project.load(tiny_project(tmp_path / "tiny"))
    flow.run(project)
    answers = flow.predict(project, ["my card was charged twice"])
    assert 0 < answers[0].confidence <= 1
