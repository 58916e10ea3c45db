"""How much memory a training step holds, counted by doing it without numbers.

The model is built without weights, and one pass of the run's largest batch goes through it forward and backward: the same
modules, the same forward pass and the same loss as in training, on tensors that have a shape and no content. Each tensor's
bytes are counted from its making to its end, so that what autograd keeps, what PEFT casts and what lives for a moment are all in
the peak, for any model and strategy. What is not in it: libraries, memory that kernels take inside of one operation, and what
the heap holds beyond what is live. All sizes are in bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig

from tunesmith.models.batch import Batch
from tunesmith.models.engine import forward_pass
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import empty_model
from tunesmith.train.answer_loss import answer_loss

_NEED_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)
_PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")}


@dataclass(frozen=True)
class DryRun:
    """What a run holds.

    Attributes:
        held: Weights, and copies of them that the forward pass makes.
        trained: Weights that learn.
        passes: Per pass, the most that it holds at once beside the weights: activations, logits, gradients.
        products: Matrix products in bfloat16 of different shapes in one pass: for each, oneDNN keeps what it prepared.
    """

    held: int
    trained: int
    passes: tuple[int, ...]
    products: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive.

    Attributes:
        now: Of those made inside of this context and not yet ended.
        peak: The most since it was last set.
        products: Kind and shapes of matrix products in bfloat16 on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.products: set[Any] = set()
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in _PRODUCTS and made.dtype == torch.bfloat16 and not made.is_cuda:
            self.products.add((function, *((tensor.shape, tensor.stride()) for tensor in args if isinstance(tensor, Tensor))))
        tree_map_only(torch.Tensor, self._add, made)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # views share it
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self.now -= size


def dry_run(
    base: Path,
    section: ModelSection,
    make_trainable: Callable[[Any], Any],
    batches: Sequence[Callable[[], Batch]],
    *,
    in_float32: bool,
    is_chunked: bool = True,
    recomputes: bool = False,
) -> DryRun:
    """Train on batches without numbers.

    Args:
        base: Folder of the base model.
        section: The section `model`, resolved.
        make_trainable: Makes a model trainable as the strategy does.
        batches: Each makes the batch of a pass.
        in_float32: Whether the base model is held in float32.
        is_chunked: Whether logits are made in parts where they are many.
        recomputes: Whether layers keep their input alone for the way back.
    """
    config = AutoConfig.from_pretrained(base)
    dtype = torch.float32 if in_float32 else getattr(torch, section.dtype)
    with torch.device("meta"):
        model = make_trainable(empty_model(base, section, dtype)).train()
    quantised, largest = _four_bits_save(model) if section.load_in_4bit else (0, 0)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        _give_shapes(model)
        forward = forward_pass(model, section, recomputes=recomputes)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        held = live.now
        passes: dict[Any, int] = {}
        shapes = []
        for make_batch in batches:
            batch = make_batch()
            shape = (batch.input_ids.shape, batch.positions.shape)
            shapes.append(shape)
            if shape in passes:
                continue
            live.products.clear()
            before = live.peak = live.now
            try:
                loss = answer_loss(forward, batch, is_chunked=is_chunked)
                gradients = torch.autograd.grad(loss, parameters)
            except _NEED_NUMBERS:
                passes[shape] = _by_formula(config, section.num_labels or config.vocab_size, batch, dtype.itemsize) + largest
                continue
            passes[shape] = live.peak - before + largest
            del loss, gradients
    trained = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return DryRun(held - quantised, trained, tuple(passes[shape] for shape in shapes), len(live.products))


def _by_formula(config: Any, outputs: int, batch: Batch, item_bytes: int) -> int:
    """Return what a pass keeps for its way back, of a model that looks at numbers to decide what to compute, as mixtures of experts do.

    Source:
        Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, equation 2, of two bytes a number; and
        the logits, their softmax and their gradient in float32.
    """
    n_rows, width = batch.input_ids.shape[0], batch.input_ids.shape[1] + len(batch.prefix)
    per_token = 34 * config.hidden_size + 5 * config.num_attention_heads * width
    return int(n_rows * width * per_token * item_bytes / 2 * config.num_hidden_layers + 12 * len(batch.positions) * outputs)


def _four_bits_save(model: torch.nn.Module) -> tuple[int, int]:
    """Return by how much 4 bits make the decoder layers' frozen weights smaller, and what the largest takes while it is multiplied.

    NF4 with double quantisation: half a byte a weight, one byte for 64 of them, and a float32 for 256 of those (Dettmers et al. 2023).
    """
    frozen = [
        module.weight
        for name, module in model.named_modules()
        if ".layers." in name and isinstance(module, torch.nn.Linear) and not module.weight.requires_grad
    ]
    saved = sum(weight.numel() * (weight.element_size() - 0.5 - 1 / 64 - 4 / (64 * 256)) for weight in frozen)
    return int(saved), 2 * max((weight.numel() * weight.element_size() for weight in frozen), default=0)


def _give_shapes(model: torch.nn.Module) -> None:
    """Put tensors without content, of the processor or GPU as it seems, in the place of a model's tensors on the meta device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:  # tied weights stay tied
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            known[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty
        return known[id(tensor)]

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            table.update({name: made(tensor) for name, tensor in table.items() if tensor is not None})  # type: ignore[misc]
        # PEFT keeps the ids of virtual tokens in a dict, and rotary embeddings their first frequencies as an attribute.
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, name, made(value))
            elif isinstance(value, dict) and name not in ("_parameters", "_buffers", "_modules"):
                value.update({key: made(tensor) for key, tensor in value.items() if isinstance(tensor, Tensor) and tensor.is_meta})
