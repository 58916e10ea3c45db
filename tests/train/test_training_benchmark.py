"""What benchmarks/training.py makes of the rounds that it measures."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "training.py"
    spec = spec_from_file_location("training_benchmark", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def rounds(benchmark):
    def make(*losses, seconds=10.0, tokens=1000):
        return [benchmark.Round(seconds, tokens, 8, loss, 2_000_000_000) for loss in losses]

    return make


def test_time_to_a_loss_lies_between_the_evaluations_around_it(benchmark, rounds):
    given = rounds(None, 2.0, None, 1.0)
    assert benchmark.seconds_to(1.5, given) == (24.0, 30.0)
    assert benchmark.seconds_to(1.0, given) == (32.0, 40.0)
    assert benchmark.seconds_to(3.0, given) == (16.0, 20.0), "reached before the first evaluation counts as reached at it"
    assert benchmark.seconds_to(0.5, given) is None


def test_ours_is_compared_round_by_round_without_the_first(benchmark, rounds):
    mine = [*rounds(None, tokens=1), *rounds(2.0, 1.0, tokens=4000)]
    peer = [*rounds(None, tokens=9000), *rounds(2.0, 1.2, tokens=1000)]
    rows = benchmark.compare({"tutorial": (mine, peer), "bound": (mine, rounds(None, None, None, tokens=8000))}, 2, {})
    speed, to_loss, memory, bound = rows
    assert (speed["ratio"], speed["ratio_low"], speed["ratio_high"], speed["goal"]) == (4.0, 4.0, 4.0, 6.0)
    assert to_loss["ratio"] == pytest.approx(30.0 / 28.0), "ours came down to 1.2 in 28 of its 30 seconds"
    assert memory["ratio"] == 1.0
    assert (bound["ratio"], bound["goal"]) == (0.5, 0.5)
    table = benchmark.table({"tutorial": (mine, peer)}, rows)
    assert "| 100 | 400 | 4.00 times (4.00 to 4.00), goal 6 |" in table
