"""The pictures of the reports, as SVG text.

Colours are those of Okabe and Ito, which colour-blind readers tell apart. Text stays text, so that it can be searched and
takes the page's font. The same figures give the same bytes. Nothing here computes: it draws what the report holds.

Source:
    Okabe and Ito 2008, Color Universal Design.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#7A7F87", "#1D2430"
MODELS = {"base": ("Untuned", GREY), "classical": ("Classical", ORANGE), "tuned": ("Tuned", BLUE)}
TITLES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "false_positive_rate": "False positive rate",
    "expected_calibration_error": "Calibration error",
    "micro_f1": "Micro F1",
    "recall": "Recall",
    "hallucination_rate": "Hallucination rate",
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "valid_json_rate": "Valid JSON",
}

_MOST_CELL_TEXTS = 20
"""Larger label spaces get a picture without numbers in its cells."""

_STYLE = {
    "axes.edgecolor": "#B8BEC8",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.size": 9,
    "savefig.pad_inches": 0.05,
    "svg.fonttype": "none",
    "svg.hashsalt": "tunesmith",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def intervals(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Draw each figure of each model with its interval, one panel a metric.

    Args:
        metrics: As in report.json; names without a title here (latency) are left out.
    """
    with context(_STYLE):
        shown = [name for name in TITLES if name in metrics]
        figure = Figure(figsize=(10.6, 1.9), layout="constrained")
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(shown), sharey=True)), shown, strict=True):
            cells = metrics[name]
            drawn = [model for model in reversed(MODELS) if model in cells]
            for height, model in enumerate(drawn):
                cell, colour = cells[model], MODELS[model][1]
                axes.plot([cell["low"], cell["high"]], [height, height], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
                axes.plot(cell["value"], height, "o", color=colour, markersize=4.5)
            # Panels start at zero, so that lengths compare.
            axes.set(title=TITLES[name], ylim=(-0.6, len(drawn) - 0.4), xlim=(0, max(0.01, 1.1 * max(cell["high"] for cell in cells.values()))))
            axes.set_yticks(range(len(drawn)), [MODELS[model][0] for model in drawn])
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#E6E9EE", linewidth=0.8)
            axes.set_axisbelow(True)
        return _svg(figure)


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draw the confusion matrix: colour is the share of the row, the number is the count.

    Args:
        labels: The label space. Rows carry number and name, wrapped or shortened; columns carry the number.
        counts: Rows are the truth, columns the answers.
    """
    table = np.asarray(counts)
    size = len(labels)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.58 * size, 2.4, 12))
    with context(_STYLE | {"axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(side + 3.6, side + 0.8), layout="constrained")
        axes: Axes = figure.subplots()
        # Filled squares instead of an image, so that the picture is sharp at every size.
        axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        middles, numbers = np.arange(size) + 0.5, [str(index + 1) for index in range(size)]
        axes.set_xticks(middles, numbers)
        axes.set_yticks(middles, [_wrapped(f"{number} · {label}") for label, number in zip(labels, numbers, strict=True)])
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.set_xlabel("Answer")
        axes.xaxis.set_label_position("top")
        axes.set_ylabel("Truth")
        if size <= _MOST_CELL_TEXTS:
            for row, column in np.ndindex(size, size):
                if table[row, column]:
                    colour = "white" if share[row, column] > 0.55 else INK
                    axes.text(column + 0.5, row + 0.5, f"{table[row, column]:,}", ha="center", va="center", color=colour)
        return _svg(figure)


def coverage_risk(curve: Sequence[Mapping[str, float]], max_error: float | None = None, share: Mapping[str, float] | None = None) -> str:
    """Draw how many answers are wrong among the most confident ones.

    Args:
        curve: Points as `acceptance.coverage_risk` returns them.
        max_error: Most that may be wrong, where that was promised.
        share: What share is accepted, where there is a threshold.
    """
    with context(_STYLE):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axes = figure.subplots()
        shares = [point["share"] for point in curve]
        axes.fill_between(shares, [point["low"] for point in curve], [point["high"] for point in curve], color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(shares, [point["error"] for point in curve], color=BLUE, linewidth=1.6)
        if max_error is not None:
            axes.axhline(max_error, color=ORANGE, linewidth=1, linestyle="--")
            axes.annotate("most that may be wrong", (1, max_error), (0, 3), textcoords="offset points", ha="right", color=ORANGE)
        if share and share["value"]:
            axes.axvline(share["value"], color=GREY, linewidth=1)
            away, align = (4, "left") if share["value"] < 0.5 else (-4, "right")
            axes.annotate("accepted", (share["value"], axes.get_ylim()[1]), (away, -10), textcoords="offset points", ha=align, color=GREY)
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="share of answers, most confident first", ylabel="wrong among them")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        return _svg(figure)


def reliability(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Draw accuracy against stated confidence, before and after calibration, and how many answers each bin holds.

    Args:
        before: Bins as `metrics.reliability` returns them.
        after: The same of the calibrated model.
    """
    with context(_STYLE):
        figure = Figure(figsize=(10.4, 4.6), layout="constrained")
        most = max(row["count"] for row in [*before, *after])
        grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
        for column, (title, bins, colour) in enumerate((("Before calibration", before, GREY), ("After calibration", after, BLUE))):
            curve, counts = grid[:, column]
            held = [row for row in bins if row["count"]]
            curve.plot([0, 1], [0, 1], color="#B8BEC8", linewidth=1, linestyle=(0, (4, 3)))
            for row in held:
                curve.plot([row["confidence"]] * 2, [row["confidence"], row["accuracy"]], color=ORANGE, linewidth=3, alpha=0.45, solid_capstyle="butt")
            stated, reached = [row["confidence"] for row in held], [row["accuracy"] for row in held]
            curve.plot(stated, reached, color=colour, linewidth=1.2)
            # The area of a point follows its answers, so that a bin of three does not shout.
            curve.scatter(stated, reached, s=[15 + 120 * row["count"] / most for row in held], color=colour, zorder=3)
            curve.set(title=title, xlim=(0, 1.02), ylim=(0, 1.04))
            curve.grid(color="#EEF0F4", linewidth=0.8)
            counts.bar([row["low"] for row in bins], [row["count"] for row in bins], width=1 / len(bins), align="edge", color=colour, edgecolor="white")
            counts.set_xlabel("Stated confidence")
            for axis in (curve.yaxis, counts.xaxis):
                axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        grid[0, 0].set_ylabel("Accuracy")
        grid[1, 0].set_ylabel("Answers")
        return _svg(figure)


def candidates(rows: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    """Draw the gain of each candidate, with its interval, against its peak memory and its training time.

    Args:
        rows: Name -> `gain`, `peak_memory_bytes` and `seconds`, as in comparison.json.
        unit: Unit of the gain; of points the gain is a ratio.
    """
    scale = 100.0 if unit == "points" else 1.0
    with context(_STYLE):
        figure = Figure(figsize=(10.4, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        memory = {name: max(row["peak_memory_bytes"]) / 1e9 for name, row in rows.items()}
        minutes = {name: sum(row["seconds"]) / len(row["seconds"]) / 60 for name, row in rows.items()}
        for axes, title, at in ((panels[0], "Peak memory, GB", memory), (panels[1], "Training time, minutes", minutes)):
            for name, row in rows.items():
                x, gain = at[name], row["gain"]
                axes.plot([x, x], [scale * gain["low"], scale * gain["high"]], color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
                axes.plot(x, scale * gain["difference"], "o", color=BLUE, markersize=5)
                axes.annotate(name, (x, scale * gain["difference"]), xytext=(7, 4), textcoords="offset points")
            axes.set(xlabel=title, xlim=(0, 1.25 * max(at.values())))
            axes.axhline(0, color="#B8BEC8", linewidth=1)
            axes.grid(color="#EEF0F4", linewidth=0.8)
            axes.set_axisbelow(True)
        panels[0].set_ylabel(f"Gain over the untuned model, {unit}")
        return _svg(figure)


def _wrapped(label: str, width: int = 34, most_lines: int = 2) -> str:
    return "\n".join(textwrap.wrap(label, width, max_lines=most_lines, placeholder=" …"))


def _svg(figure: Figure) -> str:
    """Return the <svg> element, without the XML prologue, which HTML does not know."""
    out = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
