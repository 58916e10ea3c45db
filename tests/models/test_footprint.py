import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunesmith.models.footprint import measure_footprint
from tunesmith.models.memory import PeakMemory, resident_bytes
from tunesmith.models.processor import matmul_flops_per_second
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model


def with_adapters(model):
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))


def measured(base, **settings):
    return measure_footprint(base, ModelSection(model_name_or_path=str(base), **({"dtype": "bfloat16", "forward": "fast"} | settings)), with_adapters)


def test_counts_are_those_of_the_loaded_model(base):
    model = with_adapters(load_model(base, ModelSection(model_name_or_path=str(base), dtype="float32")))
    footprint = measured(base)
    assert footprint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert footprint.trainable == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert footprint.vocabulary == model.get_input_embeddings().num_embeddings
    assert footprint.optimizer_bytes == 4 * 4 * footprint.trainable, "weight, gradient and two moments in float32"


@pytest.mark.real_model
def test_counts_of_the_real_model(real_base):
    footprint = measured(real_base)
    assert footprint.parameters - footprint.trainable == 134_515_008
    assert footprint.trainable == 30 * 4 * ((576 + 576) + (1536 + 576))


def test_precision_and_pass_change_the_sizes(base):
    half, full, plain = measured(base), measured(base, dtype="float32"), measured(base, forward="plain")
    embedding = half.vocabulary * 32
    assert full.weight_bytes == 2 * plain.weight_bytes == 4 * (half.parameters - half.trainable)
    assert half.weight_bytes - plain.weight_bytes == 4 * embedding, "the fast pass holds its head in float32"
    assert full.activation_bytes(100, 50) == 2 * half.activation_bytes(100, 50)
    assert plain.activation_bytes(100, 50) > half.activation_bytes(100, 50)


def test_layers_below_the_lowest_adapter_cost_a_forward_pass_only(base):
    upper = measure_footprint(
        base,
        ModelSection(model_name_or_path=str(base), dtype="bfloat16", forward="fast"),
        lambda model: get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")),
    )
    every = measured(base)
    assert 2 * upper.trainable == every.trainable
    assert 2 * upper.activation_bytes(100, 50) == every.activation_bytes(100, 50)
    assert upper.flops_per_token < every.flops_per_token


def test_activations_grow_with_tokens_and_keys(base):
    footprint = measured(base)
    assert footprint.activation_bytes(200, 50) == 2 * footprint.activation_bytes(100, 50)
    assert footprint.activation_bytes(100, 60) > footprint.activation_bytes(100, 50)
    assert footprint.logit_bytes(10) == 10 * footprint.logit_bytes(1) > 0


def test_the_probe_measures_something_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    assert matmul_flops_per_second(torch.float32, seconds=0.01) > 1e8
    assert torch.get_num_threads() == threads


def test_peak_memory_sees_what_was_freed_again():
    before = resident_bytes()
    with PeakMemory() as memory:
        block = torch.ones(256 * 1024 * 1024 // 4)
        time.sleep(0.2)
        del block
    assert memory.bytes - before > 200e6
    assert resident_bytes() - before < 100e6
