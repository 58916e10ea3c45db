"""The language-model head: what reads the last states, and in which precision.

Logits are float32 everywhere: at their size bfloat16 has steps of 1/8, which would tie labels and round the loss. The CPU multiplies in
float32. A GPU does so at a tenth of its rate; there operands stay in bfloat16, as the weights are, and the sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.models.elementwise import compiled


def head_weight(model: Any, vocabulary: Tensor | None = None) -> Tensor:
    """Return a model's head, or its rows of token ids: shape (n_vocabulary, D), in float32, or in bfloat16 where the weights are so and on a GPU."""
    weight: Tensor = model.lm_head.weight
    chosen = weight if vocabulary is None else weight[vocabulary.to(weight.device)]
    return chosen if weight.is_cuda and weight.dtype == torch.bfloat16 else chosen.float()


def logits_of(states: Tensor, head: Tensor) -> Tensor:
    """Return logits, shape (n, n_vocabulary), float32; differentiable in both where the head is in float32.

    Args:
        states: shape (n, D), float32.
        head: shape (n_vocabulary, D).
    """
    if head.dtype == torch.float32:
        return states @ head.t()
    return torch.mm(states.to(head.dtype), head.t(), out_dtype=torch.float32)


def states_gradient(gradient: Tensor, head: Tensor) -> Tensor:
    """Return the gradient of the states, shape (n, D), float32, from that of the logits, shape (n, n_vocabulary), float32."""
    if head.dtype == torch.float32:
        return gradient @ head
    return torch.mm(gradient.to(head.dtype), head, out_dtype=torch.float32)


def loss_and_gradient(logits: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the cross-entropy, and its gradient of the logits, shape (n, n_vocabulary).

    Args:
        logits: shape (n, n_vocabulary), float32. May be written over.
        targets: shape (n,). The right tokens.
        weights: shape (n,), float32.
        dtype: What a GPU gives the gradient in.
    """
    if kernel := compiled(_loss_kernel, logits):
        loss, gradient = kernel(logits, targets, weights, dtype)
        return loss, gradient
    wanted = targets[:, None]
    normaliser = logits.logsumexp(1, keepdim=True)
    loss = (normaliser - logits.gather(1, wanted))[:, 0] @ weights
    gradient = logits.sub_(normaliser).exp_()  # the softmax, in the logits' own place
    return loss, gradient.scatter_add_(1, wanted, torch.full_like(normaliser, -1.0)).mul_(weights[:, None])


def _loss_kernel(logits: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wanted = targets[:, None]
    normaliser = logits.logsumexp(1, keepdim=True)
    loss = ((normaliser - logits.gather(1, wanted))[:, 0] * weights).sum()
    is_wanted = torch.arange(logits.shape[1], device=logits.device) == wanted
    return loss, (((logits - normaliser).exp() - is_wanted.float()) * weights[:, None]).to(dtype)
