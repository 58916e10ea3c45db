"""run + feedback -> a run that prefers the answers that people gave.

The run keeps its parent and the dataset version of it, so that the usual arrows work on it: evaluate, calibrate and register on
the same frozen test split, where the gate asks it to beat the champion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import polars as pl

from tunesmith.entities import ModelVersion, Run, content_id, utc_now
from tunesmith.errors import ConfigError, DataError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.flow.dataset import dataset_of, newest_dataset, read
from tunesmith.flow.registration import CHAMPION
from tunesmith.flow.scoring import is_encoder
from tunesmith.models.json_answers import parse_answer
from tunesmith.project import Project, needs_extra
from tunesmith.review.preferences import Answer, Pair, Preferences, as_answers, as_pairs, judged_answers, read_preferences

if TYPE_CHECKING:
    from tunesmith.train.preference import Columns

# Bump when the same inputs would learn something else, or write it elsewhere.
STEP_VERSION = 1

_NOT_LEARNT = {"save_steps", "path"}


def preferences(project: Project, start: Run) -> Preferences:
    """Return what may be learnt from: the file of `prefer.path`, or all judgements, without what the run must not see.

    Left out, and counted: texts of the validation, calibration and test split, since figures there would no longer mean what they
    say; answers that the task cannot give; pairs of two equal answers.

    Raises:
        NotFoundError: the file is not there.
        DataError: the file cannot be used, or nothing is left to learn from.
    """
    section = project.config.prefer
    found: list[Pair] | list[Answer]
    feedback: tuple[str, ...] = ()
    if section.path:
        found = read_preferences(project.root / section.path)
    else:
        found, feedback = judged_answers(project.store)
    given = as_pairs(found) if section.method == "dpo" else as_answers(found)
    held_out, why_not = _held_out_texts(project, start), _answer_rule(project)
    dropped: Counter[str] = Counter()
    kept = []
    for row in given:
        answers = (row.chosen, row.rejected) if isinstance(row, Pair) else (row.answer,)
        reason = "text of a held-out split" if _plain(row.text) in held_out else next(filter(None, map(why_not, answers)), "")
        if not reason and isinstance(row, Pair) and project.prompt.answers_of(answers)[0] == project.prompt.answers_of(answers)[1]:
            reason = "both answers are the same"
        dropped[reason] += bool(reason)
        if not reason:
            kept.append(row)
    told = {reason: count for reason, count in sorted(dropped.items()) if count}
    if not kept:
        raise _nothing_to_learn(project, told)
    return Preferences(kept, feedback, told)  # type: ignore[arg-type]


def _held_out_texts(project: Project, start: Run) -> set[str]:
    """Return the texts that are kept for figures, in the run's dataset version and the newest one."""
    versions = {version.id: version for version in (dataset_of(project, start), newest_dataset(project)) if version}
    texts = (read(project, version).filter(pl.col("split") != "train")["text"] for version in versions.values())
    return {_plain(text) for column in texts for text in column}


def _plain(text: str) -> str:
    """Texts that differ in white space only are one text, as in `data.dedup`."""
    return " ".join(text.split())


def _answer_rule(project: Project) -> Callable[[str], str]:
    """Return what says why an answer cannot be learnt; empty where it can."""
    task, prompt = project.config.task, project.prompt

    def why_not(answer: str) -> str:
        if task.type == "classification":
            return "" if answer in task.names else "answer is none of the labels"
        if task.type == "extraction" and parse_answer(task.json_schema, answer) is None:
            return "answer does not follow task.json_schema"
        return "answer is longer than task.max_answer_tokens" if len(prompt.answers_of([answer])[0]) > task.max_answer_tokens else ""

    return why_not


def _nothing_to_learn(project: Project, dropped: dict[str, int]) -> DataError:
    section = project.config.prefer
    needed = {
        "dpo": "a text with a right and a wrong answer: a demonstration that differs from what the model had answered",
        "kto": "an answer that was judged right or wrong",
    }[section.method]
    received = ", ".join(f"{count:,} dropped: {reason}" for reason, count in dropped.items()) or "none"
    where = f"{section.path} must hold" if section.path else "The feedback must hold"
    hint = "tunesmith config explain prefer.path" if section.path else "tunesmith review next, or POST /v1/feedback; or set prefer.path to a file of pairs"
    return DataError(f"prefer.method {section.method} learns from {needed}. {where} at least one. Received: {received}.", hint=hint)


def starting_run(project: Project, run_id: str = "") -> Run:
    """Return the run to go on from: the one that is named, else the champion's.

    Raises:
        NotFoundError: there is no such run, or no champion yet.
        ConfigError: its base model or strategy is not what the settings name now, or it is an encoder.
    """
    if is_encoder(project):
        raise ConfigError(
            f"tunesmith prefer needs a model that writes. Received: {project.base.name}, an encoder.", hint="tunesmith renew: learns from corrections"
        )
    if not run_id:
        champion = project.store.alias(project.config.model_name, CHAMPION)
        if champion is None:
            raise NotFoundError(f"No model version of {project.config.model_name} is champion yet.", hint="tunesmith run, or tunesmith prefer --run RUN")
        run_id = project.store.get(ModelVersion, champion).run_id
    start = project.store.find(Run, run_id)
    if start is None:
        raise NotFoundError(f"No finished run {run_id}.", hint="tunesmith train")
    first = start
    while first.parent and (older := project.store.find(Run, first.parent)):
        first = older
    if start.base_sha256 != project.base.sha256:
        raise ConfigError(f"{start.id} was trained on {start.base_model}, and model.model_name_or_path must name it. Received: {project.base.name}.")
    if first.strategy != project.config.train.strategy:
        raise ConfigError(
            f"{first.id} was trained with train.strategy: {first.strategy}, which says how its weights are read. Received: {project.config.train.strategy}.",
            hint=f"Set train.strategy: {first.strategy}.",
        )
    return start


def prefer(project: Project, start: Run | None = None, found: Preferences | None = None) -> Run:
    """Tune a run on preferences, or continue where a killed command stopped.

    Args:
        project: The project.
        start: The run to go on from, whose weights are the frozen reference too; the champion's when None.
        found: What to learn from, where `preferences` was called already.

    Raises:
        MissingExtraError: the extra `preference` is not installed.
        NotFoundError: there is no champion, or its weights are gone.
        DataError: there is nothing to learn from.
        BackendError: the loss is not finite, or a checkpoint cannot be written.
    """
    with needs_extra("preference"):
        from tunesmith.train.preference import encode_answers, encode_pairs, n_supervised_tokens
        from tunesmith.train.preference import prefer as tune
    from tunesmith.models.engine import load_tokenizer
    from tunesmith.models.weights import WEIGHTS_FOLDER, weights_file

    start = start or starting_run(project)
    found = found or preferences(project, start)
    section, rows = project.config.prefer, found.rows
    columns: Columns
    if section.method == "dpo":
        pairs = as_pairs(rows)
        columns = encode_pairs([pair.text for pair in pairs], [pair.chosen for pair in pairs], [pair.rejected for pair in pairs], project.prompt)
    else:
        answers = as_answers(rows)
        texts, said, are_right = [each.text for each in answers], [each.answer for each in answers], [each.is_right for each in answers]
        columns = encode_answers(texts, said, are_right, project.prompt, section)
    model = {key: value for key, value in project.model_section.computing().items() if key != "forward"}  # always the plain one
    identity = content_id("run", start.id, section.model_dump(mode="json", exclude=_NOT_LEARNT), model, columns, STEP_VERSION)
    with project.step("prefer") as done:
        if finished := project.store.find(Run, identity):
            done(f"{finished.id}: {finished.steps:,} steps, loss {finished.train_loss:.3f}", skipped=True)
            return finished
        folder = project.state / "runs" / identity
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(project.config.model_dump_json(indent=2), encoding="utf-8")
        params = {f"prefer.{key}": value for key, value in section.model_dump(mode="json").items()}
        about = {"parent_run": start.id, "dataset_version": start.dataset_version_id, "base_model": start.base_model, "base_sha256": start.base_sha256}
        project.trackers.begin(identity, about | params, dataset_of(project, start))

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            told = {name.removeprefix("rewards/"): figures[name] for name in ("loss", "rewards/margins", "rewards/accuracies") if name in figures}
            project.progress.advance(step, steps, ", ".join(f"{name} {value:.3f}" for name, value in told.items()))
            project.trackers.log_metrics(identity, {f"train/{name}": value for name, value in figures.items()}, step)

        def tell(read_rows: int, all_rows: int) -> None:
            project.progress.advance(read_rows, all_rows, "read by the reference")

        weights = project.root / start.path / WEIGHTS_FOLDER
        tuned = tune(columns, load_tokenizer(project.base.path), project.base.path, project.model_section, weights, section, folder, report, tell)
        run = Run(
            id=identity,
            dataset_version_id=start.dataset_version_id,
            path=str(folder.relative_to(project.root)),
            base_model=start.base_model,
            base_sha256=start.base_sha256,
            strategy=section.method,
            seed=section.seed,
            steps=tuned.steps,
            train_loss=tuned.train_loss,
            seconds=tuned.seconds,
            peak_memory_bytes=tuned.peak_memory_bytes,
            supervised_tokens=n_supervised_tokens(columns),
            tokens=tuned.tokens,
            machine=f"TRL, plain, {project.model_section.dtype}",
            weights_sha256=file_sha256(weights_file(folder / WEIGHTS_FOLDER)),
            created_at=utc_now(),
            parent=start.id,
            feedback=found.feedback,
        )
        project.trackers.finish(run.id)
        project.store.put(run)
        done(f"{run.id}: {run.steps:,} steps, loss {run.train_loss:.3f}, {preferences_in_words(found)}")
        return run


def preferences_in_words(found: Preferences) -> str:
    """Say what is learnt from, and what is not."""
    pairs = sum(isinstance(row, Pair) for row in found.rows)
    right = sum(isinstance(row, Answer) and row.is_right for row in found.rows)
    learnt = f"{pairs:,} pairs" if pairs else f"{right:,} right and {len(found.rows) - right:,} wrong answers"
    return ", ".join((learnt, *(f"{count:,} dropped: {reason}" for reason, count in found.dropped.items())))
