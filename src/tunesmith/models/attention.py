"""Causal attention of a batch whose rows share a prefix, and its gradient: of the prefix to itself, and of each row to the prefix and to itself.

Two ways, equal to rounding:

    scores   holds all of them. On the CPU, at the lengths of parts of documents, its backward pass is faster than a fused one.
    fused    torch's kernels, FlashAttention where they have it: memory grows with the length and not with its square. On a GPU.

Shapes: N = n_prefix + n_rows * n_columns flat tokens, prefix first; K key-value heads; H = K * group heads; d head size.
Source: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Dao 2023 (FlashAttention-2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.models.elementwise import compiled, rotate, softmax_backward_kernel, softmax_kernel


@dataclass(frozen=True)
class Geometry:
    """What all layers of one pass share, the last one apart.

    cos, sin: (N, 1, d / 2). masks: what is added to scores of the rows, (1, group * n_queries, n_prefix + n_columns), and of the prefix; None where
    attention is fused. Outputs are made for the prefix and all columns or, where `first` is not None, for the columns of the rows from it on:
    n_queries = n_columns - first. `recomputes`: layers keep their input alone for the way back.
    """

    n_prefix: int
    n_rows: int
    n_columns: int
    n_kv_heads: int
    group: int
    head_dim: int
    epsilon: float
    cos: Tensor
    sin: Tensor
    masks: tuple[Tensor, Tensor] | None
    recomputes: bool = False
    first: int | None = None

    @cached_property
    def back_cos(self) -> Tensor:
        """What turns gradients back: the transpose of a rotation, with the scale of scores where they are held."""
        return self.cos if self.masks is None else self.cos * self.head_dim**-0.5

    @cached_property
    def back_sin(self) -> Tensor:
        """As `back_cos`."""
        return self.sin * -(1.0 if self.masks is None else self.head_dim**-0.5)

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.n_prefix + self.n_rows * self.n_columns

    @property
    def n_queries(self) -> int:
        """Columns of the rows that outputs are made for."""
        return self.n_columns - (self.first or 0)

    def wanted(self, tokens: Tensor) -> Tensor:
        """Return a view of those of (N, n) that outputs are made for: (N, n) or (n_rows, n_queries, n)."""
        return tokens if self.first is None else tokens[self.n_prefix :].view(self.n_rows, self.n_columns, -1)[:, self.first :]

    def from_column(self, first: int) -> Geometry:
        """Return what a layer has whose outputs are wanted from a column of the rows on."""
        if self.masks is None:
            return replace(self, first=first)
        of_rows, of_prefix = self.masks
        return replace(self, first=first, masks=(of_rows.view(1, self.group, self.n_columns, -1)[:, :, first:].flatten(1, 2), of_prefix))


def attend(qk: Tensor, v: Tensor, at: Geometry, output: Tensor) -> Any:
    """Attend.

    Args:
        qk: (N, H + K, d), queries and keys, rotated already.
        v: (N, K, d).
        at: What all layers share.
        output: Where to write the heads' outputs, (n_outputs, H d).

    Returns:
        What the backward pass needs.
    """
    n_heads = at.n_kv_heads * at.group
    q, k = qk[:, :n_heads].view(at.n_tokens, at.n_kv_heads, at.group, at.head_dim), qk[:, n_heads:]
    return _fused(q, k, v, at, output) if at.masks is None else _scores(q, k, v, at, at.masks, output)


def attend_backward(gradient: Tensor, saved: Any, at: Geometry, into: Tensor) -> None:
    """Write the gradients of the unrotated q, k and v into `into`: (N, (H + 2K) d).

    Args:
        gradient: Of the heads' outputs, (n_outputs, H d).
        saved: What `attend` returned.
        at: What all layers share.
        into: Where to.
    """
    n_q, n_k = at.n_kv_heads * at.group * at.head_dim, at.n_kv_heads * at.head_dim
    backward = _fused_backward if at.masks is None else _scores_backward
    for gradient_of, outputs in zip(backward(gradient, saved, at, into), (into[:, :n_q], into[:, n_q : n_q + n_k]), strict=True):
        turned = gradient_of.view(at.n_tokens, -1, at.head_dim)
        rotate(turned, at.back_cos, at.back_sin, outputs.view(turned.shape))


def _fused(q: Tensor, k: Tensor, v: Tensor, at: Geometry, output: Tensor) -> Any:
    n_prefix, n_rows, d = at.n_prefix, at.n_rows, at.head_dim
    with torch.enable_grad():
        inputs = tuple(each.detach().requires_grad_() for each in (q, k, v))
        queries, flat = inputs[0].flatten(1, 2), inputs[1:]
        # Without a prefix nothing is sliced: the way back of a slice fills a whole tensor.
        rows, keys, values = (x[n_prefix:] if n_prefix else x for x in (queries, *flat))
        rows, keys, values = (x.view(n_rows, at.n_columns, -1, d) for x in (rows, keys, values))
        if n_prefix:  # in front of each row
            keys, values = (torch.cat([x[:n_prefix].expand(n_rows, -1, -1, -1), own], 1) for x, own in zip(flat, (keys, values), strict=True))
        rows = rows[:, at.first :] if at.first else rows
        attended = _seen_by_last(*(x.transpose(1, 2) for x in (rows, keys, values))).transpose(1, 2).flatten(0, 1)
        if at.first is None and n_prefix:
            own_q, own_k, own_v = (x[:n_prefix].transpose(0, 1)[None] for x in (queries, *flat))
            of_prefix = _seen_by_last(own_q, own_k, own_v)[0].transpose(0, 1)
            attended = torch.cat([of_prefix, attended])
    output.view(attended.shape).copy_(attended.detach())
    return attended, inputs


def _seen_by_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally, with queries (n, H, n_queries, d) that are the last ones of the keys (n, K, n_keys, d): the last query sees every key."""
    n_queries, n_keys, d = q.shape[2], k.shape[2], q.shape[3]
    if n_queries == n_keys:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if q.is_cuda and q.dtype == torch.bfloat16 and d % 8 == 0 and d <= 256:
        # The public function would align the mask with the first key, or hold it whole; FlashAttention itself aligns it with the last one.
        attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
        return attended
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def _fused_backward(gradient: Tensor, saved: Any, at: Geometry, into: Tensor) -> tuple[Tensor, Tensor]:
    attended, inputs = saved
    grad_q, grad_k, grad_v = torch.autograd.grad(attended, inputs, gradient.view(attended.shape))
    into[:, -at.n_kv_heads * at.head_dim :].view(grad_v.shape).copy_(grad_v)
    return grad_q, grad_k


def _scores(q: Tensor, k: Tensor, v: Tensor, at: Geometry, masks: tuple[Tensor, Tensor], output: Tensor) -> tuple[Tensor, ...]:
    n_prefix, n_rows, n_kv, group, d = at.n_prefix, at.n_rows, at.n_kv_heads, at.group, at.head_dim
    # Keys and values of the rows, the prefix's in front of each: (n_rows, K, n_prefix + n_columns, d).
    keys = k.new_empty(n_rows, n_kv, n_prefix + at.n_columns, d)
    values = torch.empty_like(keys)
    for joined, flat in ((keys, k), (values, v)):
        joined[:, :, :n_prefix] = flat[:n_prefix].transpose(0, 1)
        joined[:, :, n_prefix:] = flat[n_prefix:].view(n_rows, -1, n_kv, d).transpose(1, 2)
    keys, values = keys.view(n_rows * n_kv, -1, d), values.view(n_rows * n_kv, -1, d)
    # The heads of a group share keys: they stand below each other as more queries, and no key is copied.
    queries = q[n_prefix:].view(n_rows, -1, n_kv, group, d)[:, at.first or 0 :].permute(0, 2, 3, 1, 4).reshape(n_rows * n_kv, -1, d)
    weights = _weights(queries, keys, masks[0], at.n_queries)
    attended = torch.bmm(weights, values).view(n_rows, n_kv, group, -1, d).permute(0, 3, 1, 2, 4)
    output = output.view(-1, n_kv, group, d)
    if at.first is not None:
        output.view(n_rows, -1, n_kv, group, d).copy_(attended)
        return queries, keys, values, weights
    output[n_prefix:].view(n_rows, -1, n_kv, group, d).copy_(attended)
    prefix_queries = q[:n_prefix].permute(1, 2, 0, 3).reshape(n_kv, group * n_prefix, d)
    prefix_keys, prefix_values = k[:n_prefix].transpose(0, 1), v[:n_prefix].transpose(0, 1)
    prefix_weights = _weights(prefix_queries, prefix_keys, masks[1], n_prefix)
    output[:n_prefix].copy_(torch.bmm(prefix_weights, prefix_values).view(n_kv, group, n_prefix, d).permute(2, 0, 1, 3))
    return queries, keys, values, weights, prefix_queries, prefix_weights


def _weights(queries: Tensor, keys: Tensor, mask: Tensor, n_queries: int) -> Tensor:
    """Return the weights of keys, (n, m n_queries, n_keys), to queries (n, m n_queries, d) and keys (n, n_keys, d)."""
    if kernel := compiled(softmax_kernel, queries):
        scores = torch.bmm(queries, keys.transpose(1, 2))
        kernel(scores, n_queries, queries.shape[-1] ** -0.5)
        return scores
    return torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5).softmax(-1)


def _scores_gradient(gradient: Tensor, weights: Tensor, n_queries: int) -> Tensor:
    """Return the gradient of scaled scores from that of weights, which may be written over; both (n, m n_queries, n_keys)."""
    if kernel := compiled(softmax_backward_kernel, gradient):
        kernel(gradient, weights, n_queries)
        return gradient
    made: Tensor = torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)
    return made


def _scores_backward(gradient: Tensor, saved: Sequence[Tensor], at: Geometry, into: Tensor) -> tuple[Tensor, Tensor]:
    queries, keys, values, weights, *of_prefix = saved
    n_prefix, n_rows, n_columns, n_kv, group, d = at.n_prefix, at.n_rows, at.n_columns, at.n_kv_heads, at.group, at.head_dim
    n_q, n_k = n_kv * group * d, n_kv * d
    gradient = gradient.view(-1, n_kv, group, d)
    grad_q, grad_k = gradient.new_empty(at.n_tokens, n_kv, group, d), gradient.new_empty(at.n_tokens, n_kv, d)
    grad_v = into[:, n_q + n_k :].view(at.n_tokens, n_kv, d)

    rows = gradient[0 if at.first is not None else n_prefix :].view(n_rows, -1, n_kv, group, d).permute(0, 2, 3, 1, 4).reshape(n_rows * n_kv, -1, d)
    row_grad_v = torch.bmm(weights.transpose(1, 2), rows).view(n_rows, n_kv, -1, d)
    row_grad_scores = _scores_gradient(torch.bmm(rows, values.transpose(1, 2)), weights, at.n_queries)
    row_grad_q = torch.bmm(row_grad_scores, keys).view(n_rows, n_kv, group, -1, d).permute(0, 3, 1, 2, 4)
    row_grad_k = torch.bmm(row_grad_scores.transpose(1, 2), queries).view(n_rows, n_kv, -1, d)
    grad_k[n_prefix:].view(n_rows, n_columns, n_kv, d).copy_(row_grad_k[:, :, n_prefix:].transpose(1, 2))
    grad_v[n_prefix:].view(n_rows, n_columns, n_kv, d).copy_(row_grad_v[:, :, n_prefix:].transpose(1, 2))
    prefix_grad_k, prefix_grad_v = row_grad_k[:, :, :n_prefix].sum(0), row_grad_v[:, :, :n_prefix].sum(0)

    if at.first is None:  # the prefix is read by itself and by every row
        grad_q[n_prefix:].view(n_rows, n_columns, n_kv, group, d).copy_(row_grad_q)
        prefix_queries, prefix_weights = of_prefix
        prefix = gradient[:n_prefix].permute(1, 2, 0, 3).reshape(n_kv, group * n_prefix, d)
        prefix_keys, prefix_values = keys.view(n_rows, n_kv, -1, d)[0, :, :n_prefix], values.view(n_rows, n_kv, -1, d)[0, :, :n_prefix]
        prefix_grad_scores = _scores_gradient(torch.bmm(prefix, prefix_values.transpose(1, 2)), prefix_weights, n_prefix)
        grad_q[:n_prefix].copy_(torch.bmm(prefix_grad_scores, prefix_keys).view(n_kv, group, n_prefix, d).permute(2, 0, 1, 3))
        prefix_grad_k += torch.bmm(prefix_grad_scores.transpose(1, 2), prefix_queries)
        prefix_grad_v += torch.bmm(prefix_weights.transpose(1, 2), prefix)
    else:
        grad_q.zero_()
        grad_q[n_prefix:].view(n_rows, n_columns, n_kv, group, d)[:, at.first :].copy_(row_grad_q)
    grad_k[:n_prefix].copy_(prefix_grad_k.transpose(0, 1))
    grad_v[:n_prefix].copy_(prefix_grad_v.transpose(0, 1))
    return grad_q, grad_k
