import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import record, records

from tunesmith.data.nearest import nearest

ROWS = records(
    record("The bank closed my savings account", number=1),
    record("A mortgage payment was lost by the bank, the bank, the bank", number=2),
    record("My mortgage servicer lost the payment", split="test", number=3),
    record("Student loan", number=4),
)


def test_it_names_the_train_records_that_share_the_telling_words():
    found = nearest("Who lost my mortgage payment?", ROWS)
    assert found["source_line"].to_list() == [2, 1]
    assert found.columns == [*ROWS.columns, "score"]
    assert found["score"].is_sorted(descending=True)


def test_the_score_is_bm25():
    (score,) = nearest("loan", ROWS)["score"]
    length = 2 / ((6 + 12 + 2) / 3)
    assert score == pytest.approx(math.log(1 + 2.5 / 1.5) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length)))


@given(st.text(max_size=30), st.integers(0, 5))
def test_any_query_gives_at_most_k_rows(query, k):
    found = nearest(query, ROWS, k)
    assert len(found) <= min(k, 3)
    assert (found["score"] > 0).all()


def test_no_train_records():
    assert nearest("bank", ROWS.clear()).is_empty()
    assert nearest("", ROWS).is_empty()
