"""Parts of the report that no loop of the tiny models would show."""

import numpy as np
import polars as pl

from tunesmith.evaluate.slices import facts_of, slices
from tunesmith.flow.report import with_languages

ENGLISH = "The company told me that my account was wrong and they have not answered the letter of day {}"
GERMAN = "Die Bank hat mir nicht geantwortet und ich habe das Konto mit der Nummer {} von der Filiale"


def records(n_english, n_german, n_untold=0):
    texts = [ENGLISH.format(n) for n in range(n_english)] + [GERMAN.format(n) for n in range(n_german)] + [f"{n} EUR" for n in range(n_untold)]
    return pl.DataFrame({"text": texts, "source": "a.csv", "weight": 1.0})


def test_languages_are_slices_where_there_are_several():
    given = with_languages(records(120, 80, 40))
    assert given["language"].value_counts(sort=True).rows() == [("en", 120), ("de", 80), (None, 40)]
    right = np.array([1.0] * 110 + [0.0] * 10 + [1.0] * 30 + [0.0] * 50 + [1.0] * 40)
    found = {row["name"]: row for row in slices(right, facts_of(given)) if row["kind"] == "given"}
    assert found["language: de"]["is_worse"]
    assert (found["language: de"]["n"], found["language: de"]["value"]) == (80, 0.375)
    assert not found["language: en"]["is_worse"]
    assert "language: None" not in found


def test_a_few_foreign_texts_make_no_slice_of_the_rest():
    for given in (records(200, 0), records(200, 5), records(150, 0, 50)):
        assert "language" not in with_languages(given).columns
