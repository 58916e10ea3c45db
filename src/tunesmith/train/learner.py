"""The model that learns: where a step's gradients come from, and what of the model is kept.

The loss is the cross-entropy of the answer's tokens, stop token included, times their record's weight, summed and divided by
the weights in the whole step, so that accumulation changes nothing. Language-model logits are computed at those positions
only. The rows of a pass are dealt to processes, and there to workers, whose gradients are added in a fixed order: equal bits on every run
with as many of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.batch import Batch, training_batch
from tunesmith.models.engine import Forward, Workers, forward_pass
from tunesmith.models.settings import ModelSection
from tunesmith.train.batches import Rows, Step
from tunesmith.train.processes import Processes, placed_like, whole


def answer_loss(forward: Forward, batch: Batch) -> Tensor:
    """Return the weighted sum of the cross-entropy at a batch's supervised positions, in nats."""
    logits = forward.logits(batch)
    losses = torch.nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="none")
    return losses @ batch.weights.to(logits.device)


def rows_batch(rows: Rows, chosen: Sequence[int], prefix: Sequence[int]) -> Batch:
    """Build the batch of some rows."""
    prompts, answers, weights = ([column[row] for row in chosen] for column in (rows.prompts, rows.answers, rows.weights))
    return training_batch(prefix, prompts, answers, weights)  # type: ignore[arg-type]


class Learner:
    """A model in training, whole in each process.

    Args:
        model: What a strategy prepared.
        section: The section `model`, resolved.
        rows: The training rows.
        prefix: Token ids that every prompt starts with.
        processes: Who trains beside this process.
    """

    def __init__(self, model: Any, section: ModelSection, rows: Rows, prefix: Sequence[int], processes: Processes) -> None:
        self.model = model.train()
        self.processes = processes
        self._section, self._rows, self._prefix = section, rows, prefix
        self.parameters: dict[str, Tensor] = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @cached_property
    def forward(self) -> Forward:
        """The forward pass, differentiable in the parameters."""
        return forward_pass(self.model, self._section)

    @cached_property
    def workers(self) -> Workers:
        """What passes run on, side by side."""
        return Workers(self.forward)

    def backward(self, step: Step) -> float:
        """Add the gradients of this process's rows of one pass; return their share of the step's mean loss."""
        # Rows are sorted by length: dealing them out in turn gives every process and every worker the same amount of work.
        own = step.rows[self.processes.rank :: self.processes.size]
        parts = [own[worker :: self.workers.n] for worker in range(self.workers.n)]
        results = list(self.workers.map(lambda part: self._part(part, step.supervised_weight), [part for part in parts if part]))
        for _, gradients in results:
            for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return float(torch.stack([loss for loss, _ in results]).sum()) if results else 0.0

    def combine(self) -> None:
        """Add up the gradients of all processes."""
        for parameter in self.parameters.values():
            if parameter.grad is None:  # fewer rows than processes
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_in_place([parameter.grad for parameter in self.parameters.values() if parameter.grad is not None])

    def _part(self, part: Sequence[int], supervised_weight: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = answer_loss(self.forward, rows_batch(self._rows, part, self._prefix)) / supervised_weight
        return loss.detach(), torch.autograd.grad(loss, list(self.parameters.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return what was learnt, by name."""
        return {f"weight.{name}": whole(parameter.detach()) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        for name, parameter in self.parameters.items():
            parameter.copy_(placed_like(parameter, tensors[f"weight.{name}"]))
