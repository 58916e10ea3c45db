"""On a GPU: fused kernels learn what the plain pass learns. Skipped without one, with the reason."""

import json
from importlib.util import find_spec

import pytest
import torch

from tunesmith.models.engine import load_prompt
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.testing import tiny_base, tiny_rows
from tunesmith.train.batches import Rows
from tunesmith.train.fit import fit
from tunesmith.train.settings import TrainSection

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SETTINGS = {"max_length": 160, "lora_r": 4, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "max_steps": 6, "logging_steps": 1}
# Each rounds elsewhere, and six steps in bfloat16 carry it on.
TOLERANCE = 0.02


@pytest.fixture
def losses(tmp_path):
    base = tiny_base(tmp_path / "base")
    prompt = load_prompt(base, TaskSection(instruction="Sort the letter.", labels=("card", "loan", "mortgage")), 160, "start")
    texts, labels = zip(*tiny_rows(64), strict=True)
    rows = Rows([f"rec_{row}" for row in range(64)], prompt.rows(list(texts)), prompt.answers_of(list(labels)), [], [1.0] * 64)

    def train(name, *, attn_implementation="auto", **settings):
        model = ModelSection(model_name_or_path=str(base), dtype="bfloat16", forward="plain", attn_implementation=attn_implementation)
        fit(rows, prompt.prefix, base, model, TrainSection(**SETTINGS, **settings), tmp_path / name, lambda *_: None)
        return [json.loads(line)["loss"] for line in (tmp_path / name / "losses.jsonl").read_text().splitlines()]

    return train


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs the package liger-kernel")
def test_ligers_kernels_learn_the_same(losses):
    assert losses("with", use_liger_kernel=True) == pytest.approx(losses("without"), rel=TOLERANCE)


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash-attn")
def test_flash_attention_learns_the_same(losses):
    assert losses("flash", attn_implementation="flash_attention_2") == pytest.approx(losses("eager", attn_implementation="eager"), rel=TOLERANCE)
