"""Linear layers that read the same input, with their LoRA adapters, as one matrix product: y = [x, x A'] [W, B]'.

LoRA's thin products reach a tenth of the rate of the weights' own. Beside W, B costs next to nothing, and the backward pass of the one
product gives the gradients of both. Used by the fast pass (`fast_llama.py`).

Source: Hu et al. 2022 (LoRA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Part:
    """One linear layer in a product. A: (r, n_in), B: (n_out, r), float32 masters, of rank 0 where it has no adapter."""

    a: Tensor
    b: Tensor
    scale: float
    rows: slice
    """Where its outputs stand among the product's."""
    ranks: slice
    """Where its x A' stands behind the product's input."""


class JoinedProduct:
    """Linear layers that read the same input x: y = [x, x A'] [W, B]', A and B those of all their adapters (B block by block).

    Attributes:
        joined: [W, B], shape (n_out, n_in + R), in the compute dtype; R is the sum of the ranks, on a GPU the next multiple of 8. W is frozen.
        a: shape (R, n_in), in the compute dtype. A and B are what the masters were when `write` was last called.
    """

    def __init__(self, linears: Sequence[Any]) -> None:
        self._linears = linears
        self.joined = torch.cat([_layer(linear).weight.detach() for linear in linears])
        self.n_in: int = self.joined.shape[1]
        self.parts: list[_Part] = []
        self._widen(0)

    def switch(self, adapter: str) -> None:
        """Take another adapter, by its name in PEFT; the active one when empty."""
        self.parts, row, rank = [], 0, 0
        for linear in self._linears:
            a, b, scale = _adapter(linear, adapter)
            self.parts.append(_Part(a, b, scale, slice(row, row + len(b)), slice(rank, rank + len(a))))
            row, rank = row + len(b), rank + len(a)
        # A GPU's fast products want rows of whole 16 bytes: zeros stand where no adapter does.
        rank += -rank % 8 if self.joined.is_cuda else 0
        self.a = self.joined.new_zeros(rank, self.n_in)
        if self.n_in + rank != self.joined.shape[1]:
            self._widen(rank)
        self.joined[:, self.n_in :] = 0  # off the blocks it stays so

    def _widen(self, rank: int) -> None:
        """Make room for B; the modules' own weights become views, so that nothing is held twice."""
        frozen, row = self.joined[:, : self.n_in], 0
        self.joined = frozen.new_zeros(len(frozen), self.n_in + rank)
        self.joined[:, : self.n_in] = frozen
        for linear in self._linears:
            layer = _layer(linear)
            layer.weight.data = self.joined[row : row + len(layer.weight), : self.n_in]
            row += len(layer.weight)

    @property
    def rank(self) -> int:
        """R: the sum of the ranks of its adapters, and what fills them up on a GPU."""
        return len(self.a)

    def input(self, like: Tensor) -> Tensor:
        """Return an empty [x, x A'] for the tokens of `like`, shape (N, n_in + R)."""
        return like.new_empty(len(like), self.joined.shape[1])

    def forward(self, wide: Tensor, residual: Tensor | None = None) -> Tensor:
        """Fill in x A' and multiply.

        Args:
            wide: [x, anything], shape (N, n_in + R).
            residual: Added to the product.

        Returns:
            y, shape (N, n_out).
        """
        if self.rank:
            torch.mm(wide[:, : self.n_in], self.a.t(), out=wide[:, self.n_in :])
        return wide @ self.joined.t() if residual is None else torch.addmm(residual, wide, self.joined.t())

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x, shape (N, n_in), and of x A', shape (N, R), from that of y."""
        grad_wide = gradient @ self.joined
        grad_x, grad_low = grad_wide[:, : self.n_in], grad_wide[:, self.n_in :]
        return grad_x.addmm_(grad_low, self.a) if self.rank else grad_x, grad_low

    def learnt(self, gradient: Tensor, grad_low: Tensor, x: Tensor, low: Tensor) -> list[Tensor]:
        """Return the gradients of A and B of each part in turn, from those of y and of x A', from x, and from x A'."""
        if not self.rank:
            return [each for part in self.parts for each in (torch.zeros_like(part.a), torch.zeros_like(part.b))]
        grad_a, grad_b = grad_low.t() @ x, gradient.t() @ low
        own = [grad_b[part.rows, part.ranks] for part in self.parts]
        scaled = (each if part.scale == 1 else each * part.scale for part, each in zip(self.parts, own, strict=True))
        return [each for part, of_b in zip(self.parts, scaled, strict=True) for each in (grad_a[part.ranks], of_b)]


@torch.no_grad()
def write(products: Sequence[JoinedProduct]) -> None:
    """Write what the masters are now into the products. Workers that do so at the same time write the same."""
    parts = [(product, part) for product in products for part in product.parts if len(part.a)]
    if not parts:
        return
    scaled = torch._foreach_mul([part.b for _, part in parts], [part.scale for _, part in parts])
    into = [product.joined[part.rows, product.n_in + part.ranks.start : product.n_in + part.ranks.stop] for product, part in parts]
    torch._foreach_copy_([*into, *(product.a[part.ranks] for product, part in parts)], [*scaled, *(part.a for _, part in parts)])


def _layer(linear: Any) -> Any:
    """Return the frozen layer under PEFT's."""
    return getattr(linear, "base_layer", linear)


def _adapter(linear: Any, name: str) -> tuple[Tensor, Tensor, float]:
    """Return LoRA's A (r, n_in), B (n_out, r) and scale; of rank 0 where a linear layer has no adapter."""
    name = name or (linear.active_adapters[0] if hasattr(linear, "lora_A") else "")
    if name in getattr(linear, "lora_A", ()):
        return linear.lora_A[name].weight, linear.lora_B[name].weight, linear.scaling[name]
    n_out, n_in = linear.weight.shape
    at = _layer(linear).weight.device
    return torch.empty(0, n_in, device=at), torch.empty(n_out, 0, device=at), 1.0
