import hashlib

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rows import FOUR, documents, prose, record, records, same_rows, section

from tunesmith.data.dedup import drop_exact_duplicates, near_duplicate_pairs, same_opening_pairs
from tunesmith.data.prepare import make_records
from tunesmith.data.sifted import count_reasons
from tunesmith.data.split import cap, split
from tunesmith.entities import SPLITS

SOURCES = {"train.csv": {"train": 1}, "test.csv": {"validation": 1, "calibration": 1, "test": 2}, "a.csv": FOUR}
SECTION = section(sources=[{"path": path, "splits": splits} for path, splits in SOURCES.items()])


@st.composite
def rows(draw):
    """Rows of up to 6 topics; those of one topic are near duplicates, share only their opening, or are chained."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        topic, kind, number = draw(st.integers(0, 5)), draw(st.sampled_from("nonc")), draw(st.integers(0, 3))
        text = prose(topic, 60)
        if kind == "n":  # similarity 0.9 and more
            text += f" v{number}"
        elif kind == "o":
            text = f"{prose(topic, 15)} {prose(f'{topic}o{number}', 30)}"
        else:
            text = " ".join(text.split()[number:] + [f"c{topic}y{each}" for each in range(number)])
        found.append((draw(st.sampled_from(sorted(SOURCES))), text))
    return found


def without_copies(found):
    return drop_exact_duplicates(documents(*found)).kept


def links_across(frame):
    """Linked pairs that stand in different splits."""
    texts, names = frame["text"].to_list(), frame["split"].to_list()
    pairs = pl.concat([near_duplicate_pairs(texts, SECTION.near_duplicate_threshold), same_opening_pairs(texts, SECTION.same_opening_words)])
    return [(left, right) for left, right, _ in pairs.iter_rows() if names[left] != names[right]]


@given(rows(), st.randoms(use_true_random=False), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_chunks_of_a_document_go_together_and_a_chunk_like_another_document_takes_its_own_along(found, shuffler, n_documents):
    whole = without_copies(found)
    names = [f"doc_{shuffler.randrange(n_documents)}" for _ in range(len(whole))]
    sifted = split(whole.with_columns(document_id=pl.Series(names), source=pl.lit("a.csv")), SECTION)
    assert same_rows(sifted, whole.with_columns(source=pl.lit("a.csv")))
    assert sifted.kept.group_by("document_id").agg(pl.col("split").n_unique())["split"].to_list() == [1] * sifted.kept["document_id"].n_unique()
    assert links_across(sifted.kept) == []


@given(rows(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_each_document_has_one_split_that_depends_on_content_only(found, shuffler):
    whole = without_copies(found)
    sifted = split(whole, SECTION)
    assert same_rows(sifted, whole)
    assert sifted.kept["id"].is_unique().all()
    assert links_across(sifted.kept) == []
    for source, name in sifted.kept.select("source", "split").iter_rows():
        assert name in SOURCES[source]
    order = list(range(len(whole)))
    shuffler.shuffle(order)
    again = split(whole[order], SECTION)
    assert again.kept.sort("id").equals(sifted.kept.sort("id"))
    assert again.dropped["id"].sort().equals(sifted.dropped["id"].sort())


@given(rows(), rows())
@settings(deadline=None, max_examples=60)
def test_adding_documents_moves_none(found, others):
    first = split(without_copies(found), SECTION).kept
    assume(len(first))
    previous = make_records(first)
    whole = without_copies([*found, *others])
    new = drop_exact_duplicates(whole.join(first, on="id", how="anti"), first).kept
    sifted = split(new, SECTION, previous)
    assert same_rows(sifted, new)
    together = pl.concat([previous.select("id", "text", "split"), sifted.kept.select("id", "text", "split")])
    assert links_across(together) == []
    assert set(sifted.dropped["kept_id"]) <= set(together["id"])


def test_shares_are_those_that_were_asked():
    sifted = split(documents(*(("a.csv", f"text number {number}") for number in range(4000))), section(same_opening_words=0, near_duplicate_threshold=1))
    counts = dict(sifted.kept.group_by("split").len().iter_rows())
    assert {name: pytest.approx(4000 * FOUR[name], rel=0.1) for name in SPLITS} == counts


def test_the_split_of_a_text_never_changes():
    # A convention: 52 bits of the SHA-256, cumulative shares in the order of SPLITS. Changing it moves every user's test split.
    text = "The bank closed my account."
    at = int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
    sifted = split(documents(("a.csv", text)), section())
    assert sifted.kept["split"].to_list() == ["train" if at < 0.4 else "validation" if at < 0.6 else "calibration" if at < 0.8 else "test"]


def test_a_source_of_one_split_is_the_anchor_and_the_other_copy_is_evidence():
    whole = documents(("test.csv", prose(1) + " v1"), ("train.csv", prose(1)), ("test.csv", f"{prose(1, 15)} {prose(2)}"), ("test.csv", prose(3)))
    sifted = split(whole, SECTION)
    train = whole["id"][1]
    assert sifted.kept["id"].to_list() == [train, whole["id"][3]]
    assert sifted.dropped.select("reason", "evidence", "kept_id").rows() == [
        ("near_duplicate_across_splits", f"Jaccard similarity 0.97 to {train} in train", train),
        ("near_duplicate_across_splits", f"same first 15 words as {train} in train", train),
    ]
    assert sifted.dropped["similarity"][0] == pytest.approx(38 / 39)


def test_a_flexible_cluster_moves_as_a_whole():
    whole = documents(*(("a.csv", prose(1) + f" v{number}") for number in range(10)), ("train.csv", prose(1)))
    sifted = split(whole, SECTION)
    assert sifted.kept["split"].to_list() == ["train"] * 11


def test_a_new_document_that_bridges_two_splits_is_dropped():
    old = records(record(prose(1, 20), split="train"), record(prose(2, 20), split="test", number=2))
    both = f"{prose(1, 20)} {prose(2, 20)}"
    whole = documents(("a.csv", both), ("test.csv", prose(1, 20) + " v"), ("test.csv", prose(2, 20) + " v"))
    sifted = split(whole[:1], section(near_duplicate_threshold=0.4, same_opening_words=0), old)
    assert sifted.dropped["reason"].to_list() == ["bridges_splits"]
    sifted = split(whole[1:], SECTION, old)
    assert sifted.kept.select("text", "split").rows() == [(prose(2, 20) + " v", "test")]
    assert sifted.dropped.select("reason", "kept_id").rows() == [("bridges_splits", old["id"][0])]


def test_a_link_through_a_third_text_says_so():
    texts = [prose(1, 40), " ".join(prose(1, 46).split()[5:]), " ".join(prose(1, 52).split()[10:])]
    whole = documents(*zip(["train.csv", "test.csv", "test.csv"], texts, strict=True))
    sifted = split(whole, SECTION)
    assert sifted.kept["text"].to_list() == texts[:1]
    assert sifted.dropped["evidence"].to_list() == [
        f"Jaccard similarity 0.75 to {whole['id'][0]} in train",
        f"linked by texts in between to {whole['id'][0]} in train",
    ]


def test_raising_max_records_only_adds():
    whole = split(documents(*(("a.csv", prose(number, 5)) for number in range(200))), section()).kept
    kept = []
    for limit in (5, 20, 1000):
        sifted = cap(whole, whole.clear(), section(max_records={"train": limit, "test": 3}))
        assert same_rows(sifted, whole)
        kept.append(set(sifted.kept.filter(split="train")["id"]))
        assert len(sifted.kept.filter(split="test")) == 3
        assert set(count_reasons(sifted.dropped)) == {"over_max_records"}
    assert len(kept[0]) == 5
    assert kept[0] < kept[1] < kept[2]


def test_rows_that_stay_count_and_are_not_among_the_left_out():
    whole = documents(*(("train.csv", prose(number, 5)) for number in range(20, 30))).with_columns(split=pl.lit("train"))
    stays = records(*(record(prose(number, 5), number=number) for number in range(4)))
    assert len(cap(whole, stays, section(max_records={"train": 6})).kept) == 2
    assert cap(whole, stays, section(max_records={"train": 1})).kept.is_empty()
