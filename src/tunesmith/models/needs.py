"""What a base model needs of a machine: memory to train it with each strategy and to serve it at each precision.

Weights, gradients and the optimizer's two moments are counted exactly as our strategies hold them; activations by formula, since
a matrix of many models must not run them. `tunesmith plan` counts a real run, on this machine, within a few percent.

Source:
    Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, equation 2; Dettmers et al. 2023, QLoRA
    (bits of NF4 with double quantisation); bits of GGUF blocks are read from the package gguf.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.models.base_facts import BaseFacts

DEVICES = {
    "h100-80gb": 80e9,
    "a100-80gb": 80e9,
    "a100-40gb": 40e9,
    "l40s-48gb": 48e9,
    "l4-24gb": 24e9,
    "rtx-4090": 24e9,
    "rtx-3060-12gb": 12e9,
    "t4-16gb": 16e9,
    "cpu-16gb": 16e9,
    "cpu-32gb": 32e9,
    "cpu-64gb": 64e9,
}
"""Memory as the makers state it, in bytes."""

USABLE = 0.9
"""Share of a device's memory that a model may take: the rest is the driver's, the allocator's and the system's."""

RANK = 16
PREFIX_TOKENS = 20

FULL_BYTES = 4 + 2 + 4 + 8
"""Bytes a weight of full fine-tuning: a float32 master, its bfloat16 copy, a float32 gradient and two float32 moments."""
ADAPTER_BYTES = 4 + 4 + 8

GGUF_KINDS = {"gguf-q8_0": ("Q8_0",), "gguf-q4_k": ("Q4_K", "Q6_K")}
"""Kind of the linear layers, and of the vocabulary's table where it is another."""


@dataclass(frozen=True)
class Workload:
    """What the memory is asked for.

    Attributes:
        batch: Texts a step of training.
        tokens: Tokens a text of training.
        context: Tokens of a text that is served.
        streams: Texts that are served at once.
    """

    batch: int = 8
    tokens: int = 512
    context: int = 4096
    streams: int = 1


def training_bytes(facts: BaseFacts, work: Workload) -> dict[str, int]:
    """Return strategy -> bytes of training."""
    activations = _activation_bytes(facts, work)
    frozen = 2 * facts.parameters
    lora = ADAPTER_BYTES * RANK * facts.lora_parameters_per_rank
    prefix = ADAPTER_BYTES * PREFIX_TOKENS * (facts.full_layers + facts.window_layers) * facts.cache_numbers
    needed = {
        "full": FULL_BYTES * facts.parameters,
        "lora": frozen + lora,
        "qlora": round(_weight_bytes(facts, _nf4_bits(), 16)) + lora,
        "prefix": frozen + prefix,
    }
    if facts.kind != "decoder":  # a prefix of keys and values, and 4 bits, are for decoders here
        needed = {name: needed[name] for name in ("full", "lora")}
    return {name: held + activations for name, held in needed.items()}


def serving_bytes(facts: BaseFacts, work: Workload) -> dict[str, int]:
    """Return precision -> bytes of serving: weights, and the cache of the texts that are answered at once."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    def bits(kind: str) -> float:
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        return float(8 * n_bytes / block)

    # Four bits with a scale of 16 and a zero of 4 bits for each 128 weights, as AWQ and GPTQ keep them.
    widths: dict[str, tuple[float, float]] = {"bfloat16": (16, 16), "awq-gptq-4bit": (4 + 20 / 128, 16), "nf4": (_nf4_bits(), 16)}
    widths |= {name: (bits(kinds[0]), bits(kinds[-1])) for name, kinds in GGUF_KINDS.items()}
    cache = facts.cache_bytes(work.context) * work.streams
    return {name: round(_weight_bytes(facts, *width)) + cache for name, width in widths.items()}


def fits(n_bytes: int, device: str) -> bool:
    """Whether this much fits a device of `DEVICES`."""
    return n_bytes <= USABLE * DEVICES[device]


def _nf4_bits() -> float:
    return 4 + 8 / 64 + 32 / (64 * 256)


def _weight_bytes(facts: BaseFacts, linear_bits: float, embedding_bits: float) -> float:
    rest = facts.parameters - facts.linear_parameters - facts.embedding_parameters
    return (facts.linear_parameters * linear_bits + facts.embedding_parameters * embedding_bits + rest * 16) / 8


def _activation_bytes(facts: BaseFacts, work: Workload) -> int:
    """Return what a step keeps for its way back, and the logits of one text in float32 three times over."""
    per_token = 34 * facts.hidden_size + 5 * facts.query_heads * work.tokens
    logits = 12 * facts.vocabulary * work.tokens if facts.kind == "decoder" else 0
    return int(work.batch * work.tokens * per_token * facts.layers + logits)
