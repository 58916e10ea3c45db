"""The validation report: each defect is found where it was planted, and nowhere else."""

import json
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.checks import check_answers, check_records, find_languages
from tunesmith.data.settings import CHECK_NAMES, ChecksSection
from tunesmith.errors import DataError, MissingExtraError

CLEAN = [f"The company told me that account {word} was wrong and they have not answered my letter {word}" for word in ("alpha", "beta", "gamma", "delta")] * 10
CLEAN = [f"{text} {'abcdefghij'[number % 10]}{'klmnopqrst'[number // 10]}" for number, text in enumerate(CLEAN)]


def frame(texts, labels=None):
    n = len(texts)
    return pl.DataFrame(
        {"id": [f"rec_{at}" for at in range(n)], "text": texts, "label": labels or ["yes"] * n, "source": ["a.csv"] * n, "source_line": range(2, n + 2)},
        schema={"id": pl.String, "text": pl.String, "label": pl.String, "source": pl.String, "source_line": pl.Int64},
    )


def checks(texts, labels=None, **keys):
    report = check_records(frame(texts, labels), ChecksSection(min_class_records=0, **keys))
    return {check.name: check for check in report.checks}


def test_clean_texts_are_clean():
    found = checks(CLEAN)
    assert {name: check.count for name, check in found.items()} == dict.fromkeys(found, 0)
    assert {check.severity for check in found.values()} == {"info"}
    assert {*found, "answer_not_in_source"} == set(CHECK_NAMES)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("encoding", "The cafÃ© doesnâ€™t answer the letter that I have sent to them", "mojibake"),
        ("encoding", "The letter was \ufffd\ufffd broken and they have not answered it", "control or replacement"),
        ("template_markers", "the letter <|im_start|>user is here and they have it", "<|im_start|>"),
        ("template_markers", "the letter [INST] is here and they have it", "[INST]"),
        ("template_markers", "the letter is here\n### Response: and they have it", "### Response:"),
        ("template_markers", "the <start_of_turn> letter is here and they have it", "<start_of_turn>"),
        ("garbage", "$$$ %%% ### @@@ !!! --- *** &&&", "% symbols"),
        ("garbage", "ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha", "bits a byte"),
        ("garbage", "the first line of it\n" * 6, "of its lines are repeated"),
        ("garbage", "qwertyuiopasdfghjklzxcvbnm" * 5, "no spaces"),
        ("language", "Ich habe das Geld nicht erhalten und wir sind mit dem Konto nicht zufrieden", "looks like de"),
        ("language", "Счёт был закрыт без предупреждения", "looks like ru"),
        ("length_outliers", "no", "2 characters"),
        ("length_outliers", "the letter and they have it on record " * 1000, "characters"),
    ],
)
def test_a_planted_defect_is_found_with_its_place(name, text, why):
    check = checks([*CLEAN, text])[name]
    assert check.count == 1
    (example,) = check.examples
    assert (example.id, example.source, example.source_line) == ("rec_40", "a.csv", 42)
    assert why in example.why
    assert text.startswith(example.excerpt.removesuffix("..."))
    assert len(example.excerpt) <= 120


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ("The loan is late.", "The loan is late.", True),
        ("The loan is late.", "the LOAN, is  late!", True),
        ("Paid 10 on 3/4", "Paid 12 on 5/6", True),
        ("12", "13", False),
        ("The loan is late.", "The loan was late.", False),
    ],
)
def test_equal_letters_with_different_labels_conflict(one, other, conflict):
    check = checks([one, other, "Something else"], ["yes", "no", "yes"])["conflicting_labels"]
    assert check.count == 2 * conflict
    assert checks([one, other], ["yes", "yes"])["conflicting_labels"].count == 0
    if conflict:
        assert check.examples[0].why == "labelled no and yes"


def test_rare_and_absent_labels_are_told():
    rows = frame(CLEAN, ["yes"] * 38 + ["no"] * 2)
    report = check_records(rows, ChecksSection(min_class_records=3), ("yes", "no", "maybe"))
    check = next(check for check in report.checks if check.name == "class_balance")
    assert [(one.excerpt, one.why) for one in check.examples] == [("maybe", "0 records"), ("no", "2 records")]
    assert (check.count, check.severity) == (2, "warning")


def test_severity_follows_the_share_of_rows():
    bad = [*CLEAN[:39], "the [INST] letter and they have it"]
    assert checks(bad)["template_markers"].severity == "error"
    assert checks(bad, stop_above={"template_markers": 0.025})["template_markers"].severity == "warning"
    assert checks(bad, stop_above={"template_markers": 1}, warn_above={"template_markers": 0.025})["template_markers"].severity == "info"


def test_an_error_stops_and_shows_what_it_found_and_a_warning_does_not():
    bad = [*CLEAN[:39], "the [INST] letter and they have it"]
    report = check_records(frame(bad), ChecksSection(min_class_records=0))
    assert report.checks[0].name == "template_markers"
    with pytest.raises(DataError, match=r"(?s)must pass its checks.*template_markers .*a\.csv:41  rec_39  \[INST\]: 'the \[INST\] letter") as raised:
        report.stop()
    assert "class_balance" not in raised.value.message
    check_records(frame(bad), ChecksSection(stop_above={"template_markers": 1})).stop()
    assert json.loads(json.dumps(report.to_dict()))["checks"][0]["examples"][0]["id"] == "rec_39"
    assert str(report).startswith("40 rows checked\nerror   template_markers")


def test_an_answer_must_stand_in_its_source():
    pairs = frame(["Born in  Paris on 3 May", "It\u2019s \u201clate\u201d", "nothing", "a"])
    pairs = pairs.with_columns(answer=pl.Series(["paris ON", 'it\'s "late"', "", "b"]))
    (check,) = check_answers(pairs, ChecksSection()).checks
    assert (check.count, check.severity, check.examples[0].why) == (1, "error", "'b' is not in the text")


def test_the_language_of_short_or_mixed_texts_is_not_guessed():
    texts = [
        "hello",
        "12345",
        "",
        "the and der und",
        "Wir haben das Geld nicht erhalten und die Bank ist nicht erreichbar",
        "銀行からの手紙を受け取りました",
        "은행에서 편지를 받았습니다",
    ]
    assert find_languages(pl.Series(texts)).to_list() == [None, None, None, None, "de", "ja", "ko"]


@given(st.lists(st.text(max_size=80), max_size=12))
@settings(deadline=None, max_examples=60)
def test_no_text_breaks_it_and_counts_fit(texts):
    report = check_records(frame(texts), ChecksSection())
    assert report.n_rows == len(texts)
    for check in report.checks:
        assert 0 <= check.share <= 1
        assert len(check.examples) == min(check.count, 5)
    str(report)


def test_without_ftfy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy.badness", None)
    with pytest.raises(MissingExtraError, match="'ftfy'"):
        checks(CLEAN)
