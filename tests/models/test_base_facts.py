"""Facts of published configurations beside published figures: parameters, attention, cache, memory."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tunesmith.errors import DataError
from tunesmith.models.base_facts import read_facts
from tunesmith.models.needs import Workload, fits, serving_bytes, training_bytes

FAMILIES = json.loads(files("tunesmith.models").joinpath("families.json").read_text(encoding="utf-8"))
PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "published_facts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_are_those_that_were_published(name):
    facts, published = read_facts(FAMILIES[name]["config"]), PUBLISHED[name]
    # What was published is rounded to as many digits as it shows.
    assert facts.parameters == pytest.approx(published["parameters"], abs=published["parameters_rounded_to"] / 2)
    assert facts.attention == published["attention"]
    assert facts.cache_bytes_per_token == published["cache_bytes_per_token"]
    assert facts.kind == published["kind"]
    assert published["source"]


def test_every_family_has_a_source_and_a_license():
    assert len(FAMILIES) >= 10
    assert all(family["source"] and family["license"] for family in FAMILIES.values())


def test_a_window_bounds_what_a_text_keeps():
    gemma = read_facts(FAMILIES["gemma-2-9b"]["config"])
    per_layer = 2 * 8 * 256 * 2
    assert gemma.cache_bytes(8192) == per_layer * (21 * 8192 + 21 * 4096)
    assert gemma.cache_bytes(1000) == per_layer * 42 * 1000


def test_an_encoder_keeps_no_cache():
    bert = read_facts(FAMILIES["bert-base"]["config"])
    assert (bert.cache_bytes(512), set(training_bytes(bert, Workload()))) == (0, {"full", "lora"})


def test_weights_of_8_billion_take_16_gigabytes_and_a_quarter_of_that_in_4_bits():
    llama = read_facts(FAMILIES["llama-3.1-8b"]["config"])
    needed = serving_bytes(llama, Workload(context=1))
    assert needed["bfloat16"] == pytest.approx(16.06e9, rel=1e-3)  # the size of the published weight files
    assert needed["gguf-q8_0"] == pytest.approx(8.54e9, rel=5e-3)  # of the published Q8_0 file: 8.54 GB
    assert 4.5e9 < needed["gguf-q4_k"] < 5.0e9  # of the published Q4_K_S and Q4_K_M files: 4.69 and 4.92 GB
    assert 5.2e9 < needed["nf4"] < 6.2e9


def test_training_needs_what_its_parts_need():
    llama = read_facts(FAMILIES["llama-3.2-1b"]["config"])
    bare = Workload(batch=0)
    needed = training_bytes(llama, bare)
    logits = needed["full"] - 18 * llama.parameters
    assert logits == 12 * llama.vocabulary * bare.tokens
    assert needed["lora"] - logits == 2 * llama.parameters + 16 * 16 * llama.lora_parameters_per_rank
    assert needed["qlora"] < needed["lora"] < needed["full"]
    assert training_bytes(llama, Workload(batch=8))["lora"] > training_bytes(llama, Workload(batch=1))["lora"]


def test_what_fits_a_device():
    assert fits(21_000_000_000, "rtx-4090")
    assert not fits(23_000_000_000, "rtx-4090")


@pytest.mark.parametrize("source", [{"model_type": "no-such-family"}, Path("/nowhere")])
def test_a_configuration_that_nobody_knows_is_told(source):
    with pytest.raises(DataError, match=r"config\.json of a family that transformers knows"):
        read_facts(source)
