"""The forward and backward pass of a Llama decoder with LoRA.

The pass of transformers and PEFT spends two thirds of a training step outside the matrix products: casts, element-wise
operations one by one, and LoRA's thin products beside each linear layer. Here each decoder layer is one autograd function
whose backward pass is derived by hand, as Unsloth does on GPUs:

- q, k, v are one product, gate and up another, and LoRA's second product is part of each: y = [x, x A'] [W, B]', so that one
  product gives what the weights and the adapter add, and its backward pass the gradients of both;
- a batch's shared prefix is computed once and attended to by every row (its gradient is the sum over the rows);
- nothing is computed for the gradient of the embeddings, the norms or the frozen weights;
- element-wise chains are one kernel each; on a GPU attention is fused, and ranks are filled up to whole 16 bytes;
- master weights of the adapters stay in float32; B's copy in the compute dtype stands beside W and is written once a pass.

Only supervised positions reach the language-model head, as two-dimensional products, and the last layer computes its queries
and its MLP from the first column on that has one of them. Equality with transformers, loss and
gradients, is tested in float32 (relative error below 1e-4) and bounded in bfloat16; `model.forward: plain` turns this off.

Shapes: N = n_prefix + n_rows * n_columns flat tokens, prefix first; D hidden size; H heads; K key-value heads; d head size.
Source: Touvron et al. 2023 (Llama); Hu et al. 2022 (LoRA); Su et al. 2021 (rotary embedding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models.attention import Geometry, attend, attend_backward
from tunesmith.models.batch import Batch
from tunesmith.models.elementwise import gate, gate_backward, rms_norm, rms_norm_backward, rotate
from tunesmith.models.joined import JoinedProduct, write
from tunesmith.models.logits import head_weight, logits_of

_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def supports(config: Any) -> bool:
    """Whether this pass computes exactly what transformers does for a configuration: a Llama without biases, its rotary frequencies equal for all lengths."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type == "llama"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not getattr(config, "mlp_bias", False)
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
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


class FastLlama:
    """Runs a LlamaForCausalLM, with or without PEFT's LoRA modules in it.

    The model's linear weights become views of the fused ones, so that nothing is held twice.

    Args:
        model: The transformers model, its LoRA modules injected already. Its weights have the compute dtype.
        recomputes: Whether layers keep their input alone for the way back, and compute the rest again.
        is_fused: Whether attention is fused; on a GPU when None.
    """

    def __init__(self, model: Any, *, recomputes: bool = False, is_fused: bool | None = None) -> None:
        config = model.config
        self._recomputes = recomputes
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.width: int = config.hidden_size
        self._n_kv_heads = config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._epsilon = config.rms_norm_eps
        decoder = model.model
        self._embedding: Tensor = decoder.embed_tokens.weight.detach()
        self.device = self._embedding.device
        self._is_fused = self.device.type == "cuda" if is_fused is None else is_fused
        self._frequencies: Tensor = decoder.rotary_emb.inv_freq.float()
        self._norm = decoder.norm.weight.detach().float()
        self._head = head_weight(model).detach()
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
        return logits_of(self.states(batch), self.head(vocabulary))

    def head(self, vocabulary: Tensor | None = None) -> Tensor:
        """Return the language-model head's rows of token ids, or all: shape (n_vocabulary, D), as `logits_of` takes them."""
        return self._head if vocabulary is None else self._head[vocabulary.to(self.device)]

    def states(self, batch: Batch) -> Tensor:
        """Return what the head reads at the batch's positions: shape (n_positions, D), float32; differentiable in the adapters' weights."""
        geometry, n_layers = self._geometry(batch), len(self._layers)
        if batch.trunk is None:
            hidden = self._through(0, n_layers - 1, self._embedded(batch), geometry)
        else:
            hidden = self._through(self.n_frozen, n_layers - 1, batch.trunk.to(self.device), geometry)
        last = geometry.from_column(batch.first_column)
        hidden = self._through(n_layers - 1, n_layers, hidden, last)
        positions = batch.positions.to(self.device)
        rows, columns = positions // last.n_columns, positions % last.n_columns
        chosen = hidden[rows * last.n_queries + columns - batch.first_column].float()
        states: Tensor = _RmsNorm.apply(chosen, self._norm, self._epsilon)  # type: ignore[no-untyped-call]
        return states

    @torch.no_grad()
    def trunk(self, batch: Batch) -> Tensor:
        """Return what the `n_frozen` lowest layers make of a batch's tokens: shape (n_prefix + n_rows * n_columns, D), in the compute dtype."""
        return self._through(0, self.n_frozen, self._embedded(batch), self._geometry(batch))

    def _embedded(self, batch: Batch) -> Tensor:
        return self._embedding[torch.cat([batch.prefix, batch.input_ids.flatten()]).to(self.device)]

    def _through(self, first: int, after: int, hidden: Tensor, geometry: Geometry) -> Tensor:
        layers = self._layers[first:after]
        write([product for weights in layers for product in weights.products])
        for weights in layers:
            masters = [master for product in weights.products for part in product.parts for master in (part.a, part.b)]
            hidden = _DecoderLayer.apply(hidden, weights, geometry, *masters)  # type: ignore[no-untyped-call]
        return hidden

    def _geometry(self, batch: Batch) -> Geometry:
        n_prefix, (n_rows, n_columns) = len(batch.prefix), batch.input_ids.shape
        positions = torch.cat([torch.arange(n_prefix), torch.arange(n_prefix, n_prefix + n_columns).repeat(n_rows)]).to(self.device)
        angles = torch.outer(positions.float(), self._frequencies)
        return Geometry(
            n_prefix,
            n_rows,
            n_columns,
            self._n_kv_heads,
            self._group,
            self._head_dim,
            self._epsilon,
            angles.cos().to(self.dtype)[:, None],
            angles.sin().to(self.dtype)[:, None],
            None if self._is_fused else self._masks(n_prefix, n_columns),
            self._recomputes,
        )

    def _masks(self, n_prefix: int, n_columns: int) -> tuple[Tensor, Tensor]:
        of_rows = torch.zeros(n_columns, n_prefix + n_columns, dtype=self.dtype, device=self.device)
        of_rows[:, n_prefix:] = self._causal(n_columns)
        return of_rows.repeat(self._group, 1)[None], self._causal(n_prefix).repeat(self._group, 1)[None]

    def _causal(self, size: int) -> Tensor:
        return torch.full((size, size), torch.finfo(self.dtype).min / 2, dtype=self.dtype, device=self.device).triu_(1)


def _layer_weights(layer: Any) -> _Weights:
    q, k, v, o, gate, up, down = (layer.get_submodule(name) for name in _LINEARS)
    norm1, norm2 = layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()
    return _Weights(norm1, JoinedProduct([q, k, v]), JoinedProduct([o]), norm2, JoinedProduct([gate, up]), JoinedProduct([down]))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        output, normalised, inverse = rms_norm(x, weight, epsilon)
        ctx.save_for_backward(weight, normalised, inverse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return rms_norm_backward(gradient, *ctx.saved_tensors), None, None


class _DecoderLayer(torch.autograd.Function):
    """One Llama decoder layer. Its masters, A and B of q, k, v, o, gate, up and down, are inputs for their gradients' sake: they stand in its products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: _Weights, at: Geometry, *masters: Tensor) -> Tensor:
        output, saved, attention = _through_layer(x, weights, at)
        if any(ctx.needs_input_grad):
            ctx.weights, ctx.geometry = weights, at
            ctx.attention = None if at.recomputes else attention
            ctx.save_for_backward(*((x,) if at.recomputes else saved))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weights, at, saved, attention = ctx.weights, ctx.geometry, ctx.saved_tensors, ctx.attention
        del ctx.attention
        if at.recomputes:
            _, saved, attention = _through_layer(saved[0], weights, at)
        input1, normalised1, inverse1, attended, input2, normalised2, inverse2, gate_up, opened, inner = saved

        # MLP: output = middle + down(silu(gate) * up)
        grad_inner, grad_low = weights.down.backward(grad_output)
        again = grad_inner.new_empty(grad_inner.shape) if inner.shape[1] < weights.down.joined.shape[1] else None
        grad_gate_up = gate_backward(grad_inner, gate_up, opened, again)
        of_down = weights.down.learnt(grad_output, grad_low, *_input(weights.down, inner, again))
        grad_input2, grad_low = weights.gate_up.backward(grad_gate_up)
        of_gate_up = weights.gate_up.learnt(grad_gate_up, grad_low, *_input(weights.gate_up, input2, normalised2, weights.norm2))
        grad_middle = rms_norm_backward(grad_input2, weights.norm2, normalised2, inverse2).add_(grad_output)

        # Attention: middle = x + o(attend(q, k, v))
        grad_attended, grad_low = weights.o.backward(grad_middle)
        of_o = weights.o.learnt(grad_middle, grad_low, *_input(weights.o, attended))
        grad_qkv = grad_output.new_empty(at.n_tokens, len(weights.qkv.joined))
        attend_backward(grad_attended, attention, at, grad_qkv)
        grad_input1, grad_low = weights.qkv.backward(grad_qkv)
        of_qkv = weights.qkv.learnt(grad_qkv, grad_low, *_input(weights.qkv, input1, normalised1, weights.norm1))
        grad_x = None
        if ctx.needs_input_grad[0]:  # not in the first layer: the embeddings are frozen
            grad_x = rms_norm_backward(grad_input1, weights.norm1, normalised1, inverse1)
            wanted = at.wanted(grad_x)
            wanted.add_(grad_middle.view(wanted.shape))
        return grad_x, None, None, *of_qkv, *of_o, *of_gate_up, *of_down


def _through_layer(x: Tensor, weights: _Weights, at: Geometry) -> tuple[Tensor, tuple[Tensor | None, ...], Any]:
    """Return a layer's output, (n_outputs, D), and what its backward pass needs, attention's part of it apart.

    On a GPU memory is dearer than time: of the inputs of products only x A' is kept where x is made again.
    """
    width, n_v = x.shape[1], at.n_kv_heads * at.head_dim
    input1 = weights.qkv.input(x)
    _, normalised1, inverse1 = rms_norm(x, weights.norm1, at.epsilon, input1[:, :width])
    qkv = weights.qkv.forward(input1)
    qk, v = qkv[:, :-n_v].view(at.n_tokens, -1, at.head_dim), qkv[:, -n_v:].view(at.n_tokens, at.n_kv_heads, at.head_dim)
    wanted = at.wanted(x).flatten(0, -2)
    attended = weights.o.input(wanted)
    attention = attend(rotate(qk, at.cos, at.sin), v, at, attended[:, : weights.o.n_in])
    middle = weights.o.forward(attended, wanted)

    input2 = weights.gate_up.input(wanted)
    _, normalised2, inverse2 = rms_norm(middle, weights.norm2, at.epsilon, input2[:, :width])
    gate_up = weights.gate_up.forward(input2)
    inner = weights.down.input(wanted)
    opened = gate(gate_up, inner[:, : weights.down.n_in])
    output = weights.down.forward(inner, middle)
    if opened is None and x.is_cuda:
        input1, input2, inner = input1[:, width:].clone(), input2[:, width:].clone(), inner[:, weights.down.n_in :].clone()
    return output, (input1, normalised1, inverse1, attended, input2, normalised2, inverse2, gate_up, opened, inner), attention


def _input(product: JoinedProduct, kept: Tensor, made: Tensor | None = None, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a product's input x and x A': from both side by side, or from x A' alone and what x is made of again."""
    if kept.shape[1] > product.rank or made is None:
        return kept[:, : product.n_in], kept[:, product.n_in :]
    return made if factor is None else made * factor, kept
