"""The selection matrix on a tiny project: facts, a first look, what is left out and why."""

import json

import pytest

from tunesmith import flow
from tunesmith.errors import ConfigError
from tunesmith.evaluate.matrix import recommend
from tunesmith.models.licenses import license_of, stated_license


def test_candidates_are_compared_and_one_is_recommended(tiny, cli):
    own = tiny.config.model.model_name_or_path
    result = cli("models", ".", "family:gemma-2-9b", "family:bert-base", "nowhere", "-C", tiny.root, "--gpu", "cpu-16gb", "--use", "research", "--json")
    assert result.code == 0, result.err
    rows = {row["name"]: row for row in result.json["rows"]}
    assert set(rows) == {own, "family:gemma-2-9b", "family:bert-base", "nowhere"}
    assert rows[own]["measured"]["zero_shot"]["low"] >= 0
    assert rows[own]["measured"]["bits_per_byte"] > 0
    assert rows[own]["tokens_per_word"] > 0
    assert rows["family:gemma-2-9b"]["measured"] is None
    assert "does not fit cpu-16gb" in rows["family:gemma-2-9b"]["excluded"][0]
    assert "must be a folder" in rows["nowhere"]["excluded"][0]
    page = (tiny.root / ".tunesmith" / "selections" / result.json["id"] / "selection.html").read_text(encoding="utf-8")
    assert all(shown in page for shown in ("gemma-2-9b", "Gemma Terms of Use", "GQA", "unknown"))
    assert "http" not in page.replace("http://www.w3.org", "")


def test_facts_alone_choose_nothing(tiny):
    report = flow.select(tiny, ["family:llama-3.2-1b", "family:smollm2-135m"], records=0).report
    assert report["choice"] is None
    assert "facts alone choose nothing" in report["reasons"][0]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("family:lama",), "A family must be one of"),
        ((".", "--gpu", "h900"), "--gpu must be one of"),
        ((".", "--use", "fun"), "--use must be commercial or research"),
    ],
)
def test_a_wrong_word_is_told(tiny, cli, arguments, rule):
    result = cli("models", *arguments, "-C", tiny.root)
    assert result.code == ConfigError.exit_code
    assert rule in result.err


def row(name, right, *, parameters=1, allows="yes", fits=None):
    share = sum(right) / len(right)
    return {
        "name": name,
        "license": {"name": "some", "allows": allows, "note": ""},
        "facts": {"parameters": parameters},
        "fits": fits,
        "measured": {"zero_shot": {"value": share, "low": share - 0.1, "high": share + 0.1}, "right": right},
    }


def test_of_those_level_with_the_best_the_smallest_is_recommended():
    best, level, worse = [True] * 80 + [False] * 20, [True] * 78 + [False] * 22, [True] * 30 + [False] * 70
    report = recommend([row("large", best, parameters=9), row("small", level, parameters=2), row("weak", worse, parameters=1)], device=None, use="commercial")
    assert report["choice"] == "small"
    assert [each["is_level"] for each in report["rows"]] == [True, True, False]
    assert "large" in report["reasons"][1]


def test_a_licence_or_a_device_that_does_not_fit_leaves_a_candidate_out():
    right = [True] * 10
    small, large = ({"training": training, "serving": ["nf4"]} for training in (["lora"], []))
    rows = [row("closed", right, allows="no", fits=small), row("unread", right, allows="unknown", fits=small), row("large", right, fits=large)]
    report = recommend(rows, device="t4-16gb", use="commercial")
    assert report["choice"] is None
    assert [each["excluded"][0].split("(")[0].strip() for each in report["rows"]] == ["its licence", "its licence", "its training does not fit t4-16gb"]


@pytest.mark.parametrize(
    ("name", "commercial", "research"),
    [
        ("Apache-2.0", "yes", "yes"),
        ("mit", "yes", "yes"),
        ("gemma", "conditions", "conditions"),
        ("Llama3.1", "conditions", "conditions"),
        ("cc-by-nc-4.0", "no", "yes"),
        ("my own", "unknown", "unknown"),
        (None, "unknown", "unknown"),
    ],
)
def test_what_a_licence_allows(name, commercial, research):
    found = license_of(name)
    assert (found.allows("commercial"), found.allows("research")) == (commercial, research)


def test_a_licence_is_read_from_a_models_folder(tmp_path):
    assert stated_license(tmp_path) is None
    (tmp_path / "LICENSE").write_text("   Apache License\n   Version 2.0", encoding="utf-8")
    assert stated_license(tmp_path) == "Apache-2.0"
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: llama3.1\n---\n# Model", encoding="utf-8")
    assert stated_license(tmp_path) == "llama3.1"
    (tmp_path / "source.json").write_text(json.dumps({"license": "MIT"}), encoding="utf-8")
    assert stated_license(tmp_path) == "MIT"
