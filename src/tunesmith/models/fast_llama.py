"""The forward and backward pass of a Llama decoder with LoRA, written for the CPU.

The pass of transformers and PEFT spends two thirds of a training step outside the matrix products: casts, element-wise
operations one by one, and LoRA's thin products beside each linear layer. Here each decoder layer is one autograd function
whose backward pass is derived by hand, as Unsloth does on GPUs:

- q, k, v are one product, gate and up another, and LoRA's second product is part of each: y = [x, x A'] [W, B]', so that one
  product gives what the weights and the adapter add, and its backward pass the gradients of both;
- a batch's shared prefix is computed once and attended to by every row (its gradient is the sum over the rows);
- nothing is computed for the gradient of the embeddings, the norms or the frozen weights;
- master weights of the adapters stay in float32; B's copy in the compute dtype stands beside W and is written once a pass.

Only supervised positions reach the language-model head, as two-dimensional products, and the last layer computes its queries
and its MLP from the first column on that has one of them. Equality with transformers, loss and
gradients, is tested in float32 (relative error below 1e-4) and bounded in bfloat16; `model.forward: plain` turns this off.

Shapes: N = n_prefix + n_rows * n_columns flat tokens, prefix first; D hidden size; H heads; K key-value heads; d head size.
Source: Touvron et al. 2023 (Llama); Hu et al. 2022 (LoRA); Su et al. 2021 (rotary embedding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from tunesmith.models.batch import Batch
from tunesmith.models.joined import JoinedProduct

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
    """One layer. qkv: (H + 2K) d outputs of D inputs; o: D of H d; gate_up: 2 I of D; down: D of I. Norms: (D,), in the compute dtype."""

    norm1: Tensor
    qkv: JoinedProduct
    o: JoinedProduct
    norm2: Tensor
    gate_up: JoinedProduct
    down: JoinedProduct

    @property
    def products(self) -> tuple[JoinedProduct, ...]:
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True)
class _Geometry:
    """What all layers of one pass share, the last one apart.

    cos, sin: (N, d / 2); mask: (1, H / K * n_queries, n_prefix + n_columns), added to scores. Outputs are made for the prefix and all columns
    or, where `first` is not None, for the columns of the rows from it on: n_queries = n_columns - first.
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
    mask: Tensor
    prefix_mask: Tensor
    first: int | None = None

    @property
    def n_tokens(self) -> int:
        return self.n_prefix + self.n_rows * self.n_columns

    @property
    def n_queries(self) -> int:
        return self.n_columns - (self.first or 0)

    def wanted(self, tokens: Tensor) -> Tensor:
        """Return a view of those of (N, n) that outputs are made for: (N, n) or (n_rows, n_queries, n)."""
        return tokens if self.first is None else tokens[self.n_prefix :].view(self.n_rows, self.n_columns, -1)[:, self.first :]

    def from_column(self, first: int) -> _Geometry:
        """Return what a layer has whose outputs are wanted from a column of the rows on."""
        return replace(self, first=first, mask=self.mask.view(1, self.group, self.n_columns, -1)[:, :, first:].flatten(1, 2))


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
        self._layers = [_layer_weights(layer) for layer in decoder.layers]
        self.switch()

    def switch(self, adapter: str = "") -> None:
        """Compute with another adapter of the model from now on, by its name in PEFT; the active one when empty."""
        for weights in self._layers:
            for product in weights.products:
                product.switch(adapter)
        adapted = [number for number, weights in enumerate(self._layers) if any(product.rank for product in weights.products)]
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
        geometry, n_layers = self._geometry(batch), len(self._layers)
        if batch.trunk is None:
            hidden = self._through(0, n_layers - 1, self._embedded(batch), geometry)
        else:
            hidden = self._through(self.n_frozen, n_layers - 1, batch.trunk, geometry)
        last = geometry.from_column(batch.first_column)
        hidden = self._through(n_layers - 1, n_layers, hidden, last)
        rows, columns = batch.positions // last.n_columns, batch.positions % last.n_columns
        chosen = hidden[rows * last.n_queries + columns - batch.first_column].float()
        states: Tensor = _RmsNorm.apply(chosen, self._norm, self._epsilon)  # type: ignore[no-untyped-call]
        return states

    @torch.no_grad()
    def trunk(self, batch: Batch) -> Tensor:
        """Return what the `n_frozen` lowest layers make of a batch's tokens: shape (n_prefix + n_rows * n_columns, D), in the compute dtype."""
        return self._through(0, self.n_frozen, self._embedded(batch), self._geometry(batch))

    def _embedded(self, batch: Batch) -> Tensor:
        return self._embedding[torch.cat([batch.prefix, batch.input_ids.flatten()])]

    def _through(self, first: int, after: int, hidden: Tensor, geometry: _Geometry) -> Tensor:
        for weights in self._layers[first:after]:
            masters = []
            for product in weights.products:
                product.write()
                masters += [master for part in product.parts for master in (part.a, part.b)]
            hidden = _DecoderLayer.apply(hidden, weights, geometry, *masters)  # type: ignore[no-untyped-call]
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


def _layer_weights(layer: Any) -> _Weights:
    q, k, v, o, gate, up, down = (layer.get_submodule(name) for name in _LINEARS)
    norm1, norm2 = layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()
    return _Weights(norm1, JoinedProduct([q, k, v]), JoinedProduct([o]), norm2, JoinedProduct([gate, up]), JoinedProduct([down]))


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, output: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norm's output, written to `output` when given, the normalised input, both (N, D), and the inverse root mean square (N, 1)."""
    square_sum = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    # Summed in float32, multiplied in the compute dtype: a product of two dtypes takes five times as long.
    inverse = square_sum.div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
    normalised = x * inverse
    return torch.mul(normalised, weight, out=output), normalised, inverse


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


def _attend(q: Tensor, k: Tensor, v: Tensor, at: _Geometry, output: Tensor) -> tuple[Tensor, ...]:
    """Causal attention of the prefix to itself, and of each row to the prefix and to itself.

    Args:
        q: (N, K, group, d), rotated already.
        k: (N, K, d), rotated already.
        v: (N, K, d).
        at: What all layers share.
        output: Where to write the heads' outputs, (n_outputs, H d).

    Returns:
        What the backward pass needs.
    """
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
    weights = torch.baddbmm(at.mask, queries, keys.transpose(1, 2), alpha=d**-0.5).softmax(-1)
    attended = torch.bmm(weights, values).view(n_rows, n_kv, group, -1, d).permute(0, 3, 1, 2, 4)
    output = output.view(-1, n_kv, group, d)
    if at.first is not None:
        output.view(n_rows, -1, n_kv, group, d).copy_(attended)
        return queries, keys, values, weights
    output[n_prefix:].view(n_rows, -1, n_kv, group, d).copy_(attended)
    prefix_queries = q[:n_prefix].permute(1, 2, 0, 3).reshape(n_kv, group * n_prefix, d)
    prefix_keys, prefix_values = k[:n_prefix].transpose(0, 1), v[:n_prefix].transpose(0, 1)
    prefix_weights = torch.baddbmm(at.prefix_mask, prefix_queries, prefix_keys.transpose(1, 2), alpha=d**-0.5).softmax(-1)
    output[:n_prefix].copy_(torch.bmm(prefix_weights, prefix_values).view(n_kv, group, n_prefix, d).permute(2, 0, 1, 3))
    return queries, keys, values, weights, prefix_queries, prefix_weights


def _attend_backward(gradient: Tensor, saved: Sequence[Tensor], at: _Geometry, into: Tensor) -> None:
    """Write the gradients of the unrotated q, k and v into `into`: (N, (H + 2K) d)."""
    queries, keys, values, weights, *of_prefix = saved
    n_prefix, n_rows, n_columns, n_kv, group, d = at.n_prefix, at.n_rows, at.n_columns, at.n_kv_heads, at.group, at.head_dim
    n_q, n_k = n_kv * group * d, n_kv * d
    gradient = gradient.view(-1, n_kv, group, d)
    grad_q, grad_k = gradient.new_empty(at.n_tokens, n_kv, group, d), gradient.new_empty(at.n_tokens, n_kv, d)
    grad_v = into[:, n_q + n_k :].view(at.n_tokens, n_kv, d)

    rows = gradient[0 if at.first is not None else n_prefix :].view(n_rows, -1, n_kv, group, d).permute(0, 2, 3, 1, 4).reshape(n_rows * n_kv, -1, d)
    row_grad_v = torch.bmm(weights.transpose(1, 2), rows).view(n_rows, n_kv, -1, d)
    row_grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(rows, values.transpose(1, 2)), weights, -1, weights.dtype)
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
        prefix_grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(prefix, prefix_values.transpose(1, 2)), prefix_weights, -1, prefix_weights.dtype)
        grad_q[:n_prefix].copy_(torch.bmm(prefix_grad_scores, prefix_keys).view(n_kv, group, n_prefix, d).permute(2, 0, 1, 3))
        prefix_grad_k += torch.bmm(prefix_grad_scores.transpose(1, 2), prefix_queries)
        prefix_grad_v += torch.bmm(prefix_weights.transpose(1, 2), prefix)
    else:
        grad_q.zero_()
        grad_q[n_prefix:].view(n_rows, n_columns, n_kv, group, d)[:, at.first :].copy_(row_grad_q)
    grad_k[:n_prefix].copy_(prefix_grad_k.transpose(0, 1))
    grad_v[:n_prefix].copy_(prefix_grad_v.transpose(0, 1))

    # The transpose of a rotation turns back; the scores' scale comes with it.
    cos, sin = at.cos[:, None] * d**-0.5, at.sin[:, None] * -(d**-0.5)
    into[:, :n_q].view(at.n_tokens, n_kv, group, d).copy_(_rotate(grad_q, cos[:, None], sin[:, None]))
    into[:, n_q : n_q + n_k].view(at.n_tokens, n_kv, d).copy_(_rotate(grad_k, cos, sin))


class _DecoderLayer(torch.autograd.Function):
    """One Llama decoder layer. Its masters, A and B of q, k, v, o, gate, up and down, are inputs for their gradients' sake: they stand in its products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: _Weights, at: _Geometry, *masters: Tensor) -> Tensor:
        n_q, n_k = at.n_kv_heads * at.group * at.head_dim, at.n_kv_heads * at.head_dim

        input1 = weights.qkv.input(x)
        _, normalised1, inverse1 = _rms_norm(x, weights.norm1, at.epsilon, input1[:, : x.shape[1]])
        qkv, a_qkv = weights.qkv.forward(input1)
        q = qkv[:, :n_q].view(at.n_tokens, at.n_kv_heads, at.group, at.head_dim)
        k = qkv[:, n_q : n_q + n_k].view(at.n_tokens, at.n_kv_heads, at.head_dim)
        v = qkv[:, n_q + n_k :].view(at.n_tokens, at.n_kv_heads, at.head_dim)
        q, k = _rotate(q, at.cos[:, None, None], at.sin[:, None, None]), _rotate(k, at.cos[:, None], at.sin[:, None])
        wanted = at.wanted(x).flatten(0, -2)
        attended = weights.o.input(wanted)
        for_attention = _attend(q, k, v, at, attended[:, :n_q])
        middle, a_o = weights.o.forward(attended, wanted)

        input2 = weights.gate_up.input(wanted)
        _, normalised2, inverse2 = _rms_norm(middle, weights.norm2, at.epsilon, input2[:, : x.shape[1]])
        gate_up, a_gate_up = weights.gate_up.forward(input2)
        gate, up = gate_up.chunk(2, dim=1)
        opened = silu(gate)
        inner = weights.down.input(wanted)
        torch.mul(opened, up, out=inner[:, : opened.shape[1]])
        output, a_down = weights.down.forward(inner, middle)

        if any(ctx.needs_input_grad):
            ctx.weights, ctx.geometry = weights, at
            ctx.save_for_backward(
                a_qkv, a_o, a_gate_up, a_down, input1, normalised1, inverse1, attended,
                input2, normalised2, inverse2, gate_up, opened, inner, *for_attention,
            )  # fmt: skip
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        a_qkv, a_o, a_gate_up, a_down, input1, normalised1, inverse1, attended, *saved = ctx.saved_tensors
        input2, normalised2, inverse2, gate_up, opened, inner, *for_attention = saved
        weights, at = ctx.weights, ctx.geometry

        # MLP: output = middle + down(silu(gate) * up)
        grad_inner, of_down = weights.down.backward(grad_output, inner, a_down)
        grad_gate_up = torch.empty_like(gate_up)
        (gate, up), (grad_gate, grad_up) = gate_up.chunk(2, dim=1), grad_gate_up.chunk(2, dim=1)
        torch.mul(grad_inner, opened, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_inner.mul_(up), gate, grad_input=grad_gate)
        grad_input2, of_gate_up = weights.gate_up.backward(grad_gate_up, input2, a_gate_up)
        grad_middle = _rms_norm_backward(grad_input2, weights.norm2, normalised2, inverse2).add_(grad_output)

        # Attention: middle = x + o(attend(q, k, v))
        grad_attended, of_o = weights.o.backward(grad_middle, attended, a_o)
        grad_qkv = grad_output.new_empty(at.n_tokens, len(weights.qkv.joined))
        _attend_backward(grad_attended, for_attention, at, grad_qkv)
        grad_input1, of_qkv = weights.qkv.backward(grad_qkv, input1, a_qkv)
        grad_x = None
        if ctx.needs_input_grad[0]:  # not in the first layer: the embeddings are frozen
            grad_x = _rms_norm_backward(grad_input1, weights.norm1, normalised1, inverse1)
            wanted = at.wanted(grad_x)
            wanted.add_(grad_middle.view(wanted.shape))
        return grad_x, None, None, *of_qkv, *of_o, *of_gate_up, *of_down
