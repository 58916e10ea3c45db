"""Stops a run that cannot get well, and names the step and the rows.

A loss or a gradient that is not finite stops at once. A loss has exploded when the mean of the last 8 steps is above both ln(V),
what a uniform guess over the vocabulary of V tokens (of an encoder V labels) costs, and twice the loss of the first step, before anything was learnt.
Single hard batches, mislabelled rows and the warm-up do not get there: a model that was worse than a uniform guess for 8 steps has lost what it knew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunesmith.errors import DivergedError

_WINDOW = 8
_FACTOR = 2.0
_SHOWN = 5


class Alarms:
    """Looks at each step of one run.

    Args:
        vocabulary: Entries of the vocabulary, or labels of an encoder's head.
        learning_rate: The run's peak learning rate, of which the hint names a third.
        losses: What `losses` was when an earlier start of the run was saved.

    Attributes:
        losses: Of the first step and of the last 8; a checkpoint keeps them.
    """

    def __init__(self, vocabulary: int, learning_rate: float, losses: Sequence[float] = ()) -> None:
        self._uniform, self._learning_rate = math.log(vocabulary), learning_rate
        self.losses = list(losses)

    def check_finite(self, what: str, value: float, step: int, records: Sequence[str]) -> None:
        """Check a figure of one pass or step.

        Raises:
            DivergedError: it is NaN or infinite.
        """
        if not math.isfinite(value):
            raise self._error(f"{what} must stay finite. Received {value} at step {step}", records)

    def check_loss(self, loss: float, step: int, records: Sequence[str]) -> None:
        """Check the loss of a step against the steps before.

        Raises:
            DivergedError: the loss has exploded.
        """
        self.losses = [*self.losses[:1], *self.losses[1:][-_WINDOW + 1 :], loss]
        first, *last = self.losses
        mean = sum(last) / _WINDOW
        if len(last) == _WINDOW and mean > max(self._uniform, _FACTOR * first):
            rule = f"stay below that of a uniform guess, {self._uniform:.2f}, or twice that of the first step, {first:.2f}"
            raise self._error(f"The mean loss of {_WINDOW} steps must {rule}. Received {mean:.2f} at step {step}", records)

    def _error(self, message: str, records: Sequence[str]) -> DivergedError:
        named = ", ".join(sorted(set(records))[:_SHOWN])
        return DivergedError(f"{message}, in the batch of {named}, ...", hint=f"tunesmith train --set train.learning_rate={self._learning_rate / 3:.1e}")
