"""From a text to token ids, the same way in training, evaluation and serving.

Every prompt of a task is `prefix + text + suffix`: the chat template is rendered once around a marker, and what stands
before and after it is the same for all records. The prefix holds the instruction, the answers to choose from and the
examples of the task, each a turn of user and assistant, so that one batch can compute it once. The text is cut when the
record does not fit, and special tokens that stand in it, or in an example, are encoded as plain characters: a document
cannot end the user's turn.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tunesmith.errors import ConfigError
from tunesmith.models.json_answers import parse_answer, write_answer
from tunesmith.models.settings import TaskSection

Keep = Literal["start", "ends"]
_MARKER = "\u2063text{}\u2063"  # invisible separators: no template holds them
_SHARE_OF_START = 0.6


@dataclass(frozen=True)
class Prompt:
    """Token ids of a task's prompts and answers for one tokenizer.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        task: The label space and the instruction.
        max_length: Most tokens of prompt, answer and stop token together.
        keep: Which part of a text survives a cut.

    Raises:
        ConfigError: the tokenizer has no chat template or stop token, or the prompt alone fills max_length.
    """

    tokenizer: Any
    task: TaskSection
    max_length: int
    keep: Keep = "start"

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                "The base model must come with a chat template. Received: a tokenizer without one.", hint="Choose an instruction-tuned base model."
            )
        if self.tokenizer.eos_token_id is None:
            raise ConfigError("The base model must have a stop token. Received: a tokenizer without eos_token.")
        self._check_budget()

    def _check_budget(self) -> None:
        if self.text_budget < 8:
            needed = self.max_length - self.text_budget + 8
            raise ConfigError(
                f"train.max_length must leave at least 8 tokens for the text. Received: {self.max_length}, of which {needed - 8} are "
                f"{'prompt, examples' if self.task.examples else 'prompt'} and answer.",
                hint=f"tunesmith plan --set train.max_length={needed + 100}",
            )

    @cached_property
    def instruction(self) -> str:
        """The system message: what to do, and the answers to choose from or the properties to write."""
        if self.task.type == "extraction":
            shape = {name: ["..."] if rule["type"] == "array" else "..." for name, rule in self.task.json_schema["properties"].items()}
            return f"{self.task.instruction} Answer with JSON: {json.dumps(shape, ensure_ascii=False)}"
        if self.task.type == "chat":
            return self.task.instruction
        return f"{self.task.instruction} Answer with one of: {', '.join(label.written for label in self.task.labels)}."

    def render(self, text: str) -> str:
        """Return the prompt for a text as the chat template writes it, up to where the answer starts."""
        before, after = self._frame
        shown = [part for pair in zip(before, self._shown, strict=False) for part in pair]
        return "".join([*shown, before[-1], text, after])

    @cached_property
    def _shown(self) -> list[str]:
        """Texts and answers of the examples, in turn."""
        if self.task.type == "classification":
            of_label = {label.name: label.written for label in self.task.labels}
            return [part for example in self.task.examples for part in (example.text, of_label[example.label])]
        return [part for example in self.task.examples for part in (example.text, self.written(example.label))]

    @cached_property
    def _frame(self) -> tuple[list[str], str]:
        """What the template writes before each text and answer of the examples and before the text, and what it writes after it."""
        markers = [_MARKER.format(turn) for turn in range(len(self._shown) + 1)]
        turns = [{"role": "assistant" if turn % 2 else "user", "content": marker} for turn, marker in enumerate(markers)]
        rest = self.tokenizer.apply_chat_template([{"role": "system", "content": self.instruction}, *turns], tokenize=False, add_generation_prompt=True)
        before = []
        for marker in markers:
            fixed, found, rest = rest.partition(marker)
            if not found:
                raise ConfigError("The chat template must keep every message as it is, in its order. Received: a template that changes one.")
            before.append(fixed)
        return before, rest

    @cached_property
    def prefix(self) -> list[int]:
        """Token ids before the text, equal for all records."""
        fixed, shown = self._encode(self._frame[0], special=True), self._encode(self._shown, special=False)
        pieces = [piece for pair in zip(fixed, shown, strict=False) for piece in pair]
        return [token for piece in [*pieces, fixed[-1]] for token in piece]

    @cached_property
    def suffix(self) -> list[int]:
        """Token ids between the text and the answer."""
        return self._encode([self._frame[1]], special=True)[0]

    @cached_property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Per label of a classification, the token ids of its answer and the stop token."""
        return tuple(self._stopped([label.written for label in self.task.labels]))

    def answers_of(self, labels: Sequence[str]) -> list[tuple[int, ...]]:
        """Return per record the token ids of its right answer and the stop token.

        Args:
            labels: What the data say: names of the label space, JSON of the schema, or answers in words.
        """
        if self.task.type == "classification":
            of_label = dict(zip(self.task.names, self.answers, strict=True))
            return [of_label[label] for label in labels]
        return self._stopped([self.written(label) for label in labels])

    def written(self, label: str) -> str:
        """Return what the model writes for a right answer of an extraction or a chat."""
        if self.task.type == "chat":
            return label
        return write_answer(self.task.json_schema, parse_answer(self.task.json_schema, label) or {})

    def _stopped(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [(*ids, self.tokenizer.eos_token_id) for ids in self._encode(texts, special=False)]

    @cached_property
    def text_budget(self) -> int:
        """Most tokens that a text may have, so that any answer fits behind it."""
        longest = max(map(len, self.answers)) if self.answers else self.task.max_answer_tokens
        return self.max_length - len(self.prefix) - len(self.suffix) - longest

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, uncut."""
        return self._encode(texts, special=False)

    def cut(self, text_ids: list[int]) -> list[int]:
        """Return text token ids that fit the budget: all of them, the start, or 60 % from the start and the rest from the end."""
        budget = self.text_budget
        if len(text_ids) <= budget:
            return text_ids
        if self.keep == "start":
            return text_ids[:budget]
        start = int(budget * _SHARE_OF_START)
        return text_ids[:start] + text_ids[len(text_ids) - (budget - start) :]

    def split(self, text_ids: list[int]) -> list[list[int]]:
        """Return consecutive pieces of a text that each fit the budget."""
        return [text_ids[at : at + self.text_budget] for at in range(0, max(len(text_ids), 1), self.text_budget)]

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return per text the token ids after the prefix, cut to fit: what a forward pass reads."""
        return [self.cut(ids) + self.suffix for ids in self.encode(texts)]

    @cached_property
    def _encoders(self) -> dict[bool, Any]:
        """Two copies of the tokenizer's backend, by whether special tokens are read as such. They never change: threads may share them."""
        encoders = {}
        for special in (True, False):
            encoders[special] = copy.deepcopy(self.tokenizer.backend_tokenizer)
            encoders[special].no_truncation()
            encoders[special].no_padding()
            encoders[special].encode_special_tokens = not special
        return encoders

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return [encoding.ids for encoding in self._encoders[special].encode_batch(list(texts), add_special_tokens=False)]

    def round_trips(self, texts: Sequence[str]) -> bool:
        """Whether encoding in pieces gives the ids that encoding the rendered prompt as a whole gives, and decoding gives the prompt back.

        Texts that hold special tokens are passed over, all of them where an example does: there the two differ on purpose.
        """
        special = set(self.tokenizer.all_special_tokens)
        plain = [text for text in texts if not any(token in part for part in (text, *self._shown) for token in special)]
        whole = self._encode([self.render(text) for text in plain], special=True)
        pieces = [self.prefix + ids + self.suffix for ids in self.encode(plain)]
        decoded = [self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in pieces]
        return whole == pieces and decoded == [self.render(text) for text in plain]
