"""A model whose weights, gradients and optimizer state are shared out among the processes: FSDP2, torch's `fully_shard`.

Each decoder layer is gathered for its own forward and backward pass and let go again; embeddings, the last norm and the head are gathered
for the whole pass. So a process holds 1 / n of what learns, and one layer. Products are computed as without it: masters in float32, autocast to the
compute dtype.

Source: Zhao et al. 2023, PyTorch FSDP; torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from tunesmith.models.batch import Batch
from tunesmith.models.engine import Forward, forward_pass
from tunesmith.models.settings import ModelSection
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.batches import Rows, Step
from tunesmith.train.learner import Learner, pack_width, rows_batch
from tunesmith.train.processes import Processes
from tunesmith.train.settings import TrainKeys


class _Gathered(torch.nn.Module):
    """The forward pass as a module, for whose time the weights outside the layers are whole."""

    def __init__(self, model: Any, section: ModelSection, *, recomputes: bool) -> None:
        super().__init__()
        self.model = model
        self._pass = forward_pass(model, section, recomputes=recomputes)

    def forward(self, compute: Callable[[Forward], Tensor]) -> Tensor:
        return compute(self._pass)

    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor:
        logits: Tensor = self(lambda whole: whole.logits(batch, vocabulary))
        return logits

    def states(self, batch: Batch) -> Tensor:
        states: Tensor = self(lambda whole: whole.states(batch))
        return states

    def head(self, vocabulary: Tensor | None = None) -> Tensor:
        head: Tensor = self(lambda whole: whole.head(vocabulary).clone())  # the weight itself is shared out again after the pass
        return head


class ShardedLearner(Learner):
    """A model in training, a share of it in each process. All processes make the same calls."""

    def __init__(self, model: Any, section: ModelSection, train: TrainKeys, rows: Rows, prefix: Sequence[int], processes: Processes) -> None:
        self._gathered = _Gathered(model, section, recomputes=train.gradient_checkpointing)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(self._gathered)
        for module in self._gathered.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a step's loss is divided already: gradients are sums
                module.set_force_sum_reduction_for_comms(True)
        super().__init__(model, section, train, rows, prefix, processes)

    @cached_property
    def forward(self) -> Forward:
        """The forward pass, differentiable in the parameters."""
        return self._gathered

    def backward(self, step: Step) -> float:
        """Add the gradients of one pass, summed over the processes; return this process's share of the step's mean loss."""
        if not step.rows:
            return 0.0
        own = step.rows[self.processes.rank :: self.processes.size]
        # Where there are fewer rows than processes, the others read one that does not count: layers are gathered by all or not at all.
        batch = rows_batch(self._rows, own or step.rows[:1], self._prefix, pack_width(self._train, self._prefix))
        loss = self.loss(batch) * bool(own) / step.supervised_weight
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the cross-entropy at a batch's supervised positions, in nats."""
        loss: Tensor = self._gathered(lambda whole: answer_loss(whole, batch, is_chunked=self._train.chunked_loss))
        return loss

    def combine(self) -> None:
        """Nothing is left to do."""
