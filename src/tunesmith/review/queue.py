"""What people look at next, and what they say about it.

The queue is a view of the store: predictions that nobody judged or skipped, the least certain first. A judgement is a
feedback, stored once for its event id, so that it can be sent again after a lost connection.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.entities import Feedback, FeedbackKind, Prediction
from tunesmith.store import Store


def accept(store: Store, prediction: Prediction, actor: str) -> Feedback:
    """Record that an answer is right."""
    return _put(store, prediction, "boolean", True, (), actor)


def correct(store: Store, prediction: Prediction, label: str, labels: Sequence[str], actor: str) -> Feedback:
    """Record the right answer.

    Raises:
        DataError: the label is not in the label space.
    """
    return _put(store, prediction, "demonstration", label, labels, actor)


def skip(store: Store, prediction: Prediction, actor: str) -> None:
    """Leave a prediction out of the queue without a judgement."""
    store.skip_review(prediction.id, actor)


def _put(store: Store, prediction: Prediction, kind: FeedbackKind, value: bool | str, labels: Sequence[str], actor: str) -> Feedback:
    event_id = f"review:{actor}:{prediction.id}"  # a reviewer judges a prediction once
    return store.put_feedback(Feedback.judge(labels, prediction_id=prediction.id, event_id=event_id, kind=kind, value=value, actor=actor))
