"""Is a model as sure of each field of an extraction as it should be?

An answer states something of each field: of a list each of its elements, of an empty field that it holds nothing. Each of these is right
or wrong by itself, and has a confidence of its own (see `models.confidence`). Calibrators are fitted on the calibration split: one on all
fields together, and one of its own for a field with enough right and wrong ones there.

What an answer leaves out of a list has no confidence: how sure the model is that a list is whole stands in the confidence of the answer.

Plain data for report.json, of the test split:

    fields.{n, n_records}                   how much is stated, in how many records
    fields.{calibration, reliability}       see `calibration_effect`, of all fields, each by the calibrator that it is answered with; `table` and
                                            `method` are those of the calibrator of all fields
    fields.curve                            see `acceptance.coverage_risk`
    fields.rows[]                           all fields together first (`field` empty), then each: `field`, `n`, `n_calibration`, `has_own` (a calibrator),
                                            `right` (share), `auroc` (how often a right one has the higher confidence; None where all are right, or
                                            all wrong), `before` and `after` (expected calibration error); each figure with value, low and high

What one record states is not independent: intervals resample documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.acceptance import confidence_auroc, coverage_risk
from tunesmith.evaluate.calibration import Calibrator, choose_calibrator, softmax
from tunesmith.evaluate.calibration_effect import calibration_effect
from tunesmith.evaluate.intervals import Bootstrap
from tunesmith.evaluate.metrics import ExpectedCalibrationError, FloatArray, IntArray
from tunesmith.models.answered import FieldAnswer
from tunesmith.models.confidence import EVERY_FIELD, right_logits
from tunesmith.models.json_answers import held_by, parse_answer

MIN_OUTCOMES = 10
"""Fewer right ones, or fewer wrong ones, on the calibration split are too few for a calibrator of a field's own."""


@dataclass(frozen=True)
class StatedFields:
    """What the answers of one split state.

    Attributes:
        fields: n names.
        logits: shape (n, 2). Of being right and wrong.
        y: shape (n,). 0 where it is right, 1 where it is wrong.
        documents: shape (n,). The document that each is stated about.
    """

    fields: NDArray[np.str_]
    logits: FloatArray
    y: IntArray
    documents: NDArray[np.str_]

    def of(self, field: str) -> StatedFields:
        """Return those of one field; of `EVERY_FIELD` all."""
        inside = self.fields == field if field != EVERY_FIELD else np.ones(len(self.y), dtype=bool)
        return StatedFields(self.fields[inside], self.logits[inside], self.y[inside], self.documents[inside])


def stated_fields(schema: Mapping[str, Any], answers: Sequence[Sequence[FieldAnswer]], rights: Sequence[str], documents: Sequence[str]) -> StatedFields:
    """Say what answers state is right by the right answers.

    Args:
        schema: `task.json_schema`.
        answers: What each of n answers states.
        rights: n right answers.
        documents: The document of each.
    """
    every = [one for own in answers for one in own]
    right = [held for own, truth in zip(answers, rights, strict=True) for held in held_by(own, parse_answer(schema, truth) or {})]
    return StatedFields(
        np.array([one.field for one in every], dtype=np.str_),
        right_logits([one.logit for one in every]).astype(np.float64),
        1 - np.array(right, dtype=np.int64),
        np.array([document for own, document in zip(answers, documents, strict=True) for _ in own], dtype=np.str_),
    )


def fit_fields(stated: StatedFields, method: str = "auto", seed: int = 0, *, n_bins: int = 15) -> tuple[dict[str, Calibrator], dict[str, dict[str, float]]]:
    """Fit the calibrators of an extraction's fields.

    Args:
        stated: What the answers of the calibration split state.
        method: As in `choose_calibrator`.
        seed: Seed of the folds.
        n_bins: Bins of the calibration error in the table.

    Returns:
        Field -> calibrator, of `EVERY_FIELD` that of the fields which have none of their own, and the table of that one. Empty where fewer than
        two things are stated.
    """
    if len(stated.y) < 2:
        return {}, {}
    shared, table = choose_calibrator(stated.logits, stated.y, method, seed, n_bins=n_bins, judges="written")
    fitted = {EVERY_FIELD: shared}
    for field in sorted(set(stated.fields.tolist())):
        own = stated.of(field)
        if min(own.y.sum(), (1 - own.y).sum()) >= MIN_OUTCOMES:
            fitted[field] = choose_calibrator(own.logits, own.y, method, seed, n_bins=n_bins, judges="written")[0]
    return fitted, table


def calibrated(fitted: Mapping[str, Calibrator], stated: StatedFields) -> FloatArray:
    """Return the probabilities of being right and wrong, shape (n, 2), each by the calibrator of its field."""
    found = fitted[EVERY_FIELD].probabilities(stated.logits)
    for field in fitted.keys() - {EVERY_FIELD}:
        inside = stated.fields == field
        if inside.any():
            found[inside] = fitted[field].probabilities(stated.logits[inside])
    return found


def field_effect(
    fitted: Mapping[str, Calibrator],
    table: Mapping[str, Mapping[str, float]],
    calibration: StatedFields,
    test: StatedFields,
    *,
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    n_bins: int = 15,
) -> dict[str, Any]:
    """Measure the confidence in fields on the test split.

    Args:
        fitted: Calibrators, from `fit_fields`.
        table: As `fit_fields` returns it.
        calibration: What the answers of the calibration split state.
        test: What those of the test split state.
        level: Level of the intervals, a ratio.
        n_samples: Resamples behind them.
        seed: Seed of the resamples.
        n_bins: Bins of the calibration error and of the reliability table.

    Returns:
        `fields` of the module docstring.
    """
    before, after = softmax(test.logits), calibrated(fitted, test)
    common: dict[str, Any] = {"level": level, "n_samples": n_samples, "seed": seed}
    effect = calibration_effect(
        before, after, test.y, method=fitted[EVERY_FIELD].to_dict()["method"], table=table, n_bins=n_bins, groups=test.documents, **common
    )
    rows = []
    for field in (EVERY_FIELD, *sorted(set(test.fields.tolist()))):
        inside = test.fields == field if field != EVERY_FIELD else np.ones(len(test.y), dtype=bool)
        y, documents = test.y[inside], test.documents[inside]
        bootstrap, error = Bootstrap(len(y), groups=documents, **common), ExpectedCalibrationError(n_bins)
        right = np.column_stack([1 - y, np.ones(len(y))]).astype(np.float64)
        errors = {when: error.interval(bootstrap, error.rows(y, each[inside])) for when, each in (("before", before), ("after", after))}
        rows.append(
            {
                "field": field,
                "n": len(y),
                "n_calibration": len(calibration.of(field).y),
                "has_own": field in fitted,
                "right": bootstrap.interval(lambda sums: sums[..., 0] / sums[..., 1], right).to_dict(),
                "auroc": confidence_auroc(after[inside, 0], y == 1, groups=documents, **common),
                **{when: each.to_dict() for when, each in errors.items()},
            }
        )
    curve = coverage_risk(after[:, 0], test.y == 1, groups=test.documents, level=level)
    return {"n": len(test.y), "n_records": len(set(test.documents.tolist())), **effect, "curve": curve, "rows": rows}
