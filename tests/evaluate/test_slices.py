import numpy as np
import polars as pl
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.slices import facts_of, slices, topics


def facts(draw, n):
    return pl.DataFrame({"source": draw.choice(["letters", "mail", "scans"], n), "length": draw.choice(["short", "long"], n)})


def test_a_weak_combination_is_found_and_measured_on_records_it_was_not_found_on():
    draw = np.random.default_rng(0)
    given = facts(draw, 2000)
    weak = ((given["source"] == "scans") & (given["length"] == "long")).to_numpy()
    right = draw.random(2000) < np.where(weak, 0.4, 0.85)
    found = slices(right, given, seed=1)
    worst = next(row for row in found if row["kind"] == "found" and row["is_worse"])
    assert "source: scans" in worst["name"]
    assert "short" in worst["name"] or "long" in worst["name"]
    assert worst["n"] < weak.sum() * 0.65  # half of the documents
    assert worst["low"] < 0.4 < worst["high"]
    assert [row["value"] for row in found] == sorted(row["value"] for row in found)


def test_noise_raises_an_alarm_no_more_often_than_the_level_says():
    alarms = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        alarms += any(row["is_worse"] for row in slices(draw.random(600) < 0.8, facts(draw, 600), seed=seed))
    # Worse is one side of a two-sided test at 5 %.
    assert alarms / 200 <= 0.05


def test_documents_are_not_cut_in_halves():
    draw = np.random.default_rng(3)
    by_document = facts(draw, 100)
    given = pl.concat([by_document] * 8)
    right = np.tile(draw.random(100) < np.where(by_document["source"] == "scans", 0.2, 0.9), 8).astype(float)
    found = slices(right, given, groups=np.tile(np.arange(100), 8), seed=0)
    measured = next(row for row in found if row["kind"] == "found")
    assert measured["n"] % 8 == 0


def test_few_records_are_no_slice():
    draw = np.random.default_rng(1)
    few = pl.DataFrame({"source": ["rare"] * 10 + ["common"] * 290})
    assert slices(draw.random(300) < 0.5, few) == []


def test_lengths_sources_and_doubt_are_facts():
    texts = [" ".join("word" for _ in range(length)) for length in range(1, 41)]
    records = pl.DataFrame({"text": texts, "source": ["x", "y"] * 20, "weight": [1.0, 0.5] * 20})
    found = facts_of(records)
    assert found.columns == ["length", "source", "confidence of the text"]
    assert found["length"].value_counts()["count"].to_list() == pytest.approx([10] * 4, abs=1)
    assert facts_of(records.with_columns(source=pl.lit("x"), weight=pl.lit(1.0))).columns == ["length"]


def test_topics_are_named_by_their_words():
    draw = np.random.default_rng(0)
    words = [["mortgage", "house", "escrow"], ["card", "purchase", "store"], ["student", "school", "tuition"]]
    truth = draw.integers(3, size=600)
    filler = ["account", "letter", "bank", "phone", "office", "answer", "question", "person"]
    texts = [" ".join([*draw.choice(words[kind], 6), *draw.choice(filler, 4)]) for kind in truth]
    found = np.array(topics(texts))
    for name in set(found):
        counts = np.bincount(truth[found == name], minlength=3)
        assert counts.max() / counts.sum() > 0.9
        assert any(word in name for word in words[counts.argmax()])
    assert topics(texts[:50]) is None
    assert topics(["the"] * 600) is None


def test_facts_of_other_records_are_refused():
    with pytest.raises(DataError, match="facts of each"):
        slices(np.ones(3), pl.DataFrame({"source": ["x"]}))
