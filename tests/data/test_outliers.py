import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.outliers import OUTLIER_SCHEMA, score_outliers
from tunesmith.errors import DataError


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64).reshape(-1, np.shape(rows)[-1])
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def two_classes(seed=0, n=60):
    """A close class, a wide one, and two strangers in the close class (the last rows)."""
    draw = np.random.default_rng(seed)
    close, wide, strangers = (draw.normal(size=(size, 16)) * spread for size, spread in ((n, 0.2), (n, 0.9), (2, 1.0)))
    close[:, 0] += 1
    wide[:, 1] += 1
    return unit(np.concatenate([close, wide, strangers])), ["close"] * n + ["wide"] * n + ["close"] * 2


def test_strangers_are_proposed_and_a_wide_class_is_not_punished():
    vectors, labels = two_classes()
    found = score_outliers(vectors, labels)
    assert found.schema == pl.Schema(OUTLIER_SCHEMA)
    assert set(found.sort("score", descending=True)["position"].head(2)) == {120, 121}
    assert found["is_proposed"].to_list()[-2:] == [True, True]
    assert found["is_proposed"].sum() <= 5
    wide = found.filter(pl.Series(labels) == "wide")
    assert wide["distance"].mean() > 2 * found[:60]["distance"].mean()
    assert abs(wide["score"].median()) < 1e-9


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 4))
@settings(deadline=None)
def test_every_row_has_a_score_whatever_the_order(seed, n, n_labels):
    draw = np.random.default_rng(seed)
    vectors, labels = unit(draw.normal(size=(n, 8))), [str(draw.integers(n_labels)) for _ in range(n)]
    found = score_outliers(vectors, labels)
    assert found["position"].to_list() == list(range(n))
    assert np.isfinite(found["score"].to_numpy()).all()
    assert all(position not in near for position, near in zip(found["position"], found["neighbours"], strict=True))
    order = draw.permutation(n)
    shuffled = score_outliers(vectors[order], [labels[at] for at in order])
    np.testing.assert_allclose(shuffled["score"].to_numpy(), found["score"].to_numpy()[order], atol=1e-3)


def test_equal_texts_are_no_outliers_of_each_other():
    vectors = unit(np.tile(np.random.default_rng(0).normal(size=8), (50, 1)))
    assert not score_outliers(vectors, ["a"] * 50)["is_proposed"].any()


def test_rows_must_match():
    with pytest.raises(DataError, match="2 embeddings, 1 labels"):
        score_outliers(np.eye(2, dtype=np.float32), ["a"])
