"""The honest opponent of an extraction: what a tagger without a language model reaches on the same rows.

Each value of a training answer is looked for in its text, and its words are marked as beginning or continuing that
property. Logistic regression on the word, its shape, its ends and its neighbours learns the marks (a maximum-entropy Markov
tagger, decoded word by word). It states only what stands in the text, so that it never hallucinates, and finds no value that
is not written there. Its strength of regularisation is chosen on the validation split.

Properties that are numbers or booleans are left empty. Source: Borthwick et al. 1998, Exploiting Diverse Knowledge Sources via
Maximum Entropy in Named Entity Recognition.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from tunesmith.evaluate.written import FIGURES, count_answers
from tunesmith.models.json_answers import answer_values, parse_answer, plain, write_answer

STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse strengths of regularisation that are tried, `C` in scikit-learn."""

_WORD = re.compile(r"\w+|[^\w\s]")
_OUTSIDE = "O"


@dataclass(frozen=True)
class ClassicalExtraction:
    """A fitted opponent.

    Args:
        schema: `task.json_schema`.
        vectorizer: Fitted features.
        regression: Fitted logistic regression on marks; None where the training rows hold no value.
    """

    schema: Mapping[str, Any]
    vectorizer: DictVectorizer
    regression: LogisticRegression | None

    def write(self, texts: Sequence[str]) -> list[str]:
        """Return an answer to each text."""
        return [self._write(text) for text in texts]

    def _write(self, text: str) -> str:
        words = list(_WORD.finditer(text))
        found: dict[str, list[str]] = {name: [] for name in self.schema["properties"]}
        marks = self.regression.predict(self.vectorizer.transform(_features(words))) if self.regression is not None and words else []
        began: tuple[str, int] | None = None
        for at, mark in enumerate([*marks, _OUTSIDE]):
            kind, _, name = mark.partition(":")
            if began and (kind != "I" or name != began[0]):
                found[began[0]].append(text[words[began[1]].start() : words[at - 1].end()])
                began = None
            if kind == "B" or (kind == "I" and began is None):
                began = (name, at)
        answer = {name: values if self.schema["properties"][name]["type"] == "array" else next(iter(values), None) for name, values in found.items()}
        return write_answer(self.schema, answer)


def fit_classical_extraction(
    schema: Mapping[str, Any], texts: Sequence[str], answers: Sequence[str], validation_texts: Sequence[str], validation_answers: Sequence[str]
) -> ClassicalExtraction:
    """Fit the opponent; the strength with the highest micro F1 on the validation split wins."""
    features: list[dict[str, Any]] = []
    marks: list[str] = []
    for text, answer in zip(texts, answers, strict=True):
        words = list(_WORD.finditer(text))
        features += _features(words)
        marks += _marks(schema, words, text, answer)
    vectorizer = DictVectorizer()
    matrix = vectorizer.fit_transform(features)
    if set(marks) == {_OUTSIDE}:
        return ClassicalExtraction(schema, vectorizer, None)
    figure = FIGURES["extraction"]["micro_f1"]
    best: tuple[float, ClassicalExtraction] | None = None
    for strength in STRENGTHS:
        made = ClassicalExtraction(schema, vectorizer, LogisticRegression(C=strength, max_iter=400).fit(matrix, marks))
        counts = count_answers("extraction", schema, made.write(validation_texts), validation_answers, validation_texts)
        score = float(figure.of_sums(figure.rows(counts).sum(axis=0)))
        if best is None or score > best[0]:
            best = (score, made)
    assert best is not None  # noqa: S101 - STRENGTHS is not empty
    return best[1]


def _marks(schema: Mapping[str, Any], words: Sequence[re.Match[str]], text: str, answer: str) -> list[str]:
    """Mark the words of each value: its first place in the text that is not taken yet."""
    marks = [_OUTSIDE] * len(words)
    spoken = [plain(word.group()) for word in words]
    for name, value in answer_values(parse_answer(schema, answer) or {}):
        wanted = [plain(word.group()) for word in _WORD.finditer(value)]
        for start in range(len(words) - len(wanted) + 1):
            span = slice(start, start + len(wanted))
            if wanted and spoken[span] == wanted and set(marks[span]) == {_OUTSIDE}:
                marks[span] = [f"B:{name}", *[f"I:{name}"] * (len(wanted) - 1)]
                break
    return marks


def _features(words: Sequence[re.Match[str]]) -> list[dict[str, Any]]:
    spoken = [word.group() for word in words]
    shapes = [re.sub(r"[^\W\d_]", lambda letter: "X" if letter.group().isupper() else "x", re.sub(r"\d", "9", word))[:6] for word in spoken]
    padded, padded_shapes = ["<", "<", *spoken, ">", ">"], ["<", "<", *shapes, ">", ">"]
    rows = []
    for at, word in enumerate(spoken):
        row: dict[str, Any] = {"bias": 1.0, f"end:{word[-3:].lower()}": 1.0, f"start:{word[:3].lower()}": 1.0}
        for offset in range(-2, 3):
            row[f"{offset}:{padded[at + 2 + offset].lower()}"] = 1.0
            row[f"{offset}s{padded_shapes[at + 2 + offset]}"] = 1.0
        row[f"pair:{padded[at + 1].lower()} {word.lower()}"] = 1.0
        row[f"pair:{word.lower()} {padded[at + 3].lower()}"] = 1.0
        rows.append(row)
    return rows
