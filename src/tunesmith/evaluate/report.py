"""The report of an evaluation: report.json for machines, report.html for people, from the same dict.

The page is one file: no script, no font, no picture from elsewhere. It shows nothing that the JSON does not hold; a part
whose keys are absent is left out. The JSON keeps ratios, seconds and bytes; only the page writes percentages.

    title                          text
    created_at                     text; optional
    confidence_level               ratio, of every interval
    labels                         label space
    metrics, paired, paired_classical, classical_verdict, n_test, per_class, confusion      see `compare.compare`
    judge                          see `compare_written`: who said which sentences of a chat are supported; optional
    acceptance                     see `acceptance.acceptance_on_test`; optional
    prediction_sets                see `conformal.sets_on_test`; optional
    business                       see `business.business_case`; optional
    robustness                     see `robustness.robustness`; optional
    slices                         see `slices.slices`; optional
    calibration, reliability       see `calibration_effect`; optional
    fields                         see `field_confidence`; optional
    mistakes                       see `compare.worst_mistakes`; optional
    forgetting                     see `forgetting.forgetting`, with `budget`; optional
    suites                         see `suites.compare_suites`; optional
    routing                        see `routing`, with `children`: see `registry.gates.ChildVerdict`, with `run` and `calibration`; optional
    notes                          sentences that say what the figures do not; optional
    goals                          see `goals.check_goals`; optional
    data                           optional
        rows                       split -> records
        dropped                    reason -> rows that were not used
    training                       optional
        settings                   key of the section `train` -> value
        figures                    name -> number or text: steps, train_loss, tokens, ...
        seconds                    measured, predicted (optional), predicted_low, predicted_high (optional)
        peak_memory_bytes          the same keys
    provenance                     name -> id, digest or text: dataset_version, run, base_model, base_license, base_sha256, ...; optional
    reproduce                      the commands, one a line; optional
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunesmith.evaluate import plots
from tunesmith.evaluate.goals import goal_name

DASH = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"

PLOTS_FOLDER = "plots"

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "matthews_correlation": "Matthews correlation",
    "top_3_accuracy": "Right among the three likeliest",
    "auroc": "Area under ROC",
    "auprc": "Area under precision-recall",
    "false_positive_rate": "False positive rate",
    "false_negative_rate": "False negative rate",
    "expected_calibration_error": "Expected calibration error",
    "expected_calibration_error_equal_mass": "Expected calibration error, equal mass",
    "brier": "Brier score",
    "log_loss": "Log loss, nats",
    "micro_f1": "Micro F1",
    "exact_micro_f1": "Micro F1, letter by letter",
    "precision": "Precision",
    "recall": "Recall",
    "hallucination_rate": "Hallucination rate",
    "missing_field_rate": "Missing field rate",
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "ungrounded_rate": "Sentences without support",
    "valid_json_rate": "Valid JSON, unconstrained",
    "latency_seconds": "Latency of one answer",
}
"""In the order of the report; one that a task does not have is left out."""
LOWER_IS_BETTER = {
    "false_positive_rate",
    "false_negative_rate",
    "expected_calibration_error",
    "expected_calibration_error_equal_mass",
    "brier",
    "log_loss",
    "hallucination_rate",
    "missing_field_rate",
    "ungrounded_rate",
    "latency_seconds",
}
NO_RATIOS = {"matthews_correlation", "brier", "log_loss"}
"""Shown as numbers, not as percentages."""
DETAILS = {
    "weighted_f1",
    "matthews_correlation",
    "top_3_accuracy",
    "auroc",
    "auprc",
    "false_negative_rate",
    "expected_calibration_error_equal_mass",
    "brier",
    "log_loss",
}
"""In the report only; the command line and the model card show the others."""


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write report.json, report.html and its plots one by one, each by write-then-rename.

    Args:
        folder: Where to; created where missing.
        report: Plain data with the keys of the module docstring.

    Returns:
        Path of report.html.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    _write(folder / "report.html", render(report))
    (folder / PLOTS_FOLDER).mkdir(exist_ok=True)
    for name, picture in pictures(report).items():
        _write(folder / PLOTS_FOLDER / f"{name}.svg", picture)
    return folder / "report.html"


def pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots: name -> SVG."""
    drawn = {"intervals": plots.intervals(report["metrics"])}
    if "confusion" in report:
        drawn["confusion"] = plots.confusion(**report["confusion"])
    if "reliability" in report:
        drawn["reliability"] = plots.reliability(**report["reliability"])
    if "acceptance" in report:
        drawn["coverage_risk"] = plots.coverage_risk(**{key: report["acceptance"][key] for key in ("curve", "max_error", "share")})
    if "fields" in report:
        drawn["fields_reliability"] = plots.reliability(**report["fields"]["reliability"])
        drawn["fields_coverage_risk"] = plots.coverage_risk(report["fields"]["curve"])
    return drawn


def render(report: Mapping[str, Any]) -> str:
    """Return the page."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=verdict(report),
            # Our own drawings, in which matplotlib has escaped the labels already.
            pictures={name: Markup(picture) for name, picture in pictures(report).items()},  # noqa: S704
            model_names={model: title for model, (title, _) in plots.MODELS.items()},
            metric_names=metric_names(report),
            headline=report.get("headline", "accuracy"),
            no_ratios=NO_RATIOS,
            outcome=outcome,
            acceptance_in_words=acceptance_in_words,
            confidence_in_words=confidence_in_words,
            money=money,
            duration=duration,
            size=size,
        )
    )


def metric_names(report: Mapping[str, Any]) -> dict[str, str]:
    """Return `METRIC_NAMES` with the judge in the name of what it judged."""
    judge = report.get("judge", {}).get("name", "lexical")
    return METRIC_NAMES | {"ungrounded_rate": f"{METRIC_NAMES['ungrounded_rate']} ({judge})"}


def environment() -> Environment:
    """Return the templates of this package with the filters that they use."""
    made = Environment(loader=PackageLoader("tunesmith.evaluate", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "percent": percent,
        "points": points,
        "count": count,
        "duration": duration,
        "goal_name": goal_name,
        "size": size,
        "p_value": p_value,
        "title": title,
        "value": value,
    }
    return made


def verdict(report: Mapping[str, Any]) -> str:
    """Return the result in one sentence.

    A difference whose interval holds zero is called level, whatever its sign.
    """
    name = report.get("headline", "accuracy")
    tuned = report["metrics"][name]["tuned"]
    against = [_against(report["paired"][name], "the untuned model")]
    if "paired_classical" in report:
        against.append(_against(report["paired_classical"][name], "the classical baseline"))
    return (
        f"Tuned model: {percent(tuned['value'])} [{_bare(tuned['low'])}, {_bare(tuned['high'])}] {_in_sentence(METRIC_NAMES[name])} "
        f"on {count(report['n_test'])} test records, {'; '.join(against)}."
    )


def acceptance_in_words(acceptance: Mapping[str, Any]) -> str:
    """Say which answers need no review, and what was seen of them on test."""
    promise = f"at most {100 * acceptance['max_error']:g} % of them wrong, with probability {1 - acceptance['delta']:g}"
    if acceptance["threshold"] is None:
        if acceptance["rule"] == "guarantee":
            return f"No answer can go out without review: {promise}, is not shown for any share by {count(acceptance['n'])} calibration records."
        return f"Every answer is reviewed (calibrate.accept: {acceptance['rule']})."
    share, error = acceptance["share"], acceptance["error"]
    seen = f"{_bare(error['value'])} % [{_bare(error['low'])}, {_bare(error['high'])}] were wrong" if error else "none was accepted"
    rule = promise if acceptance["rule"] == "guarantee" else f"by {acceptance['rule']}, without a guarantee"
    return (
        f"Without review: answers whose raw confidence is {acceptance['threshold']:.3f} or more, {rule}. "
        f"On test {_bare(share['value'])} % [{_bare(share['low'])}, {_bare(share['high'])}] of the answers were accepted, of which {seen}."
    )


def confidence_in_words(confidence: Mapping[str, Any]) -> str:
    """Say from what a written answer's confidence comes."""
    if confidence["method"] == "agreement":
        return f"how much of it {confidence['samples']} sampled answers say again (temperature {confidence['temperature']:g})"
    return {
        "likelihood": "the mean probability of its tokens",
        "margin": "the odds of a written token against the next allowed one, where they are lowest",
    }[confidence["method"]]


def money(amount: float | None, currency: str = "") -> str:
    """Return an amount with three digits or whole, and its currency."""
    if amount is None:
        return DASH
    digits = f"{amount:,.0f}" if abs(amount) >= 100 else f"{amount:.3g}"
    return f"{_signed(digits)}{SPACE}{currency}".rstrip()


def outcome(name: str, difference: Mapping[str, float]) -> str:
    """Return `better`, `worse` or `level`: what a paired difference means for the tuned model."""
    if difference["low"] <= 0 <= difference["high"]:
        return "level"
    return "better" if (difference["difference"] > 0) == (name not in LOWER_IS_BETTER) else "worse"


def percent(ratio: float | None) -> str:
    """Return a ratio as a percentage with one digit."""
    return DASH if ratio is None else f"{_bare(ratio)}{SPACE}%"


def points(ratio: float) -> str:
    """Return a difference of ratios in signed percentage points."""
    return _signed(f"{100 * ratio:+.1f}")


def count(number: int) -> str:
    """Return a whole number with thousands separated."""
    return f"{number:,}"


def duration(seconds: float, *, signed: bool = False) -> str:
    """Return seconds in the unit that reads best, from microseconds to hours."""
    units = ((1e-3, "µs", 1e-6), (1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0))
    unit, scale = next(((unit, scale) for limit, unit, scale in units if abs(seconds) < limit), ("h", 3600.0))
    scaled = seconds / scale
    digits = ".0f" if abs(scaled) >= 100 else "#.3g"  # three digits, never an exponent
    return f"{_signed(format(scaled, f'+{digits}' if signed else digits))}{SPACE}{unit}"


def size(n_bytes: float) -> str:
    """Return bytes as GB (10^9) or MB (10^6)."""
    return f"{n_bytes / 1e9:.2f}{SPACE}GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f}{SPACE}MB"


def p_value(p: float) -> str:
    """Return a p-value with three digits, or that it is smaller."""
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def title(name: str) -> str:
    """Return a key as words."""
    return name.replace("_", " ").capitalize()


def value(given: Any) -> str:
    """Return a setting or figure as text."""
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, int):
        return count(given)
    if isinstance(given, float):
        return f"{given:.4g}"
    if isinstance(given, list | tuple):
        return ", ".join(map(str, given)) or "none"
    return "none" if given is None else str(given)


def _against(difference: Mapping[str, float], opponent: str) -> str:
    if difference["low"] <= 0 <= difference["high"]:
        return f"level with {opponent}"
    return f"{_bare(abs(difference['difference']))} points {'above' if difference['difference'] > 0 else 'below'} {opponent}"


def _in_sentence(name: str) -> str:
    return name[0].lower() + name[1:] if name[1:2].islower() and not name.endswith("F1") else name


def _bare(ratio: float) -> str:
    return f"{100 * ratio:.1f}"


def _signed(number: str) -> str:
    return number.replace("-", MINUS)


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
