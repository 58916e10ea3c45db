"""For tests of Tunesmith and of plug-ins: a tiny base model with random weights, and a small labelled data set.

The tiny model is a real Llama with a real tokenizer and chat template, so that every path of the program runs on it in
seconds. Untrained it answers by chance; trained on the tiny project it is right about nine times in ten.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = {
    "mortgage": "escrow house refinance lender foreclosure appraisal property",
    "card": "credit card charge merchant purchase fraud limit",
    "loan": "student tuition servicer deferment college payment forbearance",
}
_FILLER = "the company told me that my account was wrong and I called them again about it but nobody answered so I write now"


def tiny_base(folder: Path, *, seed: int = 0, texts: Sequence[str] = ()) -> Path:
    """Write a base model of some 50,000 parameters: Llama, 2 layers, hidden size 32, 4 heads on 2 key-value heads.

    Args:
        folder: Where to; created where missing.
        seed: Seed of the weights.
        texts: What the tokenizer learns its vocabulary from, besides the texts of `tiny_rows`.

    Returns:
        The folder, as `model.model_name_or_path` takes it.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([text for text, _ in tiny_rows(60)] + list(texts), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")  # noqa: S106 - tokens of text
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # Near 1 / sqrt(hidden_size). With the usual 0.02 the frozen embeddings, which are the head too, could favour no token.
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path, *, seed: int = 0, kind: str = "bert") -> Path:
    """Write an encoder of some 20,000 parameters with random weights and a word-piece tokenizer: 2 layers, hidden size 32, 4 heads, 128 positions.

    Args:
        folder: Where to; created where missing.
        seed: Seed of the weights.
        kind: `bert`, `roberta`, `distilbert` or `modernbert`.

    Returns:
        The folder, as `model.model_name_or_path` takes it.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator([text for text, _ in tiny_rows(60)], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names).save_pretrained(folder)
    # RoBERTa numbers its positions from pad_token_id + 1 on.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128 + (kind == "roberta")}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 128}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=tokenizer.get_vocab_size(), initializer_range=0.2, **sizes, **ids)).save_pretrained(folder)
    return folder


def tiny_encoder_project(folder: Path, *, n_rows: int = 240, settings: str = "") -> Path:
    """Write a project that runs the whole loop in seconds on the tiny encoder. Arguments as in `tiny_project`."""
    tiny_project(folder, n_rows=n_rows)
    tiny_encoder(folder / "encoder")
    changed = _PROJECT.replace("base", "encoder").replace("max_length: 160", "max_length: 64\n  strategy: full").replace("1e-2", "3e-3")
    (folder / "tunesmith.yaml").write_text(changed + settings, encoding="utf-8")
    return folder


def tiny_rows(n: int) -> list[tuple[str, str]]:
    """Return n different (text, label) rows of three labels that a classifier can learn; the same ones every time."""
    import random

    draw = random.Random(0)  # noqa: S311 - no secret
    rows = []
    for number in range(n):
        label = sorted(_WORDS)[number % 3]
        words = draw.choices(_WORDS[label].split(), k=6) + draw.choices(_FILLER.split(), k=10)
        draw.shuffle(words)
        rows.append((f"{' '.join(words)} {number}", label))
    return rows


def tiny_extraction_project(folder: Path, *, n_rows: int = 120, settings: str = "") -> Path:
    """Write a project of the task `extraction` on the tiny base model: a letter's product and whether it is urgent. Arguments as in `tiny_project`."""
    tiny_project(folder, n_rows=n_rows)
    with (folder / "data" / "records.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text, label in tiny_rows(n_rows):
            writer.writerow([text, json.dumps({"product": label, "urgent": label == "card"})])
    task = """task:
  type: extraction
  instruction: Find.
  json_schema:
    type: object
    properties:
      product: {type: string, enum: [card, loan, mortgage]}
      urgent: {type: boolean}
  max_answer_tokens: 40
"""
    before, _, rest = _PROJECT.partition("task:\n")
    after = (
        rest[rest.index("data:\n") :].replace("max_length: 160", "max_length: 260").replace("num_train_epochs: 12", "num_train_epochs: 20\n  strategy: full")
    )
    (folder / "tunesmith.yaml").write_text(before + task + after + settings, encoding="utf-8")
    return folder


def tiny_chat_project(folder: Path, *, n_rows: int = 60, settings: str = "") -> Path:
    """Write a project of the task `chat` on the tiny base model: two sentences about a letter. Arguments as in `tiny_project`."""
    tiny_project(folder, n_rows=n_rows)
    with (folder / "data" / "records.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, f"About a {label}. Thank you.") for text, label in tiny_rows(n_rows))
    before, _, rest = _PROJECT.partition("task:\n")
    task = "task: {type: chat, instruction: Answer., max_answer_tokens: 40}\n"
    after = rest[rest.index("data:\n") :].replace("num_train_epochs: 12", "num_train_epochs: 12\n  strategy: full")
    (folder / "tunesmith.yaml").write_text(before + task + after + settings, encoding="utf-8")
    return folder


_OPENINGS = {
    "invoice": "invoice total due vat item",
    "letter": "dear sir regards sincerely yours",
    "memo": "memo staff meeting agenda minutes",
}


def tiny_embedder(folder: Path, *, seed: int = 0) -> Path:
    """Write an embedding model of random weights that tells apart the document types of `tiny_typed_project`, as `data.embedding_model` takes it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *" ".join(_OPENINGS.values()).split()]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106 - tokens of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
    torch.manual_seed(seed)
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.3, **shape), add_pooling_layer=False).save_pretrained(folder)
    return folder


def tiny_typed_rows(n: int) -> list[tuple[str, str, str]]:
    """Return n (text, label, document type) rows whose labels follow another rule in invoices than in letters and memos, one row in ten of which is a memo."""
    import random

    draw = random.Random(1)  # noqa: S311 - no secret
    names = sorted(_WORDS)
    rows = []
    for number, (text, label) in enumerate(tiny_rows(n)):
        document_type = "memo" if number % 10 == 9 else ("invoice", "letter")[number // 3 % 2]
        right = names[(names.index(label) + 1) % len(names)] if document_type == "invoice" else label
        rows.append((f"{' '.join(draw.choices(_OPENINGS[document_type].split(), k=4))} {text}", right, document_type))
    return rows


def tiny_typed_project(folder: Path, *, n_rows: int = 400, settings: str = "") -> Path:
    """Write a project with one adapter per document type on the tiny base model. Arguments as in `tiny_project`.

    Invoices and letters get a child, memos stay with the parent. The column `kind` holds the document type.
    """
    tiny_project(folder)
    tiny_embedder(folder / "encoder")
    with (folder / "data" / "records.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "kind"])
        writer.writerows(tiny_typed_rows(n_rows))
    text = _PROJECT.replace("    - path: data/records.csv\n", "    - path: data/records.csv\n      document_type_column: kind\n")
    text = text.replace("model:\n", "  embedding_model: encoder\nmodel:\n", 1).replace("train:\n", "train:\n  adapters: {min_records: 40}\n", 1)
    (folder / "tunesmith.yaml").write_text(text + settings, encoding="utf-8")
    return folder


def tiny_project(folder: Path, *, n_rows: int = 240, settings: str = "") -> Path:
    """Write a project that runs the whole loop in seconds on the tiny base model.

    Args:
        folder: Where to; created where missing.
        n_rows: Rows of data/records.csv.
        settings: YAML to add at the end of tunesmith.yaml.

    Returns:
        The folder.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    tiny_base(folder / "base")
    with (folder / "data" / "records.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(tiny_rows(n_rows))
    (folder / "tunesmith.yaml").write_text(_PROJECT + settings, encoding="utf-8")
    return folder


_PROJECT = """\
project: tiny
task:
  instruction: Sort the letter.
  labels: [card, loan, mortgage]
data:
  sources:
    - path: data/records.csv
      splits: {train: 0.4, validation: 0.15, calibration: 0.15, test: 0.3}
model:
  model_name_or_path: base
  dtype: float32
train:
  max_length: 160
  excess_length_strategy: truncate
  learning_rate: 1e-2
  num_train_epochs: 12
  per_device_train_batch_size: 8
  save_steps: 20
  logging_steps: 5
evaluate:
  bootstrap_samples: 200
  latency_samples: 3
"""
