import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.errors import DataError
from tunesmith.train.batches import Rows, encode_rows, schedule
from tunesmith.train.settings import TrainSection


def section(**kwargs):
    return TrainSection(**({"max_length": 160} | kwargs))


@pytest.fixture(scope="module")
def with_long(records):
    """The records, of which rec_1 and rec_3 do not fit."""
    long = pl.when(pl.col("id").is_in(["rec_1", "rec_3"])).then(pl.lit("mortgage escrow " * 150)).otherwise(pl.col("text"))
    return records.head(6).with_columns(text=long)


def text_of(prompt, row):
    return row[: len(row) - len(prompt.suffix)]


def test_a_row_is_text_suffix_answer_and_stop_token(records, prompt):
    rows = encode_rows(records, prompt, section())
    answers = dict(zip(prompt.task.names, prompt.answers, strict=True))
    assert rows.record_ids == records["id"].to_list()
    assert rows.prompts == [ids + prompt.suffix for ids in prompt.encode(records["text"].to_list())]
    assert rows.answers == [answers[label] for label in records["label"]]
    assert {answer[-1] for answer in rows.answers} == {prompt.tokenizer.eos_token_id}
    assert rows.supervised_tokens == sum(map(len, rows.answers))
    assert rows.lengths == [len(row) + len(answer) for row, answer in zip(rows.prompts, rows.answers, strict=True)]
    assert rows.excess == []


def test_raise_names_the_records(with_long, prompt):
    with pytest.raises(DataError, match=r"Received 2 of 6 that do not: rec_1, rec_3\.") as error:
        encode_rows(with_long, prompt, section(excess_length_strategy="raise"))
    assert "truncate, split or drop" in error.value.hint


def test_drop_leaves_them_out_and_names_them(with_long, prompt):
    rows = encode_rows(with_long, prompt, section(excess_length_strategy="drop"))
    assert rows.record_ids == ["rec_0", "rec_2", "rec_4", "rec_5"]
    assert rows.excess == ["rec_1", "rec_3"]


def test_truncate_cuts_them_and_names_them(with_long, prompt):
    rows = encode_rows(with_long, prompt, section(excess_length_strategy="truncate"))
    assert rows.record_ids == with_long["id"].to_list()
    assert rows.excess == ["rec_1", "rec_3"]
    assert text_of(prompt, rows.prompts[1]) == prompt.cut(prompt.encode([with_long["text"][1]])[0])
    assert max(rows.lengths) + len(prompt.prefix) <= prompt.max_length


def test_split_makes_several_rows_of_one_record(with_long, prompt):
    rows = encode_rows(with_long, prompt, section(excess_length_strategy="split"))
    pieces = [text_of(prompt, row) for row, record in zip(rows.prompts, rows.record_ids, strict=True) if record == "rec_1"]
    assert len(pieces) > 1
    assert [token for piece in pieces for token in piece] == prompt.encode([with_long["text"][1]])[0]
    assert rows.excess == ["rec_1", "rec_3"]
    assert max(rows.lengths) + len(prompt.prefix) <= prompt.max_length


def test_nothing_left_to_train_on(with_long, prompt):
    long_only = with_long.filter(pl.col("id").is_in(["rec_1", "rec_3"]))
    for nothing in (long_only, with_long.clear()):
        with pytest.raises(DataError, match=r"at least one record that fits. Received none"):
            encode_rows(nothing, prompt, section(excess_length_strategy="drop"))


@pytest.mark.parametrize(("key", "value"), [("excess_length_strategy", "shorten"), ("strategy", "magic"), ("truncate_keep", "middle")])
def test_unknown_strategies_do_not_pass_the_settings(key, value):
    with pytest.raises(ValidationError, match=r"Input should be|must be one of full, lora"):
        section(**{key: value})


def some_rows(n, answer_lengths=(2,)):
    answers = [tuple(range(answer_lengths[row % len(answer_lengths)])) for row in range(n)]
    return Rows([f"rec_{row}" for row in range(n)], [[1] * (1 + row % 7) for row in range(n)], answers, [], [1.0] * n)


plans = st.fixed_dictionaries(
    {
        "per_device_train_batch_size": st.integers(1, 8),
        "gradient_accumulation_steps": st.integers(1, 5),
        "num_train_epochs": st.integers(1, 3),
        "group_by_length": st.booleans(),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=200)
@given(n=st.integers(1, 60), plan=plans)
def test_every_row_is_read_once_an_epoch(n, plan):
    rows, settled = some_rows(n, (2, 3, 5)), section(**plan)
    steps = schedule(rows, settled)
    epochs, accumulate = settled.num_train_epochs, settled.gradient_accumulation_steps
    assert sorted(row for step in steps for row in step.rows) == sorted(list(range(n)) * epochs)
    assert len(steps) % accumulate == 0
    assert steps == schedule(rows, settled), "the seed decides"
    seen = [row for step in steps for row in step.rows]
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n)), "no step spans two epochs"
    for at in range(0, len(steps), accumulate):
        group = steps[at : at + accumulate]
        total = sum(len(rows.answers[row]) for step in group for row in step.rows)
        assert {step.supervised_weight for step in group} == {total}
        assert total > 0


def test_a_step_knows_the_weight_of_all_its_passes():
    rows = some_rows(4, (2, 3))
    rows.weights[:] = [0.5, 1.0, 0.25, 1.0]
    steps = schedule(rows, section(per_device_train_batch_size=2, gradient_accumulation_steps=2))
    assert [step.supervised_weight for step in steps] == [2 * 0.5 + 3 + 2 * 0.25 + 3] * 2


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(**kwargs):
        return [step.rows for step in schedule(some_rows(40), section(per_device_train_batch_size=8, **kwargs))]

    two = order(num_train_epochs=2)
    assert two[:5] == order()
    assert two[5:] != two[:5]
    assert order(seed=1) != order()


def test_max_steps_counts_optimizer_steps():
    settled = section(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3)
    assert len(schedule(some_rows(40), settled)) == 6
    assert len(schedule(some_rows(8), settled)) == 2, "never more than the epochs hold"


def test_accumulation_reads_the_same_groups_as_the_full_batch():
    def groups(**kwargs):
        accumulate = kwargs["gradient_accumulation_steps"]
        steps = schedule(some_rows(21), section(group_by_length=False, **kwargs))
        return [sorted(row for step in steps[at : at + accumulate] for row in step.rows) for at in range(0, len(steps), accumulate)]

    assert groups(per_device_train_batch_size=8, gradient_accumulation_steps=1) == groups(per_device_train_batch_size=2, gradient_accumulation_steps=4)
