import mmap
import time

import numpy as np
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


def test_counts_are_those_of_the_loaded_model(base):
    model = with_adapters(load_model(base, ModelSection(model_name_or_path=str(base), dtype="float32")))
    footprint = measure_footprint(base, ModelSection(model_name_or_path=str(base)), with_adapters)
    assert footprint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert footprint.trainable == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.real_model
def test_counts_of_the_real_model(real_base):
    footprint = measure_footprint(real_base, ModelSection(model_name_or_path="real"), with_adapters)
    assert footprint.parameters - footprint.trainable == 134_515_008
    assert footprint.trainable == 30 * 4 * ((576 + 576) + (1536 + 576))


def test_layers_below_the_lowest_adapter_cost_a_forward_pass_only(base):
    def with_upper(model):
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1], task_type="CAUSAL_LM"))

    upper, every = (measure_footprint(base, ModelSection(model_name_or_path=str(base)), adapt) for adapt in (with_upper, with_adapters))
    assert 2 * upper.trainable == every.trainable
    assert upper.flops_per_token < every.flops_per_token


def test_the_probe_measures_something_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    assert matmul_flops_per_second(torch.float32, seconds=0.01) > 1e8
    assert torch.get_num_threads() == threads


def test_peak_memory_sees_what_was_freed_again():
    before = resident_bytes()
    with PeakMemory() as memory:
        block = mmap.mmap(-1, 256 * 1024 * 1024)  # of the system, whatever an allocator has kept of earlier tests
        np.frombuffer(block, dtype=np.uint8).fill(1)
        time.sleep(0.2)
        block.close()
    assert memory.bytes - before > 200e6
    assert resident_bytes() - before < 100e6
