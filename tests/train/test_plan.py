import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from tunesmith.errors import DataError, RefusedError
from tunesmith.models.weights import load_model
from tunesmith.train.batches import encode_rows
from tunesmith.train.plan import Estimate, Plan, excess_in_words, make_plan, refuse_over_limits
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy

DEFAULTS = {"max_length": 160, "per_device_train_batch_size": 8, "excess_length_strategy": "truncate"}


@pytest.fixture
def plan(records, prompt, base, model):
    """Plan a run on the tiny model; returns the plan."""

    def make(records=records, prompt=prompt, model=model, history=(), memory_ratios=(), **settings):
        return make_plan(records, prompt, base, model, TrainSection(**(DEFAULTS | settings)), history, memory_ratios)

    return make


@pytest.fixture
def with_long(records):
    return records.with_columns(text=pl.when(pl.col("id") == "rec_1").then(pl.lit("mortgage escrow " * 150)).otherwise(pl.col("text")))


def test_counts_are_those_of_the_rows_and_of_the_loaded_model(plan, records, prompt, base, model):
    made = plan(num_train_epochs=3)
    rows = encode_rows(records, prompt, TrainSection(**DEFAULTS))
    assert (made.records, made.rows, made.steps) == (48, 48, 18)
    assert made.supervised_tokens == rows.supervised_tokens
    assert made.tokens == sum(rows.lengths) + 48 * len(prompt.prefix)
    assert made.shared_prefix_tokens == len(prompt.prefix)
    assert 0 <= made.padding_share < 0.2
    assert made.excess == ()
    loaded = load_strategy(TrainSection(**DEFAULTS)).prepare(load_model(base, model))
    assert made.all_parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert made.trainable_parameters == sum(parameter.numel() for parameter in loaded.parameters() if parameter.requires_grad)
    assert made.trainable_share == made.trainable_parameters / made.all_parameters


def test_one_epoch_is_counted_whatever_the_epochs(plan):
    assert plan(num_train_epochs=3).tokens == plan().tokens
    assert plan(num_train_epochs=3).supervised_tokens == plan().supervised_tokens
    assert plan(max_steps=2).steps == 2
    assert plan(gradient_accumulation_steps=3).steps == 2


def test_the_stop_token_and_the_template_are_checked(plan):
    made = plan()
    assert made.stop_token == "<|im_end|>"
    assert made.stop_token_is_trained
    assert made.pad_equals_stop
    assert made.template_round_trips


def test_answers_without_the_stop_token_are_refused(plan, prompt, monkeypatch):
    monkeypatch.setitem(prompt.__dict__, "answers", ((5,), (6,), (7,)))
    with pytest.raises(DataError, match=r"must end with the stop token <\|im_end\|>"):
        plan()


@pytest.mark.parametrize(("strategy", "rows", "words"), [("truncate", 48, "are cut"), ("drop", 47, "are left out"), ("split", None, "become several rows")])
def test_what_does_not_fit_is_named(plan, with_long, strategy, rows, words):
    made = plan(records=with_long, excess_length_strategy=strategy)
    assert made.excess == ("rec_1",)
    assert made.records == 48
    assert made.rows == rows or (rows is None and made.rows > 48)
    assert excess_in_words(made) == f"1 of 48 records {words}: rec_1"


def test_words_for_none_and_for_many(plan, with_long):
    assert excess_in_words(plan()) == "none: every text fits"
    many = plan().model_copy(update={"excess": tuple(f"rec_{number}" for number in range(40))})
    assert excess_in_words(many) == "40 of 48 records are cut: rec_0, rec_1, rec_2, rec_3, rec_4, ..."


def test_raise_stops_the_plan(plan, with_long):
    with pytest.raises(DataError, match="1 of 48 that do not: rec_1"):
        plan(records=with_long, excess_length_strategy="raise")


@pytest.mark.parametrize("forward", ["fast", "plain"])
@pytest.mark.parametrize("history", [(), (1000.0,)])
def test_estimates_hold_their_expected_value(plan, model, forward, history):
    made = plan(model=model.model_copy(update={"forward": forward}), history=history)
    for estimate in (made.peak_memory_bytes, made.seconds):
        assert 0 < estimate.low <= estimate.expected <= estimate.high
    assert made.disk_bytes > 0


def test_time_follows_the_speed_of_the_newest_run(plan):
    made = plan(history=(5.0, 1000.0), num_train_epochs=2)
    assert made.seconds.expected == pytest.approx(2 * made.tokens / 1000)


def test_memory_follows_what_earlier_runs_made_of_their_plans(plan):
    """Only the run's own memory is scaled: what the process held before it is known."""
    plain, scaled = plan(), plan(memory_ratios=(9.0, 1.2, 1.5, 1.4, 1.3, 1.6))
    assert (plain.memory_scale, scaled.memory_scale) == (1.0, 1.4), "the median of the newest five"
    own = (made.peak_memory_bytes.expected - made.resident_bytes for made in (plain, scaled))
    assert 1 / next(own) * next(own) == pytest.approx(1.4)
    widths = [made.peak_memory_bytes.high - made.peak_memory_bytes.low for made in (plain, scaled)]
    assert widths[1] < widths[0], "own history is closer than the constants"


def test_more_work_costs_more(plan):
    assert plan(history=(1000.0,), num_train_epochs=4).seconds.expected == pytest.approx(4 * plan(history=(1000.0,)).seconds.expected)
    few, many = (plan(per_device_train_batch_size=size, max_steps=1).peak_memory_bytes.expected for size in (2, 48))
    assert few < many
    assert plan(save_total_limit=5).disk_bytes > plan().disk_bytes


def test_a_plan_survives_json(plan):
    made = plan()
    assert Plan.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("key", "message", "lever"),
    [
        ("max_memory_gb", r"train.max_memory_gb = 2. Predicted: up to 3.00 GB of peak memory", "train.per_device_train_batch_size"),
        ("max_hours", r"train.max_hours = 2. Predicted: up to 3.00 hours", "train.num_train_epochs"),
        ("max_disk_gb", r"train.max_disk_gb = 2. Predicted: up to 3.00 GB of disk", "train.save_total_limit"),
    ],
)
def test_a_limit_refuses_by_the_upper_end(plan, tmp_path, key, message, lever):
    costly = plan().model_copy(
        update={
            "peak_memory_bytes": Estimate(low=1e9, expected=1.5e9, high=3e9),
            "seconds": Estimate(low=3600, expected=5400, high=10_800),
            "disk_bytes": 3 * 10**9,
        }
    )
    with pytest.raises(RefusedError, match=message) as error:
        refuse_over_limits(costly, TrainSection(**{key: 2}), tmp_path)
    assert error.value.exit_code == 4
    assert lever in error.value.hint
    refuse_over_limits(costly, TrainSection(**{key: 3}), tmp_path)
    refuse_over_limits(costly, TrainSection(), tmp_path)


def test_a_disk_too_small_refuses(plan, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(RefusedError, match="must fit the disk"):
        refuse_over_limits(plan().model_copy(update={"disk_bytes": 2 * free}), TrainSection(), tmp_path)


def test_disk_is_what_the_run_leaves_at_most(plan, records, prompt, base, model, tmp_path):
    from test_fit import train

    train(tmp_path / "run", records, prompt, base, model, lora_r=16, save_steps=1, save_total_limit=2)
    used = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert used <= plan(lora_r=16, save_total_limit=2).disk_bytes + 500_000, "small text files come on top"


# Each in a process of its own: what earlier tests left in memory would hide the peak. The whole table, longer runs and the settings that the
# constants were fitted on are in benchmarks/memory.py.
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
QUICK = (
    {"strategy": "lora", "length": 180, "batch": 8, "more": [["lora_layers", 8]]},
    {"strategy": "prefix", "length": 120, "batch": 4},
    {"strategy": "full", "length": 120, "batch": 4},
)


@pytest.mark.real_model
@pytest.mark.skipif(torch.cuda.is_available(), reason="predicts the memory of a CPU")
@pytest.mark.parametrize("setting", QUICK, ids=lambda setting: f"{setting['strategy']}-{setting['length']}-{setting['batch']}")
def test_the_planned_peak_of_the_real_model_is_near_the_measured_one(real_base, setting):
    told = json.dumps({"steps": 3, "more": [], **setting})
    done = subprocess.run([sys.executable, BENCHMARK, "--setting", told, "--base", real_base], capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["planned"] == pytest.approx(row["measured"], rel=0.15), row
