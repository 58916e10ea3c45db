import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError, RefusedError
from tunesmith.evaluate.forgetting import Probes, ProbeScores, forgetting, load_probes, score_probes, within_budget
from tunesmith.registry.gates import refuse_over_budget


class Knows:
    """Finds every token equally probable, but the words that it knows certain."""

    def __init__(self, words=()):
        self.words = set(words)

    def log_probabilities(self, contexts, continuations):
        return np.array([[0.0 if text.strip() in self.words else -2.0 * len(text.split()), len(text.split())] for text in continuations])


@pytest.fixture(scope="module")
def probes():
    return load_probes()


def test_the_built_in_probes_are_whole(probes):
    assert len(probes.texts) >= 30
    assert len(probes.questions) >= 40
    assert len(set(probes.texts)) == len(probes.texts)
    assert all(len(endings) == 4 and len(set(endings)) == 4 and all(endings) for _, endings in probes.questions)


def test_one_who_knows_every_right_ending_is_right(probes):
    right = score_probes(Knows(endings[0] for _, endings in probes.questions), Probes(probes.texts, probes.questions[:10])).right
    assert right.tolist() == [1.0] * 10
    wrong = score_probes(Knows(endings[1] for _, endings in probes.questions[:1]), Probes(probes.texts, probes.questions[:1])).right
    assert wrong.tolist() == [0.0]


@given(rise=st.floats(-1, 1), seed=st.integers(0, 100))
def test_forgetting_is_the_rise_of_the_cross_entropy(rise, seed):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(20, 80, 30).astype(float)
    before = ProbeScores(np.column_stack([3 * tokens, tokens]), np.ones(20))
    after = ProbeScores(np.column_stack([(3 + rise) * tokens, tokens]), np.zeros(20))
    found = forgetting(before, after, n_samples=200)
    assert found["cross_entropy"]["difference"]["difference"] == pytest.approx(rise, abs=1e-9)
    assert found["questions"]["difference"]["difference"] == -1
    assert within_budget(found, max(rise, 0) + 1e-6)
    assert within_budget(found, None)
    if rise > 0.01:
        with pytest.raises(RefusedError, match="max_forgetting"):
            refuse_over_budget(found, rise / 2)


def test_other_probes_are_not_compared():
    before = ProbeScores(np.array([[3.0, 2.0], [3.0, 2.0]]), np.ones(2))
    after = ProbeScores(np.array([[3.0, 2.0], [3.0, 1.0]]), np.ones(2))
    with pytest.raises(DataError, match="same probes"):
        forgetting(before, after)


def test_scores_come_back_from_the_file(tmp_path, probes):
    scores = score_probes(Knows(), probes)
    scores.save(tmp_path / "probes.json")
    loaded = ProbeScores.load(tmp_path / "probes.json")
    assert np.array_equal(loaded.texts, scores.texts)
    assert np.array_equal(loaded.right, scores.right)


def test_own_text_needs_passages(tmp_path):
    (tmp_path / "own.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    with pytest.raises(DataError, match="8 passages"):
        load_probes(tmp_path / "own.txt")
    with pytest.raises(DataError, match="must name a file"):
        load_probes(tmp_path / "none.txt")
