"""Rows as people have them for fine-tuning -> a text and its label.

    messages      [{"role": "user", "content": ...}, {"role": "assistant", ...}]      OpenAI
    conversations [{"from": "human", "value": ...}, {"from": "gpt", ...}]             ShareGPT
    instruction, input, output                                                        Alpaca
    prompt, completion                                                                TRL
    prompt (or a conversation), chosen, rejected                                      preferences: chosen is right

The last turn of the user is the text, the turn of the assistant after it the label; earlier turns, system prompts and
tools are left out. A file has one shape, told from the names of its columns. What a row lacks comes out empty, and is
dropped by `validate.py` with its reason; a row of another shape is an error, because guessing is not ours. A conversation
with a false `label` (KTO) shows an answer that is wrong: it has no label.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

Shape = Literal["messages", "conversations", "alpaca", "completion", "preference"]

_USER = frozenset(("user", "human", "prompter"))
_ASSISTANT = frozenset(("assistant", "gpt", "chatgpt", "bot", "model"))


def find_shape(columns: Collection[str]) -> Shape | None:
    """Return the shape of rows with these columns, None when it is none of the known ones."""
    names = set(columns)
    if {"chosen", "rejected"} <= names:
        return "preference"
    if "messages" in names:
        return "messages"
    if "conversations" in names:
        return "conversations"
    if {"instruction", "output"} <= names:
        return "alpaca"
    return "completion" if {"prompt", "completion"} <= names else None


def to_pair(row: Mapping[str, Any], shape: Shape) -> tuple[str, str]:
    """Return text and label of a row; empty where the row has none.

    Raises:
        ValueError: a value is not what its shape has there; says the rule and what was received.
    """
    match shape:
        case "alpaca":
            parts = [_content(row.get(name), name).strip() for name in ("instruction", "input")]
            return "\n\n".join(part for part in parts if part), _content(row.get("output"), "output")
        case "completion":
            return _asked(row.get("prompt"), "prompt"), _answered(row.get("completion"), "completion")
        case "preference":
            chosen = row.get("chosen")
            before = next((row[name] for name in ("prompt", "messages", "conversations", "question") if row.get(name)), None)
            # Without a prompt of its own, the conversation that was chosen begins with it.
            return _asked(chosen if before is None and isinstance(chosen, list) else before, "prompt"), _answered(chosen, "chosen")
        case _:
            turns = _turns(row.get(shape), shape)
            text, label = _last_exchange(turns)
            return text, "" if row.get("label") is False else label


def _asked(value: Any, name: str) -> str:
    """Return what a prompt asks: a text, or the last turn of the user."""
    if not isinstance(value, list):
        return _content(value, name)
    return next((content for role, content in reversed(_turns(value, name)) if role in _USER), "")


def _answered(value: Any, name: str) -> str:
    """Return an answer: a text, a turn, or the last turn of the assistant."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return _content(value, name)
    return next((content for role, content in reversed(_turns(value, name)) if role in _ASSISTANT), "")


def _last_exchange(turns: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the last turn of the user that the assistant answers, and the answer; without an answer, the last turn and nothing."""
    last = ""
    for at in range(len(turns) - 1, -1, -1):
        role, content = turns[at]
        if role not in _USER:
            continue
        last = last or content
        answer = next((content for role, content in turns[at + 1 :] if role in _ASSISTANT and content), "")
        if answer:
            return content, answer
    return last, ""


def _turns(value: Any, name: str) -> list[tuple[str, str]]:
    """Return (role, content) of each turn, in either spelling."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(f"{name} must be a list of turns. Received: {value!r:.80}")
    turns = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
        if not isinstance(role, str):
            raise ValueError(f"each turn of {name} must have a role and content, or from and value. Received: {turn!r:.80}")
        turns.append((role.lower(), _content(content, name)))
    return turns


def _content(value: Any, name: str) -> str:
    """Return a text; a list of parts, as OpenAI has it, gives its texts."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        return "\n".join(str(part.get("text") or "") for part in value if part.get("type", "text") == "text")
    if not isinstance(value, str):
        raise ValueError(f"{name} must hold text. Received: {value!r:.80} ({type(value).__name__})")
    return value
