import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.classical import STRENGTHS, fit_classical
from tunesmith.evaluate.metrics import accuracy

WORDS = (("mortgage", "house", "escrow"), ("debt", "collector", "owed"), ("card", "fraud", "charge"))
FILLER = ("the", "bank", "said", "that", "they", "would", "call", "me", "again", "today")


def complaints(n, seed):
    draw = np.random.default_rng(seed)
    y = draw.integers(3, size=n)
    return [" ".join(draw.permutation([*draw.choice(FILLER, 8), draw.choice(WORDS[label])])) for label in y], y


def test_it_learns_and_is_deterministic():
    (texts, y), (validation, validation_y), (test, test_y) = complaints(150, 0), complaints(60, 1), complaints(200, 2)
    fitted = fit_classical(texts, y, validation, validation_y, 3)
    probabilities = fitted.probabilities(test)
    assert accuracy(test_y, probabilities) > 0.95
    np.testing.assert_array_equal(probabilities, fit_classical(texts, y, validation, validation_y, 3).probabilities(test))
    assert [row["C"] for row in fitted.table] == list(STRENGTHS)
    chosen = max(fitted.table, key=lambda row: row["validation_accuracy"])
    assert chosen["C"] == fitted.regression.C


def test_labels_that_no_training_row_has_get_a_tiny_probability_in_their_place():
    texts, y = complaints(120, 0)
    there = y != 1
    kept, shifted = [text for text, keep in zip(texts, there, strict=True) if keep], np.where(y == 2, 4, 0)[there]
    probabilities = fit_classical(kept, shifted, kept, shifted, 6).probabilities(kept)
    assert probabilities.shape == (len(kept), 6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert np.all(probabilities[:, [1, 2, 3, 5]] > 0)
    assert np.all(probabilities[:, [1, 2, 3, 5]] < 1e-8)
    assert accuracy(shifted, probabilities) > 0.95


def test_training_rows_that_teach_nothing_are_refused():
    with pytest.raises(DataError, match="two labels or more"):
        fit_classical(["a b", "c d"], np.array([1, 1]), ["a"], np.array([1]), 2)
    with pytest.raises(DataError, match="share words"):
        fit_classical(["abc", "xyz"], np.array([0, 1]), ["abc"], np.array([0]), 2)
