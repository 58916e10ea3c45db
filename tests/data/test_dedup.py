import random
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import COLUMNS, documents, prose, same_rows

from tunesmith.data.dedup import (
    PAIRS_SCHEMA,
    by_preference,
    clusters,
    drop_exact_duplicates,
    drop_near_duplicates,
    jaccard,
    near_duplicate_pairs,
    opening,
    same_opening_pairs,
    words,
)
from tunesmith.data.read import read_documents
from tunesmith.data.settings import Source
from tunesmith.errors import ConfigError

TEXTS = st.lists(st.sampled_from(["a", "a ", "A", "a  b", "a b", "a\nb", "c", "", " "]), max_size=12)


def exact(texts, threshold):
    """The pairs as the definition gives them, without hashes."""
    sets = []
    for text in texts:
        found = words(text)
        found = found + [""] * (3 - len(found))
        sets.append({tuple(found[at : at + 3]) for at in range(len(found) - 2)})
    pairs = {}
    for right in range(len(texts)):
        for left in range(right):
            similarity = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
            if similarity >= threshold:
                pairs[left, right] = similarity
    return pairs


def edited(seed, share, n_words=120):
    """A text and a copy with a share of its words replaced."""
    drawn = random.Random(seed)
    text = [f"w{drawn.randrange(10**6)}" for _ in range(n_words)]
    copy = [word if drawn.random() > share else f"v{drawn.randrange(10**6)}" for word in text]
    return " ".join(text), " ".join(copy)


@given(TEXTS, st.lists(st.sampled_from(["yes", "no"]), min_size=12, max_size=12))
def test_exact_dedup_is_idempotent_and_drops_nothing_silently(texts, labels):
    whole = documents(*(("a.csv", text, label) for text, label in zip(texts, labels, strict=False)))
    sifted = drop_exact_duplicates(whole)
    assert same_rows(sifted, whole)
    assert drop_exact_duplicates(sifted.kept).dropped.is_empty()
    assert drop_exact_duplicates(sifted.kept).kept.equals(sifted.kept)
    assert set(sifted.dropped["kept_id"]) <= set(sifted.kept["id"])
    assert {" ".join(text.split()) for text in texts} == {" ".join(text.split()) for text in sifted.kept["text"]}


def test_the_first_copy_is_kept_and_a_conflict_is_told_apart():
    whole = documents(("a.csv", "one two", "yes"), ("b.csv", "one\n two ", "yes"), ("b.csv", "one two", "no"), ("b.csv", "One two", "no"))
    sifted = drop_exact_duplicates(whole)
    first = whole["id"][0]
    assert sifted.kept["id"].to_list() == [first, whole["id"][3]]  # case tells texts apart
    assert sifted.dropped.select("reason", "evidence", "kept_id", "similarity").rows() == [
        ("exact_duplicate", f"same text and label as {first}", first, 1.0),
        ("conflicting_label", f"same text as {first}, which has the label 'yes'", first, 1.0),
    ]


def test_what_was_kept_before_wins():
    old = documents(("z.csv", "one", "yes"), ("z.csv", "two", "yes"))
    sifted = drop_exact_duplicates(documents(("a.csv", "one", "yes"), ("a.csv", "three", "yes")), old)
    assert sifted.kept["text"].to_list() == ["three"]
    assert sifted.dropped["kept_id"].to_list() == [old["id"][0]]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_near_duplicates_beside_brute_force(threshold):
    texts = [text for seed in range(150) for text in edited(seed, (seed % 30) / 100)]
    expected = exact(texts, threshold)
    found = {(left, right): similarity for left, right, similarity in near_duplicate_pairs(texts, threshold).iter_rows()}
    assert found.keys() <= expected.keys()
    assert all(found[pair] == pytest.approx(expected[pair]) for pair in found)
    assert len(found) >= 0.98 * len(expected)
    assert len(expected) > 5


@given(st.lists(st.text("ab .", max_size=14), max_size=10), st.sampled_from([0.4, 0.7, 1.0]))
@settings(deadline=None)
def test_every_near_duplicate_pair_is_right(texts, threshold):
    found = near_duplicate_pairs(texts, threshold)
    assert found.schema == pl.Schema(PAIRS_SCHEMA)
    expected = exact(texts, threshold)
    for left, right, similarity in found.iter_rows():
        assert expected[left, right] == pytest.approx(similarity)
        assert jaccard(texts[left], texts[right]) == pytest.approx(similarity)
    assert {pair for pair, similarity in expected.items() if similarity == 1} <= set(found.select("left", "right").rows())


def test_real_near_duplicates(complaints):
    texts = read_documents(Source(path=complaints.name, **COLUMNS), complaints.parent)["text"].to_list()
    found = near_duplicate_pairs(texts, 0.7)
    assert set(found.select("left", "right").rows()) == set(exact(texts, 0.7))
    assert len(found) >= 5
    assert len(same_opening_pairs(texts, 15)) == 3
    assert found.equals(near_duplicate_pairs(texts, 0.7))


@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["!!!", "!!!"], ["a", "a", "b"], [prose(seed) for seed in range(50)]])
def test_small_inputs(texts):
    assert set(near_duplicate_pairs(texts, 0.7).select("left", "right").rows()) == set(exact(texts, 0.7))


@pytest.mark.parametrize("make", [lambda number: prose(1, 200), lambda number: f"{prose(1, 200)} number {number}"])
def test_thousands_of_equal_texts_take_linear_time(make):
    texts = [make(number) for number in range(4_000)]
    began = time.process_time()
    pairs = near_duplicate_pairs(texts, 0.7)
    assert time.process_time() - began < 8
    assert len(pairs) < 400_000
    assert set(clusters(len(texts), pairs)) == {0}


def test_openings():
    assert opening("One, two THREE!", 2) == "one two"
    assert opening("One", 2) == ""
    texts = ["a b c d", "A b, x y", "q", "a b z", "a c b", "q"]
    assert same_opening_pairs(texts, 2).select("left", "right").rows() == [(0, 1), (0, 3)]
    assert same_opening_pairs(texts, 0).is_empty()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_clusters_join_what_is_linked_and_nothing_else(links):
    pairs = pl.DataFrame([(left, right, None) for left, right in links], schema=PAIRS_SCHEMA, orient="row")
    reach = np.eye(10, dtype=bool)
    for left, right in links:
        reach[left, right] = reach[right, left] = True
    for _ in range(4):
        reach = reach @ reach
    assert clusters(10, pairs).tolist() == [int(np.flatnonzero(row)[0]) for row in reach]


RANKS = st.one_of(st.none(), st.integers(0, 3))


@given(st.lists(st.tuples(st.sampled_from(["a b c", "a b c d", "c b a"]), RANKS, RANKS), max_size=12), st.sampled_from(["newest", "longest", "most_reviewed"]))
@settings(deadline=None)
def test_the_rule_chooses_which_copy_is_kept_whatever_the_order(rows, keep):
    whole = documents(*(("a.csv", text) for text, _, _ in rows)).with_columns(
        created_at=pl.Series([time for _, time, _ in rows], dtype=pl.Float64), n_reviews=pl.Series([count for _, _, count in rows], dtype=pl.Int64)
    )
    sifted = drop_near_duplicates(whole, 0.5, keep)
    assert same_rows(sifted, whole)
    assert drop_near_duplicates(sifted.kept, 0.5, keep).dropped.is_empty()
    shuffled = drop_near_duplicates(whole.reverse(), 0.5, keep)
    assert shuffled.dropped.sort("id").equals(sifted.dropped.sort("id"))
    column = {"newest": "created_at", "longest": "text", "most_reviewed": "n_reviews"}[keep]
    value = {row["id"]: row[column] for row in whole.iter_rows(named=True)}
    for id_, kept_id in sifted.dropped.select("id", "kept_id").rows():
        kept, gone = (len(value[each]) if keep == "longest" else (-1 if value[each] is None else value[each]) for each in (kept_id, id_))
        assert kept >= gone


def test_a_rule_without_its_column_is_refused():
    with pytest.raises(ConfigError, match="newest needs the column 'created_at'"):
        by_preference(documents(("a.csv", "a")), "newest")
    with pytest.raises(ConfigError, match="keep must be one of newest, longest, most_reviewed"):
        by_preference(documents(("a.csv", "a")), "oldest")
