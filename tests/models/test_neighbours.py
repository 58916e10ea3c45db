import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.models import neighbours
from tunesmith.models.neighbours import above, centres, nearest


def unit(seed, n, dimension=16, n_centres=4):
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(n, dimension)) + 3 * draw.normal(size=(n_centres, dimension))[draw.integers(0, n_centres, n)]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 99), st.integers(0, 40), st.integers(0, 40), st.integers(0, 12), st.booleans(), st.booleans())
@settings(deadline=None)
def test_nearest_is_that_of_float32(seed, n, n_queries, k, fast, itself):
    vectors = unit(seed, n)
    queries = vectors if itself else unit(seed + 1, n_queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "multiplies_bfloat16", lambda: fast)
        patch.setattr(neighbours, "_BLOCK", 7)
        positions, cosines = nearest(queries, vectors, k, exclude_self=itself)
    exact = queries @ vectors.T
    if itself:
        np.fill_diagonal(exact, -2)
    k = max(0, min(k, n - itself))
    expected = np.sort(exact, axis=1)[:, ::-1][:, :k]
    assert positions.shape == cosines.shape == (len(queries), k)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, positions, 1), cosines, atol=1e-6)


@given(st.integers(0, 99), st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.0, 0.7, 0.9, 0.99]), st.booleans())
@settings(deadline=None)
def test_above_is_that_of_float32(seed, n, n_queries, least, fast):
    vectors, queries = unit(seed, n), unit(seed, n_queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "multiplies_bfloat16", lambda: fast)
        patch.setattr(neighbours, "_BLOCK", 7)
        found = [(left, right) for lefts, rights, _ in above(queries, vectors, least) for left, right in zip(lefts.tolist(), rights.tolist(), strict=True)]
    exact = queries @ vectors.T
    sure = {(int(a), int(b)) for a, b in np.argwhere(exact >= least + 1e-6)}
    assert sure <= set(found) <= {(int(a), int(b)) for a, b in np.argwhere(exact >= least - 1e-6)}
    assert found == sorted(set(found))


def test_equal_neighbours_stand_by_position():
    vectors = np.repeat(unit(0, 2), 5, axis=0)
    positions, _ = nearest(vectors[:1], vectors, 4, exclude_self=True)
    assert positions.tolist() == [[1, 2, 3, 4]]


def test_rounding_to_bfloat16_stays_within_the_margin():
    vectors = unit(3, 2000, dimension=384, n_centres=30)
    rounded = torch.from_numpy(vectors).bfloat16()
    assert np.abs((rounded @ rounded.t()).float().numpy() - vectors @ vectors.T).max() < neighbours._ROUNDING


def test_centres_are_where_the_vectors_are():
    vectors = unit(3, 400, n_centres=4)
    found = centres(vectors, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    home, cosine = nearest(vectors, found, 1)
    for cell in range(4):
        own = vectors[home[:, 0] == cell].sum(0)
        assert found[cell] @ own / np.linalg.norm(own) > 0.999
    start = vectors[np.linspace(0, 399, 4).astype(int)]
    assert cosine.mean() > nearest(vectors, start, 1)[1].mean()
    np.testing.assert_array_equal(found, centres(vectors, 4))
    np.testing.assert_array_equal(centres(np.zeros((3, 2), dtype=np.float32), 2), np.zeros((2, 2)))
