"""The model card: what a model version is, what it was taught by, how good it is and where that ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.entities import DatasetVersion, Run
from tunesmith.evaluate.goals import goals_in_words
from tunesmith.evaluate.report import DETAILS, confidence_in_words
from tunesmith.models.artifact import ModelFile

_WRITTEN_LIMIT = "It may write what the text does not say; the rates above tell how often it did on the test records."


def model_card(model: ModelFile, run: Run, dataset: DatasetVersion, report: Mapping[str, Any]) -> str:
    """Write the model card as Markdown.

    Args:
        model: What model.json will hold.
        run: The training run.
        dataset: The dataset version it was trained and tested on.
        report: The evaluation's report, as report.json holds it.
    """
    models = [each for each in ("base", "classical", "tuned") if each in next(iter(report["metrics"].values()))]
    scores = {name.replace("_", " "): [_cell(figures[model]) for model in models] for name, figures in report["metrics"].items() if name not in DETAILS}
    rows = "\n".join(f"| {' | '.join((name, *cells))} |" for name, cells in scores.items())
    labels = "\n".join(f"- {label.name}" + (f" (writes `{label.written}`)" if label.written != label.name else "") for label in model.task.labels)
    against = {"wins": "It beats", "level": "It is level with", "loses": "It loses against", None: ""}[report["classical_verdict"]]
    opponent = f"{against} a classical baseline trained on the same rows and reading the full text.\n" if against else ""
    judge = f"Sentences without support were judged by: {report['judge']['name']}." if "judge" in report else ""
    answers = f"## Labels\n\n{labels}" if labels else f"## Answers\n\n{_answers(model)}"
    limit = "It picks one of the labels above for any text, also for a text that is about something else." if labels else _WRITTEN_LIMIT
    lines = goals_in_words(report.get("goals", []))
    goals = "\n".join(("", "## Goals", "", *(f"- {line}" for line in lines), "")) if lines else ""
    return f"""# Model card of {run.id}

{model.task.instruction}

Adapter ({run.strategy}) for **{run.base_model}**, licence {model.license}, {model.source} (sha256 `{model.base_sha256}`).

{answers}

## Scores

On {report["n_test"]:,} test records that no training, calibration or choice has seen, value [interval]:

| metric | {" | ".join(models)} |
|---|{"---|" * len(models)}
{rows}

{opponent}{judge}
{_confidence(report.get("calibration", {}))} on {dataset.rows["calibration"]:,} records of their own.
{goals}{_adapters(report)}
## Data

Dataset version `{dataset.id}`: {", ".join(f"{count:,} {split}" for split, count in dataset.rows.items())}.
Dropped, each with its reason: {", ".join(f"{count:,} {reason}" for reason, count in dataset.dropped.items()) or "nothing"}.

## Limits

- {limit}
- A text longer than {model.max_length} tokens with its prompt is cut ({model.truncate_keep} is kept).
- The scores hold for texts like the test records; elsewhere measure again.
"""


def _confidence(calibration: Mapping[str, Any]) -> str:
    comes_from = f", which come from {confidence_in_words(calibration['confidence'])}," if "confidence" in calibration else ""
    return f"Confidences{comes_from} are calibrated by {calibration.get('method', 'nothing yet')}"


def _adapters(report: Mapping[str, Any]) -> str:
    """Write what the children bring and what the router loses; empty where one adapter answers all."""
    routing = report.get("routing")
    if not routing:
        return ""
    rows = "\n".join(
        f"| {child['document_type']} | {child['n_test']:,} | {child['parent']:.3f} | {child['child']:.3f} | {child['p_value']:.4f} | "
        f"{'served' if child['served'] else 'not served'} |"
        for child in routing["children"]
    )
    ends = routing["end_accuracy"]
    return f"""
## Adapters

The scores above are those of the parent, which learnt all records. A child answers its document type where it beat the parent on the test records of that type.

| document type | test records | parent | child | p, Holm | |
|---|---|---|---|---|---|
{rows}

Accuracy on all test records: parent alone {_cell(ends["parent"])}, with true routes {_cell(ends["true_routes"])},
with predicted routes {_cell(ends["predicted_routes"])}. The router names the true route of {_cell(routing["accuracy"])}
and abstains at a confidence of {routing["threshold"]:.2f} or less.
"""


def _answers(model: ModelFile) -> str:
    if model.task.type == "chat":
        return f"Written in words, at most {model.task.max_answer_tokens} tokens."
    return "JSON with the properties " + ", ".join(f"`{name}` ({rule['type']})" for name, rule in model.task.json_schema["properties"].items()) + "."


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
