"""How many tokens a second does a training step read on one GPU, beside Unsloth, PEFT and the GPU's own matrix rate?

The same job for all: LoRA of rank 16 on all linear layers of a Llama of 1 or 8 billion parameters (the shapes of Llama 3.2 1B and 3.1 8B,
weights drawn at random), batches of 8 rows of 1,024 tokens, the last 256 of each supervised, bfloat16, AdamW. Each side trains in a
process of its own, one after the other, on the same weights and rows; twice, so that the spread is seen. Loading and the first
steps, which compile, are not timed.

    ours         the learner and optimizer of `tunesmith train`, fast pass
    plain        the same with `model.forward: plain`: transformers and PEFT, logits at supervised positions only
    tutorial     transformers and PEFT as tutorials have it: the loss over all positions
    unsloth      Unsloth's FastLanguageModel
    `+` at a name: layers keep their input alone and compute the rest again (`gradient_checkpointing`; "unsloth" there)

`share` is of the measured rate of an 8192^3 bfloat16 product: operations of the layers' products, forward and backward to the input (4 a
weight and token), and of the head at supervised positions. What recomputing does again is not counted as work.

    python benchmarks/gpu.py [--shape 1b] [--sides ours plain ...] [--unsloth-path FOLDER] [--out FILE]    needs a CUDA device

Unsloth pins older libraries: a folder with it and what it needs is the PYTHONPATH of its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}
N_ROWS, N_COLUMNS, N_SUPERVISED, RANK = 8, 1024, 256, 16
N_WARM, N_TIMED = 4, 10
SIDES = ("ours", "ours+", "plain", "plain+", "tutorial", "unsloth", "unsloth+")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_base(folder: Path, shape: str) -> None:
    """Write a Llama of a shape with random weights, and a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunesmith.testing import tiny_base

    tiny_base(folder)  # its tokenizer
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=shape != "8b", max_position_embeddings=8192, rope_theta=500000.0, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def make_rows(vocabulary: int) -> list[list[int]]:
    """Return rows of token ids that can be learnt: each counts up from a start of its own."""
    return [[(row * 997 + 3 * column) % (vocabulary - 10) + 5 for column in range(N_COLUMNS)] for row in range(N_ROWS * (N_WARM + N_TIMED))]


def ours(folder: Path, rows: list[list[int]], *, forward: str, recomputes: bool) -> tuple[Any, float]:
    """Return what does a step and returns its loss, as `tunesmith train` does it; and the memory that the plan says, in bytes."""
    import torch

    from tunesmith.models.settings import ModelSection
    from tunesmith.models.weights import load_model
    from tunesmith.train.batches import Rows, Step
    from tunesmith.train.learner import Learner
    from tunesmith.train.optimizer import Optimizer
    from tunesmith.train.plan import memory_parts, predicted_memory
    from tunesmith.train.processes import Processes
    from tunesmith.train.settings import TrainSection
    from tunesmith.train.strategies import load_strategy

    cut = N_COLUMNS - N_SUPERVISED
    # The last token of an answer is only ever asked for: one more, so that all read as many.
    data = Rows([str(n) for n in range(len(rows))], [tuple(row[:cut]) for row in rows], [(*row[cut:], 1) for row in rows], [], [1.0] * len(rows))
    model_section = ModelSection(model_name_or_path=str(folder), dtype="bfloat16", forward=forward)
    section = TrainSection(lora_r=RANK, lora_alpha=RANK, max_length=N_COLUMNS + 1, gradient_checkpointing=recomputes, learning_rate=1e-3, warmup_ratio=0)
    steps = [Step(list(range(N_ROWS)), 1.0)]
    planned = predicted_memory(memory_parts(data, steps, (), folder, model_section, section), model_section).expected
    torch.manual_seed(0)
    model = load_strategy(section).prepare(load_model(folder, model_section))
    learner = Learner(model, model_section, section, data, (), Processes().checked(1))
    optimizer = Optimizer(learner.parameters, section, N_WARM + N_TIMED)

    def step(number: int) -> float:
        chosen = list(range(number * N_ROWS, (number + 1) * N_ROWS))
        loss = learner.backward(Step(chosen, float(N_ROWS * (N_SUPERVISED + 1))))
        learner.combine()
        optimizer.step(number)
        return loss

    return step, planned


def loop(model: Any, rows: list[list[int]]) -> Any:
    """Return what does a step of a plain training loop and returns its loss."""
    import torch

    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3, weight_decay=0.0, fused=True)

    def step(number: int) -> float:
        ids = torch.tensor(rows[number * N_ROWS : (number + 1) * N_ROWS], device="cuda")
        labels = ids.clone()
        labels[:, : N_COLUMNS - N_SUPERVISED] = -100
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([each for each in model.parameters() if each.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def tutorial(folder: Path, rows: list[list[int]]) -> Any:
    """Return the step of transformers and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda")
    torch.manual_seed(0)
    return loop(get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES, task_type="CAUSAL_LM")).train(), rows)


def unsloth(folder: Path, rows: list[list[int]], *, recomputes: bool) -> Any:
    """Return the step of Unsloth."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=N_COLUMNS, dtype=None, load_in_4bit=False, local_files_only=True)
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0,
        bias="none",
        target_modules=MODULES,
        use_gradient_checkpointing="unsloth" if recomputes else False,
        random_state=0,
        max_seq_length=N_COLUMNS,
    )
    return loop(FastLanguageModel.for_training(model, use_gradient_checkpointing=recomputes) or model, rows)


def run_side(name: str, folder: Path) -> dict[str, Any]:
    """Train with one side and return what was measured."""
    if name.startswith("unsloth"):
        import unsloth as _  # noqa: F401 - before torch and transformers, which it changes
    import torch

    rows = make_rows(json.loads((folder / "config.json").read_text())["vocab_size"])
    kind, recomputes, planned = name.rstrip("+"), name.endswith("+"), None
    if kind in ("ours", "plain"):
        step, planned = ours(folder, rows, forward="fast" if kind == "ours" else "plain", recomputes=recomputes)
    else:
        step = unsloth(folder, rows, recomputes=recomputes) if kind == "unsloth" else tutorial(folder, rows)
    started = time.monotonic()
    losses = [step(number) for number in range(N_WARM)]
    torch.cuda.synchronize()
    warm = time.monotonic() - started
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    losses += [step(N_WARM + number) for number in range(N_TIMED)]
    torch.cuda.synchronize()
    seconds = time.monotonic() - started
    return {
        "side": name,
        "tokens_per_second": N_TIMED * N_ROWS * N_COLUMNS / seconds,
        "warm_up_seconds": warm,
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "planned_bytes": planned,
        "losses": [round(loss, 4) for loss in losses],
    }


def operations_per_token(shape: str) -> float:
    """Return the operations of a step's products, a token read."""
    s = SHAPES[shape]
    width, inner, n_kv = s["hidden_size"], s["intermediate_size"], s["hidden_size"] // s["num_attention_heads"] * s["num_key_value_heads"]
    layer = width * (2 * width + 2 * n_kv + 3 * inner)
    return 4.0 * (s["num_hidden_layers"] * layer + width * s["vocab_size"] * N_SUPERVISED / N_COLUMNS)


def matrix_rate() -> float:
    """Return the measured operations a second of a bfloat16 product, 8192^3."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.monotonic()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.monotonic() - started)


def main() -> None:
    """Measure each side in a process of its own, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--unsloth-path", help="folder of packages with Unsloth, put in front of the path of its process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print("@" + json.dumps(run_side(options.side, options.folder)), flush=True)
        return

    import torch

    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_base(folder, options.shape)
        rate = matrix_rate()
        torch.cuda.empty_cache()
        print(f"{torch.cuda.get_device_name()}: {rate / 1e12:,.0f} TFLOP/s of bfloat16 products; {options.shape}", flush=True)
        for number in range(options.rounds):
            for side in options.sides:
                own = {"PYTHONPATH": options.unsloth_path} if side.startswith("unsloth") and options.unsloth_path else {}
                environment = os.environ | {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"} | own
                command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                told = [line for line in done.stdout.splitlines() if line.startswith("@")]
                if not told:
                    print(f"{side} is left out: {(done.stderr or done.stdout)[-1200:]}", flush=True)
                    continue
                one = json.loads(told[-1][1:])
                one |= {"shape": options.shape, "round": number, "share_of_rate": one["tokens_per_second"] * operations_per_token(options.shape) / rate}
                found.append(one | {"gpu": torch.cuda.get_device_name(), "matrix_rate": rate, "torch": torch.__version__})
                memory = ", ".join(f"{name} {(one[f'{name}_bytes'] or 0) / 1e9:.2f} GB" for name in ("allocated", "reserved", "planned"))
                speed = f"{one['tokens_per_second']:,.0f} tokens a second, share {one['share_of_rate']:.3f}"
                learnt = f"loss {one['losses'][0]:.3f} -> {one['losses'][-1]:.3f}, first steps {one['warm_up_seconds']:.1f} s"
                print(f"{options.shape} {side}: {speed}, {memory}, {learnt}", flush=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")  # at once: who borrows a GPU may lose it


if __name__ == "__main__":
    main()
