"""How good are written answers: of an extraction, and of a chat?

As in `metrics`, every figure depends on the records only through sums over them, so that the bootstrap computes thousands
of resamples with one matrix product. A judge turns one answer into its counts; the figures are quotients of their sums.

Extraction. A value counts as right when the same property of the right answer holds it, after normalisation (case, white
space, typographic quotes); each value of a list counts once. An answer that is no JSON of the schema states nothing.

    micro_f1             2 TP / (values stated + values right), over all properties
    exact_micro_f1       the same, letter by letter
    precision, recall    TP / stated, TP / right
    hallucination_rate   stated values that stand nowhere in the text, after normalisation, of those stated; numbers and booleans are left out
    missing_field_rate   properties that have a value in the right answer and none in this one, of those that have one
    exact_match          share of answers in which every property is right
    valid_json_rate      share of answers, written without constraint, that are JSON of the schema

Chat.

    exact_match          share of answers equal to the right one after normalisation
    token_f1             mean over answers of the F1 of their words (Rajpurkar et al. 2016)
    ungrounded_rate      sentences of the answer that the text does not support, of those that the judge could tell (see `groundedness`)

Sources: Rajpurkar et al. 2016, SQuAD (token F1, normalisation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.evaluate.groundedness import Judge, Lexical, sentences_of
from tunesmith.evaluate.metrics import FloatArray
from tunesmith.models.confidence import word_f1, words_of
from tunesmith.models.json_answers import answer_values, parse_answer, plain

PROPORTIONS = {"exact_match", "valid_json_rate"}
"""Figures that are the share of answers for which something holds."""

HEADLINE = {"extraction": "micro_f1", "chat": "token_f1"}
"""The figure that candidates and the gate are judged by; of a single record, its own F1."""


class Figure:
    """A quotient of two sums of counts, times a factor.

    Args:
        above: Counts that are added above the line.
        below: Counts that are added below it; the figure is 0 where they are 0.
        factor: What the quotient is multiplied by.
    """

    def __init__(self, above: Sequence[str], below: Sequence[str], factor: float = 1.0) -> None:
        self.above, self.below, self.factor = tuple(above), tuple(below), factor

    def rows(self, counts: Mapping[str, FloatArray]) -> FloatArray:
        """Return what each record adds, shape (n, 2)."""
        return np.column_stack([self.factor * np.sum([counts[name] for name in self.above], axis=0), np.sum([counts[name] for name in self.below], axis=0)])

    @staticmethod
    def of_sums(sums: FloatArray) -> FloatArray:
        """Return the figures, shape (...), that sums of rows give, shape (..., 2)."""
        above, below = sums[..., 0], sums[..., 1]
        return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


FIGURES: dict[str, dict[str, Figure]] = {
    "extraction": {
        "micro_f1": Figure(["hits"], ["stated", "right"], 2.0),
        "exact_micro_f1": Figure(["exact_hits"], ["stated", "right"], 2.0),
        "precision": Figure(["hits"], ["stated"]),
        "recall": Figure(["hits"], ["right"]),
        "hallucination_rate": Figure(["hallucinated"], ["checkable"]),
        "missing_field_rate": Figure(["missing_fields"], ["right_fields"]),
        "exact_match": Figure(["is_exact"], ["one"]),
        "valid_json_rate": Figure(["is_valid_unconstrained"], ["one"]),
    },
    "chat": {
        "token_f1": Figure(["token_f1"], ["one"]),
        "exact_match": Figure(["is_exact"], ["one"]),
        "ungrounded_rate": Figure(["ungrounded"], ["judged"]),
    },
}

UNJUDGED, UNGROUNDED_AT_MOST, AGREEMENT = Figure(["unjudged"], ["sentences"]), Figure(["ungrounded", "unjudged"], ["sentences"]), Figure(["agreed"], ["judged"])
"""Of a judge: the share of sentences that it could not tell, the rate if none of these is supported, and how often the lexical judge says the same."""


def count_extraction(schema: Mapping[str, Any], answer: str, right: str, text: str) -> dict[str, float]:
    """Return the counts of one answer of an extraction.

    Args:
        schema: `task.json_schema`.
        answer: What the model wrote.
        right: What the data say.
        text: What both are about.
    """
    given, wanted = parse_answer(schema, answer), parse_answer(schema, right) or {}
    stated, truth = answer_values(given or {}), answer_values(wanted)
    source = plain(text)
    worded = {name for name, rule in schema["properties"].items() if rule["type"] in ("string", "array") and "enum" not in rule}
    checkable = [value for name, value in stated if name in worded]
    fields, given_fields = {name for name, _ in truth}, {name for name, _ in stated}
    wrong, invented, lacking = _mistakes(schema, stated, truth, worded, source)
    hits = _matches([(name, plain(value)) for name, value in stated], [(name, plain(value)) for name, value in truth])
    return {
        "one": 1.0,
        "hits": hits,
        "exact_hits": _matches(stated, truth),
        "stated": len(stated),
        "right": len(truth),
        "checkable": len(checkable),
        "hallucinated": sum(plain(value) not in source for value in checkable),
        "right_fields": len(fields),
        "missing_fields": len(fields - given_fields),
        "wrong_values": wrong,
        "invented_values": invented,
        "lacking_values": lacking,
        "is_exact": float(given is not None and hits == len(stated) == len(truth)),
        "f1": 2 * hits / (len(stated) + len(truth)) if stated or truth else float(given is not None),
    }


def _mistakes(
    schema: Mapping[str, Any], stated: Sequence[tuple[str, str]], truth: Sequence[tuple[str, str]], worded: Collection[str], source: str
) -> tuple[int, int, int]:
    """Return how many stated values are wrong and stand in the text, how many are wrong and do not, and how many right ones lack without one in their place."""
    wrong = invented = lacking = 0
    for name in schema["properties"]:
        own, wanted = (Counter(plain(value) for field, value in values if field == name) for values in (stated, truth))
        others = list((own - wanted).elements())
        made_up = sum(name in worded and value not in source for value in others)
        wrong, invented = wrong + len(others) - made_up, invented + made_up
        lacking += max(0, (wanted - own).total() - len(others))
    return wrong, invented, lacking


def count_chat(answer: str, right: str, text: str, judge: Judge | None = None) -> dict[str, float]:
    """Return the counts of one answer in words. Arguments as in `count_extraction`, and who says what the text supports; None for `Lexical`."""
    f1 = word_f1(answer, right)
    sentences = sentences_of(answer)
    lexical = Lexical().supports(text, sentences)
    told = judge.supports(text, sentences) if judge else lexical
    return {
        "one": 1.0,
        "token_f1": f1,
        "f1": f1,
        "is_exact": float(words_of(answer) == words_of(right)),
        "sentences": len(sentences),
        "ungrounded": told.count(False),
        "unjudged": told.count(None),
        "judged": len(told) - told.count(None),
        "agreed": sum(one == other for one, other in zip(told, lexical, strict=True)),
    }


def count_answers(
    task_type: str, schema: Mapping[str, Any], answers: Sequence[str], rights: Sequence[str], texts: Sequence[str], judge: Judge | None = None
) -> dict[str, FloatArray]:
    """Return name -> counts of n answers, each of shape (n,); the judge is that of `count_chat`."""
    rows = [
        count_extraction(schema, answer, right, text) if task_type == "extraction" else count_chat(answer, right, text, judge)
        for answer, right, text in zip(answers, rights, texts, strict=True)
    ]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def are_valid(schema: Mapping[str, Any], answers: Sequence[str]) -> FloatArray:
    """Return 1 for each answer that is JSON of the schema, else 0, shape (n,)."""
    return np.array([float(parse_answer(schema, answer) is not None) for answer in answers])


def per_field(schema: Mapping[str, Any], answers: Sequence[str], rights: Sequence[str]) -> list[dict[str, Any]]:
    """Return `label` (the property), `precision`, `recall`, `f1` and `support` (right values) of each property of an extraction."""
    totals = {name: [0, 0, 0] for name in schema["properties"]}
    for answer, right in zip(answers, rights, strict=True):
        stated, truth = (answer_values(parse_answer(schema, each) or {}) for each in (answer, right))
        for name, total in totals.items():
            own, wanted = ([plain(value) for field, value in values if field == name] for values in (stated, truth))
            for at, number in enumerate((_matches(own, wanted), len(own), len(wanted))):
                total[at] += number
    return [
        {"label": name, "precision": _share(hits, stated), "recall": _share(hits, right), "f1": _share(2 * hits, stated + right), "support": right}
        for name, (hits, stated, right) in totals.items()
    ]


def _matches(stated: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how many of two lists' entries agree, each counted once."""
    return sum((Counter(stated) & Counter(right)).values())


def _share(above: float, below: float) -> float:
    return above / below if below else 0.0
