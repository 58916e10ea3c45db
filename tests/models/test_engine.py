import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.errors import BackendError, ConfigError
from tunesmith.models.engine import AnswerTree, Engine, load_tokenizer, resolve
from tunesmith.models.processor import n_workers
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.tokens import Prompt
from tunesmith.models.weights import load_model
from tunesmith.testing import tiny_rows

TEXTS = [text for text, _ in tiny_rows(9)] + ["short", "mortgage " * 300]


def section(base, **settings):
    return ModelSection(model_name_or_path=str(base), **({"dtype": "float32", "forward": "fast"} | settings))


def engine_for(base, labels, *, batch_size=4, **settings):
    prompt = Prompt(load_tokenizer(base), TaskSection(instruction="Sort.", labels=labels), 160, "ends")
    return Engine(base, prompt, section(base, **settings), batch_size=batch_size)


def slow_log_probabilities(base, prompt, texts):
    """Write each label token by token, the whole prompt anew each time, where only answers of the label space may be written."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    scores = np.zeros((len(texts), len(prompt.answers)))
    for row, text in enumerate(texts):
        ids = prompt.prefix + prompt.cut(prompt.encode([text])[0]) + prompt.suffix
        for label, answer in enumerate(prompt.answers):
            for step, token in enumerate(answer):
                possible = sorted({other[step] for other in prompt.answers if other[:step] == answer[:step]})
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([[*ids, *answer[:step]]])).logits[0, -1, possible]
                scores[row, label] += logits.log_softmax(0)[possible.index(token)].item()
    return scores


def log_softmax(scores):
    return torch.from_numpy(scores).double().log_softmax(1).numpy()


@pytest.mark.parametrize("forward", ["fast", "plain"])
@pytest.mark.parametrize(
    "labels",
    [("loan", "card", "mortgage"), ("credit", "credit card", "credit card fraud", "loan"), ("credit card", "credit fraud")],
    ids=["distinct", "shared beginnings", "all begin alike"],
)
def test_scores_are_the_log_probabilities_of_writing_the_labels(base, labels, forward):
    engine = engine_for(base, labels, forward=forward)
    expected = slow_log_probabilities(base, engine.prompt, TEXTS)
    np.testing.assert_allclose(log_softmax(engine.score(TEXTS)), expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(expected).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("answers", "nodes"),
    [
        ([(7, 2), (8, 9, 2)], [((), {7: [0], 8: [1]})]),
        ([(7, 2), (7, 9, 2)], [((7,), {2: [0], 9: [1]})]),
        ([(7, 2), (8, 2), (8, 9, 2), (8, 9, 4, 2)], [((), {7: [0], 8: [1, 2, 3]}), ((8,), {2: [1], 9: [2, 3]}), ((8, 9), {2: [2], 4: [3]})]),
    ],
    ids=["distinct first tokens", "one shared beginning", "nested"],
)
def test_the_tree_has_a_node_where_answers_part(answers, nodes):
    assert AnswerTree(answers).nodes == nodes


@pytest.mark.parametrize("labels", [("loan", "card", "mortgage"), ("credit", "credit card", "loan")], ids=["one pass", "tree"])
def test_scores_depend_neither_on_batch_size_nor_on_order(base, labels):
    one_by_one = engine_for(base, labels, batch_size=1).score(TEXTS)
    np.testing.assert_allclose(engine_for(base, labels, batch_size=5).score(TEXTS), one_by_one, atol=1e-5)
    np.testing.assert_allclose(engine_for(base, labels, batch_size=5).score(TEXTS[::-1])[::-1], one_by_one, atol=1e-5)


def test_progress_reaches_the_end_and_columns_are_the_labels(base):
    engine, seen = engine_for(base, ("loan", "card")), []
    scores = engine.score(TEXTS, lambda done, n: seen.append((done, n)))
    assert scores.shape == (len(TEXTS), 2)
    assert scores.dtype == np.float32
    assert engine.labels == ("loan", "card")
    assert [done for done, _ in seen] == [4, 8, 11]
    assert {n for _, n in seen} == {len(TEXTS)}


def test_no_texts_no_scores(base):
    assert engine_for(base, ("loan", "card")).score([]).shape == (0, 2)


@pytest.mark.parametrize(("amx", "avx512", "dtype"), [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")])
def test_auto_dtype_is_what_the_processor_multiplies(base, monkeypatch, amx, avx512, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve(section(base, dtype="auto"), base).dtype == dtype


def test_auto_forward_is_fast_where_it_is_exact(base, tmp_path):
    auto = section(base, forward="auto")
    assert resolve(auto, base).forward == "fast"
    assert resolve(auto, base, fits_fast_pass=False).forward == "plain"
    biased = shutil.copytree(base, tmp_path / "biased")
    (biased / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | {"attention_bias": True}))
    assert resolve(auto, biased).forward == "plain"
    with pytest.raises(ConfigError, match="fast needs a Llama without biases"):
        resolve(section(base), biased)


def test_the_fast_pass_is_refused_with_dropout(base):
    with pytest.raises(ConfigError, match=r"without dropout and magnitudes.* Received: llama with what it lacks"):
        resolve(section(base), base, fits_fast_pass=False)


def test_what_was_asked_for_is_kept(base):
    asked = section(base, dtype="float32", forward="plain")
    assert resolve(asked, base) == asked


def test_a_folder_that_holds_no_model(base, tmp_path):
    shutil.copy(base / "config.json", tmp_path)
    with pytest.raises(BackendError, match="cannot be loaded"):
        load_model(tmp_path, section(tmp_path))


def test_there_is_a_worker_a_core():
    assert n_workers() >= 1
