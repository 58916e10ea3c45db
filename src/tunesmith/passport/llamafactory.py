"""Reads files of LLaMA-Factory's `llamafactory-cli train FILE`.

Names and defaults: LLaMA-Factory 0.9.5, src/llamafactory/hparams/data_args.py, finetuning_args.py, model_args.py and
training_args.py, over transformers' Seq2SeqTrainingArguments. `dataset` names entries of `dataset_info.json` in
`dataset_dir`; where that file is beside the project, paths and columns come from it (src/llamafactory/data/parser.py). What
surprises people who change over: rows beyond `cutoff_len` 2048 are cut in silence, answers in proportion; `lora_alpha` is twice
the rank when it is left out; nothing is held out unless `val_size` says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.passport import hugging_face as hf
from tunesmith.passport.evaluations import by_strategy, tell_evaluations
from tunesmith.passport.sheet import HOLDS, Peer, Rule, Sheet, boolean, is_on, names, number, whole

_INFO_FILE = "dataset_info.json"
_MOST_INFO_BYTES = 4 * 2**20
_OTHER_STAGES = "Supervised tuning is what this file becomes; raw text is learnt in train.stages, and tunesmith prefer tunes on pairs afterwards."


def _look(sheet: Sheet) -> None:
    stage = sheet.take("stage")
    if stage is not None:
        sheet.tell("stage", "kept" if stage == "sft" else "not_supported", "" if stage == "sft" else _OTHER_STAGES)
    _tell_strategy(sheet)
    _tell_packing(sheet)
    hf.tell_attention(sheet, "flash_attn", _attention)
    _tell_data(sheet)
    tell_evaluations(sheet, *by_strategy(sheet, 500))
    hf.tell_revision(sheet, "model_revision")
    hf.tell_optimizer(sheet, "optim")
    hf.tell_scheduler(sheet, "lr_scheduler_type", "linear")
    hf.tell_warmup(sheet, 0.0, "No warm-up there.")
    pure = sheet.take("pure_bf16")
    if is_on(pure):
        sheet.write("pure_bf16", "model.dtype", "bfloat16", "What is trained stays in 32 bits here.")
        for key in ("bf16", "fp16"):
            if sheet.take(key) is not None:
                sheet.tell(key, "kept", "pure_bf16 holds.", changes_results=False)
    else:
        if pure is not None:
            sheet.tell("pure_bf16", "kept", HOLDS, changes_results=False)
        hf.tell_precision(sheet, bf16=False)
    note = "Rows beyond cutoff_len are cut in silence there, question and answer in proportion; here only the text is cut and tunesmith plan names the rows."
    sheet.write("cutoff_len: longer rows", "train.excess_length_strategy", "truncate", note, given="cut", default=True)


def _tell_strategy(sheet: Sheet) -> None:
    kind, bits = sheet.take("finetuning_type"), sheet.take("quantization_bit")
    name = str(kind or "lora")
    strategy = "qlora" if name == "lora" and bits in (4, "4") else name
    if strategy in ("lora", "qlora", "full"):
        sheet.write("finetuning_type", "train.strategy", strategy, "With quantization_bit." if strategy == "qlora" else "", given=name, default=kind is None)
    else:
        sheet.tell("finetuning_type", "not_supported", "Here train.strategy is full, lora, qlora or prefix; train.lora_layers adapts the last layers only.")
    if bits is not None:
        if strategy == "qlora":
            sheet.tell("quantization_bit", "renamed", "NF4 with double quantisation.", ours="train.strategy", written="qlora")
        else:
            sheet.tell("quantization_bit", "not_supported", "4 bits are what there is: train.strategy: qlora.")
    adapted = strategy != "full"
    sheet.carry("lora_rank", "train.lora_r", whole, default=8 if adapted else None)
    twice = 2 * sheet.draft.get("train.lora_r", 8)
    note = "" if sheet.has("lora_alpha") else "Twice the rank when it is left out."
    sheet.carry("lora_alpha", "train.lora_alpha", number, note, default=twice if adapted else None)
    if is_on(sheet.take("pissa_init")):
        sheet.write("pissa_init", "train.init_lora_weights", "pissa")
    elif "pissa_init" in sheet.values:
        sheet.tell("pissa_init", "kept", HOLDS, changes_results=False)


def _tell_packing(sheet: Sheet) -> None:
    """Say what becomes of packs: without neat_packing, which switches packing on, their records see each other there."""
    neat = sheet.take("neat_packing")
    hf.tell_packing(sheet, "packing", "" if is_on(neat) else "There a record sees those before it in its pack.")
    if is_on(neat) and not is_on(sheet.values.get("packing")):
        hf.tell_packing(sheet, "neat_packing")
    elif neat is not None:
        sheet.tell("neat_packing", "kept", "No record of a pack sees another here.", changes_results=False)


def _tell_data(sheet: Sheet) -> None:
    folder = str(sheet.take("dataset_dir") or "data")
    info = _dataset_info(sheet, folder)
    if "dataset_dir" in sheet.values:
        sheet.tell("dataset_dir", "kept", "Part of the paths of data.sources.", changes_results=False)
    for key, held_out in (("dataset", False), ("eval_dataset", True)):
        value = sheet.take(key)
        if value is None:
            continue
        try:
            found = names(value)
        except ValueError as error:
            sheet.tell(key, "not_supported", str(error))
            continue
        for name in found:
            _tell_dataset(sheet, key, name, info.get(name), folder, held_out)
    hf.tell_held_out(sheet, "val_size")
    sheet.carry("max_samples", "data.max_records", lambda most: {"train": whole(most)}, "Of all files together here, chosen by a hash; there of each.")
    history = sheet.take("mask_history")
    if history is None:
        sheet.tell("mask_history", "defaulted", "Conversations teach every answer there; here the last one, with the question before it.", value=False)
    else:
        sheet.tell("mask_history", "kept" if is_on(history) else "not_supported", "Conversations teach their last answer here.")


def _tell_dataset(sheet: Sheet, key: str, name: str, entry: Any, folder: str, held_out: bool) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        hf.add_source(sheet, key, name, held_out=held_out)
        return
    columns = entry["columns"] if isinstance(entry.get("columns"), dict) else {}
    named = {}
    if entry.get("formatting", "alpaca") == "alpaca":
        question, answer = columns.get("prompt", "instruction"), columns.get("response", "output")
        if (question, answer) != ("instruction", "output"):
            named = {"text_column": question, "label_column": answer}
    elif columns.get("messages", "conversations") not in ("messages", "conversations"):
        sheet.tell(f"{key}: {name}", "not_supported", f"Rename its column {columns['messages']!r} to messages.", value=entry)
    hf.add_source(sheet, key, f"{folder.rstrip('/')}/{entry['file_name']}", held_out=held_out, **named)
    if named:
        sheet.tell(f"{key}: {name}", "renamed", "From dataset_info.json.", ours="data.sources[].text_column", written=named, value=columns)


def _dataset_info(sheet: Sheet, folder: str) -> dict[str, Any]:
    """Return dataset_info.json, from the folder it is read from there or the one beside the file; nothing where it is not to be had."""
    for path in (Path(folder) / _INFO_FILE, Path(sheet.folder) / folder / _INFO_FILE, Path(sheet.folder) / _INFO_FILE):
        if path.is_file() and path.stat().st_size <= _MOST_INFO_BYTES:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return {}


def _attention(value: Any) -> str:
    """Return transformers' name of an attention."""
    known = {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}
    if str(value) not in known:
        raise ValueError(f"Must be one of {', '.join(known)} here.")
    return known[str(value)]


def _not(value: Any) -> bool:
    return not boolean(value)


def _rules() -> dict[str, Rule]:
    return hf.common_rules(learning_rate=5e-5) | {
        "model_name_or_path": Rule("model.model_name_or_path", str),
        "cutoff_len": Rule("train.max_length", whole, default=2048, note="Longer rows are cut in silence there."),
        "default_system": Rule("task.instruction", str, note="What the model is told in every prompt."),
        "lora_target": Rule("train.lora_target_modules", hf.targets, default="all"),
        "lora_dropout": Rule("train.lora_dropout", number),
        "enable_liger_kernel": hf.LIGER,
        "use_liger_kernel": hf.LIGER,
        "use_dora": Rule("train.use_dora", boolean),
        "use_rslora": Rule("train.use_rslora", boolean),
        "loraplus_lr_ratio": Rule("train.loraplus_lr_ratio", number),
        "template": hf.off("The base model's own chat template is used.", "tunesmith plan says whether it round-trips."),
        "train_on_prompt": hf.off("The loss is taken at the answer and its stop token only.", "Nothing to set."),
        "ignore_pad_token_for_loss": hf.off("Padding is never learnt.", "Nothing to set.", True),
        "mix_strategy": hf.off("Files are put one after the other.", "data.max_records limits rows.", "concat"),
        "interleave_probs": hf.off("Files are put one after the other.", "data.max_records limits rows."),
        "adapter_name_or_path": hf.off("A run starts from the base model.", "tunesmith renew goes on with new records."),
        "additional_target": hf.off("Adapters are inside the decoder layers only.", "train.strategy: full trains every weight."),
        "loraplus_lr_embedding": hf.off("Embeddings have no adapters.", "Nothing to set.", 1e-6, "1e-6"),
        "pissa_iter": hf.off("PiSSA is computed exactly.", "Nothing to set.", 16, -1, changes_results=False),
        "pissa_convert": hf.off("Adapters are kept as they are trained.", "Nothing to set.", changes_results=False),
        "create_new_adapter": hf.off("Every run has adapters of its own.", "Nothing to set.", True, changes_results=False),
        "quantization_method": hf.off("4 bits are NF4 of bitsandbytes.", "Nothing to set.", "bnb", "bitsandbytes"),
        "quantization_type": hf.off("4 bits are NF4 here.", "Nothing to set.", "nf4"),
        "double_quantization": hf.off("Double quantisation is always on.", "Nothing to set.", True),
        "disable_shuffling": hf.off("Batches come in a random order by train.seed.", "Nothing to set."),
        "trust_remote_code": hf.off("No code that comes with a model is run.", "Choose a model that transformers knows."),
        "compute_accuracy": hf.off("tunesmith evaluate tells accuracy with an interval.", "Nothing to set.", True, changes_results=False),
        "enable_thinking": hf.off("Answers are labels, written at once.", "Nothing to set.", changes_results=False),
        "use_v1_kernels": hf.off("Changes speed only.", "Nothing to set.", changes_results=False),
        "disable_gradient_checkpointing": Rule("train.gradient_checkpointing", _not, note=hf.RECOMPUTES, changes_results=False),
    }


_OPTIMIZERS = hf.off("AdamW is the only optimizer here.", "Another learning rate fits it: search it with tunesmith sweep.")
_CACHES = hf.off("Prepared data is kept in datasets/.", "Nothing to set.", changes_results=False)
_FREEZE = hf.off("Freezing weights is not a strategy here.", "train.lora_layers adapts the last layers only.")

LLAMA_FACTORY = Peer(
    name="llamafactory",
    title="LLaMA-Factory 0.9.5",
    rules=_rules(),
    groups=(
        (r"(use_)?(galore|apollo|badam|muon|adam_mini).*", _OPTIMIZERS),
        (r"freeze_(trainable|extra|language).*|use_llama_pro|oft_.*|module_dropout", _FREEZE),
        (r"overwrite_cache|tokenized_path|data_shared_file_system|use_fast_tokenizer|print_param_status|offload_folder|use_reentrant_gc", _CACHES),
        *hf.COMMON_GROUPS,
    ),
    look=_look,
    unknown="refuses such a key",
)
