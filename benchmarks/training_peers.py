"""The peers of benchmarks/training.py: each trains one job, in a process of its own that stops between rounds.

    tutorial     a loop as most tutorials write it: padded to max_length, float32, logits for every position
    trainer      transformers.Trainer and PEFT with rows padded to the longest of their batch, otherwise at its defaults (float32)
    trl          TRL's SFTTrainer at its defaults: bfloat16 by autocast, gradient checkpointing, batches at random
    trl-best     the same at its fastest settings here: batches of like length, weights in bfloat16, nothing computed twice
    trl-packed   the same, rows packed (bfd) in place of grouped: as many tokens a batch, not as many records
    litgpt       LitGPT's LoRA loop (`litgpt.finetune.lora.fit`) with its own data loader, bfloat16

All read the same job, a JSON file of token ids and settings, so that no tunesmith is needed here and LitGPT may live in an
environment of its own. What is asked of a process and told by it goes line by line through its standard input and output (`Pace`).
Time is that of training alone: loading, waiting and evaluating are not in it. Needs Linux, for the memory.

    python benchmarks/training_peers.py NAME JOB.json
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IGNORED = -100


def tell(**what: Any) -> None:
    """Write one line for the process that measures."""
    print("@" + json.dumps(what), file=sys.__stdout__, flush=True)


def peak_bytes() -> int:
    """Return the largest resident set size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Pace:
    """Lets a training run a round at a time, and keeps its time.

    Attributes:
        job: What is trained.
        loss: Returns the mean loss of the validation rows in nats a supervised token, by the model as it stands; None where another tells it.
        tokens, records: What was read in this round; whoever trains adds to them.
    """

    job: dict[str, Any]
    loss: Callable[[], float] | None
    tokens: int = 0
    records: int = 0
    _seconds: float = 0.0
    _since: float = field(default=0.0)

    def start(self) -> None:
        """Say that all is loaded, and wait for the first round."""
        tell(ready=True)
        self._wait()

    def begin(self, *, seconds_ago: float = 0.0) -> None:
        """Say that the round began just now, or so many seconds ago: what came before is not counted."""
        self._since = time.monotonic() - seconds_ago

    def step(self, number: int) -> None:
        """Come to the end of step `number`, counted from 1."""
        if number % self.job["steps_per_round"] == 0:
            self.stop()
            self.report(self.loss() if self.loss and number in self.job["evaluated"] else None)

    def stop(self) -> None:
        """Stop the clock."""
        self._seconds = time.monotonic() - self._since

    def report(self, loss: float | None) -> None:
        """Tell the round, and wait for the next."""
        tell(seconds=self._seconds, tokens=self.tokens, records=self.records, loss=loss, peak=peak_bytes())
        self.tokens = self.records = 0
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.begin()


def sequences(job: dict[str, Any], split: str) -> list[tuple[list[int], int]]:
    """Return the rows of a split: the token ids of the whole row, and how many of them are asked."""
    return [([*job["prefix"], *prompt, *answer], len(job["prefix"]) + len(prompt)) for prompt, answer in job[split]]


def padded(rows: list[tuple[list[int], int]], width: int, pad: int) -> dict[str, Any]:
    """Return input_ids, attention_mask and labels of rows, padded on the right."""
    import torch

    shape = (len(rows), width)
    input_ids, labels, attention_mask = torch.full(shape, pad), torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
    for at, (ids, asked) in enumerate(rows):
        input_ids[at, : len(ids)] = torch.tensor(ids)
        labels[at, asked : len(ids)] = torch.tensor(ids[asked:])
        attention_mask[at, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def validation_loss(job: dict[str, Any], logits: Callable[[Any, Any], Any]) -> float:
    """Return the mean loss of the validation rows.

    Args:
        job: What is trained.
        logits: Returns the logits at chosen places of a batch: input_ids (n_rows, width) and places (n_rows, width), a mask.
    """
    import torch

    rows = sorted(sequences(job, "validation"), key=lambda row: len(row[0]))
    total = count = 0.0
    with torch.no_grad():
        for at in range(0, len(rows), 8):
            part = rows[at : at + 8]
            batch = padded(part, max(len(ids) for ids, _ in part), job["pad"])
            targets = batch["labels"][:, 1:]
            places = torch.nn.functional.pad(targets != IGNORED, (0, 1))
            found = logits(batch["input_ids"], places).float()
            total += float(torch.nn.functional.cross_entropy(found, targets[targets != IGNORED], reduction="sum"))
            count += len(found)
    return total / count


def of_transformers(job: dict[str, Any], model: Any) -> Callable[[], float]:
    """Return what measures the loss of a transformers model with PEFT's adapters in it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model

    def logits(input_ids: Any, places: Any) -> Any:
        return inner.lm_head(inner.model(input_ids=input_ids, use_cache=False).last_hidden_state[places])

    def loss() -> float:
        model.eval()
        try:
            return validation_loss(job, logits)
        finally:
            model.train()

    return loss


def base_model(job: dict[str, Any], dtype: str, attention: str = "sdpa") -> Any:
    """Load the base model with transformers."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, dtype), attn_implementation=attention)


def lora(job: dict[str, Any]) -> Any:
    """Return PEFT's configuration of the adapters."""
    from peft import LoraConfig

    return LoraConfig(r=job["lora_r"], lora_alpha=job["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM")


def adapted(job: dict[str, Any], model: Any) -> Any:
    """Put PEFT's adapters into a model."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(job["seed"])
    return get_peft_model(model, lora(job))


def arguments(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return what all trainers are told: the job, and that they shall not save, report or take a GPU."""
    return {
        "output_dir": folder,
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch_size"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": job["lr_scheduler_type"],
        "warmup_steps": job["warmup_steps"],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["max_grad_norm"],
        "seed": job["seed"],
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1000,
    }


def train_with(trainer: Any, job: dict[str, Any]) -> None:
    """Run a transformers trainer at the pace of the rounds, counting what its model reads."""
    from transformers import TrainerCallback

    pace = Pace(job, of_transformers(job, trainer.model))

    def count(_: Any, __: Any, batch: dict[str, Any]) -> None:
        if trainer.model.training:
            mask, positions = batch.get("attention_mask"), batch.get("position_ids")
            if mask is not None and mask.dim() == 2:
                pace.tokens += int(mask.sum())
                pace.records += len(mask)
            else:  # packed: every record starts at position 0
                pace.tokens += positions.numel()
                pace.records += int((positions == 0).sum())

    class Rounds(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            pace.step(state.global_step)

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.add_callback(Rounds())
    pace.start()
    trainer.train()


def tutorial(job: dict[str, Any]) -> None:
    """Train as most tutorials do, on the batches that ours takes."""
    import torch
    from transformers import get_scheduler

    model = adapted(job, base_model(job, "float32")).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"], weight_decay=job["weight_decay"])
    scheduler = get_scheduler(job["lr_scheduler_type"], optimizer, job["warmup_steps"], job["steps"])
    rows, pace = sequences(job, "train"), Pace(job, of_transformers(job, model))
    pace.start()
    for number, chosen in enumerate(job["batches"], start=1):
        batch = padded([rows[row] for row in chosen], job["max_length"], job["pad"])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job["max_grad_norm"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        pace.tokens += int(batch["attention_mask"].sum())
        pace.records += len(chosen)
        pace.step(number)


def trainer(job: dict[str, Any]) -> None:
    """Train with transformers.Trainer and PEFT, rows padded to the longest of their batch."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    model = adapted(job, base_model(job, "float32"))
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * asked + ids[asked:]} for ids, asked in sequences(job, "train")]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(**arguments(job, folder))
        train_with(Trainer(model, settings, DataCollatorForSeq2Seq(tokenizer), rows), job)


def trl(job: dict[str, Any], dtype: str = "float32", attention: str = "sdpa", **settings: Any) -> None:
    """Train with TRL's SFTTrainer; rows come tokenised, with the completion marked."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": ids, "completion_mask": [0] * asked + [1] * (len(ids) - asked)} for ids, asked in sequences(job, "train")]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(**arguments(job, folder), max_length=job["max_length"], completion_only_loss=True, **settings)
        model = base_model(job, dtype, attention)
        tokenizer = AutoTokenizer.from_pretrained(job["base"])
        train_with(SFTTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora(job)), job)


BEST: dict[str, Any] = {"dtype": "bfloat16", "bf16": False, "gradient_checkpointing": False}


def trl_best(job: dict[str, Any]) -> None:
    """Train with TRL's SFTTrainer at its fastest settings here."""
    trl(job, **BEST, train_sampling_strategy="group_by_length")


def trl_packed(job: dict[str, Any]) -> None:
    """Train with TRL's SFTTrainer, packed: positions start again with each record, and attention keeps them apart."""
    trl(job, **BEST, packing=True)


def litgpt(job: dict[str, Any]) -> None:
    """Train with the loop of `litgpt finetune_lora`."""
    import lightning
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.finetune import lora as finetune
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
    from litgpt.utils import instantiate_torch_optimizer, load_checkpoint
    from torch.utils.data import DataLoader

    folder = Path(job["folder"]) / "litgpt" / "SmolLM2-135M-Instruct"
    folder.mkdir(parents=True)
    for file in Path(job["base"]).iterdir():
        (folder / file.name).symlink_to(file)
    convert_hf_checkpoint(folder, model_name=folder.name)
    targets = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}
    config = Config.from_file(folder / "model_config.yaml", lora_r=job["lora_r"], lora_alpha=job["lora_alpha"], lora_dropout=0.0, **targets)

    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    fabric.seed_everything(job["seed"])
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer("AdamW", model.parameters(), lr=job["learning_rate"], weight_decay=job["weight_decay"]))
    scheduler = finetune.get_lr_scheduler(optimizer, warmup_steps=job["warmup_steps"], max_steps=job["steps"])
    load_checkpoint(fabric, model, folder / "lit_model.pth", strict=False)

    def loader(split: str, *, shuffle: bool) -> Any:
        rows = [
            {
                "input_ids": torch.tensor(ids),
                "labels": torch.tensor([IGNORED] * asked + ids[asked:]),
                "token_counts": {"raw": len(ids), "raw_plus_prompt_template": len(ids)},
            }
            for ids, asked in sequences(job, split)
        ]
        collate = get_sft_collate_fn(job["max_length"], job["pad"], IGNORED)
        return fabric.setup_dataloaders(DataLoader(rows, batch_size=job["batch_size"], shuffle=shuffle, collate_fn=collate))  # type: ignore[arg-type]

    def loss() -> float:
        model.eval()
        try:
            return validation_loss(job, lambda input_ids, places: model(input_ids)[places])
        finally:
            model.train()

    pace = Pace(job, loss)
    real_step = scheduler.step

    def step() -> None:
        real_step()
        pace.step(scheduler.last_epoch)

    def count(_: Any, given: tuple[Any, ...]) -> None:
        if model.training:
            if scheduler.last_epoch == 0:  # what `fit` tries out before its first step is not training
                pace.begin()
            pace.tokens += int((given[0] != job["pad"]).sum())
            pace.records += len(given[0])

    scheduler.step = step
    model.register_forward_pre_hook(count)
    train = TrainArgs(
        save_interval=None, log_interval=1000, global_batch_size=job["batch_size"], micro_batch_size=job["batch_size"],
        lr_warmup_steps=job["warmup_steps"], epochs=1000, max_steps=job["steps"], max_seq_length=job["max_length"],
    )  # fmt: skip
    validation, training = loader("validation", shuffle=False), loader("train", shuffle=True)
    model.train()
    pace.start()
    finetune.fit(
        fabric=fabric, model=model, optimizer=optimizer, scheduler=scheduler, train_dataloader=training, val_dataloader=validation,
        devices=1, checkpoint_dir=folder, out_dir=folder, train=train, eval=EvalArgs(interval=100_000, max_iters=1), data=None,  # type: ignore[arg-type]
    )  # fmt: skip


PEERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "tutorial": tutorial,
    "trainer": trainer,
    "trl": trl,
    "trl-best": trl_best,
    "trl-packed": trl_packed,
    "litgpt": litgpt,
}


def main() -> None:
    """Train the job as the named peer does."""
    name, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.stdout = sys.stderr  # what libraries print is not for the process that measures
    import torch

    torch.set_num_threads(job["cores"])
    PEERS[name](job)


if __name__ == "__main__":
    main()
