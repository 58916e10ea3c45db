"""How good the model is while it learns: the loss of the validation split's answers, and the task's own metric.

It is computed by the forward pass of the run, on the weights as they are, with the label scoring that serves. The first
`train.max_eval_samples` records of the split stand for all of it, so that an evaluation takes seconds; `tunesmith evaluate` takes
all records of test. A best of many noisy figures flatters itself: what is reported in the end comes from test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tunesmith.evaluate.metrics import accuracy, macro_f1
from tunesmith.evaluate.predict_split import label_indices
from tunesmith.models.engine import Engine, Forward
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt
from tunesmith.train.batches import Rows
from tunesmith.train.learner import Learner, answer_loss, rows_batch
from tunesmith.train.settings import TrainSection


@dataclass(frozen=True)
class Validation:
    """Records that are asked again and again.

    Attributes:
        prompt: The task's prompts.
        rows: The records as rows, cut as they are when the model answers.
        truth: shape (n,). Position of each record's label in the label space.
    """

    prompt: Prompt
    rows: Rows
    truth: NDArray[np.int64]

    @classmethod
    def of(cls, records: pl.DataFrame, prompt: Prompt, section: TrainSection) -> Validation:
        """Tokenise the first `max_eval_samples` records.

        Args:
            records: The validation split; columns id, text, label.
            prompt: The task's prompts.
            section: The section `train`.
        """
        chosen = records.head(section.max_eval_samples)
        truth = label_indices(chosen, prompt.task.names)
        answers = [prompt.answers[label] for label in truth]
        return cls(prompt, Rows(chosen["id"].to_list(), prompt.rows(chosen["text"].to_list()), answers, [], [1.0] * len(chosen)), truth)

    def figures(self, learner: Learner, base: Path, model: ModelSection, batch_size: int) -> dict[str, float]:
        """Return `eval_loss` (nats a supervised token), `eval_accuracy` and `eval_macro_f1`.

        Args:
            learner: The model in training; left as it was.
            base: Folder of the base model.
            model: The section `model`, resolved.
            batch_size: Records a pass: that of training, so that the peak memory is that of training too.
        """
        learner.model.eval()
        try:
            scores = Engine(base, self.prompt, model, forward=learner.forward, batch_size=batch_size).score_rows(self.rows.prompts)
            order = sorted(range(len(self.rows)), key=lambda row: self.rows.lengths[row])
            batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
            loss = sum(learner.workers.map(partial(self._loss, learner.forward), batches)) / self.rows.supervised_tokens
        finally:
            learner.model.train()
        probabilities = torch.tensor(scores, dtype=torch.float64).softmax(1).numpy()
        return {"eval_loss": loss, "eval_accuracy": accuracy(self.truth, probabilities), "eval_macro_f1": macro_f1(self.truth, probabilities)}

    @torch.no_grad()
    def _loss(self, forward: Forward, batch: Sequence[int]) -> float:
        return float(answer_loss(forward, rows_batch(self.rows, batch, self.prompt.prefix)))
