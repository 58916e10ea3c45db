import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import documents, prose, same_rows

from tunesmith.data.contamination import LEAKS_SCHEMA, _threshold, drop_contaminated, find_leaks, read_benchmarks
from tunesmith.data.settings import ContaminationSection
from tunesmith.errors import ConfigError, DataError, NotFoundError

SIZE = 500  # words of the language


def write(draw, n_words=60):
    return " ".join(f"w{int(draw.paretovariate(0.6)) % SIZE}" for _ in range(n_words))


def counts(texts):
    """Rarity-weighted word counts of length 1: a stand-in for static embeddings."""
    found = np.zeros((len(texts), SIZE), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            number = int(word[1:])
            found[row, number] += min(number, 50)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def world():
    """3,000 teaching texts, 400 clean measuring texts, and 30 leaks of each kind."""
    draw = random.Random(0)
    teaching = [write(draw) for _ in range(3000)]
    measuring, kinds = [write(draw) for _ in range(400)], [""] * 400
    for kind in ("exact", "edited", "embedded", "excerpt", "shuffled"):
        for _ in range(30):
            source = draw.choice(teaching[:500])
            found = source.split()
            if kind == "edited":
                found = [f"w{draw.randrange(SIZE)}" if draw.random() < 0.15 else word for word in found]
            elif kind == "embedded":
                found = found[10:40]
            elif kind == "excerpt":
                found = [*write(draw, 30).split(), *found, *write(draw, 30).split()]
            elif kind == "shuffled":
                parts = [found[at : at + 12] for at in range(0, 60, 12)]
                draw.shuffle(parts)
                found = [word for part in parts for word in part]
            measuring.append(" ".join(found))
            kinds.append(kind)
    return measuring, teaching, kinds


def test_leaks_of_every_kind_are_found_at_the_stated_rate(world):
    measuring, teaching, kinds = world
    leaks = find_leaks(measuring, teaching, embeddings=counts(measuring), against_embeddings=counts(teaching), false_positive_rate=0.02)
    assert leaks.pairs.schema == pl.Schema(LEAKS_SCHEMA)
    assert leaks.pairs["left"].is_sorted()
    assert not leaks.pairs.select("left", "right").is_duplicated().any()
    assert leaks.pairs.sort("left", "score", descending=[False, True])["score"].equals(leaks.pairs["score"])
    named = set(leaks.pairs["left"])
    for kind in set(kinds) - {""}:
        planted = [at for at, found in enumerate(kinds) if found == kind]
        assert sum(at in named for at in planted) >= 0.95 * len(planted), kind
    assert sum(at < 400 for at in named) <= 0.02 * 400 + 6  # three standard deviations of a binomial
    assert set(leaks.pairs.filter(pl.col("left").is_in([at for at, kind in enumerate(kinds) if kind == "exact"]))["how"]) == {"exact"}
    assert leaks.pairs["score"].is_between(0, 1).all()


def test_the_order_of_the_teaching_texts_changes_no_verdict(world):
    measuring, teaching, _ = world
    order = random.Random(1).sample(range(len(teaching)), len(teaching))
    one, other = find_leaks(measuring, teaching), find_leaks(measuring, [teaching[at] for at in order])
    assert one.words_threshold == other.words_threshold
    assert one.pairs.select("left", "score", "how").equals(other.pairs.select("left", "score", "how"))


def test_the_threshold_keeps_its_rate():
    draw = np.random.default_rng(0)
    exceeded = [np.mean(draw.random(200) >= _threshold(draw.random(400), 0.05)) for _ in range(300)]
    assert np.mean(exceeded) == pytest.approx(0.05, abs=0.005)
    assert _threshold(np.zeros(10), 0.01) == 2.0


@given(st.lists(st.sampled_from(["", "a", "a b c d e f", prose(1), prose(2)]), max_size=5), st.lists(st.sampled_from(["", "A", prose(1)]), max_size=5))
@settings(deadline=None)
def test_equal_texts_are_always_leaks(texts, against):
    exact = find_leaks(texts, against).pairs.filter(how="exact").select("left", "right").rows()
    equal = {(at, other) for at, text in enumerate(texts) for other, held in enumerate(against) if text.lower() == held.lower()}
    assert set(exact) == equal


def test_a_phrase_in_common_is_no_leak():
    teaching = [prose(seed) for seed in range(50)]
    short = " ".join(teaching[0].split()[:6])
    assert find_leaks([short], teaching).pairs.is_empty()
    assert find_leaks([" ".join(teaching[0].split()[:20])], teaching).pairs.select("right", "how").rows() == [(0, "words")]


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        find_leaks(["a"], ["b"], false_positive_rate=1)
    with pytest.raises(DataError, match="1 texts, 2 embeddings"):
        find_leaks(["a"], ["b"], embeddings=np.eye(2, dtype=np.float32), against_embeddings=np.eye(2, dtype=np.float32)[:1])


def benchmark(*texts):
    return pl.DataFrame({"source": ["qa.txt"] * len(texts), "source_line": range(1, len(texts) + 1), "text": texts})


def test_every_row_that_a_benchmark_text_leaked_into_goes_with_its_place():
    draw = random.Random(3)
    asked, clean = [write(draw) for _ in range(4)], [("a.csv", write(draw)) for _ in range(300)]
    edited = " ".join(f"w{draw.randrange(SIZE)}" if draw.random() < 0.15 else word for word in asked[2].split())
    leaks = [asked[0], f"{write(draw)} {asked[0]} {write(draw)}", " ".join(asked[1].split()[10:45]), edited]
    rows = documents(*clean, *(("a.csv", text) for text in leaks))
    sifted = drop_contaminated(rows, benchmark(*asked), 0.01, counts)
    assert same_rows(sifted, rows)
    gone = sifted.dropped.filter(pl.col("text").is_in(leaks))
    assert len(gone) == 4
    assert len(sifted.dropped) <= 4 + 2
    assert set(gone["reason"]) == {"contaminated"}
    assert gone["evidence"].to_list()[:3] == [
        "same text as qa.txt:1",
        "the shorter of it and qa.txt:1 shares 1.0 of its word 5-grams",
        "the shorter of it and qa.txt:2 shares 1.0 of its word 5-grams",
    ]
    assert "qa.txt:3" in gone["evidence"][3]
    assert gone["similarity"].is_between(0, 1).all()
    assert sifted.benchmarks["qa.txt"]["texts"] == 4
    assert sifted.benchmarks["qa.txt"]["leaked"] >= 3
    again = drop_contaminated(rows.sample(fraction=1, shuffle=True, seed=1), benchmark(*asked), 0.01, counts)
    assert again.dropped.sort("id").equals(sifted.dropped.sort("id"))


def test_without_benchmarks_or_rows_nothing_happens():
    rows = documents(("a.csv", prose(1)))
    assert drop_contaminated(rows, benchmark(), 0.01).kept.equals(rows)
    assert drop_contaminated(rows.clear(), benchmark(prose(1)), 0.01, counts).kept.is_empty()


def test_benchmarks_are_read_from_rows_of_any_shape_and_from_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one", "completion": "x"}\n{"prompt": "", "completion": "y"}\n')
    (tmp_path / "b.csv").write_text("question,n\ntwo,1\n")
    (tmp_path / "c.txt").write_text("\ufeffthree\n\nfour\n", encoding="utf-8")
    pl.DataFrame({"question": ["five"]}).write_parquet(tmp_path / "d.parquet")
    section = ContaminationSection(benchmarks=("a.jsonl", "b.csv", "c.txt", "d.parquet"), text_column="question")
    expected = [("a.jsonl", 1, "one"), ("b.csv", 2, "two"), ("c.txt", 1, "three"), ("c.txt", 3, "four"), ("d.parquet", 1, "five")]
    assert read_benchmarks(section, tmp_path).rows() == expected


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.txt", None, NotFoundError, "no such file"),
        ("a.jsonl", None, NotFoundError, "no such file"),
        ("a.txt", b" \n\n", DataError, "at least one text"),
        ("a.txt", b"\xff", DataError, "UTF-8"),
        ("a.pdf", b"x", DataError, r"must end in \.txt, \.csv"),
        ("a.csv", b"words\nx\n", DataError, "Received: 'text'"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_refused(tmp_path, name, content, error, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        read_benchmarks(ContaminationSection(benchmarks=(name,)), tmp_path)
