"""The passport: every key of a foreign file is told, with the right word, and the file that is written passes the check."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tunesmith.config import load_config
from tunesmith.errors import ConfigError, NotFoundError
from tunesmith.passport import PEERS, import_config, write_project

FILES = Path(__file__).parent / "files"
NAMES = ("axolotl", "llamafactory", "trl")

# Each key of the example files, by what became of it, with the key of ours where there is one.
EXPECTED = {
    "axolotl": {
        "kept": {
            "model_type", "tokenizer_type", "load_in_8bit", "load_in_4bit", "chat_template", "datasets[0].path", "datasets[0].ds_type", "datasets[0].type",
            "datasets[0].field_messages", "datasets[0].message_property_mappings", "datasets[0].roles_to_train", "datasets[1].type", "datasets[2].path",
            "lora_model_dir", "eval_sample_packing", "lora_r", "lora_alpha", "lora_dropout", "wandb_project", "wandb_entity", "wandb_watch",
            "gradient_accumulation_steps", "learning_rate", "tf32", "resume_from_checkpoint", "logging_steps", "weight_decay",
            "gradient_checkpointing",
        },
        "renamed": {
            "base_model", "revision_of_model", "datasets[2].type.field_instruction", "datasets[2].type.field_output", "datasets[2].type.system_prompt",
            "val_set_size", "adapter", "sequence_len", "lora_target_linear", "peft_use_rslora", "micro_batch_size", "num_epochs", "lr_scheduler", "bf16",
            "flash_attention", "sample_packing",
        },
        "defaulted": {"excess_length_strategy", "group_by_length"},
        "not_supported": {
            "datasets[1].path", "datasets[1].split", "datasets[2].type.format", "dataset_prepared_path", "output_dir", "pad_to_sequence_len",
            "optimizer", "warmup_steps", "evals_per_epoch", "saves_per_epoch", "special_tokens",
            "learnig_rate_scale",
        },
    },
    "llamafactory": {
        "kept": {
            "model_name_or_path", "stage", "do_train", "use_dora", "pissa_init", "packing", "logging_steps", "save_steps", "report_to",
            "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "num_train_epochs", "lr_scheduler_type", "warmup_ratio",
            "resume_from_checkpoint", "eval_strategy", "eval_steps",
        },
        "renamed": {
            "finetuning_type", "lora_rank", "lora_target", "quantization_bit", "dataset", "dataset: complaints", "cutoff_len", "max_samples", "bf16",
            "val_size", "per_device_eval_batch_size",
        },
        "defaulted": {"cutoff_len: longer rows", "lora_alpha", "mask_history", "train_sampling_strategy", "load_best_model_at_end"},
        "not_supported": {
            "trust_remote_code", "hf_hub_token", "dataset", "template", "overwrite_cache", "preprocessing_num_workers", "dataloader_num_workers", "output_dir",
            "plot_loss", "overwrite_output_dir", "ddp_timeout",
        },
    },
    "trl": {
        "kept": {
            "model_name_or_path", "dtype", "load_in_4bit", "lora_r", "learning_rate", "max_steps", "per_device_train_batch_size",
            "gradient_accumulation_steps", "lr_scheduler_type", "max_grad_norm", "logging_steps", "push_to_hub", "report_to", "attn_implementation",
            "packing", "eval_strategy", "eval_steps", "gradient_checkpointing",
        },
        "renamed": {"use_peft", "dataset_name", "dataset_text_field", "warmup_steps"},
        "defaulted": {
            "lora_dropout", "lora_target_modules", "test_split_size", "max_length", "truncation_mode", "assistant_only_loss", "bf16", "train_sampling_strategy",
            "load_best_model_at_end",
        },
        "not_supported": {
            "model_revision", "num_train_epochs", "optim", "save_steps", "neftune_noise_alpha", "hub_model_id", "output_dir",
        },
    },
}  # fmt: skip

# What is written, besides the data.
WRITTEN = {
    "axolotl": {
        "model": {
            "model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "model_revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            "attn_implementation": "sdpa",
            "dtype": "auto",
        },
        "train": {
            "strategy": "lora", "max_length": 2048, "excess_length_strategy": "drop", "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05,
            "lora_target_modules": "all-linear", "use_rslora": True, "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "weight_decay": 0.0,
            "num_train_epochs": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "group_by_length": False, "packing": True,
            "gradient_checkpointing": True, "logging_steps": 1,
        },
    },
    "llamafactory": {
        "model": {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "dtype": "bfloat16"},
        "train": {
            "strategy": "qlora", "max_length": 1024, "excess_length_strategy": "truncate", "lora_r": 8, "lora_alpha": 16, "use_dora": False,
            "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "num_train_epochs": 3,
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "group_by_length": False, "save_steps": 500, "logging_steps": 10,
            "eval_steps": 500, "load_best_model_at_end": False, "report_to": [],
        },
    },
    "trl": {
        "model": {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "attn_implementation": "sdpa", "dtype": "bfloat16"},
        "train": {
            "strategy": "lora", "max_length": 1024, "excess_length_strategy": "truncate", "lora_r": 16, "lora_dropout": 0.05,
            "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 2e-4, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e9,
            "max_steps": 200, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "group_by_length": False, "packing": True,
            "gradient_checkpointing": True, "logging_steps": 25, "eval_steps": 100, "load_best_model_at_end": False,
            "report_to": ["wandb", "mlflow"],
        },
    },
}  # fmt: skip


def told(passport):
    found = defaultdict(set)
    for entry in passport.entries:
        found[entry.status].add(entry.key)
    return dict(found)


def entry(passport, key):
    return next(entry for entry in passport.entries if entry.key == key)


@pytest.fixture
def translate(tmp_path):
    def translate(text, peer=""):
        file = tmp_path / "run.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return import_config(file, peer)

    return translate


def written(passport):
    return YAML(typ="safe").load(passport.text)


# The example files


@pytest.mark.parametrize("name", NAMES)
def test_each_key_of_an_example_is_told_with_the_right_word(name):
    assert told(import_config(FILES / f"{name}.yaml")) == EXPECTED[name]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_means_the_same(name):
    made = written(import_config(FILES / f"{name}.yaml"))
    assert {section: made[section] for section in ("model", "train")} == WRITTEN[name]


def test_data_sets_become_sources():
    data = {name: written(import_config(FILES / f"{name}.yaml"))["data"] for name in NAMES}
    shares = {"train": 0.75, "validation": 0.05, "calibration": 0.1, "test": 0.1}
    assert data["axolotl"]["sources"] == [
        {"path": "data/complaints.jsonl", "splits": shares},
        {"path": "", "splits": shares},
        {"path": "data/letters.csv", "text_column": "letter", "label_column": "kind", "splits": shares},
    ]
    shares = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}
    assert data["llamafactory"]["sources"] == [
        {"path": "data/complaints.json", "text_column": "complaint", "label_column": "product", "splits": shares},
        {"path": "", "splits": shares},
    ]
    assert data["llamafactory"]["max_records"] == {"train": 1000}
    assert data["trl"]["sources"] == [{"path": "data/train.parquet"}]


@pytest.mark.parametrize("name", NAMES)
def test_the_check_names_the_placeholders_and_nothing_else(name, tmp_path):
    passport = import_config(FILES / f"{name}.yaml")
    out = tmp_path / "new" / "tunesmith.yaml"
    left = write_project(passport, out)
    assert [re.sub(r"^\S+:\d+:\d+: ", "", line).partition(":")[0] for line in left] == list(passport.placeholders)
    assert "task.labels" in passport.placeholders
    text = (
        out.read_text().replace("labels: []", "labels: [card, loan]").replace("instruction: ''", "instruction: Sort.").replace("path: ''", "path: data/x.csv")
    )
    out.write_text(text)
    assert load_config(out).task.names == ("card", "loan")


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_stands_at_its_line_and_says_why(name):
    lines = (FILES / f"{name}.yaml").read_text().splitlines()
    for found in import_config(FILES / f"{name}.yaml").entries:
        if found.line:
            assert re.split(r"[.\[\]:]+", found.key.partition(":")[0])[-1] in lines[found.line - 1], found
        if found.status in ("defaulted", "not_supported"):
            assert len(found.note) > 20 or found.written is not None, found


@pytest.mark.parametrize("name", NAMES)
def test_importing_twice_says_and_writes_the_same(name):
    assert import_config(FILES / f"{name}.yaml") == import_config(FILES / f"{name}.yaml")


# Rules that depend on values


@pytest.mark.parametrize(
    ("text", "key", "status", "ours"),
    [
        ("base_model: a\nadapter: qlora\nload_in_4bit: true\n", "adapter", "renamed", {"train": {"strategy": "qlora"}}),
        ("base_model: a\nmicro_batch_size: 4\n", "adapter", "defaulted", {"train": {"strategy": "full"}}),
        ("base_model: a\nadapter: lora\nlearning_rate: 2e-4\nsequence_len: 16\n", "warmup_ratio", "defaulted", {"train": {"warmup_ratio": 0.03}}),
        ("base_model: a\nadapter: lora\nmax_steps: 200\nwarmup_steps: 10\n", "warmup_steps", "renamed", {"train": {"warmup_ratio": 0.05}}),
        ("base_model: a\nadapter: lora\nlr_scheduler: rex\n", "lr_scheduler", "not_supported", {}),
        ("base_model: a\nadapter: lora\nfp16: true\n", "fp16", "not_supported", {}),
        ("base_model: a\nadapter: lora\nlora_target_modules: 'model.layers.[0-9]+.q_proj$'\n", "lora_target_modules", "not_supported", {}),
        ("base_model: a\nadapter: lora\nrl: dpo\n", "rl", "not_supported", {}),
        ("base_model: a\nadapter: lora\noptimizer: muon\n", "optimizer", "not_supported", {}),
        ("base_model: a\nadapter: lora\nmicro_batch_size: zero\n", "micro_batch_size", "not_supported", {}),
        ("base_model: a\nadapter: lora\nlora_r: ${rank}\n", "lora_r", "not_supported", {}),
        ("base_model: a\nadapter: lora\ngradient_checkpointing: offload\n", "gradient_checkpointing", "not_supported", {}),
        ("base_model: a\nadapter: lora\nsdp_attention: true\n", "sdp_attention", "renamed", {"model": {"attn_implementation": "sdpa"}}),
        ("base_model: a\nadapter: lora\nattn_implementation: eager\n", "attn_implementation", "kept", {"model": {"attn_implementation": "eager"}}),
        ("base_model: a\nadapter: lora\nattn_implementation: flex_attention\n", "attn_implementation", "not_supported", {}),
        ("base_model: a\nadapter: lora\nflash_attention: false\n", "flash_attention", "kept", {}),
        ("base_model: a\nadapter: lora\nliger_rms_norm: true\nliger_rope: true\n", "liger_rms_norm", "renamed", {"train": {"use_liger_kernel": True}}),
        ("base_model: a\nadapter: lora\nliger_rms_norm: true\nliger_rope: true\n", "liger_rope", "not_supported", {}),
        ("base_model: a\nadapter: lora\nplugins: [axolotl.integrations.liger.LigerPlugin]\n", "plugins", "kept", {}),
        ("base_model: a\nadapter: lora\nplugins: [some.other.Plugin]\n", "plugins", "not_supported", {}),
        ("base_model: a\nadapter: lora\ndefault_system_message: Sort.\n", "default_system_message", "renamed", {"task": {"instruction": "Sort."}}),
    ],
)
def test_axolotl(translate, text, key, status, ours):
    passport = translate(text, "axolotl")
    assert entry(passport, key).status == status
    for section, values in ours.items():
        assert values.items() <= written(passport)[section].items()


@pytest.mark.parametrize(
    ("text", "key", "status", "ours"),
    [
        ("stage: sft\nfinetuning_type: full\n", "learning_rate", None, {"train": {"strategy": "full"}}),  # 5e-5 there, and here for full
        ("stage: sft\nfinetuning_type: lora\n", "learning_rate", "defaulted", {"train": {"learning_rate": 5e-5}}),
        ("stage: sft\nlora_rank: 64\n", "lora_alpha", "defaulted", {"train": {"lora_r": 64, "lora_alpha": 128}}),
        ("stage: sft\nfinetuning_type: lora\n", "cutoff_len", "defaulted", {"train": {"max_length": 2048, "num_train_epochs": 3}}),
        ("stage: sft\nfinetuning_type: lora\n", "lr_scheduler_type", "defaulted", {"train": {"lr_scheduler_type": "linear", "warmup_ratio": 0.0}}),
        ("stage: sft\nfinetuning_type: lora\n", "per_device_train_batch_size", "defaulted", {"train": {"per_device_train_batch_size": 8}}),
        ("stage: sft\nfinetuning_type: lora\n", "bf16", "defaulted", {"model": {"dtype": "float32"}}),
        ("stage: sft\nfinetuning_type: lora\n", "val_size", "defaulted", {}),
        ("stage: sft\npissa_init: true\n", "pissa_init", "renamed", {"train": {"init_lora_weights": "pissa"}}),
        ("stage: sft\nloraplus_lr_ratio: 16.0\n", "loraplus_lr_ratio", "kept", {"train": {"loraplus_lr_ratio": 16.0}}),
        ("stage: sft\npure_bf16: true\n", "pure_bf16", "renamed", {"model": {"dtype": "bfloat16"}}),
        ("stage: dpo\nfinetuning_type: lora\npref_beta: 0.1\n", "stage", "not_supported", {}),
        ("stage: dpo\nfinetuning_type: lora\npref_beta: 0.1\n", "pref_beta", "not_supported", {}),
        ("stage: sft\nfinetuning_type: freeze\n", "finetuning_type", "not_supported", {}),
        ("stage: sft\ndisable_gradient_checkpointing: true\n", "disable_gradient_checkpointing", "renamed", {"train": {"gradient_checkpointing": False}}),
        ("stage: sft\ndisable_gradient_checkpointing: false\n", "disable_gradient_checkpointing", "renamed", {"train": {"gradient_checkpointing": True}}),
        # It is on by default there, which changes memory only: nothing is written, and `tunesmith plan` tells the memory.
        ("stage: sft\nfinetuning_type: lora\n", "gradient_checkpointing", None, {}),
        ("stage: sft\nflash_attn: fa2\n", "flash_attn", "renamed", {"model": {"attn_implementation": "flash_attention_2"}}),
        ("stage: sft\nflash_attn: disabled\n", "flash_attn", "renamed", {"model": {"attn_implementation": "eager"}}),
        ("stage: sft\nflash_attn: fa3\n", "flash_attn", "not_supported", {}),
        ("stage: sft\nenable_liger_kernel: true\n", "enable_liger_kernel", "renamed", {"train": {"use_liger_kernel": True}}),
        ("stage: sft\nval_size: 1000\n", "val_size", "not_supported", {}),
        ("stage: sft\nuse_galore: true\n", "use_galore", "not_supported", {}),
        ("stage: sft\nuse_galore: false\n", "use_galore", "kept", {}),
        ("stage: sft\nquantization_bit: 8\n", "quantization_bit", "not_supported", {"train": {"strategy": "lora"}}),
    ],
)
def test_llamafactory(translate, text, key, status, ours):
    passport = translate(text, "llamafactory")
    assert next((found.status for found in passport.entries if found.key == key), None) == status
    for section, values in ours.items():
        made = written(passport)[section]
        assert {name: made.get(name, value) for name, value in values.items()} == values


@pytest.mark.parametrize(
    ("text", "key", "status", "ours"),
    [
        ("dataset_name: a\nmodel_name_or_path: b\n", "use_peft", "defaulted", {"train": {"strategy": "full"}}),
        ("use_peft: true\nload_in_4bit: true\n", "load_in_4bit", "renamed", {"train": {"strategy": "qlora"}}),
        ("use_peft: true\nload_in_4bit: true\n", "use_bnb_nested_quant", "defaulted", {}),
        ("use_peft: true\nlora_target_modules: all-linear\n", "lora_target_modules", "kept", {"train": {"lora_target_modules": "all-linear"}}),
        ("use_peft: true\n", "learning_rate", "defaulted", {"train": {"learning_rate": 2e-5}}),
        ("use_peft: true\nmax_seq_length: 512\n", "max_seq_length", "renamed", {"train": {"max_length": 512}}),
        ("use_peft: true\nmax_length: null\n", "max_length", "not_supported", {}),
        ("use_peft: true\nassistant_only_loss: true\n", "assistant_only_loss", "kept", {}),
        ("use_peft: true\nassistant_only_loss: false\n", "assistant_only_loss", "not_supported", {}),
        ("use_peft: true\nlr_scheduler_type: cosine\nwarmup_steps: 0.1\n", "warmup_steps", "renamed", {"train": {"warmup_ratio": 0.1}}),
        ("use_peft: true\ntrain_sampling_strategy: group_by_length\n", "train_sampling_strategy", "renamed", {"train": {"group_by_length": True}}),
        ("use_peft: true\ntest_split_size: 0.2\n", "test_split_size", "renamed", {}),
        ("use_peft: true\nuse_liger_kernel: true\n", "use_liger_kernel", "kept", {"train": {"use_liger_kernel": True}}),
        ("use_peft: true\nattn_implementation: sdpa\n", "attn_implementation", "kept", {"model": {"attn_implementation": "sdpa"}}),
        ("use_peft: true\nattn_implementation: kernels-community/flash-attn3\n", "attn_implementation", "not_supported", {}),
        ("use_peft: on\nbeta: 0.1\n", "beta", "not_supported", {"train": {"strategy": "lora"}}),
        ("use_peft: true\nresume_from_checkpoint: out/checkpoint-5\n", "resume_from_checkpoint", "not_supported", {}),
    ],
)
def test_trl(translate, text, key, status, ours):
    passport = translate(text, "trl")
    assert entry(passport, key).status == status
    for section, values in ours.items():
        assert values.items() <= written(passport)[section].items()


# Evaluations, the best step, early stopping and packs: the head of a file of each peer, and what stands after it.

LORA = {
    "axolotl": "base_model: a\nadapter: lora\nval_set_size: 0.1\n",
    "llamafactory": "stage: sft\nfinetuning_type: lora\nval_size: 0.1\n",
    "trl": "use_peft: true\n",
}
WATCHED = {
    "axolotl": LORA["axolotl"] + "eval_steps: 50\n",
    "llamafactory": LORA["llamafactory"] + "eval_strategy: steps\neval_steps: 50\n",
    "trl": LORA["trl"] + "eval_strategy: steps\neval_steps: 50\n",
}
EVALUATING = ("eval_steps", "load_best_model_at_end", "metric_for_best_model", "early_stopping_patience")


@pytest.mark.parametrize(
    ("peer", "text", "expected", "ours"),
    [
        # What is only watched does not change the result, and there the last step is the result.
        *((peer, "", {"eval_steps": "kept", "load_best_model_at_end": "defaulted"}, {"eval_steps": 50, "load_best_model_at_end": False}) for peer in NAMES),
        *((peer, "load_best_model_at_end: true\n", {"load_best_model_at_end": "kept"}, {"eval_steps": 50, "load_best_model_at_end": True}) for peer in NAMES),
        *(
            (
                peer,
                "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: false\n",
                {"metric_for_best_model": "kept", "greater_is_better": "kept"},
                {"eval_steps": 50, "load_best_model_at_end": True, "metric_for_best_model": "loss"},
            )
            for peer in NAMES
        ),
        *(
            (
                peer,
                "load_best_model_at_end: true\nmetric_for_best_model: eval_accuracy\ngreater_is_better: false\n",
                {"metric_for_best_model": "kept", "greater_is_better": "not_supported"},
                {"eval_steps": 50, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
            )
            for peer in NAMES
        ),
        ("trl", "metric_for_best_model: eval_rouge\n", {"metric_for_best_model": "not_supported"}, {"eval_steps": 50, "load_best_model_at_end": False}),
        # Axolotl takes the best step by itself where each save is an evaluation too, which is the default here.
        ("axolotl", "save_steps: 100\n", {"load_best_model_at_end": None}, {"eval_steps": 50}),
        ("axolotl", "save_steps: 75\n", {"load_best_model_at_end": "defaulted"}, {"eval_steps": 50, "load_best_model_at_end": False}),
        (
            "axolotl",
            "early_stopping_patience: 3\nsave_steps: 50\n",
            {"early_stopping_patience": "kept"},
            {"eval_steps": 50, "early_stopping_patience": 3},
        ),
        (
            "llamafactory",
            "early_stopping_steps: 4\nload_best_model_at_end: true\n",
            {"early_stopping_steps": "renamed"},
            {"eval_steps": 50, "load_best_model_at_end": True, "early_stopping_patience": 4},
        ),
        ("llamafactory", "early_stopping_steps: 0\n", {"early_stopping_steps": "not_supported"}, {"eval_steps": 50, "load_best_model_at_end": False}),
        ("trl", "early_stopping_patience: 3\n", {"early_stopping_patience": "not_supported"}, {"eval_steps": 50, "load_best_model_at_end": False}),
    ],
)
def test_evaluations_decide_as_they_do_there(translate, peer, text, expected, ours):
    passport = translate(WATCHED[peer] + text, peer)
    assert {key: next((found.status for found in passport.entries if found.key == key), None) for key in expected} == expected
    assert {key: value for key, value in written(passport)["train"].items() if key in EVALUATING} == ours
    decides = ours.get("load_best_model_at_end") is not False or any("early_stopping" in key for key in expected)
    assert entry(passport, "eval_steps").changes_results == decides


@pytest.mark.parametrize(
    ("peer", "text", "expected", "ours"),
    [
        ("trl", "eval_steps: 50\n", {"eval_steps": "kept"}, None),  # eval_strategy is no by default
        ("trl", "eval_strategy: no\neval_steps: 50\n", {"eval_strategy": "kept"}, None),
        ("trl", "eval_strategy: steps\n", {"eval_strategy": "renamed"}, 10),
        ("llamafactory", "eval_strategy: steps\n", {"eval_strategy": "renamed"}, 500),
        ("llamafactory", "evaluation_strategy: steps\nlogging_steps: 20\n", {"evaluation_strategy": "renamed"}, 20),
        ("llamafactory", "eval_strategy: epoch\n", {"eval_strategy": "not_supported"}, None),
        ("trl", "eval_strategy: steps\neval_steps: 0.1\nmax_steps: 205\n", {"eval_steps": "kept"}, 21),
        ("trl", "eval_strategy: steps\neval_steps: 0.1\n", {"eval_steps": "not_supported"}, None),
        ("trl", "eval_strategy: steps\neval_steps: often\n", {"eval_steps": "not_supported"}, 10),
        ("axolotl", "eval_strategy: epoch\n", {"eval_strategy": "not_supported"}, None),
        ("axolotl", "evals_per_epoch: 4\nnum_epochs: 2\n", {"evals_per_epoch": "not_supported"}, None),
        ("axolotl", "evals_per_epoch: 4\nnum_epochs: 2\nmax_steps: 100\n", {"evals_per_epoch": "renamed"}, 13),
        ("axolotl", "evals_per_epoch: 1\nmax_steps: 100\n", {"evals_per_epoch": "kept"}, None),
        ("axolotl", "val_set_size: 0\neval_steps: 50\n", {"eval_steps": "kept"}, None),
    ],
)
def test_how_often_is_evaluated(translate, peer, text, expected, ours):
    head = LORA[peer].replace("val_set_size: 0.1\n", "") if "val_set_size" in text else LORA[peer]
    passport = translate(head + text, peer)
    assert {key: entry(passport, key).status for key in expected} == expected
    assert written(passport)["train"].get("eval_steps") == ours


@pytest.mark.parametrize("peer", NAMES)
def test_what_counts_on_evaluations_is_told_where_there_are_none(translate, peer):
    patience = {"axolotl": "early_stopping_patience: 3\n", "llamafactory": "early_stopping_steps: 3\n", "trl": ""}[peer]
    passport = translate(LORA[peer] + "load_best_model_at_end: true\nmetric_for_best_model: accuracy\n" + patience, peer)
    for key in ("load_best_model_at_end", "metric_for_best_model", *(name.partition(":")[0] for name in patience.splitlines())):
        assert entry(passport, key).status == "not_supported"
        assert "train.eval_steps" in entry(passport, key).note
    assert not written(passport)["train"].keys() & set(EVALUATING)
    passport = translate(LORA[peer] + "load_best_model_at_end: false\n", peer)
    assert entry(passport, "load_best_model_at_end").status == "kept"


@pytest.mark.parametrize(("peer", "key"), [("axolotl", "sample_packing"), ("llamafactory", "packing"), ("trl", "packing")])
def test_packs_are_written_with_an_attention_that_keeps_them_apart(translate, peer, key):
    flash = {"axolotl": "flash_attention: true\n", "llamafactory": "flash_attn: fa2\n", "trl": "attn_implementation: flash_attention_2\n"}[peer]
    passport = translate(LORA[peer] + f"{key}: true\n{flash}", peer)
    assert entry(passport, key).status == ("renamed" if peer == "axolotl" else "kept")
    assert entry(passport, key).changes_results  # a pack is one row of the batch there
    assert written(passport)["train"]["packing"] is True
    assert written(passport)["model"]["attn_implementation"] == "sdpa"
    passport = translate(LORA[peer] + f"{key}: false\n{flash}", peer)
    assert "packing" not in written(passport)["train"]
    assert written(passport)["model"]["attn_implementation"] == "flash_attention_2"


def test_packs_of_llamafactory_whose_records_see_each_other(translate):
    seen = "There a record sees those before it in its pack."
    assert seen in entry(translate(LORA["llamafactory"] + "packing: true\n"), "packing").note
    assert seen not in entry(translate(LORA["llamafactory"] + "packing: true\nneat_packing: true\n"), "packing").note
    assert written(translate(LORA["llamafactory"] + "neat_packing: true\n"))["train"]["packing"] is True  # which switches packing on


def test_files_that_are_held_out_get_no_share_of_train(translate):
    passport = translate("base_model: a\ndatasets:\n  - path: a.jsonl\n    type: alpaca\ntest_datasets:\n  - path: b.jsonl\n    type: alpaca\n", "axolotl")
    teaching, measuring = written(passport)["data"]["sources"]
    assert teaching["splits"] == {"train": 1.0}
    assert measuring["splits"] == {"validation": 1.0, "calibration": 1.0, "test": 1.0}


def test_a_mixture_of_trl_names_its_files(translate):
    text = "use_peft: true\ndatasets:\n  - path: json\n    data_files: [a.jsonl, b.json]\n    fraction: 0.5\n"
    passport = translate(text, "trl")
    assert [source["path"] for source in written(passport)["data"]["sources"]] == ["a.jsonl", "b.json"]
    assert entry(passport, "datasets[0].fraction").status == "not_supported"


# What nobody knows, and what must not be shown


def test_an_unknown_key_is_told_and_what_the_peer_does_with_it(translate):
    found = entry(translate("base_model: a\nadapter: lora\nlearnig_rate: 1e-4\n"), "learnig_rate")
    assert found.status == "not_supported"
    assert found.note == "Not a key of Axolotl 0.19.0, which drops such a key in silence. Did you mean 'learning_rate'?"
    found = entry(translate("use_peft: true\nassistant_only_lost: true\ndataset_name: a\n"), "assistant_only_lost")
    assert found.note == "Not a key of TRL 1.16.0, which refuses such a key. Did you mean 'assistant_only_loss'?"


def test_a_known_key_without_a_rule_is_told():
    for peer in PEERS.values():
        bare = [key for key in sorted(peer.keys) if key not in peer.rules and not any(re.fullmatch(pattern, key) for pattern, _ in peer.groups)]
        assert len(bare) < len(peer.keys) / 2


SECRETS = {
    "llamafactory": ("hf_hub_token: hunter2\nstage: sft\n", "swanlab_api_key: hunter2\nstage: sft\n", "stage: sft\nray_init_kwargs: {password: hunter2}\n"),
    "axolotl": ("base_model: a\nadapter: lora\nmlflow_tracking_uri: https://me:hunter2@host/mlflow\n", "base_model: a\nadapter: lora\nmy_api_key: hunter2\n"),
    "trl": ("use_peft: true\nhub_token: hunter2\n", "use_peft: true\nenv: {HF_ACCESS_TOKEN: hunter2}\n"),
}


@pytest.mark.parametrize(("peer", "text"), [(peer, text) for peer, texts in SECRETS.items() for text in texts])
def test_secrets_are_neither_shown_nor_written(translate, peer, text):
    passport = translate(text, peer)
    assert "hunter2" not in passport.model_dump_json()
    assert passport.counts["not_supported"] >= 1


# Reading


def test_whose_file_it_is_is_told_from_its_keys(translate):
    assert [import_config(FILES / f"{name}.yaml").peer for name in NAMES] == list(NAMES)
    with pytest.raises(ConfigError, match=r"must be one peer's file") as raised:
        translate("learning_rate: 1e-4\nmodel_name_or_path: a\n")
    assert "--from" in raised.value.hint
    with pytest.raises(ConfigError, match="must be a file of Axolotl"):
        translate("project: letters\ndata: {}\nmodel: {}\n")
    with pytest.raises(ConfigError, match="--from must be one of axolotl, llamafactory, trl"):
        translate("base_model: a\n", "unsloth")


NESTED = "".join(f"{'  ' * level}a:\n" for level in range(60)) + "  " * 60 + "b: 1\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 10)}]\n" for m, n in zip("abcdef", "bcdefg", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: [a\n", r"run\.yaml:\d+:\d+: not valid YAML: "),
        ("base_model: a\nadapter: x\nbase_model: b\n", r"run\.yaml:3:1: not valid YAML: "),
        ("base_model: !!python/object/apply:os.system [ls]\n", r"run\.yaml:1:1: must hold plain values\. Received: the tag "),
        ("base_model: !!python/name:os.system x\n", r"run\.yaml:1:1: must hold plain values\. Received: the tag "),
        ("- a\n", r"run\.yaml:1:1: must be a mapping of keys\."),
        ("", r"run\.yaml:1:1: must be a mapping of keys\."),
        ("1: a\n", r"run\.yaml:1:1: keys must be text\. Received: 1\."),
        (b"base_model: \xff\n", r"run\.yaml: must be UTF-8\."),
        ("base_model: " + "x" * 2**20 + "\n", r"run\.yaml: must be 1 MiB at most\."),
        (NESTED, r"run\.yaml:\d+:\d+: must be nested 32 levels at most\."),
        ("a: " + "[" * 5000, r"run\.yaml:\d+:\d+: (must be nested|not valid YAML)"),
        (BOMB, r"run\.yaml:\d+:\d+: must hold 20,000 values at most"),
    ],
)
def test_what_cannot_be_read_says_where(translate, text, message):
    with pytest.raises(ConfigError, match=message):
        translate(text, "axolotl")


def test_a_missing_file(tmp_path):
    with pytest.raises(NotFoundError, match="No file"):
        import_config(tmp_path / "none.yaml")


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(allow_nan=False), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=2))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("peer", NAMES)
def test_whatever_the_values_every_key_is_told_and_the_file_can_be_read(tmp_path_factory, peer, data):
    keys = data.draw(st.lists(st.sampled_from(sorted(PEERS[peer].keys)), min_size=1, max_size=12, unique=True))
    folder = tmp_path_factory.mktemp("any")
    with (folder / "any.yaml").open("w", encoding="utf-8") as file:
        writer = YAML(typ="safe")
        writer.default_flow_style = False  # within braces it leaves '?0' without quotes, and cannot read it back
        writer.dump({key: data.draw(VALUES) for key in keys}, file)
    passport = import_config(folder / "any.yaml", peer)
    assert set(keys) <= {re.split(r"[\[:]", found.key)[0] for found in passport.entries}
    left = write_project(passport, folder / "tunesmith.yaml")
    assert {re.sub(r"^\S+:\d+:\d+: ", "", line).partition(":")[0] for line in left} == set(passport.placeholders)


# The command


def test_the_command_writes_the_file_and_says_what_is_left(cli, tmp_path):
    out = tmp_path / "tunesmith.yaml"
    result = cli("config", "import", FILES / "trl.yaml", "--out", out)
    assert result.code == 0, result.err
    for words in ("TRL 1.16.0: 18 kept, 4 renamed, 9 defaulted there, 7 not supported.", "Left to fill in:", "task.labels", "max_length", "defaulted"):
        assert words in result.out
    assert result.out.splitlines()[-1] == f"Next: fill in the lines above, then: tunesmith config check -C {out}"
    assert cli("config", "import", FILES / "trl.yaml", "--out", out).code == 2


def test_the_command_speaks_json(cli, tmp_path):
    shown = cli("config", "import", FILES / "axolotl.yaml", "--out", tmp_path / "t.yaml", "--json").json
    assert shown["peer"] == "axolotl"
    assert shown["counts"]["defaulted"] == 2
    assert shown["placeholders"] == ["task.labels", "data.sources.1.path"]
    assert {"key", "line", "value", "status", "ours", "written", "note", "changes_results"} == shown["entries"][0].keys()
