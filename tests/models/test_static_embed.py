import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.models import static_embed
from tunesmith.models.static_embed import StaticEmbedder

WORDS = st.lists(st.sampled_from(["bank", "loan", "card", "the", "mortgage", "late", "fee"]), max_size=12)


@pytest.fixture(scope="session")
def static(encoder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield StaticEmbedder(str(encoder))


@given(st.lists(WORDS.map(" ".join), max_size=6))
@settings(deadline=None)
def test_vectors_depend_on_their_text_alone_and_not_on_word_order(static, texts):
    found = static.encode(texts)
    assert found.shape == (len(texts), static.dimension)
    lengths = np.linalg.norm(found, axis=1)
    assert all(length == pytest.approx(1 if text else 0, abs=1e-5) for text, length in zip(texts, lengths, strict=True))
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_allclose(static.encode([text])[0], vector, atol=1e-6)
        np.testing.assert_allclose(static.encode([" ".join(reversed(text.split()))])[0], vector, atol=1e-5)


def test_the_table_is_made_once_and_a_damaged_one_again(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    first = StaticEmbedder(str(encoder)).encode(["bank loan"])
    (path,) = tmp_path.glob("embeddings/*")
    monkeypatch.setattr(static_embed, "_distil", lambda _: pytest.fail("made twice"))
    np.testing.assert_array_equal(StaticEmbedder(str(encoder)).encode(["bank loan"]), first)
    monkeypatch.undo()
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(StaticEmbedder(str(encoder)).encode(["bank loan"]), first)


def test_progress_is_told(static, monkeypatch):
    monkeypatch.setattr(static_embed, "_BLOCK", 2)
    told = []
    static.encode(["bank"] * 5, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]
