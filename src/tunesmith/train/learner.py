"""The model that learns: where a step's gradients come from, and what of the model is kept.

The loss is the cross-entropy of the answer's tokens, stop token included, times their record's weight, summed and divided by
the weights in the whole step, so that accumulation changes nothing (`answer_loss.py`). Language-model logits are computed at those
positions only. The rows of a pass are dealt to processes, and there to workers, whose gradients are added in a fixed order: equal bits on every run
with as many of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.batch import Batch, packed_batch, training_batch
from tunesmith.models.engine import Forward, Workers, forward_pass
from tunesmith.models.settings import ModelSection
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.batches import Rows, Step
from tunesmith.train.processes import Processes, placed_like, whole
from tunesmith.train.settings import TrainKeys
from tunesmith.train.trunk import Trunk


def rows_batch(rows: Rows, chosen: Sequence[int], prefix: Sequence[int], pack_width: int | None = None) -> Batch:
    """Build the batch of some rows; packed, where a width is given, in packs of at most so many tokens after the prefix."""
    prompts, answers = [rows.prompts[row] for row in chosen], [rows.answers[row] for row in chosen]
    weights = [rows.weights[row] for row in chosen]
    return packed_batch(prefix, prompts, answers, weights, pack_width) if pack_width else training_batch(prefix, prompts, answers, weights)


def pack_width(train: TrainKeys, prefix: Sequence[int]) -> int | None:
    """Return the most tokens of a pack after the prefix; None where nothing is packed."""
    return train.max_length - len(prefix) if train.packing else None


class Learner:
    """A model in training, whole in each process.

    Args:
        model: What a strategy prepared.
        section: The section `model`, resolved.
        train: The section `train`: how a pass is computed.
        rows: The training rows.
        prefix: Token ids that every prompt starts with.
        processes: Who trains beside this process.
    """

    def __init__(self, model: Any, section: ModelSection, train: TrainKeys, rows: Rows, prefix: Sequence[int], processes: Processes) -> None:
        self.model = model.train()
        self.processes = processes
        self._section, self._train, self._rows, self._prefix = section, train, rows, prefix
        self._trunk: Trunk | None = None
        self.parameters: dict[str, Tensor] = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @cached_property
    def forward(self) -> Forward:
        """The forward pass, differentiable in the parameters."""
        return forward_pass(self.model, self._section, is_compiled=self._train.torch_compile, recomputes=self._train.gradient_checkpointing)

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

    def keep_trunk(self, path: Path) -> None:
        """Compute once, for all rows, what lies below the lowest adapter; later passes start above it.

        Args:
            path: Where it is kept, or is kept already.

        Raises:
            ConfigError: nothing lies below the adapters, or the pass is not the fast one.
        """
        if self.processes.is_first:
            self._trunk = Trunk(path, self.forward, self.workers, self._rows, self._prefix)
        self.processes.any(False)  # the others wait until it is there
        self._trunk = self._trunk or Trunk(path, self.forward, self.workers, self._rows, self._prefix)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the cross-entropy at a batch's supervised positions, in nats."""
        return answer_loss(self.forward, batch, is_chunked=self._train.chunked_loss)

    def combine(self) -> None:
        """Add up the gradients of all processes."""
        for parameter in self.parameters.values():
            if parameter.grad is None:  # fewer rows than processes
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_in_place([parameter.grad for parameter in self.parameters.values() if parameter.grad is not None])

    def _part(self, part: Sequence[int], supervised_weight: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch = rows_batch(self._rows, part, self._prefix, pack_width(self._train, self._prefix))
        loss = self.loss(self._trunk.above(batch, part) if self._trunk else batch) / supervised_weight
        return loss.detach(), torch.autograd.grad(loss, list(self.parameters.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return what was learnt, by name."""
        return {f"weight.{name}": whole(parameter.detach()) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        for name, parameter in self.parameters.items():
            parameter.copy_(placed_like(parameter, tensors[f"weight.{name}"]))
