"""Our side of benchmarks/training.py, and the bound that it is held against.

ours     `tunesmith.train.fit` as `tunesmith train` calls it
bound    the matrix products of our own steps and nothing else: every product of the same passes is recorded with its operands, and
all of a pass are done again one after the other, as many passes side by side as in training. No step that computes
these products can be faster; the difference is what the rest of a step takes.

python benchmarks/training_ours.py NAME JOB.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_peers import Pace

ROOT = Path(__file__).parents[1]


def prepare(overrides: list[str], n_validation: int, base_root: Path = ROOT) -> tuple[Any, ...]:
    """Return configuration, base model, prompt, training rows and validation rows: the complaints of the tests, labels in turn."""
    import polars as pl

    from tunesmith.config import load_config
    from tunesmith.models.catalog import resolve_base
    from tunesmith.models.engine import load_tokenizer
    from tunesmith.models.tokens import Prompt
    from tunesmith.train.batches import encode_rows

    config = load_config(ROOT / "examples" / "complaints" / "tunesmith.yaml", overrides)
    base = resolve_base(config.model, base_root).path
    prompt = Prompt(load_tokenizer(base), config.task, config.train.max_length, config.train.truncate_keep)
    frame = pl.read_csv(ROOT / "tests" / "fixtures" / "complaints.csv").with_row_index("id")
    records = frame.select(id=pl.format("rec_{}", "id"), text="Consumer complaint narrative", label="Product", weight=pl.lit(1.0))
    # Every label equally often in both parts.
    in_turn = records.filter(pl.col("label").is_in(config.task.names)).with_columns(turn=pl.int_range(pl.len()).over("label")).sort("turn", "label")
    validation, training = in_turn.head(n_validation), in_turn.slice(n_validation)
    return config, base, prompt, encode_rows(training, prompt, config.train), validation


def ours(job: dict[str, Any]) -> None:
    """Train through `tunesmith.train.fit`, evaluating as it does."""
    from tunesmith.models.engine import resolve
    from tunesmith.train.fit import LOSSES_FILE, fit
    from tunesmith.train.validation import Validation

    config, base, prompt, rows, validation_records = prepare(job["overrides"], len(job["validation"]))
    model = resolve(config.model, base)
    pace, tokens = Pace(job, None), [len(prompt.prefix) + length for length in rows.lengths]
    section = config.train.model_copy(update={"eval_steps": job["steps_per_round"], "load_best_model_at_end": False})
    with tempfile.TemporaryDirectory() as folder:

        def report(step: int, _: int, figures: dict[str, float]) -> None:
            if "loss" in figures:
                if step == 1:  # what came before the first step of `fit` is loading
                    first = json.loads((Path(folder) / LOSSES_FILE).read_text(encoding="utf-8").splitlines()[0])
                    pace.begin(seconds_ago=first["seconds"])
                pace.tokens += sum(tokens[row] for row in job["batches"][step - 1])
                pace.records += len(job["batches"][step - 1])
                if step % job["steps_per_round"] == 0:
                    pace.stop()
            else:
                pace.report(figures["eval_loss"])

        pace.start()
        fit(rows, prompt.prefix, base, model, section, Path(folder), report, validation=Validation.of(validation_records, prompt, section))


def bound(job: dict[str, Any]) -> None:
    """Do the matrix products of our own steps alone."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from tunesmith.models.engine import Workers, forward_pass, resolve
    from tunesmith.models.weights import load_model
    from tunesmith.train.answer_loss import answer_loss
    from tunesmith.train.learner import rows_batch
    from tunesmith.train.strategies import load_strategy

    kinds = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")}

    class Products(TorchDispatchMode):
        """Records every matrix product, its operands held."""

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[Any, Any, Any]] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if function in kinds:
                self.calls.append((function, args, kwargs or {}))
            return made

    config, base, prompt, rows, _ = prepare(job["overrides"], len(job["validation"]))
    section = resolve(config.model, base)
    model = load_strategy(config.train).prepare(load_model(base, section), prompt.prefix).train()
    forward = forward_pass(model, section)
    workers = Workers(forward)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def recorded(part: list[int]) -> list[tuple[Any, Any, Any]]:
        with Products() as products:
            torch.autograd.grad(answer_loss(forward, rows_batch(rows, part, prompt.prefix)), parameters)
        return products.calls

    def repeated(calls: list[tuple[Any, Any, Any]]) -> None:
        with torch.no_grad():
            for function, args, kwargs in calls:
                function(*args, **kwargs)

    pace, tokens, seconds = Pace(job, None), [len(prompt.prefix) + length for length in rows.lengths], 0.0
    pace.start()
    for number, batch in enumerate(job["batches"], start=1):
        parts = [recorded(batch[worker :: workers.n]) for worker in range(workers.n)]
        started = time.monotonic()
        list(workers.map(repeated, parts))
        seconds += time.monotonic() - started
        del parts
        pace.tokens += sum(tokens[row] for row in batch)
        pace.records += len(batch)
        if number % job["steps_per_round"] == 0:
            pace.begin(seconds_ago=seconds)  # of the round, repeating alone counts
            pace.stop()
            pace.report(None)
            seconds = 0.0


def main() -> None:
    """Train the job, or bound it."""
    name, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.stdout = sys.stderr
    import torch

    torch.set_num_threads(1)  # ours runs a worker a core
    {"ours": ours, "bound": bound}[name](job)
    os._exit(0)


if __name__ == "__main__":
    main()
