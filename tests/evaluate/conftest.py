"""Simulated scores of three models on one test split."""

from typing import Any

import numpy as np
import pytest
from simulation import LABELS, TEXT, simulated

from tunesmith.evaluate.calibration import softmax
from tunesmith.evaluate.calibration_effect import calibration_effect
from tunesmith.evaluate.compare import compare, worst_mistakes


@pytest.fixture(scope="session")
def truth() -> np.ndarray:
    return np.random.default_rng(0).choice(3, size=400, p=[0.5, 0.3, 0.2])


@pytest.fixture(scope="session")
def scores(truth: np.ndarray) -> dict[str, np.ndarray]:
    return {name: softmax(simulated(truth, 3, skill, seed)) for name, skill, seed in (("base", 0.3, 1), ("classical", 2.0, 2), ("tuned", 2.1, 3))}


@pytest.fixture(scope="session")
def latencies() -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(4).uniform(0.5, 1.5, size=40) * mean for name, mean in (("base", 0.2), ("classical", 0.001), ("tuned", 0.21))}


@pytest.fixture(scope="session")
def report(truth: np.ndarray, scores: dict[str, np.ndarray], latencies: dict[str, np.ndarray]) -> dict[str, Any]:
    table = {"none": {"log_loss": 0.5, "expected_calibration_error": 0.1}, "temperature": {"log_loss": 0.4, "expected_calibration_error": 0.05}}
    before = softmax(simulated(truth, 3, 2.1, 3, sharpness=3))
    return {
        "title": "Complaints",
        "confidence_level": 0.95,
        "labels": list(LABELS),
        **compare(scores, truth, LABELS, latencies=latencies),
        **calibration_effect(before, scores["tuned"], truth, method="temperature", table=table),
        "mistakes": worst_mistakes([f"rec_{i}" for i in range(400)], [TEXT] * 400, truth, scores["tuned"], LABELS, limit=3),
    }
