import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import documents, same_rows

from tunesmith.data import semantic
from tunesmith.data.dedup import by_preference
from tunesmith.data.semantic import drop_semantic_duplicates, semantic_duplicate_pairs
from tunesmith.data.shingles import words
from tunesmith.errors import DataError

VOCABULARY = "abcdef"
FAMILIES = st.lists(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=6).map(" ".join), max_size=14)


def embed(texts):
    """Counts of the words, of length 1: a stand-in for a model, by which texts of equal words in another order are one."""
    counts = np.array([[text.split().count(word) for word in VOCABULARY] for text in texts], dtype=np.float32).reshape(len(texts), len(VOCABULARY))
    return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def overlap(left, right):
    a, b = set(words(left)), set(words(right))
    return len(a & b) / len(a | b)


@given(FAMILIES, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.5, 1.0]))
@settings(deadline=None)
def test_dropping_is_idempotent_order_free_and_loses_nothing(texts, draw, least):
    whole = documents(*(("a.csv", text) for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "_BLOCK", 4)

        def drop(rows):
            return drop_semantic_duplicates(rows, embed(rows["text"]), 0.9, min_word_overlap=least)

        sifted = drop(whole)
        assert same_rows(sifted, whole)
        assert drop(sifted.kept).dropped.is_empty()
        shuffled = drop(whole.sample(fraction=1, shuffle=True, seed=draw.randrange(100)))
        assert shuffled.dropped.sort("id").equals(sifted.dropped.sort("id"))
    vector = dict(zip(whole["id"], embed(texts), strict=True))
    text = dict(whole.select("id", "text").rows())
    rank = {id_: at for at, id_ in enumerate(by_preference(whole, "longest")["id"])}
    for id_, kept_id, similarity in sifted.dropped.select("id", "kept_id", "similarity").rows():
        assert rank[kept_id] < rank[id_]
        assert kept_id in set(sifted.kept["id"])
        assert similarity == pytest.approx(vector[id_] @ vector[kept_id], abs=1e-6)
        assert similarity >= 0.9 - 1e-6
        assert overlap(text[id_], text[kept_id]) >= least
    kept = sifted.kept["id"].to_list()
    for at, id_ in enumerate(kept):
        assert not any(vector[id_] @ vector[other] >= 0.9 + 1e-6 and overlap(text[id_], text[other]) >= least for other in kept[:at])


def test_words_are_a_second_witness():
    whole = documents(("a.csv", "pay the loan"), ("a.csv", "cat on mat"), ("a.csv", "loan the pay"))
    alike = np.ones((3, 4), dtype=np.float32) / 2
    checked = drop_semantic_duplicates(whole, alike, 0.9)
    assert checked.dropped.select("text", "reason", "similarity").rows() == [("pay the loan", "semantic_duplicate", 1.0)]
    assert len(drop_semantic_duplicates(whole, alike, 0.9, min_word_overlap=0).kept) == 1


def test_earlier_rows_stay_and_win():
    old, new = documents(("z.csv", "a b"), ("z.csv", "b a")), documents(("a.csv", "a b b a"), ("a.csv", "c"))
    sifted = drop_semantic_duplicates(new, embed(new["text"]), 0.9, previous=old, previous_embeddings=embed(old["text"]))
    assert sifted.kept["text"].to_list() == ["c"]
    assert sifted.dropped["kept_id"][0] in set(old["id"])


def test_equal_rows_are_no_more_work_than_different_ones():
    whole = pl.DataFrame({"id": [f"{at:05}" for at in range(20_000)], "text": ["a b c"] * 20_000})
    sifted = drop_semantic_duplicates(whole, embed(["a b c"]).repeat(20_000, axis=0), 0.9)
    assert sifted.kept["id"].to_list() == ["00000"]


def test_pairs_between_two_sets():
    left, right = ["a b", "c d", "e"], ["b a", "f", "d c"]
    found = semantic_duplicate_pairs(left, embed(left), right, embed(right), 0.95)
    assert found.select("left", "right").rows() == [(0, 0), (1, 2)]
    assert semantic_duplicate_pairs([], embed([]), right, embed(right), 0.95).is_empty()


def test_rows_and_embeddings_must_be_as_many():
    with pytest.raises(DataError, match="2 rows, 1 embeddings"):
        drop_semantic_duplicates(documents(("a.csv", "a"), ("a.csv", "b")), embed(["a"]), 0.9)


def test_within_cells_nearly_all_is_found_that_the_full_comparison_finds(monkeypatch):
    draw = np.random.default_rng(0)
    n, dimension = 3000, 64
    topics = draw.normal(size=(20, dimension))
    vectors = topics[draw.integers(0, 20, n)] + draw.normal(size=(n, dimension))
    copies = vectors[draw.integers(0, n, 600)]
    vectors = np.concatenate([vectors, copies + 0.4 * draw.normal(size=copies.shape)]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = pl.DataFrame({"id": [f"{at:05}" for at in draw.permutation(len(vectors))], "text": ["a b c"] * len(vectors)})

    def drop(rows, embeddings, **keys):
        return drop_semantic_duplicates(rows, embeddings, 0.93, **keys)

    full = drop(whole, vectors)
    assert len(full.dropped) > 400
    monkeypatch.setattr(semantic, "_LARGEST_FULL", 100)
    monkeypatch.setattr(semantic, "_STRIDE", 64)
    monkeypatch.setattr(semantic, "_PROBES", 2)  # of 60 cells
    monkeypatch.setattr(semantic, "_BLOCK", 16)
    found = drop(whole, vectors)
    assert same_rows(found, whole)
    assert len(set(found.dropped["id"]) & set(full.dropped["id"])) >= 0.98 * len(full.dropped)
    vector = dict(zip(whole["id"], vectors, strict=True))
    kept = set(found.kept["id"])
    for id_, kept_id, similarity in found.dropped.select("id", "kept_id", "similarity").rows():
        assert kept_id in kept
        assert kept_id < id_  # equal texts rank by id
        assert similarity == pytest.approx(vector[id_] @ vector[kept_id], abs=1e-6)
        assert similarity >= 0.93 - 1e-6
    order = draw.permutation(len(whole))
    assert drop(whole[order], vectors[order]).dropped.sort("id").equals(found.dropped.sort("id"))
    old = drop(whole[1500:], vectors[1500:], previous=whole[:1500], previous_embeddings=vectors[:1500])
    assert same_rows(old, whole[1500:])
    assert set(old.dropped["kept_id"]) & set(whole["id"][:1500])
