"""How good the model is while it learns: the loss of the validation split's answers, and the task's own metric.

It is computed by the forward pass of the run, on the weights as they are, with the label scoring that serves. The first
`train.max_eval_samples` records of the split stand for all of it, so that an evaluation takes seconds; `tunesmith evaluate` takes
all records of test. A best of many noisy figures flatters itself: what is reported in the end comes from test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.metrics import accuracy, macro_f1
from tunesmith.evaluate.predict_split import label_indices
from tunesmith.models.engine import Engine
from tunesmith.models.settings import ModelSection
from tunesmith.models.tokens import Prompt
from tunesmith.train.batches import Rows
from tunesmith.train.learner import Learner, rows_batch
from tunesmith.train.settings import TrainSection


@dataclass(frozen=True)
class Validation:
    """Records that are asked again and again.

    Attributes:
        prompt: The task's prompts.
        rows: The records as rows, cut as they are when the model answers.
        truth: shape (n,). Position of each record's label in the label space; empty where answers are written.
    """

    prompt: Prompt
    rows: Rows
    truth: NDArray[np.int64]

    @classmethod
    def of(cls, records: pl.DataFrame, prompt: Prompt, section: TrainSection) -> Validation:
        """Tokenise the first `max_eval_samples` records.

        Args:
            records: The validation split; columns id, text, label. Records whose answer is longer than answers may be are left out.
            prompt: The task's prompts.
            section: The section `train`.

        Raises:
            ConfigError: the metric is one of labels, and the task has none.
            DataError: nothing is left.
        """
        if not prompt.answers and section.metric_for_best_model != "loss":
            raise ConfigError(f"train.metric_for_best_model must be loss where answers are written. Received: {section.metric_for_best_model}.")
        chosen = records.head(section.max_eval_samples)
        answers = prompt.answers_of(chosen["label"].to_list())
        if not prompt.answers:
            fits = [len(answer) <= prompt.task.max_answer_tokens for answer in answers]
            chosen, answers = chosen.filter(pl.Series(fits)), [answer for answer, is_short in zip(answers, fits, strict=True) if is_short]
        if chosen.is_empty():
            raise DataError("train.eval_steps needs records in the validation split. Received: none.", hint="tunesmith prepare")
        truth = label_indices(chosen, prompt.task.names) if prompt.answers else np.array([], dtype=np.int64)
        return cls(prompt, Rows(chosen["id"].to_list(), prompt.rows(chosen["text"].to_list()), answers, [], [1.0] * len(chosen)), truth)

    def figures(self, learner: Learner, base: Path, model: ModelSection, batch_size: int) -> dict[str, float]:
        """Return `eval_loss` (nats a supervised token) and, where there are labels, `eval_accuracy` and `eval_macro_f1`.

        Args:
            learner: The model in training; left as it was.
            base: Folder of the base model.
            model: The section `model`, resolved.
            batch_size: Records a pass: that of training, so that the peak memory is that of training too.
        """
        rank, size = learner.processes.rank, learner.processes.size
        # Each process takes every `size`-th record, and all the same number: the last ones are asked twice and do not count.
        own = [row % len(self.rows) for row in range(rank, -(-len(self.rows) // size) * size, size)]
        weights = [float(rank + size * at < len(self.rows)) for at in range(len(own))]
        ids, prompts, answers = self.rows.record_ids, self.rows.prompts, self.rows.answers
        mine = Rows([ids[row] for row in own], [prompts[row] for row in own], [answers[row] for row in own], [], weights)
        learner.model.eval()
        try:
            order = sorted(range(len(mine)), key=lambda row: mine.lengths[row])
            batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
            losses = list(learner.workers.map(partial(self._loss, learner, mine), batches))
            figures = {"eval_loss": learner.processes.sum([math.fsum(losses)])[0] / self.rows.supervised_tokens}
            if not self.prompt.answers:
                return figures
            scores = Engine(base, self.prompt, model, forward=learner.forward, batch_size=batch_size).score_rows(mine.prompts)
        finally:
            learner.model.train()
        everyones = torch.zeros(len(self.rows), scores.shape[1])
        for row, weight, score in zip(own, weights, torch.from_numpy(scores), strict=True):
            everyones[row] += weight * score
        learner.processes.sum_in_place([everyones])
        probabilities = everyones.double().softmax(1).numpy()
        return {**figures, "eval_accuracy": accuracy(self.truth, probabilities), "eval_macro_f1": macro_f1(self.truth, probabilities)}

    @torch.no_grad()
    def _loss(self, learner: Learner, rows: Rows, batch: Sequence[int]) -> float:
        return float(learner.loss(rows_batch(rows, batch, self.prompt.prefix)))
