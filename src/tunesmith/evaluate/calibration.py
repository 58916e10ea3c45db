"""Make a stated confidence mean what it says.

A calibrator maps logits, shape (n, n_labels), to probabilities of the same shape. Every one here keeps the answer: it
changes how sure the model is, never what it says. It is fitted on the calibration split and on nothing else, is saved
as a few numbers in JSON, and is applied with numpy alone, so that serving needs no scipy.

Seam `calibrator`, named in `plugins.py`; a third-party class offers the same four methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith import plugins
from tunesmith.errors import DataError
from tunesmith.evaluate.metrics import ExpectedCalibrationError, FloatArray, IntArray, answers, is_correct

TEMPERATURES = (0.05, 20.0)
"""Range that is searched. On answers that are all right the best temperature is 0, which would state certainty."""

FOLDS = 5


class Calibrator(Protocol):
    """What the seam `calibrator` asks of a class."""

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Fit to the logits, shape (n, n_labels), and right labels, shape (n,), of the calibration split."""

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return probabilities, shape (n, n_labels); rows sum to 1 and have their maximum where the logits have it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters and the key `method`, the plug-in's name; JSON can hold it."""

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Undo `to_dict`."""


class _Parameters:
    """JSON for a frozen dataclass of numbers that has a plug-in name."""

    method = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters and the key `method`."""
        return {"method": self.method, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Undo `to_dict`."""
        return cls(**{key: float(value) for key, value in saved.items() if key != "method"})


@dataclass(frozen=True)
class Uncalibrated(_Parameters):
    """Softmax, as the model states it."""

    method = "none"

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Learn nothing."""
        return cls()

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return softmax(logits)."""
        return softmax(logits)


@dataclass(frozen=True)
class Temperature(_Parameters):
    """Softmax of the logits over one temperature; above 1 it makes the model less sure.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2, equation 9.
    """

    method = "temperature"
    temperature: float

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Find the temperature, in `TEMPERATURES`, with the lowest mean negative log-likelihood of the right label."""
        from scipy.optimize import minimize_scalar  # here, because serving loads this module without scipy

        def loss(log_temperature: float) -> float:
            scaled = logits / np.exp(log_temperature)
            return float(np.mean(_log_sum_exp(scaled) - scaled[np.arange(len(y)), y]))

        found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
        return cls(float(np.exp(found.x)))

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return softmax(logits / temperature)."""
        return softmax(logits, self.temperature)


class _OfConfidence(_Parameters, ABC):
    """A map of the confidence: q becomes the probability of the answer, and the other labels share 1 - q in their softmax proportions.

    Where that would lift the runner-up above the answer, q is raised to the runner-up's level: with two labels no answer is below 0.5.
    """

    @abstractmethod
    def right(self, margin: FloatArray) -> FloatArray:
        """Return the probability that the answer is right from logit(confidence), both of shape (n,)."""

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return q for the answer and shares of 1 - q for the others."""
        logits = np.asarray(logits, dtype=np.float64)
        row, top = np.arange(len(logits)), answers(logits)
        others = logits.copy()
        others[row, top] = -np.inf
        shares = softmax(others)
        runner_up = shares.max(axis=1)
        q = np.maximum(self.right(_margin(logits)), runner_up / (1 + runner_up))
        result = shares * (1 - q)[:, None]
        result[row, top] = q
        return _keep_answer(result, top)


@dataclass(frozen=True)
class Platt(_OfConfidence):
    """A logistic curve on the confidence: q = sigmoid(slope * logit(confidence) + intercept), slope 0 or more.

    Source:
        Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2, with its smoothed targets; applied to
        the top label instead of one class, so that the answer stays.
    """

    method = "platt"
    slope: float
    intercept: float

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Find slope and intercept with the lowest log loss against (N+ + 1) / (N+ + 2) for right and 1 / (N- + 2) for wrong answers."""
        return cls(*fit_logistic(_margin(logits)[:, None], is_correct(y, logits)))

    def right(self, margin: FloatArray) -> FloatArray:
        """Return the curve."""
        return _sigmoid(self.slope * margin + self.intercept)


@dataclass(frozen=True)
class Beta(_OfConfidence):
    """The ratio of two beta densities of the confidence s: logit(q) = a * log(s) - b * log(1 - s) + c, with a and b 0 or more.

    Bends at both ends apart, where a logistic curve bends them alike.

    Source:
        Kull, Silva Filho and Flach 2017, Beta Calibration, equation 4; targets smoothed as Platt does.
    """

    method = "beta"
    a: float
    b: float
    c: float

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Find a, b and c with the lowest log loss."""
        return cls(*fit_logistic(_log_odds_parts(_margin(logits)), is_correct(y, logits)))

    def right(self, margin: FloatArray) -> FloatArray:
        """Return the curve."""
        return _sigmoid(_log_odds_parts(margin) @ np.array([self.a, self.b]) + self.c)


@dataclass(frozen=True)
class Isotonic(_OfConfidence):
    """The non-decreasing curve that is nearest to whether answers were right, linear between its knots.

    Takes any form, and so needs many records: on few it follows their noise. The first and last answer of the calibration split
    may not make it certain: right and wrong each count one more, as Laplace's rule has it, in the flat parts at both ends.

    Attributes:
        at: logit(confidence) of the knots, increasing.
        value: Probabilities there.

    Source:
        Zadrozny and Elkan 2002, Transforming Classifier Scores into Accurate Multiclass Probability Estimates.
    """

    method = "isotonic"
    at: tuple[float, ...]
    value: tuple[float, ...]

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Pool adjacent violators."""
        from sklearn.isotonic import IsotonicRegression  # here, because serving loads this module without scikit-learn

        margin, right = _margin(logits), is_correct(y, logits).astype(np.float64)
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(margin, right)
        at, value = np.asarray(fitted.X_thresholds_, dtype=np.float64), np.asarray(fitted.y_thresholds_, dtype=np.float64)
        in_lowest, in_highest = np.sum(fitted.predict(margin) <= value[0]), np.sum(fitted.predict(margin) >= value[-1])
        least, most = 1 / (in_lowest + 2), 1 - 1 / (in_highest + 2)
        value = np.clip(value, min(least, most), max(least, most))
        return cls(tuple(at.tolist()), tuple(value.tolist()))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Undo `to_dict`."""
        return cls(tuple(saved["at"]), tuple(saved["value"]))

    def right(self, margin: FloatArray) -> FloatArray:
        """Return the curve; beyond the outer knots it is flat."""
        return np.interp(margin, self.at, self.value)


@dataclass(frozen=True)
class Logistic(_Parameters):
    """For written answers: a logistic curve on what `evaluate.confidence` measures, P(right) = sigmoid(slope * logit + intercept), slope 0 or more.

    Columns are right and wrong, and labels say which it was: here the probability of being right may fall below one half, and it
    does where most answers that sound so sure are wrong. Labels are 0 for right and 1 for wrong.

    Source:
        Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2, with its smoothed targets.
    """

    method = "logistic"
    judges = "written"
    slope: float
    intercept: float

    @classmethod
    def fit(cls, logits: FloatArray, y: IntArray) -> Self:
        """Find slope and intercept with the lowest log loss against smoothed targets."""
        return cls(*fit_logistic((logits[:, 0] - logits[:, 1])[:, None], np.asarray(y) == 0))

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return the probabilities of being right and wrong, shape (n, 2)."""
        logits = np.asarray(logits, dtype=np.float64)
        right = _sigmoid(self.slope * (logits[:, 0] - logits[:, 1]) + self.intercept)
        return np.column_stack([right, 1 - right])


def choose_calibrator(
    logits: ArrayLike, y: ArrayLike, method: str = "auto", seed: int = 0, *, n_bins: int = 15, judges: str = "label"
) -> tuple[Calibrator, dict[str, dict[str, float]]]:
    """Fit the calibrator that is named, or the best one.

    Candidates are compared by five-fold cross-validation on these records. What counts is the log loss of the confidence
    against whether the answer was right, because the confidence is what people act on; how the rest is spread over the
    other labels does not matter. Of equals, `none` wins.

    Args:
        logits: shape (n, n_labels). Of the calibration split, never of another.
        y: shape (n,). Right label of each record, an index.
        method: A plug-in's name, or `auto` for the lowest log loss.
        seed: Seed of the folds.
        n_bins: Bins of the calibration error in the table.
        judges: What the confidence is about: a `label` that was picked, or a `written` answer.

    Returns:
        The calibrator, fitted on all records, and method -> `log_loss` (nats) and `expected_calibration_error`, both
        cross-validated. The table is complete whatever the method.

    Raises:
        ConfigError: no calibrator has that name.
        DataError: fewer than two records, or labels and logits do not fit each other.
    """
    logits, y = np.asarray(logits, dtype=np.float64), np.asarray(y, dtype=np.int64)
    if logits.ndim != 2 or y.shape != logits.shape[:1] or len(y) < 2 or not np.isfinite(logits).all():
        raise DataError(f"Calibration needs two records or more, with finite logits. Received: logits {logits.shape}, labels {y.shape}.")
    fold = np.random.default_rng(seed).permutation(len(y)) % min(FOLDS, len(y))
    names = sorted((name for name in plugins.available("calibrator") if _fits(name, judges)), key=lambda name: name != "none")
    table = {name: _cross_validate(plugins.load("calibrator", name), logits, y, fold, n_bins) for name in names}
    if method != "auto":
        plugins.load("calibrator", method)  # a name that nobody has is an error; one for another kind of answer is not
    chosen = method if method in names else min(names, key=lambda name: table[name]["log_loss"])
    kind: type[Calibrator] = plugins.load("calibrator", chosen)
    return kind.fit(logits, y), table


def fit_calibrators(logits: ArrayLike, y: ArrayLike, *, judges: str = "label") -> dict[str, Calibrator]:
    """Return every calibrator, fitted to the logits and right labels of the calibration split. Arguments as in `choose_calibrator`."""
    kinds: dict[str, type[Calibrator]] = {name: plugins.load("calibrator", name) for name in plugins.available("calibrator") if _fits(name, judges)}
    return {name: kind.fit(np.asarray(logits, dtype=np.float64), np.asarray(y, dtype=np.int64)) for name, kind in kinds.items()}


def load_calibrator(saved: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator that `to_dict` described.

    Raises:
        ConfigError: no calibrator has that name.
    """
    method = "logistic" if saved["method"] == "likelihood" else saved["method"]  # its name while the likelihood was all that it knew
    kind: type[Calibrator] = plugins.load("calibrator", method)
    return kind.from_dict(saved)


def _fits(name: str, judges: str) -> bool:
    return name == "none" or getattr(plugins.load("calibrator", name), "judges", "label") == judges


def _cross_validate(kind: type[Calibrator], logits: FloatArray, y: IntArray, fold: IntArray, n_bins: int) -> dict[str, float]:
    held_out = np.empty_like(logits)
    for number in range(fold.max() + 1):
        inside = fold == number
        held_out[inside] = kind.fit(logits[~inside], y[~inside]).probabilities(logits[inside])
    confidence = np.clip(held_out.max(axis=1), None, 1 - np.finfo(np.float64).eps)
    loss = -np.mean(np.where(is_correct(y, held_out), np.log(confidence), np.log1p(-confidence)))
    return {"log_loss": float(loss), "expected_calibration_error": ExpectedCalibrationError(n_bins)(y, held_out)}


def fit_logistic(features: FloatArray, right: NDArray[np.bool_]) -> tuple[float, ...]:
    """Return slopes, each 0 or more, of features, shape (n, k), and the intercept of a logistic curve with Platt's smoothed targets."""
    from scipy.optimize import minimize  # here, because serving loads this module without scipy
    from scipy.special import expit

    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    inputs = np.column_stack([features, np.ones(len(features))])

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        score = inputs @ parameters
        gap = expit(score) - target
        return float(np.mean(np.logaddexp(0, score) - target * score)), np.asarray(gap @ inputs / len(gap))

    n_slopes = features.shape[1]
    bounds = [(0, None)] * n_slopes + [(None, None)]
    found = minimize(loss, x0=[1.0] * n_slopes + [0.0], jac=True, bounds=bounds, method="L-BFGS-B")
    return tuple(float(parameter) for parameter in found.x)


def _log_odds_parts(margin: FloatArray) -> FloatArray:
    """Return log(s) and -log(1 - s) of the confidence s whose logit is the margin, shape (n, 2)."""
    return np.column_stack([-np.logaddexp(0, -margin), np.logaddexp(0, margin)])


def softmax(logits: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Return probabilities, shape (n, n_labels), whose argmax is exactly that of the logits."""
    logits = np.asarray(logits, dtype=np.float64)
    scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return _keep_answer(scaled / scaled.sum(axis=1, keepdims=True), answers(logits))


def _keep_answer(probabilities: FloatArray, top: IntArray) -> FloatArray:
    """Lift the answer by one float64 step where rounding made another label equal to it, or it was tied."""
    lost = np.flatnonzero(answers(probabilities) != top)
    probabilities[lost, top[lost]] = np.nextafter(probabilities[lost].max(axis=1), 2)
    return probabilities


def _margin(logits: FloatArray) -> FloatArray:
    """Return logit(confidence) of the answer, shape (n,): its logit minus the log-sum-exp of the others."""
    row, top = np.arange(len(logits)), answers(logits)
    others = logits.copy()
    others[row, top] = -np.inf
    return np.asarray(logits[row, top] - _log_sum_exp(others))


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0])


def _sigmoid(score: NDArray[np.float64]) -> FloatArray:
    """Return 1 / (1 + exp(-score)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * score)))
