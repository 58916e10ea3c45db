"""Reads files of TRL's `trl sft --config FILE`.

Names and defaults: TRL 1.16.0, trl/trainer/sft_config.py, trl/trainer/base_config.py, trl/trainer/model_config.py and
trl/scripts/utils.py (ScriptArguments, DatasetMixtureConfig), over transformers' TrainingArguments. What surprises people
who change over: without `use_peft` every weight is trained; rows longer than 1024 tokens are cut in silence; without
`assistant_only_loss` conversations teach the questions too; without `lora_target_modules` PEFT adapts q_proj and v_proj only
(peft/utils/constants.py: Llama, Mistral, Qwen, Gemma).
"""

from __future__ import annotations

from typing import Any

from tunesmith.passport import hugging_face as hf
from tunesmith.passport.evaluations import by_strategy, tell_evaluations
from tunesmith.passport.sheet import HOLDS, Peer, Rule, Sheet, boolean, is_on, number, whole


def _look(sheet: Sheet) -> None:
    _tell_strategy(sheet)
    hf.tell_packing(sheet, "packing")
    hf.tell_attention(sheet, "attn_implementation", str)
    _tell_data(sheet)
    tell_evaluations(sheet, *by_strategy(sheet, 10))
    _tell_length(sheet)
    _tell_loss(sheet)
    hf.tell_revision(sheet, "model_revision")
    hf.tell_optimizer(sheet, "optim")
    hf.tell_scheduler(sheet, "lr_scheduler_type", "linear")
    hf.tell_warmup(sheet, 0.0, "No warm-up there.")
    dtype = sheet.take("dtype") or sheet.take("torch_dtype")
    if dtype is not None:
        sheet.tell("dtype" if sheet.has("dtype") else "torch_dtype", "kept", "How weights are loaded there; model.dtype follows bf16.", changes_results=False)
    hf.tell_precision(sheet, bf16=not is_on(sheet.values.get("fp16")))


def _tell_strategy(sheet: Sheet) -> None:
    peft, four = sheet.take("use_peft"), is_on(sheet.values.get("load_in_4bit"))
    strategy = "qlora" if is_on(peft) and four else "lora" if is_on(peft) else "full"
    note = {"full": "Every weight is trained without use_peft.", "lora": "", "qlora": "With load_in_4bit."}[strategy]
    sheet.write("use_peft", "train.strategy", strategy, note, given=bool(is_on(peft)), default=peft is None)
    sheet.take("load_in_4bit")
    if sheet.values.get("load_in_4bit") is not None:
        sheet.tell("load_in_4bit", "renamed" if strategy == "qlora" else "kept", "Part of the strategy.", ours="train.strategy", written=strategy)
    adapted = strategy != "full"
    sheet.carry("lora_r", "train.lora_r", whole, default=16 if adapted else None)
    sheet.carry("lora_alpha", "train.lora_alpha", number, default=32 if adapted else None)
    sheet.carry("lora_dropout", "train.lora_dropout", number, default=0.05 if adapted else None)
    note = "" if sheet.has("lora_target_modules") else "PEFT's choice for Llama, Mistral, Qwen and Gemma; other models differ."
    sheet.carry("lora_target_modules", "train.lora_target_modules", hf.targets, note, default=["q_proj", "v_proj"] if adapted else None)
    nested = sheet.take("use_bnb_nested_quant")
    if strategy == "qlora" and not is_on(nested):
        note = "There the 4-bit scales are not quantised once more; here they are: a little less memory, nearly the same weights."
        sheet.tell("use_bnb_nested_quant", "defaulted" if nested is None else "not_supported", note, value=False)
    elif nested is not None:
        sheet.tell("use_bnb_nested_quant", "kept", HOLDS, changes_results=False)


def _tell_data(sheet: Sheet) -> None:
    name = sheet.take("dataset_name")
    mixture = sheet.take("datasets")
    if isinstance(mixture, list) and mixture:
        if name is not None:
            sheet.tell("dataset_name", "kept", "TRL lets datasets win; nothing is written.", changes_results=False)
        for position, entry in enumerate(mixture):
            _tell_dataset(sheet, f"datasets[{position}]", entry)
    elif name is not None:
        hf.add_source(sheet, "dataset_name", name)
    field = sheet.take("dataset_text_field")
    if field is not None:
        note = "Plain text has no answer; name the columns by text_column and label_column of data.sources."
        if sheet.sources and field != "text":
            sheet.sources[0][0]["text_column"] = field
        sheet.tell("dataset_text_field", "renamed", note, ours="data.sources[].text_column", written=field)
    for key, usual in (("dataset_train_split", "train"), ("dataset_test_split", "test")):
        value = sheet.take(key)
        if value is not None:
            same = value == usual
            note = "Nothing is written." if same else "A file has no splits of its own; save that split as a file."
            sheet.tell(key, "kept" if same else "not_supported", note, changes_results=not same)
    hf.tell_held_out(sheet, "test_split_size")


def _tell_dataset(sheet: Sheet, at: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        sheet.tell(at, "not_supported", "Must be a mapping with a path.", value=entry)
        return
    files = entry.get("data_files")
    listed = list(files.values()) if isinstance(files, dict) else files if isinstance(files, list) else [files] if files else []
    for path in listed or [entry.get("path")]:
        hf.add_source(sheet, f"{at}.{'data_files' if listed else 'path'}", path)
    for key, value in entry.items():
        if key == "path" and listed:
            sheet.tell(f"{at}.path", "kept", "The format is told from each file's suffix.", value=value, changes_results=False)
        elif key in ("path", "data_files"):
            continue
        elif value is None or (key == "split" and value == "train"):
            sheet.tell(f"{at}.{key}", "kept", "Nothing is written.", value=value, changes_results=False)
        elif key in ("name", "data_dir", "split", "columns", "fraction"):
            sheet.tell(f"{at}.{key}", "not_supported", "Save what it chooses as a file of its own; data.max_records limits rows.", value=value)
        else:
            sheet.tell(f"{at}.{key}", "not_supported", f"Not a key of a dataset in {sheet.peer.title}.", value=value)


def _tell_length(sheet: Sheet) -> None:
    note = "Longer rows are cut in silence there; here tunesmith plan names them."
    if "max_length" in sheet.values and not sheet.has("max_length"):
        sheet.take("max_length")
        sheet.tell("max_length", "not_supported", "No limit there; here train.max_length is one, and longer rows stop the run (excess_length_strategy: raise).")
        return
    older = sheet.has("max_seq_length") and not sheet.has("max_length")
    sheet.carry("max_seq_length" if older else "max_length", "train.max_length", whole, note, default=1024)
    mode = sheet.take("truncation_mode")
    if mode == "keep_end":
        sheet.tell(
            "truncation_mode", "not_supported", "Here a cut keeps the text's start, or both ends: train.truncate_keep: ends.", ours="train.truncate_keep"
        )
        sheet.draft["train.excess_length_strategy"] = "truncate"
    else:
        note = "Cut in silence, answer and stop token first; here only the text is cut. Write raise, drop or split for another way."
        sheet.write("truncation_mode", "train.excess_length_strategy", "truncate", note, given=mode or "keep_start", default=mode is None)


def _tell_loss(sheet: Sheet) -> None:
    conversations, completions = sheet.take("assistant_only_loss"), sheet.take("completion_only_loss")
    note = "Here the loss is taken at the answer and its stop token only."
    if conversations is None:
        sheet.tell("assistant_only_loss", "defaulted", f"Conversations teach every token there, questions too. {note}", value=False)
    else:
        sheet.tell("assistant_only_loss", "kept" if is_on(conversations) else "not_supported", note)
    if completions is not None:
        sheet.tell("completion_only_loss", "kept" if is_on(completions) else "not_supported", note)


def _rules() -> dict[str, Rule]:
    return hf.common_rules(learning_rate=2e-5) | {
        "model_name_or_path": Rule("model.model_name_or_path", str),
        "use_liger_kernel": hf.LIGER,
        "use_liger": hf.LIGER,
        "use_dora": Rule("train.use_dora", boolean),
        "use_rslora": Rule("train.use_rslora", boolean),
        "load_in_8bit": hf.off("No 8-bit base.", "train.strategy: qlora has 4 bits, lora 16 or 32."),
        "bnb_4bit_quant_type": hf.off("4 bits are NF4 here.", "Nothing to set.", "nf4"),
        "bnb_4bit_quant_storage": hf.off("Sharding is not here.", "Nothing to set.", changes_results=False),
        "packing_strategy": hf.off("Packs are made one way here.", "Nothing to set.", changes_results=False),
        "padding_free": hf.off("Grouping by length leaves little padding.", "Nothing to set.", True, changes_results=False),
        "eval_packing": hf.off("Evaluations are not packed.", "Nothing to set.", True, changes_results=False),
        "shuffle_dataset": hf.off("Batches come in a random order by train.seed.", "Nothing to set.", True, changes_results=False),
        "loss_type": hf.off("The loss is the cross-entropy of the answer.", "Nothing to set.", "nll", "chunked_nll"),
        "chat_template_path": hf.off("The base model's own chat template is used.", "tunesmith plan says whether it round-trips."),
        "eos_token": hf.off("The tokenizer's stop token is used.", "tunesmith plan says whether it is trained."),
        "pad_token": hf.off("Padding is told by position, not by a token.", "Nothing to set.", changes_results=False),
        "lora_modules_to_save": hf.off("Adapters are inside the decoder layers only.", "train.strategy: full trains every weight."),
        "lora_target_parameters": hf.off("Adapters sit on linear modules.", "Name modules in train.lora_target_modules."),
        "lora_task_type": hf.off("Labels are written as text.", "Nothing to set.", "CAUSAL_LM"),
        "trust_remote_code": hf.off("No code that comes with a model is run.", "Choose a model that transformers knows."),
        "model_init_kwargs": hf.off("Models are loaded one way.", "tunesmith config explain model.", {}),
        "router_aux_loss_coef": hf.off("Mixtures of experts have no loss of their own here.", "Nothing to set."),
        "dataset_kwargs": hf.off("Data goes through tunesmith prepare.", "tunesmith config explain data.", {}),
        "dataset_config": hf.off("A part of a hub data set.", "Save it as a file."),
    }


TRL = Peer(
    name="trl",
    title="TRL 1.16.0",
    rules=_rules(),
    groups=hf.COMMON_GROUPS,
    look=_look,
    unknown="refuses such a key",
)
