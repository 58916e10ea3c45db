"""How many useful tokens a second does a training step read, beside its peers and beside its own matrix products?

The same job for all: LoRA of rank 16 on all linear layers of SmolLM2-135M, complaints cut to 240 tokens, batches of 8, AdamW with
the same learning rates. Sides are `ours`, the peers of `training_peers.py`, and the `bound` of `training_ours.py`: the
matrix products of our own steps alone. One after the other stands beside ours, since all at once take more than 24 GiB: both train in processes of their
own, a round of steps whenever it is their turn, so that both see the same machine. Loading and tokenising are not timed; whatever a side prepares later
(caches, kernels, compilation) is.

Three measures. **Useful tokens a second**: tokens of records, prompts included and padding not; the first round warms up and does not
count. **Records a second to equal validation loss**: equal is what the side that learnt least reached at the end; the time of
all rounds up to there, the first one included, interpolated between evaluations by the records. **Peak memory**: the largest resident set of the process.
`ratio` says how many times better ours is: the median over rounds, its low and high ends the smallest and largest round.

    python benchmarks/training.py [--quick] [--cores N] [--peers NAME ...] [--litgpt-python PATH]    needs Linux

LitGPT pins older libraries than ours: its Python is told (`requirements-training.txt` says how it is made); without it the side is left out,
and the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "training.json"
README = HERE / "README.md"
MARK = ("<!-- training: written by benchmarks/training.py -->", "<!-- /training -->")
MAX_LENGTH, BATCH_SIZE, N_VALIDATION = 240, 8, 32
PEERS = ("tutorial", "trainer", "trl", "trl-best", "litgpt")
NAMES = {
    "tutorial": "tutorial loop: transformers + PEFT, padded to max_length, float32",
    "trainer": "transformers.Trainer + PEFT, padded to the longest of a batch, float32",
    "trl": "TRL SFTTrainer, defaults (bf16 autocast, gradient checkpointing)",
    "trl-best": "TRL SFTTrainer, best settings (bf16 weights, grouped by length, no checkpointing)",
    "trl-packed": "TRL SFTTrainer, best settings, packed (bfd)",
    "litgpt": "LitGPT finetune_lora, bf16",
    "bound": "matrix products of the same steps alone",
}
GOALS = {"tutorial": 6.0, "trl-best": 4.0, "bound": 0.5}


@dataclass
class Round:
    """What a side did in one round: wall time of its steps, what it read, the validation loss after it (or None), peak memory so far."""

    seconds: float
    tokens: int
    records: int
    loss: float | None
    peak: int

    @property
    def speed(self) -> float:
        """Useful tokens a second."""
        return self.tokens / self.seconds


@dataclass
class Side:
    """A process that trains, a round whenever it is asked."""

    name: str
    command: list[str]
    cores: int
    rounds: list[Round] = field(default_factory=list)

    def __enter__(self) -> Self:
        threads = "1" if self.name in ("ours", "bound") else str(self.cores)
        allowed = sorted(os.sched_getaffinity(0))[: self.cores]
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        try:
            self._told()
        except RuntimeError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # of one that has ended already
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("@"):
                told: dict[str, Any] = json.loads(line[1:])
                return told
        self._log.seek(0)
        raise RuntimeError(f"{self.name} ended: {self._log.read()[-1500:]}")

    def round(self) -> Round:
        """Train one round and wait for it."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # then what it says tells why
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        self.rounds.append(Round(**self._told()))
        return self.rounds[-1]


def make_job(folder: Path, cores: int, n_rounds: int, steps_per_round: int) -> dict[str, Any]:
    """Return what all sides train: token ids, batches in our order, settings."""
    from training_ours import prepare

    from tunesmith.train.batches import schedule

    steps = n_rounds * steps_per_round
    overrides = [
        f"train.max_steps={steps}",
        f"train.per_device_train_batch_size={BATCH_SIZE}",
        f"train.max_length={MAX_LENGTH}",
        "train.num_train_epochs=20",
        "train.learning_rate=1e-3",
        "train.lora_layers=null",
        "train.logging_steps=1",
        "train.save_steps=1000000",
        "train.resume_from_checkpoint=never",
    ]
    config, base, prompt, rows, validation = prepare(overrides, N_VALIDATION)
    section = config.train
    pad = 0
    used = {token for prompt_ids, answer in zip(rows.prompts, rows.answers, strict=True) for token in (*prompt_ids, *answer)}
    assert pad not in used, "padding must be told from text by its id"
    asked = zip(prompt.rows(validation["text"].to_list()), prompt.answers_of(validation["label"].to_list()), strict=True)
    return {
        "folder": str(folder),
        "base": str(base),
        "cores": cores,
        "overrides": overrides,
        "prefix": list(prompt.prefix),
        "train": list(zip(rows.prompts, map(list, rows.answers), strict=True)),
        "validation": [(ids, list(answer)) for ids, answer in asked],
        "batches": [step.rows for step in schedule(rows, section)],
        "pad": pad,
        "steps": steps,
        "steps_per_round": steps_per_round,
        # Losses say something once there is something learnt.
        "evaluated": [number * steps_per_round for number in range(max(1, n_rounds // 2), n_rounds + 1)],
        "warmup_steps": max(1, round(section.warmup_ratio * steps)),
        **section.model_dump(include={"max_length", "lora_r", "lora_alpha", "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed"}),
        "batch_size": BATCH_SIZE,
    }


def seconds_to(loss: float, rounds: list[Round]) -> tuple[float, float] | None:
    """Return the records and the seconds that a side took to come down to a validation loss; None when it did not.

    Between two evaluations the loss is taken to fall evenly; before the first one nothing is known, so that a loss reached there counts as reached at it.
    """
    records = seconds = 0.0
    before: tuple[float, float, float] | None = None
    for one in rounds:
        records, seconds = records + one.records, seconds + one.seconds
        if one.loss is None:
            continue
        if one.loss <= loss:
            if before is None:
                return records, seconds
            share = (before[2] - loss) / (before[2] - one.loss)
            return before[0] + share * (records - before[0]), before[1] + share * (seconds - before[1])
        before = (records, seconds, one.loss)
    return None


def last_loss(rounds: list[Round]) -> float:
    """Return the validation loss that a side ended with."""
    return [one.loss for one in rounds if one.loss is not None][-1]


def machine() -> str:
    """Name this machine: processor and cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def compare(pairs_of_rounds: dict[str, tuple[list[Round], list[Round]]], cores: int, versions: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of the results: each measure, ours beside each other side."""
    about = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "versions": versions}
    work = f"LoRA r=16 on SmolLM2-135M, batches of {BATCH_SIZE} x {MAX_LENGTH}, {cores} core{'s' * (cores > 1)}"
    rows = []
    for name, (mine, rounds) in pairs_of_rounds.items():
        pairs = [(a.speed, b.speed) for a, b in zip(mine[1:] or mine, rounds[1:] or rounds, strict=True)]
        ratios = sorted(a / b for a, b in pairs)
        own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        found = [(f"{work}: speed", "useful tokens a second", own, other, (statistics.median(ratios), ratios[0], ratios[-1]))]
        if name != "bound":
            target = max(last_loss(given) for given in (mine, rounds))
            reached = [seconds_to(target, given) for given in (mine, rounds)]
            if reached[0] and reached[1]:
                speeds = [records / seconds for records, seconds in (reached[0], reached[1])]
                told = f"records a second to a validation loss of {target:.3f}; {reached[0][0]:.0f} and {reached[1][0]:.0f} records"
                found.append((f"{work}: to equal loss", told, *speeds, (reached[1][1] / reached[0][1],) * 3))
            peaks = (mine[-1].peak, rounds[-1].peak)
            found.append((f"{work}: peak memory", "bytes", *peaks, (peaks[1] / peaks[0],) * 3))
        for what, unit, a, b, (ratio, low, high) in found:
            goal = GOALS.get(name) if "speed" in what else None
            rows.append(
                {"work": what, "ours": a, "peer": b, "peer_name": NAMES[name], "unit": unit, "ratio": ratio, "ratio_low": low, "ratio_high": high}
                | ({"goal": goal} if goal else {})
                | about
            )
    return rows


def table(pairs: dict[str, tuple[list[Round], list[Round]]], rows: list[dict[str, Any]]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| side | useful tokens a second | ours beside it | ours is | seconds to equal loss: ours is | peak memory, GB; ours | last validation loss; ours |",
        "|---|---:|---:|---|---:|---|---|",
    ]
    for name, (mine, rounds) in pairs.items():
        own = {row["work"].rpartition(": ")[2]: row for row in rows if row["peer_name"] == NAMES[name]}
        speed = own["speed"]
        times = f"{speed['ratio']:.2f} times ({speed['ratio_low']:.2f} to {speed['ratio_high']:.2f})" + (f", goal {speed['goal']:g}" if "goal" in speed else "")
        share = f"{own['to equal loss']['ratio']:.2f} times as fast" if "to equal loss" in own else ""
        memory = loss = ""
        if name != "bound":
            memory, loss = f"{rounds[-1].peak / 1e9:.2f}; {mine[-1].peak / 1e9:.2f}", f"{last_loss(rounds):.3f}; {last_loss(mine):.3f}"
        lines.append(f"| {NAMES[name]} | {speed['peer']:,.0f} | {speed['ours']:,.0f} | {times} | {share} | {memory} | {loss} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short rounds; writes no results")
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1), help="cores that each side has in its turn")
    parser.add_argument("--peers", nargs="*", choices=[name for name in NAMES if name != "bound"], default=list(PEERS), help="peers to measure")
    parser.add_argument("--litgpt-python", help="Python of an environment with LitGPT")
    options = parser.parse_args()
    n_rounds, steps_per_round = (2, 1) if options.quick else (6, 3)

    pythons = {"litgpt": options.litgpt_python} if options.litgpt_python else {}
    chosen = [name for name in options.peers if name != "litgpt" or pythons]
    if len(chosen) < len(options.peers):
        print("litgpt is left out: it pins older libraries than ours. Tell the Python of its own environment with --litgpt-python.")
    started = time.monotonic()
    measured: dict[str, tuple[list[Round], list[Round]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), options.cores, n_rounds, steps_per_round)
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")

        def side(name: str) -> Side:
            script = HERE / ("training_ours.py" if name in ("ours", "bound") else "training_peers.py")
            return Side(name, [pythons.get(name, sys.executable), str(script), name, str(path)], options.cores)

        for name in ("bound", *chosen):
            try:
                with side("ours") as ours, side(name) as other:
                    for number in range(n_rounds):
                        for one in (ours, other):
                            told = one.round()
                            loss = f", validation loss {told.loss:.3f}" if told.loss is not None else ""
                            print(f"round {number}, {one.name}: {told.speed:,.0f} useful tokens a second{loss}{'' if number else ' (warm-up)'}", flush=True)
                    measured[name] = (ours.rounds, other.rounds)
            except RuntimeError as error:
                print(f"{name} is left out: {error}")
    rows = compare(measured, options.cores, {name: version(name) for name in ("tunesmith", "torch", "transformers", "peft", "trl")})
    about = f"{machine()}; {options.cores} in use; batches of {BATCH_SIZE}, at most {MAX_LENGTH} tokens; {datetime.now(UTC).date().isoformat()}."
    text = f"{about}\n\n{table(measured, rows)}"
    print(f"\n{text}\n\n{time.monotonic() - started:,.0f} s in all")
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        page = README.read_text(encoding="utf-8")
        before, after = page.partition(MARK[0])[0], page.partition(MARK[1])[2]
        README.write_text(f"{before}{MARK[0]}\n{text}\n{MARK[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
