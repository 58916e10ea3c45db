"""The forward and backward pass of a Llama decoder with LoRA, written for the CPU.

The pass of transformers and PEFT spends two thirds of a training step outside the matrix products: casts, element-wise
operations one by one, and LoRA's thin products beside each linear layer. Here each decoder layer is one autograd function
whose backward pass is derived by hand, as Unsloth does on GPUs:

- q, k, v are one product, gate and up another; LoRA's second product is added in place;
- a batch's shared prefix is computed once and attended to by every row (its gradient is the sum over the rows);
- nothing is computed for the gradient of the embeddings, the norms or the frozen weights;
- master weights of the adapters stay in float32, their copies in the compute dtype are made once a pass.

Only supervised positions reach the language-model head, as two-dimensional products. Equality with transformers, loss and
gradients, is tested in float32 (relative error below 1e-4) and bounded in bfloat16; `model.forward: plain` turns this off.

Shapes: N = n_prefix + n_rows * n_columns flat tokens, prefix first; D hidden size; H heads; K key-value heads; d head size.
Source: Touvron et al. 2023 (Llama); Hu et al. 2022 (LoRA); Su et al. 2021 (rotary embedding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from tunesmith.models.batch import Batch

_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def supports(config: Any) -> bool:
    """Whether this pass computes exactly what transformers computes for a model configuration: a Llama without biases or scaled rotary embedding."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type == "llama"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not getattr(config, "mlp_bias", False)
        and rope.get("rope_type", "default") == "default"
    )


@dataclass(frozen=True)
class _Weights:
    """Frozen weights of one layer in the compute dtype. qkv: ((H + 2K) d, D); o: (D, H d); gate_up: (2 I, D); down: (D, I)."""

    norm1: Tensor
    qkv: Tensor
    o: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class _Geometry:
    """What all layers of one pass share. cos, sin: (N, d / 2); mask: (1, H / K * n_columns, n_prefix + n_columns), added to scores."""

    n_prefix: int
    n_rows: int
    n_columns: int
    n_kv_heads: int
    group: int
    head_dim: int
    epsilon: float
    cos: Tensor
    sin: Tensor
    mask: Tensor
    prefix_mask: Tensor

    @property
    def n_tokens(self) -> int:
        return self.n_prefix + self.n_rows * self.n_columns


class FastLlama:
    """Runs a LlamaForCausalLM, with or without PEFT's LoRA modules in it.

    The model's linear weights become views of the fused ones, so that nothing is held twice.

    Args:
        model: The transformers model, its LoRA modules injected already. Its weights have the compute dtype.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.width: int = config.hidden_size
        self._n_kv_heads = config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._epsilon = config.rms_norm_eps
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta") or config.rope_theta
        self._frequencies = 1.0 / theta ** (torch.arange(0, self._head_dim, 2).float() / self._head_dim)
        decoder = model.model
        self._embedding: Tensor = decoder.embed_tokens.weight.detach()
        self._norm = decoder.norm.weight.detach().float()
        # In float32: at the logits' size bfloat16 has steps of 1/8, which would tie labels and round the loss.
        self._head: Tensor = model.lm_head.weight.detach().float()
        self._layers, self._linears = [], []
        for layer in decoder.layers:
            linears = [layer.get_submodule(name) for name in _LINEARS]
            self._layers.append(_fuse(layer, [getattr(linear, "base_layer", linear) for linear in linears]))
            self._linears.append(linears)
        self.switch()

    def switch(self, adapter: str = "") -> None:
        """Compute with another adapter of the model from now on, by its name in PEFT; the active one when empty."""
        self._adapters = [[_adapter(linear, self.dtype, adapter) for linear in linears] for linears in self._linears]
        adapted = [number for number, adapters in enumerate(self._adapters) if any(len(down) for down, _, _ in adapters)]
        self.n_frozen = adapted[0] if adapted else len(self._layers)
        """Lowest layers without adapters: whatever is learnt, they make the same of a token."""

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        """Return the next-token logits at the batch's positions.

        Args:
            batch: What to read.
            vocabulary: Token ids to give logits for; None for all.

        Returns:
            shape (n_positions, n_vocabulary), float32; differentiable in the adapters' weights.
        """
        logits: Tensor = self.states(batch) @ self.head(vocabulary).t()
        return logits

    def head(self, vocabulary: Tensor | None = None) -> Tensor:
        """Return the language-model head's rows of token ids, or all: shape (n_vocabulary, D), float32."""
        return self._head if vocabulary is None else self._head[vocabulary]

    def states(self, batch: Batch) -> Tensor:
        """Return what the head reads at the batch's positions: shape (n_positions, D), float32; differentiable in the adapters' weights."""
        geometry = self._geometry(batch)
        hidden = self._through(0, self.n_frozen, self._embedded(batch), geometry) if batch.trunk is None else batch.trunk
        hidden = self._through(self.n_frozen, len(self._layers), hidden, geometry)
        chosen = hidden[geometry.n_prefix + batch.positions].float()
        states: Tensor = _RmsNorm.apply(chosen, self._norm, self._epsilon)  # type: ignore[no-untyped-call]
        return states

    @torch.no_grad()
    def trunk(self, batch: Batch) -> Tensor:
        """Return what the `n_frozen` lowest layers make of a batch's tokens: shape (n_prefix + n_rows * n_columns, D), in the compute dtype."""
        return self._through(0, self.n_frozen, self._embedded(batch), self._geometry(batch))

    def _embedded(self, batch: Batch) -> Tensor:
        return self._embedding[torch.cat([batch.prefix, batch.input_ids.flatten()])]

    def _through(self, first: int, after: int, hidden: Tensor, geometry: _Geometry) -> Tensor:
        for weights, adapters in zip(self._layers[first:after], self._adapters[first:after], strict=True):
            copies = [copy for down, up, scale in adapters for copy in (down.to(self.dtype), (up * scale).to(self.dtype))]
            hidden = _DecoderLayer.apply(hidden, weights, geometry, *copies)  # type: ignore[no-untyped-call]
        return hidden

    def _geometry(self, batch: Batch) -> _Geometry:
        n_prefix, (n_rows, n_columns) = len(batch.prefix), batch.input_ids.shape
        positions = torch.cat([torch.arange(n_prefix), torch.arange(n_prefix, n_prefix + n_columns).repeat(n_rows)])
        angles = torch.outer(positions.float(), self._frequencies)
        mask = torch.zeros(n_columns, n_prefix + n_columns, dtype=self.dtype)
        mask[:, n_prefix:] = self._causal(n_columns)
        return _Geometry(
            n_prefix,
            n_rows,
            n_columns,
            self._n_kv_heads,
            self._group,
            self._head_dim,
            self._epsilon,
            angles.cos().to(self.dtype),
            angles.sin().to(self.dtype),
            mask.repeat(self._group, 1)[None],
            self._causal(n_prefix).repeat(self._group, 1)[None],
        )

    def _causal(self, size: int) -> Tensor:
        return torch.full((size, size), torch.finfo(self.dtype).min / 2, dtype=self.dtype).triu_(1)


def _fuse(layer: Any, linears: Sequence[Any]) -> _Weights:
    """Concatenate the weights that read the same input and make the modules' own weights views of the result."""
    q, k, v, o, gate, up, down = linears
    fused = []
    for parts in ((q, k, v), (gate, up)):
        whole = torch.cat([part.weight.detach() for part in parts])
        for part, view in zip(parts, torch.split(whole, [len(part.weight) for part in parts]), strict=True):
            part.weight.data = view
        fused.append(whole)
    return _Weights(
        layer.input_layernorm.weight.detach(), fused[0], o.weight.detach(), layer.post_attention_layernorm.weight.detach(), fused[1], down.weight.detach()
    )


def _adapter(linear: Any, dtype: torch.dtype, name: str) -> tuple[Tensor, Tensor, float]:
    """Return LoRA's A (r, n_in), B (n_out, r) and scale; of rank 0 where a linear layer has no adapter."""
    name = name or (linear.active_adapters[0] if hasattr(linear, "lora_A") else "")
    if name in getattr(linear, "lora_A", ()):
        return linear.lora_A[name].weight, linear.lora_B[name].weight, linear.scaling[name]
    n_out, n_in = linear.weight.shape
    return torch.empty(0, n_in, dtype=dtype), torch.empty(n_out, 0, dtype=dtype), 1.0


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norm's output, the normalised input, both (N, D), and the inverse root mean square (N, 1)."""
    square_sum = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    # Summed in float32, multiplied in the compute dtype: a product of two dtypes takes five times as long.
    inverse = square_sum.div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
    normalised = x * inverse
    return normalised * weight, normalised, inverse


def _rms_norm_backward(gradient: Tensor, weight: Tensor, normalised: Tensor, inverse: Tensor) -> Tensor:
    gradient = gradient * weight
    mean = (gradient * normalised).mean(-1, keepdim=True)
    gradient.addcmul_(normalised, mean, value=-1)
    return gradient.mul_(inverse)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        output, normalised, inverse = _rms_norm(x, weight, epsilon)
        ctx.save_for_backward(weight, normalised, inverse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _rms_norm_backward(gradient, *ctx.saved_tensors), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) by its position's angle; x: (N, ..., d), cos and sin broadcastable to (N, ..., d/2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=turned[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned[..., half:]).addcmul_(first, sin)
    return turned


def _attend(q: Tensor, k: Tensor, v: Tensor, at: _Geometry) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Causal attention of the prefix to itself, and of each row to the prefix and to itself.

    Args:
        q: (N, K, group, d), rotated already.
        k: (N, K, d), rotated already.
        v: (N, K, d).
        at: What all layers share.

    Returns:
        The heads' outputs (N, H d), and what the backward pass needs.
    """
    n_prefix, n_rows, n_columns, n_kv, group, d = at.n_prefix, at.n_rows, at.n_columns, at.n_kv_heads, at.group, at.head_dim
    output = q.new_empty(at.n_tokens, n_kv, group, d)
    # Keys and values of the rows, the prefix's in front of each: (n_rows, K, n_prefix + n_columns, d).
    keys = k.new_empty(n_rows, n_kv, n_prefix + n_columns, d)
    values = torch.empty_like(keys)
    for joined, flat in ((keys, k), (values, v)):
        joined[:, :, :n_prefix] = flat[:n_prefix].transpose(0, 1)
        joined[:, :, n_prefix:] = flat[n_prefix:].view(n_rows, n_columns, n_kv, d).transpose(1, 2)
    keys, values = keys.view(n_rows * n_kv, -1, d), values.view(n_rows * n_kv, -1, d)
    # The heads of a group share keys: they stand below each other as more queries, and no key is copied.
    queries = q[n_prefix:].view(n_rows, n_columns, n_kv, group, d).permute(0, 2, 3, 1, 4).reshape(n_rows * n_kv, group * n_columns, d)
    weights = torch.baddbmm(at.mask, queries, keys.transpose(1, 2), alpha=d**-0.5).softmax(-1)
    attended = torch.bmm(weights, values).view(n_rows, n_kv, group, n_columns, d)
    output[n_prefix:].view(n_rows, n_columns, n_kv, group, d).copy_(attended.permute(0, 3, 1, 2, 4))
    prefix_queries = q[:n_prefix].permute(1, 2, 0, 3).reshape(n_kv, group * n_prefix, d)
    prefix_keys, prefix_values = k[:n_prefix].transpose(0, 1), v[:n_prefix].transpose(0, 1)
    prefix_weights = torch.baddbmm(at.prefix_mask, prefix_queries, prefix_keys.transpose(1, 2), alpha=d**-0.5).softmax(-1)
    output[:n_prefix].copy_(torch.bmm(prefix_weights, prefix_values).view(n_kv, group, n_prefix, d).permute(2, 0, 1, 3))
    return output.view(at.n_tokens, -1), (queries, keys, values, weights, prefix_queries, prefix_weights)


def _attend_backward(gradient: Tensor, saved: Sequence[Tensor], at: _Geometry, into: Tensor) -> None:
    """Write the gradients of the unrotated q, k and v into `into`: (N, (H + 2K) d)."""
    queries, keys, values, weights, prefix_queries, prefix_weights = saved
    n_prefix, n_rows, n_columns, n_kv, group, d = at.n_prefix, at.n_rows, at.n_columns, at.n_kv_heads, at.group, at.head_dim
    n_q, n_k = n_kv * group * d, n_kv * d
    gradient = gradient.view(at.n_tokens, n_kv, group, d)
    grad_q, grad_k = gradient.new_empty(at.n_tokens, n_kv, group, d), gradient.new_empty(at.n_tokens, n_kv, d)
    grad_v = into[:, n_q + n_k :].view(at.n_tokens, n_kv, d)

    rows = gradient[n_prefix:].view(n_rows, n_columns, n_kv, group, d).permute(0, 2, 3, 1, 4).reshape(n_rows * n_kv, group * n_columns, d)
    row_grad_v = torch.bmm(weights.transpose(1, 2), rows).view(n_rows, n_kv, -1, d)
    row_grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(rows, values.transpose(1, 2)), weights, -1, weights.dtype)
    row_grad_q = torch.bmm(row_grad_scores, keys).view(n_rows, n_kv, group, n_columns, d)
    row_grad_k = torch.bmm(row_grad_scores.transpose(1, 2), queries).view(n_rows, n_kv, -1, d)
    grad_q[n_prefix:].view(n_rows, n_columns, n_kv, group, d).copy_(row_grad_q.permute(0, 3, 1, 2, 4))
    grad_k[n_prefix:].view(n_rows, n_columns, n_kv, d).copy_(row_grad_k[:, :, n_prefix:].transpose(1, 2))
    grad_v[n_prefix:].view(n_rows, n_columns, n_kv, d).copy_(row_grad_v[:, :, n_prefix:].transpose(1, 2))

    # The prefix is read by itself and by every row.
    prefix = gradient[:n_prefix].permute(1, 2, 0, 3).reshape(n_kv, group * n_prefix, d)
    prefix_keys, prefix_values = keys.view(n_rows, n_kv, -1, d)[0, :, :n_prefix], values.view(n_rows, n_kv, -1, d)[0, :, :n_prefix]
    prefix_grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(prefix, prefix_values.transpose(1, 2)), prefix_weights, -1, prefix_weights.dtype)
    grad_q[:n_prefix].copy_(torch.bmm(prefix_grad_scores, prefix_keys).view(n_kv, group, n_prefix, d).permute(2, 0, 1, 3))
    grad_k[:n_prefix].copy_((torch.bmm(prefix_grad_scores.transpose(1, 2), prefix_queries) + row_grad_k[:, :, :n_prefix].sum(0)).transpose(0, 1))
    grad_v[:n_prefix].copy_((torch.bmm(prefix_weights.transpose(1, 2), prefix) + row_grad_v[:, :, :n_prefix].sum(0)).transpose(0, 1))

    # The transpose of a rotation turns back; the scores' scale comes with it.
    cos, sin = at.cos[:, None] * d**-0.5, at.sin[:, None] * -(d**-0.5)
    into[:, :n_q].view(at.n_tokens, n_kv, group, d).copy_(_rotate(grad_q, cos[:, None], sin[:, None]))
    into[:, n_q : n_q + n_k].view(at.n_tokens, n_kv, d).copy_(_rotate(grad_k, cos, sin))


class _DecoderLayer(torch.autograd.Function):
    """One Llama decoder layer. Adapters come as A, B pairs of q, k, v, o, gate, up and down, B scaled already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: _Weights, at: _Geometry, *adapters: Tensor) -> Tensor:
        aq, bq, ak, bk, av, bv, ao, bo, ag, bg, au, bu, ad, bd = adapters
        n_q, n_k = len(bq), len(bk)

        input1, normalised1, inverse1 = _rms_norm(x, weights.norm1, at.epsilon)
        a_qkv = torch.cat([aq, ak, av])
        qkv, low_qkv = input1 @ weights.qkv.t(), input1 @ a_qkv.t()
        low_q, low_k, low_v = torch.split(low_qkv, [len(aq), len(ak), len(av)], dim=1)
        q = qkv[:, :n_q].addmm_(low_q, bq.t()).view(at.n_tokens, at.n_kv_heads, at.group, at.head_dim)
        k = qkv[:, n_q : n_q + n_k].addmm_(low_k, bk.t()).view(at.n_tokens, at.n_kv_heads, at.head_dim)
        v = qkv[:, n_q + n_k :].addmm_(low_v, bv.t()).view(at.n_tokens, at.n_kv_heads, at.head_dim)
        q, k = _rotate(q, at.cos[:, None, None], at.sin[:, None, None]), _rotate(k, at.cos[:, None], at.sin[:, None])
        attended, for_attention = _attend(q, k, v, at)
        low_o = attended @ ao.t()
        middle = torch.addmm(x, attended, weights.o.t()).addmm_(low_o, bo.t())

        input2, normalised2, inverse2 = _rms_norm(middle, weights.norm2, at.epsilon)
        a_gate_up = torch.cat([ag, au])
        gate_up, low_gate_up = input2 @ weights.gate_up.t(), input2 @ a_gate_up.t()
        low_gate, low_up = torch.split(low_gate_up, [len(ag), len(au)], dim=1)
        gate, up = gate_up[:, : len(bg)].addmm_(low_gate, bg.t()), gate_up[:, len(bg) :].addmm_(low_up, bu.t())
        opened = silu(gate)
        inner = opened * up
        low_down = inner @ ad.t()
        output = torch.addmm(middle, inner, weights.down.t()).addmm_(low_down, bd.t())

        if any(ctx.needs_input_grad):
            ctx.weights, ctx.geometry = weights, at
            ctx.save_for_backward(
                *adapters, a_qkv, a_gate_up, input1, normalised1, inverse1, low_qkv, attended, low_o,
                input2, normalised2, inverse2, low_gate_up, gate_up, opened, inner, low_down, *for_attention,
            )  # fmt: skip
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        aq, bq, ak, bk, av, bv, ao, bo, ag, bg, au, bu, ad, bd, *saved = ctx.saved_tensors
        a_qkv, a_gate_up, input1, normalised1, inverse1, low_qkv, attended, low_o, *saved = saved
        input2, normalised2, inverse2, low_gate_up, gate_up, opened, inner, low_down, *for_attention = saved
        weights, at = ctx.weights, ctx.geometry
        n_q, n_k, n_inner = len(bq), len(bk), len(bg)
        low_q, low_k, low_v = torch.split(low_qkv, [len(aq), len(ak), len(av)], dim=1)
        low_gate, low_up = torch.split(low_gate_up, [len(ag), len(au)], dim=1)

        # MLP: output = middle + down(silu(gate) * up)
        grad_bd, grad_low = grad_output.t() @ low_down, grad_output @ bd
        grad_ad = grad_low.t() @ inner
        grad_inner = (grad_output @ weights.down).addmm_(grad_low, ad)
        grad_gate_up = torch.empty_like(gate_up)
        torch.mul(grad_inner, opened, out=grad_gate_up[:, n_inner:])
        grad_opened = grad_inner.mul_(gate_up[:, n_inner:])
        torch.ops.aten.silu_backward.grad_input(grad_opened, gate_up[:, :n_inner], grad_input=grad_gate_up[:, :n_inner])
        grad_gate, grad_up = grad_gate_up[:, :n_inner], grad_gate_up[:, n_inner:]
        grad_bg, grad_bu = grad_gate.t() @ low_gate, grad_up.t() @ low_up
        grad_low = torch.cat([grad_gate @ bg, grad_up @ bu], dim=1)
        grad_ag, grad_au = torch.split(grad_low.t() @ input2, [len(ag), len(au)])
        grad_input2 = (grad_gate_up @ weights.gate_up).addmm_(grad_low, a_gate_up)
        grad_middle = _rms_norm_backward(grad_input2, weights.norm2, normalised2, inverse2).add_(grad_output)

        # Attention: middle = x + o(attend(q, k, v))
        grad_bo, grad_low = grad_middle.t() @ low_o, grad_middle @ bo
        grad_ao = grad_low.t() @ attended
        grad_attended = (grad_middle @ weights.o).addmm_(grad_low, ao)
        grad_qkv = grad_output.new_empty(at.n_tokens, len(weights.qkv))
        _attend_backward(grad_attended, for_attention, at, grad_qkv)
        grad_q, grad_k, grad_v = torch.split(grad_qkv, [n_q, n_k, n_k], dim=1)
        grad_bq, grad_bk, grad_bv = grad_q.t() @ low_q, grad_k.t() @ low_k, grad_v.t() @ low_v
        grad_low = torch.cat([grad_q @ bq, grad_k @ bk, grad_v @ bv], dim=1)
        grad_aq, grad_ak, grad_av = torch.split(grad_low.t() @ input1, [len(aq), len(ak), len(av)])
        grad_x = None
        if ctx.needs_input_grad[0]:  # not in the first layer: the embeddings are frozen
            grad_input1 = (grad_qkv @ weights.qkv).addmm_(grad_low, a_qkv)
            grad_x = _rms_norm_backward(grad_input1, weights.norm1, normalised1, inverse1).add_(grad_middle)
        return (
            grad_x, None, None, grad_aq, grad_bq, grad_ak, grad_bk, grad_av, grad_bv,
            grad_ao, grad_bo, grad_ag, grad_bg, grad_au, grad_bu, grad_ad, grad_bd,
        )  # fmt: skip
