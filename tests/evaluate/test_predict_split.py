import numpy as np
import polars as pl
import pytest
from simulation import LABELS

from tunesmith.errors import DataError, NotFoundError
from tunesmith.evaluate.predict_split import SplitScores, score_split


class Lengths:
    """Scores a text by its length."""

    def score(self, texts, progress=None):
        if progress:
            progress(len(texts), len(texts))
        return np.array([[len(text), 0.5, -1] for text in texts], dtype=np.float32)


RECORDS = pl.DataFrame({"id": ["rec_a", "rec_b"], "text": ["one", "three"]})


def test_scores_survive_parquet(tmp_path):
    seen = []
    scores = score_split(Lengths(), RECORDS, ("id", *LABELS[:2]), progress=lambda done, total: seen.append((done, total)))
    scores.save(tmp_path / "deep" / "test.parquet")
    loaded = SplitScores.load(tmp_path / "deep" / "test.parquet")
    assert (loaded.ids, loaded.labels) == (("rec_a", "rec_b"), ("id", *LABELS[:2]))
    np.testing.assert_array_equal(loaded.logits, scores.logits)
    assert loaded.logits.dtype == np.float32
    assert seen == [(2, 2)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["test.parquet"]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match="must have shape"):
        score_split(Lengths(), RECORDS, LABELS[:2])
    with pytest.raises(DataError, match="must be finite"):
        SplitScores(("rec_a",), ("x",), np.array([[np.nan]], dtype=np.float32))
    with pytest.raises(NotFoundError, match="No scores"):
        SplitScores.load(tmp_path / "none.parquet")
