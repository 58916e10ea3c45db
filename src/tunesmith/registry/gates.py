"""Who may take the alias `champion`.

A challenger must beat the champion on the same test rows with the paired interval excluding zero; the first one must beat
the untuned base model. Every look at a test split is recorded and spends from the error budget, so that asking again and
again does not promote by luck: look k spends budget * 6 / (pi k)^2, which sums to the budget over any number of looks.
A look that was taken before (same challenger, opponent and rows) is remembered, not spent again.

A child has a gate of its own before it answers its document type: it must beat its parent there. One look is taken at all
children of a parent together, from a budget of the same size that is the children's own, and Holm's procedure holds what it
spends over the children.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.entities import content_id
from tunesmith.errors import RefusedError
from tunesmith.evaluate.candidates import holm
from tunesmith.evaluate.forgetting import within_budget
from tunesmith.evaluate.intervals import Bootstrap, mcnemar
from tunesmith.evaluate.metrics import counted, mean_of_sums
from tunesmith.registry.settings import RegistrySection
from tunesmith.store import Store

ClassicalVerdict = Literal["wins", "level", "loses"]


class Verdict(BaseModel):
    """What the gate said about a challenger, and why.

    Attributes:
        difference, low, high: accuracy (of written answers: mean F1) of the challenger minus the opponent's on the same test rows, with its interval.
        level: level of that interval, 1 minus what this look spent.
        look: number of this look at the test split, from 1.
        against_classical: whether the challenger wins, is level or loses against the classical baseline.
    """

    model_config = ConfigDict(frozen=True)
    passed: bool
    reason: str
    challenger: str
    opponent: str
    difference: float
    low: float
    high: float
    level: float
    look: int
    n_test: int
    against_classical: ClassicalVerdict | None


def error_spent(budget: float, look: int) -> float:
    """Return what look number `look`, from 1, may spend of an error budget.

    Source:
        Basel series; used for online testing by Foster & Stine 2008, Alpha-investing, section 3.
    """
    return budget * 6 / (math.pi * look) ** 2


def split_digest(record_ids: Sequence[str]) -> str:
    """Return the identity of a test split: a hash of its record ids, order aside."""
    return content_id("tst", sorted(record_ids))


def judge(
    store: Store,
    section: RegistrySection,
    name: str,
    alias: str,
    *,
    challenger: str,
    opponent: str,
    record_ids: Sequence[str],
    challenger_right: NDArray[np.float64],
    opponent_right: NDArray[np.float64],
    against_classical: ClassicalVerdict | None,
    measure: str = "accuracy",
    seed: int = 0,
) -> Verdict:
    """Look at the test split once and give the challenger the alias if it passes.

    Args:
        store: Keeps the looks and the alias.
        section: The error budget and the demand on the classical baseline.
        name: The registered model.
        alias: What is at stake.
        challenger: Id of the challenging model version.
        opponent: Id of the champion, or `base`.
        record_ids: The test rows, n of them.
        challenger_right: shape (n,), in [0, 1]. How right the challenger's answer to each row is.
        opponent_right: shape (n,). The same of the opponent.
        against_classical: What the evaluation found; None where there is no classical opponent.
        measure: What the mean over rows is called.
        seed: Seed of the bootstrap.

    Returns:
        The verdict; it is on disk together with the move of the alias.
    """
    digest = split_digest(record_ids)
    looks = store.looks(name, digest)
    for taken in looks:
        if taken["model_version_id"] == challenger and taken["opponent_id"] == opponent:
            return Verdict.model_validate(taken["verdict"])
    look = len(looks) + 1
    spent = error_spent(section.error_budget, look)
    # Enough resamples that some 25 lie beyond each end of the interval.
    bootstrap = Bootstrap(len(record_ids), n_samples=min(50_000, max(2000, math.ceil(50 / spent))), level=1 - spent, seed=seed)
    difference = bootstrap.difference(mean_of_sums, counted(challenger_right), counted(opponent_right))
    beats = difference.low > 0
    meets_classical = against_classical == "wins" or not section.require_beats_classical
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    figures = f"{100 * difference.value:+.1f} points of {measure} {interval} on {len(record_ids):,} test records"
    rival = "the base model" if opponent == "base" else f"the champion {opponent}"
    reason = f"{'better than' if beats else 'not shown to be better than'} {rival}: {figures}, interval at {100 * (1 - spent):.2f} % (look {look})"
    if beats and not meets_classical:
        standing = "is level with" if against_classical == "level" else "loses against"
        reason += f"; but registry.require_beats_classical is set and it {standing} the classical baseline"
    verdict = Verdict(
        passed=beats and meets_classical,
        reason=reason,
        challenger=challenger,
        opponent=opponent,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        level=1 - spent,
        look=look,
        n_test=len(record_ids),
        against_classical=against_classical,
    )
    store.put_look(
        moves_alias=alias if verdict.passed else None,
        name=name,
        test_sha256=digest,
        model_version_id=challenger,
        opponent_id=opponent,
        error_spent=spent,
        verdict=verdict.model_dump(),
    )
    return verdict


class ChildVerdict(BaseModel):
    """What the gate said about a child on the test rows of its document type.

    Attributes:
        served: whether the child answers its type; else the parent does.
        child, parent: shares of right answers.
        difference, low, high: child minus parent, with the paired bootstrap interval at `level`, for people to read.
        p_value: exact McNemar, two-sided, corrected by Holm for the children that were looked at together.
        error_spent: what this look spends; a served child is better with a p-value of at most this.
    """

    model_config = ConfigDict(frozen=True)
    document_type: str
    served: bool
    n_test: int
    child: float
    parent: float
    difference: float
    low: float
    high: float
    level: float
    p_value: float
    error_spent: float
    look: int


def judge_children(
    store: Store,
    section: RegistrySection,
    name: str,
    *,
    parent: str,
    children: Mapping[str, str],
    record_ids: Sequence[str],
    right: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
) -> list[ChildVerdict]:
    """Look once at what the children of a parent answer on the test rows of their types.

    Args:
        store: Keeps the looks.
        section: The error budget.
        name: The registered model.
        parent: Id of the parent run.
        children: Document type -> id of the child run.
        record_ids: All test rows.
        right: Document type -> whether the child, and whether the parent, is right on each of its test rows, shape (n_of_type,) each.
        level: Level of the shown intervals.
        n_samples: Resamples behind them.
        seed: Seed of the resamples.

    Returns:
        A verdict a child, by document type; it is on disk.

    Source:
        Holm 1979; McNemar 1947.
    """
    series, digest = f"{name} children", split_digest(record_ids)
    family = content_id("fam", parent, dict(children))
    looks = store.looks(series, digest)
    for taken in looks:
        if taken["model_version_id"] == family:
            return [ChildVerdict.model_validate(each) for each in taken["verdict"]["children"]]
    look = len(looks) + 1
    spent = error_spent(section.error_budget, look)
    types = sorted(children)
    verdicts = []
    for document_type, p_value in zip(types, holm([mcnemar(*right[each]) for each in types]), strict=True):
        child, rival = (np.asarray(each, dtype=np.float64) for each in right[document_type])
        found = Bootstrap(len(child), n_samples=n_samples, level=level, seed=seed).difference(mean_of_sums, counted(child), counted(rival))
        verdicts.append(
            ChildVerdict(
                document_type=document_type,
                served=bool(found.value > 0 and p_value <= spent),
                n_test=len(child),
                child=float(child.mean()),
                parent=float(rival.mean()),
                difference=found.value,
                low=found.low,
                high=found.high,
                level=level,
                p_value=p_value,
                error_spent=spent,
                look=look,
            )
        )
    told = {"children": [each.model_dump() for each in verdicts]}
    store.put_look(moves_alias=None, name=series, test_sha256=digest, model_version_id=family, opponent_id=parent, error_spent=spent, verdict=told)
    return verdicts


def refuse_over_budget(forgetting: Mapping[str, Any], budget: float | None) -> None:
    """Refuse a run that forgot more than its budget, before the test split is looked at.

    Args:
        forgetting: What `evaluate.forgetting` found.
        budget: Most nats a token by which the cross-entropy of general text may rise; None allows any.

    Raises:
        RefusedError: says what was forgotten, and what helps.
    """
    rise = forgetting["cross_entropy"]["difference"]
    if not within_budget(forgetting, budget):
        raise RefusedError(
            f"The cross-entropy of general text may rise by at most evaluate.max_forgetting = {budget:g} nats a token. "
            f"Measured: {rise['difference']:+.3f} [{rise['low']:+.3f}, {rise['high']:+.3f}]. The test split was not looked at.",
            hint="tunesmith run --set train.learning_rate=... with a lower rate, fewer epochs or a smaller train.lora_r; or raise evaluate.max_forgetting.",
        )


def refuse_unless_best(candidate: str, validation_score: dict[str, float]) -> None:
    """Refuse a run that another run of the same dataset version beats on validation, before the test split is looked at.

    Args:
        candidate: Id of the run.
        validation_score: Run id -> accuracy, or mean F1 of written answers, on validation, of every evaluated run of the dataset version.

    Raises:
        RefusedError: names the better run.
    """
    best = max(validation_score, key=lambda run: (validation_score[run], run == candidate))
    if best != candidate:
        raise RefusedError(
            f"Candidates are chosen on validation. Received {candidate} with {100 * validation_score[candidate]:.1f} % there; "
            f"{best} has {100 * validation_score[best]:.1f} %. The test split was not looked at.",
            hint=f"tunesmith register --run {best}",
        )
