"""What TRL and LLaMA-Factory have in common: the arguments of transformers' Trainer, and how data and precision are read.

Defaults are those of `transformers.TrainingArguments` 5.24 (src/transformers/training_args.py); `warmup_ratio` and
`group_by_length` are older names that files still carry. A peer's module lays its own rules over these.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from tunesmith.data.read import ROW_SUFFIXES
from tunesmith.passport.sheet import HOLDS, Convert, Rule, Sheet, boolean, is_on, names, number, whole

_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_anyprecision")
_SCHEDULERS = ("cosine", "linear", "constant")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_NORM = 1e9
HELD_OUT = 0.1
"""Share of the data for each of calibration and test where the foreign file knows none: tunesmith.yaml's own default."""


_ATTENTION = "Takes the plain pass; FlashAttention needs a GPU here too."
_PACKS = "train.packing keeps records apart by a mask, which FlashAttention does not take."
RECOMPUTES = "Less memory for more time, equal to rounding."
LIGER = Rule("train.use_liger_kernel", boolean, note="RMSNorm and the gated MLP here; the loss is made in parts anyway.", changes_results=False)


def off(why: str, instead: str, *neutral: Any, changes_results: bool = True) -> Rule:
    """Make the rule of a key that Tunesmith has not; the `neutral` values say what holds here anyway."""
    return Rule(neutral=(None, False, *neutral), note=why, instead=instead, changes_results=changes_results)


def write_attention(sheet: Sheet, key: str, name: Any, **given: Any) -> None:
    """Write the attention, by transformers' name of it; beside packs one that keeps their records apart."""
    packs = name == "flash_attention_2" and sheet.draft.get("train.packing")
    ours, note = ("sdpa", _PACKS) if packs else (name, _ATTENTION)
    sheet.write(key, "model.attn_implementation", ours, note, changes_results=False, **given)


def tell_attention(sheet: Sheet, key: str, convert: Convert) -> None:
    """Say what becomes of the attention."""
    value = sheet.take(key)
    try:
        if value is not None:
            write_attention(sheet, key, convert(value))
    except ValueError as error:
        sheet.tell(key, "not_supported", str(error), ours="model.attn_implementation", changes_results=False)


def tell_packing(sheet: Sheet, key: str, note: str = "") -> None:
    """Say what becomes of packing. A pack counts as one row of the batch there; here a batch is what it is without packs."""
    value = sheet.take(key)
    try:
        if value is not None and boolean(value):
            more = f"A pack counts as one row there: raise train.per_device_train_batch_size by the records it held. Takes the plain pass. {note}"
            sheet.write(key, "train.packing", True, more, given=value)
        elif value is not None:
            sheet.tell(key, "kept", HOLDS, changes_results=False)
    except ValueError as error:
        sheet.tell(key, "not_supported", str(error), ours="train.packing")


def tell_optimizer(sheet: Sheet, key: str) -> None:
    """Say what becomes of the optimizer: AdamW holds here anyway."""
    value = sheet.take(key)
    if value is None:
        return
    if value in _ADAMW:
        sheet.tell(key, "kept", HOLDS, changes_results=False)
    elif "adamw" in str(value) or str(value).startswith("paged_"):
        sheet.tell(key, "not_supported", "Here AdamW keeps its states in 32 bits, which takes more memory. Nothing to set.")
    else:
        sheet.tell(key, "not_supported", "AdamW is the only optimizer here, and another learning rate fits it: search it with tunesmith sweep.")


def tell_scheduler(sheet: Sheet, key: str, default: str) -> None:
    """Say what becomes of the shape of the learning rate. `constant` there has no warm-up; here the warm-up is a key of its own."""
    value = sheet.take(key)
    name = str(value or default)
    name = {"constant_with_warmup": "constant"}.get(name, name)
    if name not in _SCHEDULERS:
        sheet.tell(key, "not_supported", f"Here it is one of {', '.join(_SCHEDULERS)}. The nearest is linear for polynomial, else cosine.")
        return
    sheet.write(key, "train.lr_scheduler_type", name, given=value or default, default=value is None)
    if str(value or default) == "constant":
        for other in ("warmup_steps", "warmup_ratio"):
            if sheet.take(other) is not None:
                sheet.tell(other, "renamed", "The scheduler constant has no warm-up there.", ours="train.warmup_ratio", written=0.0)
        sheet.draft["train.warmup_ratio"] = 0.0
        sheet.comments["train.warmup_ratio"] = f"the scheduler constant of {sheet.peer.title} has no warm-up"


def tell_warmup(sheet: Sheet, default: float, default_note: str) -> None:
    """Say what becomes of the warm-up: a share of the steps here. A number of steps is one only where `max_steps` is set."""
    if "train.warmup_ratio" in sheet.draft:
        return
    ratio, steps = sheet.take_number("warmup_ratio"), sheet.take_number("warmup_steps")
    if steps:  # they win over a share where both are above 0
        if ratio is not None:
            sheet.tell("warmup_ratio", "kept", f"{sheet.peer.title} lets warmup_steps win.", changes_results=False)
        _tell_warmup_steps(sheet, steps)
    elif ratio is not None:
        sheet.write("warmup_ratio", "train.warmup_ratio", ratio)
        if steps is not None:
            sheet.tell("warmup_steps", "kept", "0, so warmup_ratio holds.", changes_results=False)
    elif steps is not None:
        sheet.write("warmup_steps", "train.warmup_ratio", 0.0)
    else:
        sheet.write("warmup_ratio", "train.warmup_ratio", default, default_note, given=default, default=True)


def _tell_warmup_steps(sheet: Sheet, steps: float) -> None:
    most = sheet.values.get("max_steps")
    if steps < 1:  # transformers 5 reads a share
        sheet.write("warmup_steps", "train.warmup_ratio", steps)
    elif isinstance(most, int) and most > 0:
        sheet.write("warmup_steps", "train.warmup_ratio", round(steps / most, 6), f"{steps:g} of {most} steps.")
    else:
        note = f"Here the warm-up is a share of the steps. `tunesmith plan` tells the steps; set train.warmup_ratio to {steps:g} / steps."
        sheet.tell("warmup_steps", "not_supported", note, ours="train.warmup_ratio")


def tell_precision(sheet: Sheet, bf16: bool | str | None) -> None:
    """Say what becomes of `bf16` and `fp16`.

    Args:
        sheet: The file.
        bf16: The peer's default: True, False, or `auto`.
    """
    given, fp16 = sheet.take("bf16"), sheet.take("fp16")
    if fp16 is not None:
        if is_on(fp16):
            sheet.tell("fp16", "not_supported", "Half precision needs loss scaling; use model.dtype: bfloat16, or auto.")
        else:
            sheet.tell("fp16", "kept", HOLDS, changes_results=False)
    if is_on(fp16):
        return
    value = bf16 if given is None else given
    dtype = "auto" if value in ("auto", "full") else "bfloat16" if is_on(value) else "float32"
    note = {
        "bfloat16": "There weights stay in 32 bits and products are cast; here the frozen weights are bfloat16, what is trained 32 bits.",
        "float32": "",
        "auto": "bfloat16 where the processor multiplies it natively.",
    }[dtype]
    sheet.write("bf16", "model.dtype", dtype, note, given=value, default=given is None)


def tell_revision(sheet: Sheet, key: str) -> None:
    """Say what becomes of the revision: a commit, because a branch means other weights tomorrow."""
    value = sheet.take(key)
    if value is None:
        return
    if _COMMIT.fullmatch(str(value)):
        sheet.write(key, "model.model_revision", value)
    else:
        sheet.tell(
            key, "not_supported", "A name that moves. Put the commit it means today, 40 hex digits, into model.model_revision.", ours="model.model_revision"
        )


def add_source(sheet: Sheet, key: str, path: Any, *, held_out: bool = False, **columns: str) -> None:
    """Add one file to `data.sources`, or a placeholder where the address is no file of rows that Tunesmith reads.

    Args:
        sheet: The file.
        key: The peer's key that names the data.
        path: What it says.
        held_out: Whether the peer evaluates on it, so that it never goes into train.
        columns: `text_column` and `label_column`, where the peer names them.
    """
    source: dict[str, Any] = {"path": "", **columns}
    comments: dict[str, str] = {}
    if isinstance(path, str) and PurePosixPath(path).suffix.lower() in ROW_SUFFIXES:
        source["path"] = path
        note = "Relative to tunesmith.yaml; CSV, JSON, JSONL and Parquet are read as they are."
        sheet.tell(key, "kept" if key.endswith("path") else "renamed", note, ours="data.sources[].path", written=path, value=path)
    else:
        comments["path"] = f"FILL IN: {path!r} as a CSV, JSON, JSONL or Parquet file"
        note = "No file of rows: nothing is fetched from a hub. Save it as JSONL or Parquet and put its path into data.sources."
        sheet.tell(key, "not_supported", note, ours="data.sources[].path", value=path)
    if held_out:
        source["splits"] = {"validation": 1.0, "calibration": 1.0, "test": 1.0}
        comments["splits"] = f"{sheet.peer.title} evaluates on it"
    sheet.sources.append((source, comments))


def tell_held_out(sheet: Sheet, key: str) -> None:
    """Turn the share that a peer holds out into splits: Tunesmith also needs a calibration and a test split."""
    value = sheet.take_number(key)
    teaching = [source for source, _ in sheet.sources if "splits" not in source]
    if any("splits" in source for source, _ in sheet.sources):  # the peer names files of its own for that
        for source in teaching:
            source["splits"] = {"train": 1.0}
        if value is not None:
            sheet.tell(key, "kept", "Files of their own are held out; nothing is written.", changes_results=False)
        return
    share = value or 0.0
    if share == 0.0:
        sheet.tell(
            key,
            "defaulted" if value is None else "not_supported",
            "All rows are trained on there. Here 10 % each are kept for validation, calibration and test, or nothing could be promised: data.sources[].splits.",
            ours="data.sources[].splits",
            value=value if value is not None else 0.0,
        )
        return
    train = round(1 - share - 2 * HELD_OUT, 6)
    if share >= 1 or train <= 0:
        sheet.tell(key, "not_supported", "Here splits are shares of the rows that sum to 1: data.sources[].splits.", ours="data.sources[].splits")
        return
    splits = {"train": train, "validation": share, "calibration": HELD_OUT, "test": HELD_OUT}
    for source in teaching:
        source["splits"] = splits
    sheet.tell(key, "renamed", "Calibration and test get 10 % each besides; train gets the rest.", ours="data.sources[].splits", written=splits)


def targets(value: Any) -> str | list[str]:
    """Return `all-linear` or a list of module names."""
    if value in ("all", "all-linear", "all_linear"):
        return "all-linear"
    found = names(value)
    if found in (["all"], ["all-linear"]):
        return "all-linear"
    if any(re.search(r"[\^$()|\\*]", name) for name in found):
        raise ValueError("A pattern; list the names of the modules.")
    return found


def epochs(value: Any) -> int:
    """Return whole epochs."""
    try:
        return whole(value)
    except ValueError:
        raise ValueError("Epochs are whole here; for a part of one set train.max_steps, `tunesmith plan` tells the steps.") from None


def _steps(value: Any) -> int:
    if 0 < number(value) < 1:
        raise ValueError("A share of the steps; here it is a number of steps.")
    return whole(value)


def _norm(value: Any) -> float:
    return number(value) or _NO_NORM


def _resume(value: Any) -> str:
    if isinstance(value, str) and value.lower() not in ("true", "false", "yes", "no", "on", "off", "auto"):
        raise ValueError("A run continues from its own checkpoints; there is no starting from another one.")
    return "auto" if value == "auto" or boolean(value) else "never"


def _checkpointing(value: Any) -> bool:
    if value in ("offload", "offload_disk", "unsloth"):
        raise ValueError("Nothing is offloaded here: set train.gradient_checkpointing: true, which keeps a layer's input alone.")
    return boolean(value)


def _trackers(value: Any) -> list[str]:
    found = [name for name in names(value) if name != "none"]
    if any(name not in ("mlflow", "wandb") for name in found):
        raise ValueError("MLflow and wandb are the trackers here; MLflow is in .tunesmith/mlflow.db or at MLFLOW_TRACKING_URI.")
    return found


def _sampling(value: Any) -> bool:
    if value not in ("random", "group_by_length"):
        raise ValueError("Rows come in a random order here, or grouped by length: train.group_by_length.")
    return bool(value == "group_by_length")


def common_rules(*, learning_rate: float) -> dict[str, Rule]:
    """Return the rules of transformers' arguments, with the peer's default learning rate."""
    return {
        "learning_rate": Rule("train.learning_rate", number, default=learning_rate),
        "num_train_epochs": Rule("train.num_train_epochs", epochs, default=3.0),
        "max_steps": Rule("train.max_steps", whole),
        "per_device_train_batch_size": Rule("train.per_device_train_batch_size", whole, default=8, note="On several devices they multiply it by their number."),
        "gradient_accumulation_steps": Rule("train.gradient_accumulation_steps", whole),
        "weight_decay": Rule("train.weight_decay", number),
        "max_grad_norm": Rule("train.max_grad_norm", _norm, note="0 switches clipping off there; here a norm that is never reached does."),
        "seed": Rule("train.seed", whole, note="The same number draws other batches here.", changes_results=False),
        "group_by_length": Rule("train.group_by_length", boolean),
        "train_sampling_strategy": Rule("train.group_by_length", _sampling, default="random", note="Grouped rows train on other batches, with less padding."),
        "logging_steps": Rule("train.logging_steps", _steps, changes_results=False),
        "save_steps": Rule("train.save_steps", _steps, changes_results=False),
        "save_total_limit": Rule("train.save_total_limit", whole, changes_results=False),
        "gradient_checkpointing": Rule("train.gradient_checkpointing", _checkpointing, note=RECOMPUTES, changes_results=False),
        "resume_from_checkpoint": Rule("train.resume_from_checkpoint", _resume, changes_results=False),
        "report_to": Rule("train.report_to", _trackers, changes_results=False),
        "per_device_eval_batch_size": Rule("evaluate.batch_size", whole, changes_results=False),
        "adam_beta1": off("AdamW's betas are 0.9 and 0.999 here.", "Nothing to set.", 0.9),
        "adam_beta2": off("AdamW's betas are 0.9 and 0.999 here.", "Nothing to set.", 0.999),
        "adam_epsilon": off("AdamW's epsilon is 1e-8 here.", "Nothing to set.", 1e-8, "1e-8"),
        "label_smoothing_factor": off("The loss is the plain cross-entropy of the answer.", "Calibration makes confidences honest afterwards.", 0.0, 0),
        "neftune_noise_alpha": off("No noise is added to embeddings.", "Try train.lora_dropout against overfitting.", 0, 0.0),
        "auto_find_batch_size": off("The plan predicts the memory before anything runs.", "Set train.max_memory_gb and read tunesmith plan."),
        "dataloader_drop_last": off("Every row is trained on.", "Nothing to set."),
        "full_determinism": off("Runs are deterministic here.", "Nothing to set.", True, changes_results=False),
        "lr_scheduler_kwargs": off("The schedule has no further parameters here.", "Use train.lr_scheduler_type and train.warmup_ratio.", {}, "null"),
        "optim_args": off("AdamW has no further parameters here.", "Use train.learning_rate and train.weight_decay."),
        "torch_compile": off("Not compiled.", "Nothing to set; the fast forward pass is on where it is exact.", changes_results=False),
    }


_STEPS_ARE_COMMANDS = off("Each step is a command.", "tunesmith run does all of them.", True, changes_results=False)
_TIMEOUTS = off("Processes are started in one way.", "launch.launcher: torchrun.", changes_results=False)
_DISTRIBUTED = off(
    "Processes and FSDP are set in launch, and share each batch out.",
    "launch.launcher: torchrun. There devices multiply the batch: raise train.gradient_accumulation_steps by as much.",
    "",
    [],
)
_WATCHING = off(
    "Runs are scored while they train where train.eval_steps is set.",
    "Set train.eval_steps; tunesmith evaluate scores all of test.",
    "no",
    0,
    changes_results=False,
)
_FOLDERS = off("Runs have ids, and folders in .tunesmith/runs.", "Nothing to set.", changes_results=False)
_SPEED = off("Changes memory or speed, not what is learnt.", "tunesmith plan predicts both; train.max_memory_gb is a limit.", changes_results=False)
_LOGS = off("Losses go to the run's folder and to MLflow.", "Nothing to set.", changes_results=False)
_HUB = off("Nothing is sent to a hub.", "tunesmith register makes model versions, in the project.", changes_results=False)
_MEDIA = off("Records are text.", "Put documents through tunesmith prepare, which reads scans by OCR.")
_PREFERENCE = off(
    "Preference tuning goes on from a supervised run, by DPO or KTO; reinforcement learning is not here.", "tunesmith prefer; tunesmith config explain prefer."
)
_SERVING = off("That is serving, not training.", "tunesmith serve; tunesmith config explain serve.", changes_results=False)

COMMON_GROUPS: tuple[tuple[str, Rule], ...] = (
    (r"do_(train|eval|predict)", _STEPS_ARE_COMMANDS),
    (r"ddp_.*|local_rank|master_(addr|port)", _TIMEOUTS),
    (r"deepspeed.*|fsdp.*|ddp|accelerator_config|parallelism_config|tpu_.*|ray_.*|.*parallel.*|use_ray|device_map", _DISTRIBUTED),
    (r"eval.*|evaluation_strategy|prediction_loss_only|predict_with_generate|generation_.*|batch_eval_metrics|include_.*metrics", _WATCHING),
    (r"hub_.*|push_to_hub.*|.*_hub_token|hf_token|hf_use_auth_token", _HUB),
    (
        r".*(output_dir|logging_dir|run_name|cache_dir)|overwrite_.*|save_(strategy|only_model|safetensors|on_each_node|first_step|name_prefix)|project|cache",
        _FOLDERS,
    ),
    (
        r"gradient_checkpointing.*|activation_.*|.*flash_attn?.*|.*liger.*|use_(fast_)?kernels?.*|use_unsloth.*|torch_.*|dataloader_.*|tf32|"
        r"low_cpu_mem_usage|use_cpu|no_cuda|use_cache|preprocessing_.*|dataset_num_proc|.*num_proc|bf16_full_eval|fp16_full_eval|ignore_data_skip|"
        r"remove_unused_columns|skip_memory_metrics|average_tokens_across_devices|pad_to_multiple_of|streaming|dataset_streaming|buffer_size|data_seed",
        _SPEED,
    ),
    (r"log_.*|logging_.*|disable_tqdm|plot_loss|.*(wandb|swanlab|comet|trackio|tensorboard|otel).*|include_.*tokens.*|.*profil.*|debug|report_.*", _LOGS),
    (r"(image|video|audio)_.*|media_dir|.*vision.*|.*multi_modal.*|crop_to_patches|use_audio_in_video|processor_.*|freeze_mm_modules", _MEDIA),
    (r"(pref|dpo|kto|ppo|grpo|orpo|cpo|simpo|rpo)_.*|.*reward.*|ref_model.*|rl|rl_beta|beta|ld_alpha|precompute_ref_.*|trl", _PREFERENCE),
    (r"vllm.*|sglang.*|infer_.*|export_.*|gradio_.*|merge_.*|temperature|top_[kp]|max_new_tokens|do_sample|num_beams", _SERVING),
)
