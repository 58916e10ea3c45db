"""evaluation -> what report.json holds: figures of the test split, put together from scores that are on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tunesmith.data.checks import find_languages
from tunesmith.entities import DatasetVersion, Evaluation, Run, utc_now
from tunesmith.errors import ConfigError
from tunesmith.flow.groundedness import judge_of
from tunesmith.flow.parts import read_plan
from tunesmith.flow.scoring import (
    answers_in,
    base_probes_file,
    base_scores_file,
    confidence_of,
    counts_of,
    disturbed_files,
    in_order,
    is_encoder,
    is_written,
    judge_file,
    read_probe_texts,
    truth,
)
from tunesmith.project import Project

if TYPE_CHECKING:
    from tunesmith.evaluate.acceptance import Acceptance
    from tunesmith.evaluate.settings import EvaluateSection


_ENCODER_NOTES = (
    "An untuned encoder has no head to answer with: in its place stand the shares of the labels in train, whose accuracy is that of the most frequent label.",
    "Forgetting is not measured: it is how much less probable general text became, and an encoder with a classification head gives no such probability.",
)


def make_report(project: Project, run: Run, dataset: DatasetVersion, evaluation: Evaluation, calibrator: Any, table: dict[str, Any]) -> dict[str, Any]:
    """Put the report together: the tuned model as it will answer, that is calibrated, beside base and classical as they are."""
    from tunesmith.evaluate.calibration import fit_calibrators, softmax
    from tunesmith.evaluate.calibration_effect import calibration_effect

    section, n_bins = project.config.evaluate, project.config.calibrate.n_bins
    folder = project.root / evaluation.path
    ids, logits, y = confidences(project, dataset, folder / "tuned-test.parquet")
    before, after = softmax(logits), calibrator.probabilities(logits)
    records = in_order(project, dataset, ids)
    groups = records["document_id"].to_list() if records["document_id"].n_unique() < len(records) else None
    common: dict[str, Any] = {"level": section.confidence_level, "n_samples": section.bootstrap_samples, "seed": section.seed, "groups": groups}
    latencies = json.loads((folder / "latencies.json").read_text())
    made = read_plan(project.root / run.path)  # preference tuning has none
    _, own_logits, own_y = confidences(project, dataset, folder / "tuned-calibration.parquet")
    fitted = fit_calibrators(own_logits, own_y, judges="written" if is_written(project) else "label")
    effect = calibration_effect(
        before,
        after,
        y,
        method=calibrator.to_dict()["method"],
        table=table,
        fitted={name: each.probabilities(logits) for name, each in fitted.items()},
        n_bins=n_bins,
        **common,
    )
    effect["calibration"] |= _calibrated_by(project, dataset, folder, records, calibrator, common)
    if is_written(project):
        effect["calibration"]["confidence"] = confidence_of(folder).model_dump(mode="json")
    compared = (_compare_written if is_written(project) else _compare_labels)(project, dataset, folder, after, latencies, common)
    return {
        "title": f"{project.config.project}: {project.config.task.instruction}",
        "created_at": utc_now(),
        "confidence_level": section.confidence_level,
        "labels": list(project.config.task.names),
        **compared,
        **effect,
        **_accepted(project, dataset, folder, records, before, y, common),
        **_disturbed(project, dataset, folder, common),
        **_forgotten(project, folder, section),
        "notes": list(_ENCODER_NOTES) if is_encoder(project) else [],
        "data": {"rows": dataset.rows, "dropped": dataset.dropped},
        "training": {
            "settings": (project.config.train if made else project.config.prefer).model_dump(mode="json"),
            "figures": {
                "steps": run.steps,
                "tokens": run.tokens,
                "supervised_tokens": run.supervised_tokens,
                "train_loss": run.train_loss,
                **({"trainable_parameters": made.trainable_parameters, "all_parameters": made.all_parameters, "records_cut": len(made.excess)} if made else {}),
            },
            "seconds": _beside(run.seconds, made and made.seconds),
            "peak_memory_bytes": _beside(run.peak_memory_bytes, made and made.peak_memory_bytes),
        },
        "seconds": {"prepare": project.seconds_of("prepare", dataset.id), "train": run.seconds, "evaluate": evaluation.seconds},
        "peak_memory_bytes": run.peak_memory_bytes,
        "provenance": {
            "dataset_version": dataset.id,
            "run": run.id,
            "evaluation": evaluation.id,
            "base_model": run.base_model,
            "base_license": project.base.license,
            "base_source": project.base.source,
            "base_sha256": run.base_sha256,
            "weights_sha256": run.weights_sha256,
        },
        "reproduce": "tunesmith run",
    }


def _calibrated_by(project: Project, dataset: DatasetVersion, folder: Path, records: pl.DataFrame, calibrator: Any, common: dict[str, Any]) -> dict[str, Any]:
    """Return the calibration of slices by `calibrate.by`; nothing where all records are in one."""
    from tunesmith.evaluate.calibration_effect import Answers, calibration_by

    section = project.config.calibrate
    if section.by == "none":
        return {}
    of_split = []
    for split in ("calibration", "test"):
        ids, logits, y = confidences(project, dataset, folder / f"tuned-{split}.parquet")
        own = records if split == "test" else in_order(project, dataset, ids)
        values = find_languages(own["text"]) if section.by == "language" else own[section.by]
        of_split.append(Answers(values.to_list(), logits, y))
    judges = "written" if is_written(project) else "label"
    found = calibration_by(of_split[0], of_split[1], calibrator, method=section.method, judges=judges, n_bins=section.n_bins, **common)
    return found and found | {"by": section.by}


def _compare_labels(project: Project, dataset: DatasetVersion, folder: Path, after: Any, latencies: Any, common: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.compare import compare, worst_mistakes
    from tunesmith.evaluate.predict_split import SplitScores

    tuned = SplitScores.load(folder / "tuned-test.parquet")
    test = in_order(project, dataset, tuned.ids)
    base, classical = SplitScores.load(base_scores_file(project, dataset, test)), SplitScores.load(folder / "classical-test.parquet")
    y, names = truth(project, dataset, tuned), project.config.task.names
    scores = {"base": softmax(base.logits), "classical": softmax(classical.logits), "tuned": after}
    compared = compare(scores, y, names, latencies=latencies, n_bins=project.config.calibrate.n_bins, **common)
    return compared | {"mistakes": worst_mistakes(list(tuned.ids), test["text"].to_list(), y, after, names)}


def _compare_written(project: Project, dataset: DatasetVersion, folder: Path, after: Any, latencies: Any, common: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.evaluate.compare_written import compare_written, worst_answers
    from tunesmith.evaluate.score_written import FREE, WrittenScores

    task = project.config.task
    tuned = WrittenScores.load(folder / "tuned-test.parquet")
    test = in_order(project, dataset, tuned.ids)
    base_file = base_scores_file(project, dataset, test)
    answers = {"base": WrittenScores.load(base_file).answers, "tuned": tuned.answers}
    free = {}
    if task.type == "extraction":
        answers["classical"] = WrittenScores.load(folder / "classical-test.parquet").answers
        free = {
            "base": WrittenScores.load(base_file.with_name(f"{base_file.stem}{FREE}.parquet")).answers,
            "tuned": WrittenScores.load(folder / f"tuned-test{FREE}.parquet").answers,
        }
    rights, texts = test["label"].to_list(), test["text"].to_list()
    about: dict[str, Any] = {"task_type": task.type, "schema": task.json_schema, "judge": judge_of(project, folder), "latencies": latencies}
    compared = compare_written(answers, free, rights, texts, **about, **common)
    f1 = judge_file(project, dataset, folder / "tuned-test.parquet").right
    return compared | {"mistakes": worst_answers(list(tuned.ids), texts, rights, tuned.answers, after[:, 0], f1)}


def _accepted(project: Project, dataset: DatasetVersion, folder: Path, records: pl.DataFrame, before: Any, y: Any, common: dict[str, Any]) -> dict[str, Any]:
    """Return what follows from the confidence: accepted answers, prediction sets, money, and slices."""
    from tunesmith.evaluate.acceptance import acceptance_on_test, confidence_auroc
    from tunesmith.evaluate.business import business_case
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.conformal import fit_cutoff, sets_on_test
    from tunesmith.evaluate.slices import facts_of, slices

    section, calibrate = project.config.evaluate, project.config.calibrate
    accepted = choose_acceptance(project, dataset, folder)
    confidence, wrong = _confidence(project, before, y)
    found: dict[str, Any] = {"acceptance": acceptance_on_test(accepted, confidence, wrong, level=section.confidence_level)}
    found["acceptance"]["auroc"] = confidence_auroc(confidence, wrong, **common)
    if section.slices:
        judged = judge_file(project, dataset, folder / "tuned-test.parquet")
        found["slices"] = slices(
            judged.right, facts_of(with_languages(records), section.seed), groups=common["groups"], level=section.confidence_level, seed=section.seed
        )
    if section.business.error_cost is not None:
        files = {"base": base_scores_file(project, dataset, records), "classical": folder / "classical-test.parquet", "tuned": folder / "tuned-test.parquet"}
        costs = {model: costs_of(project, dataset, file) for model, file in files.items() if file.exists()}
        found["business"] = business_case(section.business, costs, wrong, accepted.accepts(confidence), **common)
    if is_written(project):
        return found
    names = project.config.task.names
    rows, logits, calibration_y = confidences(project, dataset, folder / "tuned-calibration.parquet")
    alone = _one_a_document(in_order(project, dataset, rows))
    cutoff = fit_cutoff(calibration_y[alone], softmax(logits[alone]), calibrate.set_coverage)
    resampling = {key: common[key] for key in ("level", "n_samples", "seed")}
    found["prediction_sets"] = sets_on_test(cutoff, y, before, names, coverage=calibrate.set_coverage, **resampling)
    return found


def costs_of(project: Project, dataset: DatasetVersion, file: Path) -> Any:
    """Return what each answer of a file costs when it goes out, by `evaluate.business`, shape (n,).

    Raises:
        ConfigError: a cost names no label, belongs to another kind of task, or none is set.
    """
    from tunesmith.evaluate.business import BusinessCost, WrittenCost, cost_matrix
    from tunesmith.evaluate.calibration import softmax
    from tunesmith.evaluate.metrics import check
    from tunesmith.evaluate.predict_split import SplitScores

    section, task = project.config.evaluate.business, project.config.task
    if is_written(project):
        return WrittenCost(section, task.type).values(counts_of(project, dataset, file))
    scores = SplitScores.load(file)
    return BusinessCost(cost_matrix(section, task.names)).values(*check(truth(project, dataset, scores), softmax(scores.logits)))


def choose_acceptance(project: Project, dataset: DatasetVersion, folder: Path) -> Acceptance:
    """Choose the confidence from which answers need no review, by the rule `calibrate.accept`.

    Args:
        project: The project.
        dataset: The dataset version of the evaluation.
        folder: The evaluation's folder, with the scores of validation and calibration.

    Raises:
        ConfigError: the rule needs costs or a volume that are not set.
    """
    from tunesmith.evaluate.acceptance import at_threshold, busiest_threshold, guarantee
    from tunesmith.evaluate.business import cheapest_threshold
    from tunesmith.evaluate.calibration import softmax

    section, business = project.config.calibrate, project.config.evaluate.business
    split: dict[str, tuple[Any, Any]] = {}
    alone: Any = None
    for name in ("validation", "calibration"):
        ids, logits, y = confidences(project, dataset, folder / f"tuned-{name}.parquet")
        alone = _one_a_document(in_order(project, dataset, ids))
        split[name] = softmax(logits[alone]), y[alone]
    validation, calibration = (_confidence(project, *split[name]) for name in ("validation", "calibration"))
    limits: dict[str, float] = {"max_error": section.max_error, "delta": section.delta}
    if section.accept == "guarantee":
        return guarantee(validation, calibration, **limits)
    if section.accept == "cost":
        threshold = cheapest_threshold(business, calibration[0], costs_of(project, dataset, folder / "tuned-calibration.parquet")[alone])
    elif business.reviews_per_month is None or not business.documents_per_month:
        raise ConfigError(
            "calibrate.accept: capacity needs evaluate.business.reviews_per_month and documents_per_month. Received: none.",
            hint="tunesmith config explain evaluate.business",
        )
    else:
        threshold = busiest_threshold(calibration[0], business.reviews_per_month / business.documents_per_month)
    return at_threshold(section.accept, threshold, calibration, **limits)


def _confidence(project: Project, probabilities: Any, y: Any) -> tuple[Any, Any]:
    """Return the confidence in each answer, and whether it is wrong. Of a written answer column 0 is that it is right."""
    if is_written(project):
        return probabilities[:, 0], y == 1
    return probabilities.max(axis=1), probabilities.argmax(axis=1) != y


def with_languages(records: pl.DataFrame) -> pl.DataFrame:
    """Return records with the column `language`, as data preparation's check tells it, where two languages or more have enough texts for a slice."""
    from tunesmith.evaluate.slices import MIN_RECORDS

    languages = find_languages(records["text"])
    enough = languages.drop_nulls().value_counts().filter(pl.col("count") >= MIN_RECORDS)
    return records.with_columns(languages.alias("language")) if len(enough) > 1 else records


def _one_a_document(records: pl.DataFrame) -> Any:
    """Return the rows of the first record of each document: a promise is about independent draws."""
    return records.with_row_index("row").unique("document_id", keep="first", maintain_order=True)["row"].to_numpy()


def _disturbed(project: Project, dataset: DatasetVersion, folder: Path, common: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.evaluate.robustness import robustness

    files = disturbed_files(project, folder)
    if not files:
        return {}
    clean_file = folder / "tuned-test.parquet"
    judged, answers = judge_file(project, dataset, clean_file), answers_in(project, clean_file)
    right = dict(zip(judged.ids, judged.right, strict=True))
    disturbed: dict[str, tuple[list[str], Any]] = {}
    sample: tuple[str, ...] = ()
    for kind, file in files.items():
        again, others = judge_file(project, dataset, file), answers_in(project, file)
        sample = again.ids
        disturbed[kind] = [others[identity] for identity in sample], again.right
    clean = [answers[identity] for identity in sample], [right[identity] for identity in sample]
    documents = in_order(project, dataset, sample)["document_id"].to_list()
    resampling = {key: common[key] for key in ("level", "n_samples", "seed")}
    return {"robustness": robustness(clean, disturbed, groups=documents if len(set(documents)) < len(documents) else None, **resampling)}


def _forgotten(project: Project, folder: Path, section: EvaluateSection) -> dict[str, Any]:
    from tunesmith.evaluate.forgetting import ProbeScores, forgetting
    from tunesmith.evaluate.score_models import PROBES_FILE

    if read_probe_texts(project) is None:
        return {}
    before, after = ProbeScores.load(base_probes_file(project)), ProbeScores.load(folder / PROBES_FILE)
    found = forgetting(before, after, level=section.confidence_level, n_samples=section.bootstrap_samples, seed=section.seed)
    return {"forgetting": found | {"budget": section.max_forgetting}}


def _beside(measured: float, predicted: Any) -> dict[str, float]:
    if predicted is None:
        return {"measured": measured}
    return {"measured": measured, "predicted": predicted.expected, "predicted_low": predicted.low, "predicted_high": predicted.high}


def confidences(project: Project, dataset: DatasetVersion, file: Path) -> tuple[tuple[str, ...], Any, Any]:
    """Return ids, logits and right columns of a file of answers: over the label space, or over right and wrong of a written answer."""
    if is_written(project):
        from tunesmith.evaluate.score_written import WrittenScores
        from tunesmith.models.confidence import right_logits

        written = WrittenScores.load(file)
        return written.ids, right_logits(written.logit), (judge_file(project, dataset, file).right < 1).astype(int)
    from tunesmith.evaluate.predict_split import SplitScores

    scores = SplitScores.load(file)
    return scores.ids, scores.logits, truth(project, dataset, scores)
