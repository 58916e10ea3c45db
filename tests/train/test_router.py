"""The router: reads no split twice, is sure as often as it is right, abstains, and is saved without pickle."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evaluate.metrics import ExpectedCalibrationError
from tunesmith.models.router import PARENT, Router, Routes
from tunesmith.train.router import fit_router

ABOUT = {"embedding_model": "package:x", "embedding_sha256": "abc", "last": PARENT}


def clouds(n, seed, names=("invoice", "letter", PARENT), spread=0.5):
    """Unit vectors around one axis a name, and their names."""
    draw = np.random.default_rng(seed)
    of = draw.integers(len(names), size=n)
    vectors = np.eye(16)[of] + spread * draw.normal(size=(n, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [names[each] for each in of]


@pytest.fixture(scope="module")
def router():
    return fit_router(*clouds(600, 0), *clouds(300, 1), **ABOUT)


def test_parent_is_the_last_route_and_new_texts_are_routed(router):
    assert router.routes == ("invoice", "letter", PARENT)
    vectors, names = clouds(500, 2, spread=0.15)
    assert np.mean([found == name for found, name in zip(router.route(vectors).names, names, strict=True)]) > 0.95


def test_its_confidence_is_calibrated_on_texts_that_nobody_fitted(router):
    vectors, names = clouds(4000, 3)
    y = np.array([router.routes.index(name) for name in names])
    error = ExpectedCalibrationError(15)
    plain = Router(router.routes, router.weight * 6, router.bias * 6, 1.0, "", "")  # as sure as no calibration split would let it be
    assert error(y, router.probabilities(vectors)) < 0.05 < error(y, plain.probabilities(vectors))


def test_the_temperature_comes_from_the_calibration_split_alone():
    train, calibration = clouds(300, 0), clouds(200, 1)
    names = [*calibration[1]]
    np.random.default_rng(5).shuffle(names)  # a calibration split of nonsense makes it unsure, and moves no weight
    right, shuffled = fit_router(*train, *calibration, **ABOUT), fit_router(*train, calibration[0], names, **ABOUT)
    assert np.array_equal(right.weight, shuffled.weight)
    assert shuffled.temperature > 3 * right.temperature


def test_two_routes_are_a_softmax_too():
    router = fit_router(*clouds(300, 0, ("a", "b")), *clouds(200, 1, ("a", "b")), **ABOUT)
    vectors, names = clouds(400, 2, ("a", "b"), 0.1)
    found = router.probabilities(vectors)
    assert found.shape == (400, 2)
    assert np.allclose(found.sum(1), 1)
    assert np.mean([name == found for name, found in zip(names, router.route(vectors).names, strict=True)]) > 0.95


@given(st.lists(st.tuples(st.sampled_from(["a", "b", PARENT]), st.floats(0, 1)), min_size=1, max_size=20), st.floats(0, 1))
def test_it_abstains_at_or_below_the_threshold_and_from_children_that_are_not_served(routes, threshold):
    names, confidence = zip(*routes, strict=True)
    adapters = Routes(names, np.array(confidence)).adapters(threshold, ["a"])
    for name, sure, adapter in zip(names, confidence, adapters, strict=True):
        assert adapter == ("a" if name == "a" and sure > threshold else PARENT)
    assert set(Routes(names, np.array(confidence)).adapters(1.0, ["a", "b"])) == {PARENT}


def test_it_is_saved_as_safetensors_and_json_and_read_again(router, tmp_path):
    assert Router.load(tmp_path) is None
    router.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"router.json", "router.safetensors"}
    assert json.loads((tmp_path / "router.json").read_text())["routes"] == [*router.routes]
    again, vectors = Router.load(tmp_path), clouds(20, 4)[0]
    assert np.array_equal(again.probabilities(vectors), router.probabilities(vectors))


def test_one_route_is_none():
    vectors = np.eye(4)
    with pytest.raises(DataError, match=r"two routes or more.* Received: invoice"):
        fit_router(vectors, ["invoice"] * 4, vectors, ["invoice"] * 4, **ABOUT)
