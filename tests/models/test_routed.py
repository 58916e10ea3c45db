"""Several adapters on one base model answer as each would alone."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunesmith.models import weights as weights_module
from tunesmith.models.engine import Engine
from tunesmith.models.routed import RoutedEngine
from tunesmith.models.router import PARENT, Routes
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model
from tunesmith.testing import tiny_rows

TEXTS = [text for text, _ in tiny_rows(12)]


def section(base, forward):
    return ModelSection(model_name_or_path=str(base), dtype="float32", forward=forward)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Adapter -> folder of LoRA with random weights; the child of letters has another rank, in other layers."""
    folders = {}
    for seed, (name, settings) in enumerate({PARENT: {}, "a letter.": {"r": 2, "target_modules": ["q_proj", "down_proj"]}, "invoice": {}}.items()):
        torch.manual_seed(seed)
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | settings)
        folders[name] = tmp_path_factory.mktemp("adapter")
        get_peft_model(load_model(base, section(base, "plain")), config).save_pretrained(folders[name])
    return folders


class KnownRoutes:
    """Sends each text to where its number says."""

    def __init__(self, names):
        self._names = names

    def route(self, texts):
        of = [self._names[TEXTS.index(text) % len(self._names)] for text in texts]
        return Routes(tuple(of), np.array([0.4 if TEXTS.index(text) == 0 else 0.9 for text in texts]))


def routed(base, prompt, adapters, forward="fast", **settings):
    children = {name: folder for name, folder in adapters.items() if name != PARENT}
    about = {"router": KnownRoutes([*adapters]), "threshold": 0.5, "children": children, "weights": adapters[PARENT], "batch_size": 4}
    return RoutedEngine(base, prompt, section(base, forward), **about | settings)


@pytest.mark.parametrize("forward", ["fast", "plain"])
def test_each_text_is_answered_as_by_its_adapter_alone(base, prompt, adapters, forward):
    found = routed(base, prompt, adapters, forward).answer(TEXTS)
    alone = {name: Engine(base, prompt, section(base, forward), weights=folder).score(TEXTS) for name, folder in adapters.items()}
    assert not np.allclose(alone[PARENT], alone["invoice"], atol=0.1)
    assert set(found.adapters) == set(adapters)
    for row, adapter in enumerate(found.adapters):
        np.testing.assert_allclose(found.logits[row], alone[adapter][row], atol=1e-4)
    assert found.answers == tuple(prompt.task.names[label] for label in found.chosen)
    assert found.route_confidence.tolist() == [0.4] + [0.9] * 11


def test_an_unsure_route_and_a_child_that_is_not_served_go_to_the_parent(base, prompt, adapters):
    names = [*adapters]
    unsure = routed(base, prompt, adapters, router=KnownRoutes(["invoice"])).answer(TEXTS)
    assert unsure.adapters == (PARENT, *["invoice"] * 11)
    without = routed(base, prompt, adapters, children={"invoice": adapters["invoice"]}).answer(TEXTS)
    assert without.adapters == tuple(PARENT if names[row % 3] == "a letter." else names[row % 3] for row in range(12))


def test_the_base_model_is_loaded_once_and_progress_ends_with_all_texts(base, prompt, adapters, monkeypatch):
    loaded, told = [], []
    load = weights_module.load_model
    monkeypatch.setattr(weights_module, "load_model", lambda *given: loaded.append(given) or load(*given))
    engine = routed(base, prompt, adapters)
    engine.score(TEXTS, lambda *at: told.append(at))
    engine.score(TEXTS[:1])
    assert len(loaded) == 1
    assert told[-1] == (12, 12)
