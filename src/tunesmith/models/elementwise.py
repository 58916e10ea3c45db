"""The element-wise chains of a Llama layer and their gradients, each written out: norm, gate, rotation, softmax.

An element-wise operation takes the time of reading and writing its tensors, whatever it computes, and a chain of six does so six times. So each chain
is one kernel (`_..._kernel`): on a GPU by torch.compile, in bfloat16 on a CPU by the loops of `elementwise_cpu.py`. In other precisions, and on a GPU
without the C compiler that Triton needs, its operations run one by one, in place where that saves memory.

Shapes: N tokens; D hidden size; I inner size of the MLP; d head size.
Source: Touvron et al. 2023 (Llama); Zhang and Sennrich 2019 (RMSNorm); Su et al. 2021 (rotary embedding); Shazeer 2020 (gated MLP).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["compiled", "gate", "gate_backward", "rms_norm", "rms_norm_backward", "rotate", "softmax_backward_kernel", "softmax_kernel"]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, output: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norm's output, written to `output` when given, the normalised input, both (N, D), and the inverse root mean square (N, 1)."""
    if kernel := compiled(_rms_norm_kernel, x):
        output = torch.empty_like(x) if output is None else output
        return output, *kernel(x, weight, epsilon, output)
    square_sum = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    # Summed in float32, multiplied in the compute dtype: a product of two dtypes takes five times as long.
    inverse = square_sum.div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
    normalised = x * inverse
    return torch.mul(normalised, weight, out=output), normalised, inverse


def rms_norm_backward(gradient: Tensor, weight: Tensor, normalised: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of the norm's input, shape (N, D)."""
    if kernel := compiled(_rms_norm_backward_kernel, gradient):
        made: Tensor = kernel(gradient, weight, normalised, inverse)
        return made
    gradient = gradient * weight
    mean = (gradient * normalised).mean(-1, keepdim=True)
    gradient.addcmul_(normalised, mean, value=-1)
    return gradient.mul_(inverse)


def gate(gate_up: Tensor, output: Tensor) -> Tensor | None:
    """Write silu(g) u to `output`, shape (N, I), of [g, u], shape (N, 2 I); return silu(g), (N, I), where the way back is better off with it."""
    if kernel := compiled(_gate_kernel, gate_up):
        kernel(gate_up, output)
        return None
    closed, up = gate_up.chunk(2, dim=1)
    opened = silu(closed)
    torch.mul(opened, up, out=output)
    return opened


def gate_backward(gradient: Tensor, gate_up: Tensor, opened: Tensor | None, inner: Tensor | None = None) -> Tensor:
    """Return the gradient of [g, u], shape (N, 2 I), from that of silu(g) u, which may be written over.

    Args:
        gradient: shape (N, I).
        gate_up: [g, u].
        opened: What `gate` returned.
        inner: Where to write silu(g) u again, shape (N, I), if anywhere; only where `gate` returned nothing.
    """
    grad_gate_up = torch.empty_like(gate_up)
    if opened is None:
        (compiled(_gate_backward_kernel, gate_up) or _gate_backward_kernel)(gradient, gate_up, grad_gate_up, inner)
        return grad_gate_up
    (closed, up), (grad_closed, grad_up) = gate_up.chunk(2, dim=1), grad_gate_up.chunk(2, dim=1)
    torch.mul(gradient, opened, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(gradient.mul_(up), closed, grad_input=grad_closed)
    return grad_gate_up


def rotate(x: Tensor, cos: Tensor, sin: Tensor, output: Tensor | None = None) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) by its position's angle; x: (N, ..., d), cos and sin broadcastable to (N, ..., d/2). Written to `output` when given."""
    output = torch.empty_like(x, memory_format=torch.contiguous_format) if output is None else output
    if kernel := compiled(_rotate_kernel, x):
        kernel(x, cos, sin, output)
        return output
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=output[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=output[..., half:]).addcmul_(first, sin)
    return output


def _rms_norm_kernel(x: Tensor, weight: Tensor, epsilon: float, output: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.float()
    inverse = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    normalised = (wide * inverse).to(x.dtype)
    output.copy_(normalised * weight)
    return normalised, inverse.to(x.dtype)


def _rms_norm_backward_kernel(gradient: Tensor, weight: Tensor, normalised: Tensor, inverse: Tensor) -> Tensor:
    wide, normalised_wide = gradient.float() * weight.float(), normalised.float()
    mean = (wide * normalised_wide).mean(-1, keepdim=True)
    return ((wide - normalised_wide * mean) * inverse.float()).to(gradient.dtype)


def _gate_kernel(gate_up: Tensor, output: Tensor) -> None:
    closed, up = gate_up.chunk(2, dim=1)
    output.copy_(silu(closed) * up)


def _gate_backward_kernel(gradient: Tensor, gate_up: Tensor, output: Tensor, inner: Tensor | None) -> None:
    wide, (closed, up) = gradient.float(), gate_up.float().chunk(2, dim=1)
    share = closed.sigmoid()
    grad_closed, grad_up = output.chunk(2, dim=1)
    grad_up.copy_(wide * closed * share)
    grad_closed.copy_(wide * up * share * (1 + closed * (1 - share)))
    if inner is not None:
        inner.copy_(closed * share * up)


def _rotate_kernel(x: Tensor, cos: Tensor, sin: Tensor, output: Tensor) -> None:
    first, second = x.chunk(2, dim=-1)
    output.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))


def softmax_kernel(scores: Tensor, n_queries: int, scale: float) -> None:
    """Turn scores into weights in their place, by a softmax of scale * score over the keys that a query sees.

    Args:
        scores: shape (n, m n_queries, n_keys). The last query sees every key, the one before it one key less; the weight of the others is 0.
        n_queries: Queries in a row of them.
        scale: What scores are multiplied by.
    """
    n_keys = scores.shape[-1]
    is_hidden = torch.ones(n_queries, n_keys, dtype=torch.bool, device=scores.device).triu_(n_keys - n_queries + 1)
    rows = scores.view(-1, n_queries, n_keys)
    rows.copy_((rows.float() * scale).masked_fill(is_hidden, -torch.inf).softmax(-1))


def softmax_backward_kernel(gradient: Tensor, weights: Tensor, n_queries: int) -> None:
    """Turn the gradient of weights into that of scaled scores in its place. Shapes as `softmax_kernel` has them; hidden keys get 0 by their weight."""
    wide = weights.float()
    product = gradient.float() * wide
    gradient.copy_(product - product.sum(-1, keepdim=True) * wide)


def compiled(kernel: Callable[..., Any], x: Tensor) -> Callable[..., Any] | None:
    """Return a chain as one kernel where there can be one for a tensor, else nothing.

    Tensors without content, of a dry run, are of another type: for them the chain is taken to need nothing but what it returns.
    """
    if x.is_cuda and _can_compile():
        made = _compile
    elif x.device.type == "cpu" and x.dtype == torch.bfloat16:
        made = _loop
    else:
        return None
    one = made(kernel)  # in a dry run too: what it loads counts in the memory of this process
    return one if type(x) is Tensor else _SHAPES.get(kernel)


@cache
def _compile(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(kernel)  # for a shape at the first call, for any number of tokens from the second on


@cache
def _can_compile() -> bool:
    return find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


@cache
def _loop(kernel: Callable[..., Any]) -> Callable[..., Any]:
    from tunesmith.models import elementwise_cpu  # Numba takes half a second

    loop: Callable[..., Any] = getattr(elementwise_cpu, kernel.__name__.strip("_").removesuffix("_kernel"))
    return loop


_SHAPES: dict[Callable[..., Any], Callable[..., Any]] = {
    _rms_norm_kernel: lambda x, *_: (torch.empty_like(x), x.new_empty(len(x), 1)),
    _rms_norm_backward_kernel: lambda gradient, *_: torch.empty_like(gradient),
    _gate_kernel: lambda *_: None,
    _gate_backward_kernel: lambda *_: None,
    _rotate_kernel: lambda *_: None,
    softmax_kernel: lambda *_: None,
    softmax_backward_kernel: lambda *_: None,
}
"""What a kernel of a dry run returns."""
