"""How many useful tokens a second does a training step read, beside the way most tutorials write it?

Ours is `tunesmith.train.fit` as `tunesmith train` calls it. The peer is the loop of most tutorials over the same base
model, records, batches, adapters and optimizer: every row padded to max_length, logits and loss for every position with
labels of -100 on the prompt, float32, SDPA, PEFT. A useful token is a token of a record, its prompt included and padding
not; both are given the same number. Loading is not timed.

Both run in turn, each in a process of its own that holds as many cores as the table says; the first round warms up and
does not count. `ratio` is the median over rounds, its low and high ends are the smallest and the largest round. That both
learn the same is checked in the same run: losses after equal steps, exactly (both float32) and as they are timed.

    python benchmarks/training.py [--quick]    needs Linux, for the cores
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "training.json"
MAX_LENGTH = 180
PEER = "tutorial loop: transformers + PEFT, padded to max_length, float32, SDPA"


@dataclass(frozen=True)
class Setup:
    """What is trained: settings of examples/complaints on the 200 complaints of the tests."""

    steps: int
    batch_size: int

    @property
    def overrides(self) -> list[str]:
        """The project's settings, changed as the benchmark needs it."""
        return [
            f"train.max_steps={self.steps}",
            f"train.per_device_train_batch_size={self.batch_size}",
            f"train.max_length={MAX_LENGTH}",
            "train.lora_layers=null",
            "train.logging_steps=1",
            "train.save_steps=1000000",
            "train.resume_from_checkpoint=never",
        ]


@dataclass(frozen=True)
class Round:
    """One training from the start: wall time of its steps, useful tokens, and the loss of each step."""

    seconds: float
    tokens: int
    losses: list[float]

    @property
    def speed(self) -> float:
        """Useful tokens a second."""
        return self.tokens / self.seconds


def prepare(setup: Setup) -> tuple[Any, ...]:
    """Return configuration, base model, prompt and rows, which both sides share."""
    import polars as pl

    from tunesmith.config import load_config
    from tunesmith.models.catalog import resolve_base
    from tunesmith.models.engine import load_tokenizer
    from tunesmith.models.tokens import Prompt
    from tunesmith.train.batches import encode_rows

    config = load_config(ROOT / "examples" / "complaints" / "tunesmith.yaml", setup.overrides)
    base = resolve_base(config.model, ROOT).path
    prompt = Prompt(load_tokenizer(base), config.task, config.train.max_length, config.train.truncate_keep)
    frame = pl.read_csv(ROOT / "tests" / "fixtures" / "complaints.csv").with_row_index("id")
    records = frame.select(id=pl.format("rec_{}", "id"), text="Consumer complaint narrative", label="Product", weight=pl.lit(1.0))
    known = records.filter(pl.col("label").is_in(config.task.names))
    return config, base, prompt, encode_rows(known, prompt, config.train)


def train_ours(setup: Setup, dtype: str) -> Round:
    """Train through `tunesmith.train.fit`."""
    from tunesmith.models.engine import resolve
    from tunesmith.train.fit import LOSSES_FILE, fit

    config, base, prompt, rows = prepare(setup)
    model = resolve(config.model.model_copy(update={"dtype": dtype}), base)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(rows, prompt.prefix, base, model, config.train, Path(folder), lambda *_: None)
        lines = (Path(folder) / LOSSES_FILE).read_text(encoding="utf-8").splitlines()
    return Round(fitted.seconds, fitted.tokens, [json.loads(line)["loss"] for line in lines])


def train_peer(setup: Setup, dtype: str) -> Round:
    """Train as most tutorials do."""
    import torch
    from transformers import AutoModelForCausalLM, get_scheduler
    from transformers.utils import logging

    from tunesmith.train.batches import schedule
    from tunesmith.train.strategies import load_strategy

    logging.disable_progress_bar()
    config, base, prompt, rows = prepare(setup)
    section = config.train
    steps = schedule(rows, section)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model = load_strategy(section).prepare(model).train()  # PEFT's LoRA, drawn from the same seed
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=section.learning_rate, weight_decay=section.weight_decay)
    scheduler = get_scheduler(section.lr_scheduler_type, optimizer, math.ceil(section.warmup_ratio * len(steps)), len(steps))

    def collate(chosen: list[int]) -> dict[str, torch.Tensor]:
        shape = (len(chosen), section.max_length)
        input_ids, labels = torch.full(shape, prompt.tokenizer.pad_token_id), torch.full(shape, -100)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for at, row in enumerate(chosen):
            asked, answer = [*prompt.prefix, *rows.prompts[row]], rows.answers[row]
            end = len(asked) + len(answer)
            input_ids[at, :end] = torch.tensor([*asked, *answer])
            labels[at, len(asked) : end] = torch.tensor(answer)
            attention_mask[at, :end] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    losses, started = [], time.monotonic()
    for step in steps:
        loss = model(**collate(step.rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, section.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.monotonic() - started
    tokens = sum(len(prompt.prefix) + rows.lengths[row] for step in steps for row in step.rows)
    return Round(seconds, tokens, losses)


SIDES: dict[str, Callable[[Setup, str], Round]] = {"ours": train_ours, "peer": train_peer}


def _serve(side: str, cores: int, connection: Connection) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # ours runs a worker a core
    import torch

    torch.set_num_threads(cores if side == "peer" else 1)
    while True:
        try:
            setup, dtype = connection.recv()
        except EOFError:
            return
        connection.send(SIDES[side](setup, dtype))


class Side:
    """A process that trains one side on a number of cores, a round whenever it is asked."""

    def __init__(self, name: str, cores: int) -> None:
        processes = multiprocessing.get_context("spawn")
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(name, cores, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def train(self, setup: Setup, dtype: str) -> Round:
        """Train one round and wait for it."""
        self._connection.send((setup, dtype))
        trained: Round = self._connection.recv()
        return trained

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def alternate(setup: Setup, cores: int, n_rounds: int) -> list[tuple[Round, Round]]:
    """Train both in turn, ours as `auto` chooses on this processor; the first round is left out."""
    rounds = []
    with closing(Side("ours", cores)) as ours, closing(Side("peer", cores)) as peer:
        for number in range(n_rounds + 1):
            rounds.append((ours.train(setup, "auto"), peer.train(setup, "float32")))
            ours_speed, peer_speed = (trained.speed for trained in rounds[-1])
            print(f"{_on(cores)}, round {number}: {ours_speed:,.0f} and {peer_speed:,.0f}{'' if number else ' (warm-up)'}", flush=True)
    return rounds[1:]


def _on(cores: int) -> str:
    return f"{cores} core{'s' * (cores > 1)}"


def machine() -> str:
    """Name this machine: processor and cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def result(work: str, unit: str, ours: float, peer: float, ratios: list[float]) -> dict[str, Any]:
    """Return one row of the results."""
    return {
        "work": work,
        "ours": ours,
        "peer": peer,
        "peer_name": PEER,
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("tunesmith", "torch", "transformers", "peft")},
    }


def measure_speed(setup: Setup, cores: int, n_rounds: int) -> dict[str, Any]:
    """Measure useful tokens a second on a number of cores."""
    rounds = alternate(setup, cores, n_rounds)
    ours, peer = ([pair[side].speed for pair in rounds] for side in (0, 1))
    work = f"LoRA r=16 on SmolLM2-135M, batches of {setup.batch_size} x {MAX_LENGTH}, {_on(cores)}"
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return result(work, "useful tokens a second", statistics.median(ours), statistics.median(peer), ratios)


def compare_losses(setup: Setup, cores: int) -> list[dict[str, Any]]:
    """Train both equally long on the same batches and compare the losses: ours as it is timed, and in float32 as the peer."""
    with closing(Side("ours", cores)) as ours, closing(Side("peer", cores)) as peer:
        expected = peer.train(setup, "float32").losses
        own = {"as timed": ours.train(setup, "auto").losses, "both float32": ours.train(setup, "float32").losses}
    rows = []
    for what, losses in own.items():
        furthest = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        print(f"loss, {what}: largest difference of {setup.steps} steps {furthest:.4f}; last step {losses[-1]:.4f}, peer {expected[-1]:.4f}", flush=True)
        # One batch's loss is noise where the precision differs; the mean of the second half is what was learnt.
        last, last_expected = (statistics.mean(found[len(found) // 2 :]) for found in (losses, expected))
        rows.append(
            result(f"mean loss of the last half of {setup.steps} steps, {what}", "nats a supervised token", last, last_expected, [last_expected / last])
        )
    return rows


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a cut that takes under two minutes; writes no results")
    if parser.parse_args().quick:
        small = Setup(steps=2, batch_size=4)
        rows = [measure_speed(small, 1, 1), *compare_losses(small, 1)]
    else:
        rows = [measure_speed(Setup(steps=2, batch_size=8), cores, 5) for cores in (1, 2)] + compare_losses(Setup(steps=8, batch_size=8), 2)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"\n{'work':<72} {'ours':>8} {'peer':>8}  {'ratio':<22}  unit")
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        print(f"{row['work']:<72} {row['ours']:>8.4g} {row['peer']:>8.4g}  {spread:<22}  {row['unit']}")
    print(f"peer: {PEER}")


if __name__ == "__main__":
    main()
