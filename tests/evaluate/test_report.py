import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from simulation import LABELS, TEXT

from tunesmith.evaluate.report import duration, p_value, percent, points, render, size, verdict, write_report

NBSP = "\N{NO-BREAK SPACE}"


class Page(HTMLParser):
    """The tags of a page and the addresses that it loads from."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")]


@pytest.fixture(scope="module")
def page(report):
    return render(report)


def test_both_files_come_from_one_dict(report, tmp_path):
    path = write_report(tmp_path / "evl", report)
    saved = json.loads((tmp_path / "evl" / "report.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(report))
    assert list(saved) == sorted(saved)
    assert render(saved) == path.read_text(encoding="utf-8")
    assert sorted(file.name for file in path.parent.iterdir()) == ["plots", "report.html", "report.json"]
    assert sorted(file.name for file in (path.parent / "plots").iterdir()) == ["confusion.svg", "intervals.svg", "reliability.svg"]


def test_a_script_in_a_text_is_shown_and_not_run(page):
    assert TEXT not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; closed" in page
    assert "script" not in Page(page).tags


def test_a_script_in_a_label_or_a_title_is_shown_and_not_run(report):
    evil = "<script>alert(1)</script>"
    confusion = {**report["confusion"], "labels": [evil, *LABELS[1:]]}
    page = render({**report, "title": evil, "confusion": confusion, "provenance": {"run": evil}, "reproduce": evil, "data": {"rows": {}, "dropped": {evil: 1}}})
    assert "script" not in Page(page).tags


def test_the_page_loads_nothing(page):
    assert Page(page).loads == []
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page)
    assert "@import" not in page


def test_parts_without_figures_are_left_out(report, page):
    assert "Surest mistakes" in page
    assert "Does its confidence mean what it says?" in page
    bare = {key: value for key, value in report.items() if key not in ("calibration", "reliability", "mistakes")}
    short = render(bare)
    assert not any(heading in short for heading in ("Surest mistakes", "Does its confidence", "<h2>Data", "<h2>Training", "Provenance", "Reproduce"))


def test_every_part_is_shown(report):
    predicted = {"measured": 912.3, "predicted": 1000.0, "predicted_low": 800.0, "predicted_high": 1300.0}
    page = render(
        report
        | {
            "created_at": "2026-05-04",
            "data": {"rows": {"train": 3000, "test": 400}, "dropped": {"too_short": 12}},
            "training": {
                "settings": {"lora_r": 16, "bf16": True, "seed": None},
                "figures": {"steps": 188},
                "seconds": predicted,
                "peak_memory_bytes": {"measured": 2.31e9},
            },
            "provenance": {"run": "run_1", "base_sha256": "5af571"},
            "reproduce": "tunesmith evaluate run_1",
        }
    )
    for shown in ("3,000", "too_short", "lora_r", "15.2", "0.91", "2.31", "run_1", "5af571", "tunesmith evaluate run_1", "2026-05-04"):
        assert shown in page


@pytest.mark.parametrize("name", ["report", "comparison", "selection"])
def test_a_table_of_more_than_two_columns_scrolls_by_itself(name):
    """On a phone the page would be as wide as its widest table."""
    template = files("tunesmith.evaluate").joinpath(f"{name}.html.j2").read_text(encoding="utf-8")
    tables = re.findall(r"(.{20})<table>(.*?)</thead>", template, re.DOTALL)
    assert tables
    for before, head in tables:
        assert before.endswith('<div class="scroll">') or head.count("<th ") <= 2, head


def test_a_label_space_too_large_for_numbers_still_draws(report):
    names = [f"intent number {index}" for index in range(40)]
    page = render(report | {"confusion": {"labels": names, "counts": [[int(row == column) for column in range(40)] for row in range(40)]}})
    assert "40 · intent number 39" in page


def test_the_verdict_is_one_sentence():
    def figures(difference, low, high):
        return {"accuracy": {"difference": difference, "low": low, "high": high, "p_value": 0.5}}

    metrics = {"accuracy": {"tuned": {"value": 0.762, "low": 0.735, "high": 0.788}}}
    report = {"metrics": metrics, "n_test": 1204, "paired": figures(0.31, 0.28, 0.34), "paired_classical": figures(0.01, -0.01, 0.03)}
    assert verdict(report).replace(NBSP, " ") == (
        "Tuned model: 76.2 % [73.5, 78.8] accuracy on 1,204 test records, 31.0 points above the untuned model; level with the classical baseline."
    )
    assert "5.0 points below the classical baseline" in verdict(report | {"paired_classical": figures(-0.05, -0.08, -0.02)})


def test_numbers_read_as_people_write_them():
    assert [percent(0.1234), percent(None)] == [f"12.3{NBSP}%", "\N{EN DASH}"]
    assert [points(0.034), points(-0.2)] == ["+3.4", "\N{MINUS SIGN}20.0"]
    assert [duration(s).replace(NBSP, " ") for s in (0.0008, 0.186, 0.9999, 12, 912, 9000)] == ["800 µs", "186 ms", "1000 ms", "12.0 s", "15.2 min", "2.50 h"]
    assert duration(-0.02, signed=True) == f"\N{MINUS SIGN}20.0{NBSP}ms"
    assert [size(2.31e9), size(5e8)] == [f"2.31{NBSP}GB", f"500{NBSP}MB"]
    assert [p_value(0.0001), p_value(0.0321)] == [f"<{NBSP}0.001", "0.032"]


def test_a_figure_that_is_not_a_number_is_refused(report, tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_report(tmp_path, report | {"n_test": float("nan")})
