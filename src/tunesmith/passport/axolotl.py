"""Reads files of Axolotl's `axolotl train FILE`.

Names and defaults: Axolotl 0.19.0, src/axolotl/utils/schemas/ (config.py, training.py, peft.py, datasets.py, model.py), the
warm-up from src/axolotl/core/builders/base.py, the handling of long rows from src/axolotl/utils/data/utils.py. What surprises
people who change over: a key that Axolotl does not know is dropped in silence; without `adapter` every weight is trained; rows
longer than `sequence_len` 512 are dropped; the warm-up is 3 % of the steps and 100 at most; nothing is held out unless
`val_set_size` says so.
"""

from __future__ import annotations

from typing import Any

from tunesmith.passport import hugging_face as hf
from tunesmith.passport.evaluations import by_strategy, tell_evaluations
from tunesmith.passport.sheet import HOLDS, Peer, Rule, Sheet, boolean, is_on, number, whole

_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
# Prompt strategies (src/axolotl/prompt_strategies) whose columns Tunesmith tells by name, and those whose columns it needs named.
_SHAPES = {"alpaca": "instruction, input, output", "chat_template": "messages", "sharegpt": "conversations", "alpaca_w_system": "instruction, input, output"}
_COLUMNS = {
    "alpaca_chat": ("instruction", "response"),
    "alpaca_chat.load_qa": ("question", "answer"),
    "gpteacher": ("instruction", "response"),
    "oasst": ("INSTRUCTION", "RESPONSE"),
    "jeopardy": ("question", "answer"),
    "summarizetldr": ("article", "summary"),
}


def _look(sheet: Sheet) -> None:
    _tell_strategy(sheet)
    hf.tell_packing(sheet, "sample_packing")
    _tell_kernels(sheet)
    _tell_data(sheet)
    _tell_evaluations(sheet)
    hf.tell_revision(sheet, "revision_of_model" if sheet.has("revision_of_model") else "model_revision")
    hf.tell_optimizer(sheet, "optimizer")
    hf.tell_scheduler(sheet, "lr_scheduler", "cosine")
    hf.tell_warmup(sheet, 0.03, "3 % of the steps there, 100 of them at most.")
    hf.tell_precision(sheet, bf16="auto")


def _tell_strategy(sheet: Sheet) -> None:
    adapter = sheet.take("adapter")
    strategy = str(adapter or "full")
    if strategy in ("lora", "qlora", "full"):
        note = "Every weight is trained without an adapter." if strategy == "full" else ""
        sheet.write("adapter", "train.strategy", strategy, note, given=adapter, default=adapter is None)
    else:
        sheet.tell("adapter", "not_supported", "Here train.strategy is full, lora, qlora or prefix.")
    four = sheet.take("load_in_4bit")
    if four is not None:
        same = is_on(four) == (strategy == "qlora")
        sheet.tell("load_in_4bit", "kept" if same else "not_supported", "Part of train.strategy: qlora.", ours="train.strategy", changes_results=not same)
    linear, modules = sheet.take("lora_target_linear"), sheet.take("lora_target_modules")
    if is_on(linear):
        sheet.write("lora_target_linear", "train.lora_target_modules", "all-linear")
    elif linear is not None:
        sheet.tell("lora_target_linear", "kept", "Nothing is written.", changes_results=False)
    if modules is not None:
        try:
            if is_on(linear):
                sheet.tell("lora_target_modules", "kept", "all-linear holds them.", changes_results=False)
            else:
                sheet.write("lora_target_modules", "train.lora_target_modules", hf.targets(modules))
        except ValueError as error:
            sheet.tell("lora_target_modules", "not_supported", str(error), ours="train.lora_target_modules")
    start = sheet.take("peft_init_lora_weights")
    if start is not None:
        if start is True or start == "true":
            sheet.tell("peft_init_lora_weights", "kept", HOLDS, changes_results=False)
        else:
            sheet.write("peft_init_lora_weights", "train.init_lora_weights", start)


_ATTENTIONS = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
_LIGERS = ("liger_rms_norm", "liger_glu_activation", "liger_swiglu")
_OF_LIGER = "Part of Liger's kernels there; here train.use_liger_kernel is RMSNorm and the gated MLP, and the loss is made in parts anyway."


def _tell_kernels(sheet: Sheet) -> None:
    """Say what becomes of fused kernels: the attention is one key here, and so is Liger."""
    named = sheet.take("attn_implementation")
    if named is not None:
        hf.write_attention(sheet, "attn_implementation", named)
    for key, ours in _ATTENTIONS.items():
        value = sheet.take(key)
        if is_on(value) and "model.attn_implementation" not in sheet.draft:
            hf.write_attention(sheet, key, ours, given=value)
        elif value is not None:
            sheet.tell(key, "kept", "Another key names the attention." if is_on(value) else HOLDS, changes_results=False)
    for key in _LIGERS:
        value = sheet.take(key)
        if is_on(value):
            sheet.write(key, "train.use_liger_kernel", True, hf.LIGER.note, given=value, changes_results=False)
        elif value is not None:
            sheet.tell(key, "kept", HOLDS, changes_results=False)
    plugins = sheet.take("plugins")
    if plugins is not None:
        known = isinstance(plugins, list) and all(str(each).endswith("LigerPlugin") for each in plugins)
        note = "Its own keys say what is used." if known else "Plug-ins of other programs are not loaded."
        sheet.tell("plugins", "kept" if known else "not_supported", note, changes_results=not known)


def _tell_evaluations(sheet: Sheet) -> None:
    """Say what becomes of evaluations: `eval_steps` and `evals_per_epoch` need no `eval_strategy` there, but rows that are held out.

    The best step is the result there without being asked for, where saves and evaluations are counted and a save is always an evaluation too.
    """
    key = "eval_steps" if sheet.has("eval_steps") or not sheet.has("evals_per_epoch") else "evals_per_epoch"
    every, save = (_amount(sheet, f"{kind}_steps") or _share(sheet, f"{kind}s_per_epoch") for kind in ("eval", "save"))
    held_out = _amount(sheet, "val_set_size") > 0 or sheet.has("test_datasets")
    if not held_out or (key == "evals_per_epoch" and every >= 1):
        for idle in ("eval_steps", "evals_per_epoch", "eval_strategy"):
            if sheet.take(idle) is not None:
                why = "Once in all is not done" if held_out else "Nothing is held out"
                sheet.tell(idle, "kept", f"{why} there, so nothing is evaluated; nothing is written.", changes_results=False)
        tell_evaluations(sheet, key, None)
    elif sheet.has(key):
        if sheet.take("eval_strategy") is not None:
            sheet.tell("eval_strategy", "kept", "Part of train.eval_steps.", ours="train.eval_steps", changes_results=False)
        given = sheet.take_number(key)
        tell_evaluations(sheet, key, every if given else None, best=every > 0 and save > 0 and save % every == 0)
    else:
        tell_evaluations(sheet, *by_strategy(sheet, None))


def _amount(sheet: Sheet, key: str) -> float:
    """Return the number that a key holds, and 0 for none."""
    try:
        return float(number(sheet.values.get(key)))
    except ValueError:
        return 0.0


def _share(sheet: Sheet, key: str) -> float:
    """Return what share of all steps lies between two of so many in an epoch."""
    in_all = _amount(sheet, key) * (_amount(sheet, "num_epochs") or 1.0)
    return 1 / in_all if in_all else 0.0


def _tell_data(sheet: Sheet) -> None:
    for key, held_out in (("datasets", False), ("test_datasets", True)):
        entries = sheet.take(key)
        if not isinstance(entries, list):
            if entries is not None:
                sheet.tell(key, "not_supported", "Must be a list of data sets.")
            continue
        for position, entry in enumerate(entries):
            _tell_dataset(sheet, f"{key}[{position}]", entry, held_out)
    hf.tell_held_out(sheet, "val_set_size")


def _tell_dataset(sheet: Sheet, at: str, entry: Any, held_out: bool) -> None:
    if not isinstance(entry, dict):
        sheet.tell(at, "not_supported", "Must be a mapping with a path.", value=entry)
        return
    columns = _tell_type(sheet, at, entry)
    files = entry.get("data_files")
    listed = files if isinstance(files, list) else [files] if files else []
    for path in listed or [entry.get("path")]:
        hf.add_source(sheet, f"{at}.{'data_files' if listed else 'path'}", path, held_out=held_out, **columns)
    for key, value in entry.items():
        if key in ("type", "data_files") or (key == "path" and not listed):
            continue
        name = f"{at}.{key}"
        if value is None or (key == "split" and value == "train") or (key in ("ds_type", "path") and value in _BUILDERS):
            sheet.tell(name, "kept", "Nothing is written; the format is told from each file's suffix.", value=value, changes_results=False)
        elif key == "field_messages":
            known = value in ("messages", "conversations")
            sheet.tell(name, "kept" if known else "not_supported", "" if known else "Rename that column to messages.", value=value)
        elif key in ("message_property_mappings", "message_field_role", "message_field_content", "roles"):
            sheet.tell(name, "kept", "role and content, from and value, and the usual names of roles are all read.", value=value, changes_results=False)
        elif key in ("chat_template", "chat_template_jinja"):
            same = value == "tokenizer_default"
            sheet.tell(name, "kept" if same else "not_supported", "The base model's own chat template is used.", value=value)
        elif key == "train_on_eos":
            sheet.tell(name, "not_supported" if value == "none" else "kept", "The stop token of the answer is trained.", value=value)
        elif key == "roles_to_train":
            same = value in (["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"])
            sheet.tell(name, "kept" if same else "not_supported", "The answer of the assistant is what is learnt.", value=value)
        else:
            sheet.tell(name, "not_supported", "Save the rows it chooses as a file of their own; tunesmith config explain data.sources.", value=value)


def _tell_type(sheet: Sheet, at: str, entry: dict[str, Any]) -> dict[str, str]:
    """Say what becomes of the prompt strategy; return the columns to name."""
    kind = entry.get("type")
    name = f"{at}.type"
    if kind is None:
        return {}
    if isinstance(kind, dict):
        question, answer = kind.get("field_instruction") or "instruction", kind.get("field_output") or "output"
        columns = {"text_column": str(question), "label_column": str(answer)}
        sheet.tell(f"{name}.field_instruction", "renamed", "", ours="data.sources[].text_column", written=columns["text_column"], value=question)
        sheet.tell(f"{name}.field_output", "renamed", "", ours="data.sources[].label_column", written=columns["label_column"], value=answer)
        for key, value in kind.items():
            if key == "system_prompt" and value:
                sheet.write(f"{name}.system_prompt", "task.instruction", value, "What the model is told in every prompt.", given=value)
            elif key not in ("field_instruction", "field_output") and value:
                sheet.tell(f"{name}.{key}", "not_supported", "The prompt is the instruction, the text and the base model's chat template.", value=value)
        return columns
    base = str(kind).partition(":")[0]
    base = base if base in _COLUMNS else base.partition(".")[0]
    if base in _SHAPES:
        sheet.tell(name, "kept", f"Told from the columns: {_SHAPES[base]}.", value=kind)
        return {}
    if base in _COLUMNS:
        question, answer = _COLUMNS[base]
        sheet.tell(name, "renamed", "", ours="data.sources[].text_column", written={"text_column": question, "label_column": answer}, value=kind)
        return {"text_column": question, "label_column": answer}
    sheet.tell(name, "not_supported", "Name the columns of text and answer: text_column and label_column of data.sources.", value=kind)
    return {}


def _rules() -> dict[str, Rule]:
    common = {key: rule for key, rule in hf.common_rules(learning_rate=0).items() if key not in _OTHER_NAMES}
    return common | {
        "base_model": Rule("model.model_name_or_path", str),
        "learning_rate": Rule("train.learning_rate", number),
        "sequence_len": Rule("train.max_length", whole, default=512),
        "excess_length_strategy": Rule("train.excess_length_strategy", str, default="drop", note="Rows beyond sequence_len; here the plan names them."),
        "num_epochs": Rule("train.num_train_epochs", hf.epochs, default=1.0),
        "micro_batch_size": Rule("train.per_device_train_batch_size", whole, default=1, note="On several devices they multiply it by their number."),
        "eval_batch_size": Rule("evaluate.batch_size", whole, changes_results=False),
        "group_by_length": Rule("train.group_by_length", boolean, default=False, note="Grouped rows train on other batches, with less padding."),
        "lora_r": Rule("train.lora_r", whole),
        "lora_alpha": Rule("train.lora_alpha", number),
        "lora_dropout": Rule("train.lora_dropout", number, default=0.0),
        "peft_use_dora": Rule("train.use_dora", boolean),
        "peft_use_rslora": Rule("train.use_rslora", boolean),
        "loraplus_lr_ratio": Rule("train.loraplus_lr_ratio", number),
        "default_system_message": Rule("task.instruction", str, note="What the model is told in every prompt."),
        "auto_resume_from_checkpoints": Rule("train.resume_from_checkpoint", lambda value: "auto" if boolean(value) else "never", changes_results=False),
        "mlflow_experiment_name": hf.off("The experiment is called as the project.", "project: in tunesmith.yaml.", changes_results=False),
        "mlflow_tracking_uri": hf.off("MLflow's own variable is read.", "export MLFLOW_TRACKING_URI.", changes_results=False),
        "batch_size": hf.off("The batch is per_device_train_batch_size times gradient_accumulation_steps.", "Set those two."),
        "chat_template": hf.off("The base model's own chat template is used.", "tunesmith plan says whether it round-trips.", "tokenizer_default"),
        "chat_template_jinja": hf.off("The base model's own chat template is used.", "tunesmith plan says whether it round-trips."),
        "special_tokens": hf.off("The tokenizer's own special tokens are used.", "tunesmith plan says whether the stop token is trained.", {}),
        "tokens": hf.off("The vocabulary stays as it is.", "Nothing to set.", []),
        "train_on_inputs": hf.off("The loss is taken at the answer and its stop token only.", "Nothing to set."),
        "load_in_8bit": hf.off("No 8-bit base.", "train.strategy: qlora has 4 bits, lora 16 or 32."),
        "gptq": hf.off("GPTQ weights are not trained on.", "train.strategy: qlora, from the unquantised model."),
        "lora_model_dir": hf.off("A run starts from the base model.", "tunesmith renew goes on with new records."),
        "lora_modules_to_save": hf.off("Adapters are inside the decoder layers only.", "train.strategy: full trains every weight.", []),
        "loraplus_lr_embedding": hf.off("Embeddings have no adapters.", "Nothing to set.", 1e-6, "1e-6"),
        "peft_layers_to_transform": hf.off("Layers are counted from the last.", "train.lora_layers: how many of them."),
        "unfrozen_parameters": hf.off("Freezing weights is not a strategy here.", "train.lora_layers adapts the last layers only.", []),
        "cosine_min_lr_ratio": hf.off("The cosine ends at 0.", "train.lr_scheduler_type: constant, or fewer epochs.", 0, 0.0),
        "saves_per_epoch": hf.off("Checkpoints are counted in steps.", "train.save_steps; tunesmith plan tells the steps.", changes_results=False),
        "trust_remote_code": hf.off("No code that comes with a model is run.", "Choose a model that transformers knows."),
        "rl": hf.off("Preference tuning goes on from a supervised run.", "tunesmith run, then tunesmith prefer; tunesmith config explain prefer."),
        "strict": hf.off("Unknown keys are always errors here.", "Nothing to set.", True, changes_results=False),
        "dataset_exact_deduplication": hf.off("Copies are always dropped.", "data.dedup.", True, changes_results=False),
        "shuffle_merged_datasets": hf.off("Batches come in a random order by train.seed.", "Nothing to set.", True),
        "pretraining_dataset": hf.off("Raw text is learnt in a stage before the task.", "train.stages, with objective: text."),
    }


# Keys of transformers that Axolotl spells otherwise.
_OTHER_NAMES = {
    "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "report_to", "train_sampling_strategy", "optim",
    "label_smoothing_factor", "full_determinism",
}  # fmt: skip

_TOKENIZER = hf.off("The base model's own tokenizer is used.", "Nothing to set.", "AutoTokenizer", "AutoModelForCausalLM", True, changes_results=False)
_CACHES = hf.off("Prepared data is kept in datasets/.", "Nothing to set.", changes_results=False)
_PACKS = hf.off("Packs are made one way here.", "See sample_packing.", changes_results=False)
_KERNELS = hf.off("Changes memory or speed, not what is learnt.", "tunesmith plan predicts both.", changes_results=False)
_ATTENTION = r"(xformers|flex|sage|s2)_attention|sdpa_varlen|.*_kernel|unsloth_.*|cut_cross_entropy.*|is_.*_derived_model|chunked_.*|tiled_.*"

AXOLOTL = Peer(
    name="axolotl",
    title="Axolotl 0.19.0",
    rules=_rules(),
    groups=(
        (r"tokenizer_.*|(model|processor)_type|type_of_model|base_model_config|cls_model_config|resize_token_embeddings.*|is_falcon.*", _TOKENIZER),
        (r"dataset_(prepared_path|processes|keep_in_memory|shard_.*|num_proc)|skip_prepare_dataset|push_dataset_to_hub|preprocess_.*", _CACHES),
        (r"(eval_)?sample_packing.*|pad_to_sequence_len|multipack_.*|batch_flattening|pretrain_multipack.*", _PACKS),
        (r"liger_.*", hf.off(_OF_LIGER, "Nothing to set.", changes_results=False)),
        (_ATTENTION, _KERNELS),
        (r"(use_)?mlflow.*|hf_mlflow.*|wandb.*|loss_watchdog.*", hf.off("Losses go to MLflow, or to wandb.", "train.report_to.", changes_results=False)),
        *hf.COMMON_GROUPS,
    ),
    look=_look,
    unknown="drops such a key in silence",
)
