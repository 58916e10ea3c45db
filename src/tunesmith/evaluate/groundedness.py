"""Which sentences of an answer does its source support?

A judge is given the source and the sentences of one answer, and says of each whether the source supports it, or that it cannot
tell. What it cannot tell is counted apart, never as supported. Two judges: `Lexical` here, the default, and a model behind
an address, in `judge`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from tunesmith.models.json_answers import plain

SUPPORT = 0.6
"""Share of a sentence's longer words that must stand in the source."""


class Judge(Protocol):
    """Says what a source supports."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def supports(self, source: str, sentences: Sequence[str]) -> list[bool | None]:
        """Return of each sentence whether the source supports it; None where the judge could not tell."""


class Lexical:
    """A sentence is supported when `SUPPORT` of its words of four letters or more stand in the source. It knows no paraphrase and no negation."""

    name = "lexical"

    def supports(self, source: str, sentences: Sequence[str]) -> list[bool | None]:
        """Return of each sentence whether the source supports it."""
        known = _longer_words(source)
        return [_share(_longer_words(sentence), known) >= SUPPORT for sentence in sentences]


def sentences_of(answer: str) -> list[str]:
    """Return the sentences of an answer that hold a letter or digit."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", answer.strip()) if re.search(r"\w", sentence)]


def _longer_words(text: str) -> list[str]:
    return re.findall(r"\w{4,}", plain(text))


def _share(words: Sequence[str], known: Sequence[str]) -> float:
    inside = set(known)
    return sum(word in inside for word in words) / len(words) if words else 1.0
