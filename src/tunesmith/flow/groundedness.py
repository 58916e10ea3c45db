"""Written answers -> what a judge says of their sentences, kept in the evaluation's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tunesmith.entities import DatasetVersion
from tunesmith.flow.dataset import read
from tunesmith.flow.scoring import answers_in, base_scores_file
from tunesmith.project import Project

if TYPE_CHECKING:
    from tunesmith.evaluate.groundedness import Judge


def judge_of(project: Project, folder: Path) -> Judge:
    """Return the judge of a chat's sentences that the settings name; one behind an address knows what it said before in that folder."""
    from tunesmith.evaluate.groundedness import Lexical
    from tunesmith.evaluate.judge import EndpointJudge

    section = project.config.evaluate.judge
    return EndpointJudge(section, folder) if section.kind == "endpoint" else Lexical()


def ask_judge(project: Project, dataset: DatasetVersion, folder: Path) -> None:
    """Let the judge of a chat read what base and tuned model wrote about the test records; a lexical one need not be asked.

    Raises:
        ConfigError, BackendError: the judge cannot be asked; what it said before is kept.
    """
    from tunesmith.evaluate.groundedness import sentences_of
    from tunesmith.evaluate.judge import EndpointJudge

    judge = judge_of(project, folder) if project.config.task.type == "chat" else None
    if not isinstance(judge, EndpointJudge):
        return
    with project.step("judge") as done:
        test = read(project, dataset).filter(pl.col("split") == "test")
        texts = dict(zip(test["id"], test["text"], strict=True))
        files = base_scores_file(project, dataset, test), folder / "tuned-test.parquet"
        pairs = [(texts[identity], each) for file in files for identity, answer in answers_in(project, file).items() for each in sentences_of(answer)]
        n_missing = len(judge.missing(pairs))
        judge.ask(pairs, lambda at, n: project.progress.advance(at, n, f"sentences judged by {judge.name}"))
        told = [supported for source, sentence in dict.fromkeys(pairs) for supported in judge.supports(source, [sentence])]
        done(f"{judge.name}: {len(told):,} sentences, {told.count(None):,} of them could not be judged", skipped=not n_missing)
