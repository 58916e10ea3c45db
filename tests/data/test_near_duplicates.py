"""The compiled tier against the definition, the index, and which row is kept."""

import random
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import documents, prose, same_rows

from tunesmith.data import near_duplicates, shingles
from tunesmith.data.dedup import by_preference, drop_near_duplicates, jaccard, near_duplicate_pairs
from tunesmith.data.near_duplicates import MATCHES_SCHEMA, NearIndex, Sketches
from tunesmith.data.shingles import shingle_sets, words
from tunesmith.errors import ConfigError, DataError, NotFoundError

ANY_TEXT = st.text(st.characters(), max_size=12) | st.text("aB ._-İßⒶ１\u0301\u2003", max_size=12)
# Texts of few words, near each other more often than not.
FAMILIES = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join), max_size=14)
RULES = st.sampled_from(["newest", "longest", "most_reviewed"])


def edited(draw, n_words, n_edits):
    text = [f"w{draw.randrange(400)}" for _ in range(n_words)]
    copy = list(text)
    for at in draw.sample(range(n_words), n_edits):
        copy[at] = f"v{draw.randrange(10**6)}"
    return " ".join(text), " ".join(copy)


def table(texts, *, dates=None, reviews=None):
    whole = documents(*(("a.csv", text) for text in texts))
    n = len(whole)
    return whole.with_columns(
        created_at=pl.Series([f"2026-01-{1 + (dates or range(n))[at] % 28:02}" for at in range(n)], dtype=pl.String),
        n_reviews=pl.Series([(reviews or [0] * n)[at] for at in range(n)], dtype=pl.Int64),
    )


@given(st.lists(ANY_TEXT, max_size=8), st.integers(1, 5))
@settings(deadline=None)
def test_compiled_shingles_are_the_defined_ones(texts, width):
    """Equal as sets wherever Python's sets are, for any Unicode, and counted alike."""
    defined = []
    for text in texts:
        found = words(text)
        found += [""] * (width - len(found))
        defined.append({tuple(found[at : at + width]) for at in range(len(found) - width + 1)})
    sets = shingle_sets(texts, width)
    compiled = [set(part.tolist()) for part in np.split(sets.hashes, sets.ends[1:-1])] if texts else []
    assert [len(found) for found in compiled] == [len(found) for found in defined]
    for left in range(len(texts)):
        for right in range(left):
            assert len(compiled[left] & compiled[right]) == len(defined[left] & defined[right])


def test_blocks_of_texts_change_nothing(monkeypatch):
    texts = [prose(seed, 5 + seed % 40) for seed in range(60)]
    whole = shingle_sets(texts, 3)
    monkeypatch.setattr(shingles, "_BLOCK_CHARACTERS", 100)
    blocks = shingle_sets(pl.Series(texts), 3)
    np.testing.assert_array_equal(blocks.hashes, whole.hashes)
    np.testing.assert_array_equal(blocks.ends, whole.ends)


def test_recall_of_planted_copies_at_the_threshold():
    """Copies with a similarity from 0.7 upwards, many just above it, beside 4,000 other texts."""
    draw = random.Random(0)
    texts = [text for n_edits in range(9) for _ in range(150) for text in edited(draw, 100, n_edits)] + [prose(seed) for seed in range(4000)]
    planted = {(at, at + 1) for at in range(0, 2700, 2) if jaccard(texts[at], texts[at + 1]) >= 0.7}
    assert sum(jaccard(texts[left], texts[right]) < 0.8 for left, right in planted) > 200
    found = set(near_duplicate_pairs(texts, 0.7).select("left", "right").rows())
    assert len(planted & found) >= 0.98 * len(planted)


@given(FAMILIES, st.randoms(use_true_random=False), RULES)
@settings(deadline=None)
def test_dropping_is_idempotent_order_free_and_loses_nothing(texts, draw, keep):
    whole = table(texts, dates=[draw.randrange(3) for _ in texts], reviews=[draw.randrange(3) for _ in texts])
    sifted = drop_near_duplicates(whole, 0.5, keep)
    assert same_rows(sifted, whole)
    again = drop_near_duplicates(sifted.kept, 0.5, keep)
    assert again.dropped.is_empty()
    assert again.kept.equals(sifted.kept)
    shuffled = drop_near_duplicates(whole.sample(fraction=1, shuffle=True, seed=draw.randrange(100)), 0.5, keep)
    assert shuffled.dropped.sort("id").equals(sifted.dropped.sort("id"))
    assert sifted.kept.equals(whole.join(sifted.kept, on="id", how="semi", maintain_order="left"))


@given(FAMILIES, RULES)
@settings(deadline=None)
def test_each_dropped_row_repeats_a_better_row_that_stays(texts, keep):
    whole = table(texts)
    sifted = drop_near_duplicates(whole, 0.5, keep)
    rank = {id_: at for at, id_ in enumerate(by_preference(whole, keep)["id"])}
    text = dict(whole.select("id", "text").rows())
    for id_, kept_id, similarity, evidence in sifted.dropped.select("id", "kept_id", "similarity", "evidence").rows():
        assert kept_id in set(sifted.kept["id"])
        assert rank[kept_id] < rank[id_]
        assert similarity == pytest.approx(jaccard(text[id_], text[kept_id]))
        assert similarity >= 0.5
        assert kept_id in evidence
    kept = sifted.kept["text"].to_list()
    assert all(jaccard(kept[a], kept[b]) < 0.5 for a in range(len(kept)) for b in range(a))


def test_keep_rules():
    texts = [prose(1, 60), prose(1, 60) + " and", prose(1, 60) + " not", prose(2)]
    whole = table(texts, dates=[5, 1, 2, 0], reviews=[0, 1, 2, 0])
    for keep, best in (("newest", 0), ("longest", 1), ("most_reviewed", 2)):
        sifted = drop_near_duplicates(whole, 0.7, keep)
        assert sifted.kept["text"].to_list() == [texts[best], texts[3]]
        assert set(sifted.dropped["kept_id"]) == {whole["id"][best]}
        assert set(sifted.dropped["reason"]) == {"near_duplicate"}
    undated = whole.with_columns(created_at=pl.lit(None, dtype=pl.String))
    assert by_preference(pl.concat([undated[:1], whole[1:]]), "newest")["text"][-1] == texts[0]
    with pytest.raises(ConfigError, match="needs the column 'created_at'"):
        by_preference(whole.drop("created_at"), "newest")
    with pytest.raises(ConfigError, match="keep must be one of newest, longest, most_reviewed"):
        by_preference(whole, "best")


def test_a_chain_does_not_swallow_its_ends():
    """b is like a and c, which are unlike: only b goes, or only a and c's likeness would be told wrongly."""
    row = [f"w{at}" for at in range(40)]
    a, b, c = (" ".join(row[at : at + 30]) for at in (0, 5, 10))
    whole = table([a, b, c], dates=[3, 1, 2])
    assert jaccard(a, b) == jaccard(b, c) >= 0.65 > jaccard(a, c)
    sifted = drop_near_duplicates(whole, 0.65, "newest")
    assert sifted.kept["text"].to_list() == [a, c]


def test_earlier_rows_stay_and_win():
    old = table([prose(1, 60), prose(1, 60)])
    new = table([prose(1, 60) + " much longer than the old one", prose(2)])
    sifted = drop_near_duplicates(new, 0.7, "longest", old)
    assert sifted.kept["text"].to_list() == [prose(2)]
    assert sifted.dropped["kept_id"][0] in set(old["id"])


@pytest.mark.parametrize(
    ("make", "n_kept"),
    [(lambda number: f"{prose(1, 200)} number {number}", 1), (lambda _: prose(1, 200), 1), (lambda number: prose(number, 200), 4_000)],
    ids=["near-equal", "equal", "different"],
)
def test_thousands_of_equal_or_different_texts_are_no_work(make, n_kept):
    whole = pl.DataFrame({"id": [f"{number:04}" for number in range(4_000)], "text": [make(number) for number in range(4_000)]})
    began = time.process_time()
    sifted = drop_near_duplicates(whole, 0.7)
    assert time.process_time() - began < 8
    assert len(sifted.kept) == n_kept
    assert drop_near_duplicates(sifted.kept, 0.7).dropped.is_empty()


@given(FAMILIES, FAMILIES)
@settings(deadline=None)
def test_a_query_names_every_old_match(old, new):
    index = NearIndex(0.6)
    half = len(old) // 2
    index.add([f"id{at}" for at in range(half)], old[:half])
    index.add([f"id{at}" for at in range(half, len(old))], old[half:])
    assert len(index) == len(old)
    found = index.query(new)
    assert found.schema == pl.Schema(MATCHES_SCHEMA)
    expected = {(at, f"id{other}"): jaccard(text, old[other]) for at, text in enumerate(new) for other in range(len(old))}
    for at, old_id, similarity in found.rows():
        assert similarity == pytest.approx(expected[at, old_id])
        assert similarity >= 0.6
    # In so few texts no bucket is too big; pairs well above the threshold are never missed with these hash functions.
    assert {pair for pair, similarity in expected.items() if similarity >= 0.9} <= set(found.select("new", "old_id").rows())


def test_an_index_of_equals_answers_with_some_of_them():
    index = NearIndex(0.7)
    index.add([f"id{at:03}" for at in range(500)], [prose(1)] * 500)
    found = index.query([prose(1), prose(2)])
    assert 1 <= len(found) <= 16 * len(index._sketches.keys[0])
    assert set(found["new"]) == {0}
    assert set(found["similarity"]) == {1.0}


def test_an_index_survives_saving(tmp_path):
    texts = [prose(seed) for seed in range(30)]
    index = NearIndex(0.7)
    index.add([f"ä{seed}" for seed in range(30)], texts)
    index.save(tmp_path / "near.npz")
    loaded = NearIndex.load(tmp_path / "near.npz")
    assert loaded.query(texts).equals(index.query(texts))
    assert len(loaded.query(texts)) == 30
    assert loaded.threshold == 0.7
    assert not list(tmp_path.glob(".*"))
    empty = NearIndex(0.7)
    assert empty.query(texts).is_empty()
    empty.save(tmp_path / "empty.npz")
    assert NearIndex.load(tmp_path / "empty.npz").query(["a"]).is_empty()


def test_what_is_no_index_is_refused(tmp_path, monkeypatch):
    with pytest.raises(NotFoundError, match="no index"):
        NearIndex.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an index")
    np.savez(tmp_path / "pickle.npz", format=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "other.npz", something=np.arange(3))
    for name in ("text.npz", "pickle.npz", "other.npz"):
        with pytest.raises(DataError, match="must be an index"):
            NearIndex.load(tmp_path / name)
    NearIndex(0.7).save(tmp_path / "old.npz")
    monkeypatch.setattr(near_duplicates, "_FORMAT", 99)
    with pytest.raises(DataError, match="format 1, expected 99"):
        NearIndex.load(tmp_path / "old.npz")
    with pytest.raises(DataError, match="2 ids, 1 texts"):
        NearIndex(0.7).add(["a", "b"], ["a"])


def test_signatures_depend_on_the_text_alone():
    texts = [prose(seed) for seed in range(20)]
    whole, alone = Sketches.of(texts, 0.7), Sketches.of(texts[7:8], 0.7)
    np.testing.assert_array_equal(whole.keys[7:8], alone.keys)
