"""Fields of an extraction: each by the calibrator of its own, or by the one that the others share."""

import nouns
import numpy as np

from tunesmith.entities import Prediction
from tunesmith.evaluate.calibration import Logistic, Uncalibrated
from tunesmith.models.answered import Answered, FieldAnswer
from tunesmith.models.confidence import EVERY_FIELD, right_logits
from tunesmith.serve.predictor import Predictor
from tunesmith.store import Store


class Engine:
    """Answers nothing but what it was given."""

    labels = ()

    def __init__(self, *fields):
        self.fields = fields

    def answer(self, texts, progress=None):
        n = len(texts)
        return Answered(("{}",) * n, ("right", "wrong"), right_logits(np.zeros(n)), np.zeros(n, dtype=np.int64), fields=(self.fields,) * n)


def test_a_field_is_as_sure_as_its_calibrator_says(tmp_path):
    store = Store.at(tmp_path / "store.db")
    engine = Engine(FieldAnswer("who", "Ann", 2.0), FieldAnswer("where", None, 2.0))
    fields = {EVERY_FIELD: Uncalibrated(), "who": Logistic(0.0, -1.0)}
    predictor = Predictor(engine, Uncalibrated(), nouns.deployment(), "champion", store, fields=fields)
    first, second = predictor.predict(["a text", "another"])
    who, where = first.fields
    assert (who.field, who.value, where.field, where.value) == ("who", "Ann", "where", None)
    assert np.allclose([who.confidence_raw, who.confidence], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))])
    assert where.confidence == where.confidence_raw == who.confidence_raw
    assert str(where) == "where: nothing 0.88"
    assert first.fields == second.fields == store.get(Prediction, first.id).fields


def test_without_calibrators_nothing_is_said_of_fields(tmp_path):
    predictor = Predictor(Engine(FieldAnswer("who", "Ann", 2.0)), Uncalibrated(), nouns.deployment(), "champion", Store.at(tmp_path / "store.db"))
    assert predictor.predict(["a text"])[0].fields == ()
