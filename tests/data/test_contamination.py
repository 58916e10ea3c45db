import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import prose

from tunesmith.data.contamination import LEAKS_SCHEMA, _threshold, find_leaks
from tunesmith.errors import ConfigError, DataError

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
    assert leaks.pairs["left"].is_unique().all()
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
    found = {left: (how, against[right]) for left, right, _, how in find_leaks(texts, against).pairs.iter_rows()}
    for at, text in enumerate(texts):
        if text.lower() in {other.lower() for other in against}:
            assert found[at][0] == "exact"
            assert found[at][1].lower() == text.lower()


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
