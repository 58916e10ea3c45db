"""A base model, as it is or with what a run learnt, as EleutherAI's lm-evaluation-harness asks models.

The harness's own class for transformers reads and writes; the weights, their precision and the tokenizer are those that answer the
project's task, so that its figures are those of the model that is served. What was replied is kept in a file, part by part: a killed
suite goes on where it stopped.

Needs the extra `suites`; nothing imports this module before a suite is asked for.

Source:
    Gao et al. 2024, The Language Model Evaluation Harness.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from tunesmith.files import append_line, read_lines
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_tuned

_BATCHES_A_PART = 16
"""Batches between two looks at the progress; requests of like length are read together within a part."""


class HarnessModel(HFLM):  # type: ignore[misc]
    """Replies to the harness's requests.

    Args:
        base: Folder of the base model.
        section: Precision, resolved.
        weights: Folder of what a run learnt, or None for the base model as it is.
        batch_size: Requests a forward pass.
    """

    def __init__(self, base: Path, section: ModelSection, *, weights: Path | None = None, batch_size: int = 32) -> None:
        model = load_tuned(base, section, weights).eval()
        own = str(next(model.parameters()).dtype).removeprefix("torch.")
        casts = own != section.dtype and not section.load_in_4bit
        super().__init__(model, tokenizer=load_tokenizer(base), batch_size=batch_size, mixed_precision_dtype=section.dtype if casts else None)
        self._part = _BATCHES_A_PART * batch_size
        self._progress: Callable[[int, int], None] = lambda done, total: None
        self._file, self._replies = Path(), dict[str, Any]()

    def keep_in(self, file: Path, progress: Callable[[int, int], None]) -> None:
        """Keep the replies that follow in a file, know those that it holds, and tell requests done and requests in all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._progress = file, progress
        self._replies = {line["key"]: line["reply"] for line in read_lines(file)}

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return of each context and continuation the log probability in nats, and whether greedy decoding would write it."""
        return [(float(nats), bool(greedy)) for nats, greedy in self._in_parts("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log probability in nats of each text."""
        return self._in_parts("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return what is written after each context, up to its stop."""
        return self._in_parts("generate_until", requests)

    def _in_parts(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        keys = [_key(kind, request) for request in requests]
        missing = [at for at, key in enumerate(keys) if key not in self._replies]
        replies: dict[int, Any] = {}
        with self._file.open("a", encoding="utf-8") as file:
            for start in range(0, len(missing), self._part):
                part = missing[start : start + self._part]
                for at, reply in zip(part, getattr(super(), kind)([requests[at] for at in part], disable_tqdm=True), strict=True):
                    replies[at] = reply
                    if keys[at]:
                        append_line(file, {"key": keys[at], "reply": reply})
                self._progress(len(requests) - len(missing) + min(start + self._part, len(missing)), len(requests))
        return [replies[at] if at in replies else self._replies[key] for at, key in enumerate(keys)]


def _key(kind: str, request: Instance) -> str:
    """Return what names a request, empty where its reply is drawn at random."""
    if kind == "generate_until" and request.args[1].get("do_sample"):
        return ""
    return hashlib.sha256(json.dumps([kind, *request.args], default=str).encode()).hexdigest()[:32]
