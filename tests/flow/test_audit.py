"""Planted label errors and noise through audit, review and the next dataset version, with the real embedding model."""

import csv
import random
from dataclasses import replace

import polars as pl
import pytest

from tunesmith import Project, flow
from tunesmith.data.freeze import read_dropped
from tunesmith.flow import review
from tunesmith.project import Progress
from tunesmith.review.exchange import DISCARD

TOPICS = {
    "card": "The card was charged twice at the shop and the {} on my credit card statement is wrong since {}.",
    "loan": "My car loan payment of {} was not booked and the lender asks for late fees since {}.",
    "mortgage": "The mortgage servicer lost the escrow papers of our house, {} and the foreclosure letter came in {}.",
}
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August")
THINGS = ("fee", "interest", "balance", "refund", "deposit", "sum", "charge", "amount", "rate", "bill")
NOISE = "%$#@!;;{}[]<>^&*()=+~~||//%%##@@"


def rows():
    draw = random.Random(0)
    for number in range(240):
        label = list(TOPICS)[number % 3]
        yield f"{TOPICS[label].format(draw.choice(THINGS), draw.choice(MONTHS))} Case {number}: {' '.join(draw.choices(THINGS + MONTHS, k=9))}.", label


@pytest.fixture
def dirty(fresh):
    """A project with 12 swapped labels and 3 texts of noise, and what is right by text; no text for None."""
    truth, planted = {}, []
    for number, (text, label) in enumerate(rows()):
        given = label
        if number % 20 == 7:
            given = list(TOPICS)[(list(TOPICS).index(label) + 1) % 3]
        if number % 80 == 11:
            text, truth[text] = "".join(random.Random(number).choices(NOISE, k=90)), None
        truth[text] = None if set(text) <= set(NOISE) else label
        planted.append((text, given))
    with (fresh / "data" / "records.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *planted])
    settings = ["data.dvc=false", "train.report_to=[]", "data.sources.0.splits={train: 0.85, validation: 0.05, calibration: 0.05, test: 0.05}"]
    return Project.load(fresh, [*settings, "data.same_opening_words=0", "data.dedup.near=false", "data.near_duplicate_threshold=0.95"]), truth


class Told(Progress):
    """Remembers what it is told."""

    def __init__(self):
        self.steps = []

    def advance(self, done, total, detail=""):
        self.steps.append((detail, done, total))


def test_the_time_left_can_be_told_from_texts_and_folds(dirty):
    project, _ = dirty
    version = flow.prepare(project)
    told = Told()
    flow.audit(replace(project, progress=told), version)
    n = len(set(flow.read(project, version).filter(split="train")["text"]))
    read = [(done, total) for detail, done, total in told.steps if detail == "read the meaning of the texts"]
    assert read[-1] == (n, n)
    assert len(read) > 1
    assert [(done, total) for detail, done, total in told.steps if detail == "label errors"] == [(done, 10) for done in range(1, 11)]
    assert told.steps[-1] == ("outliers and noise", 0, 1)


def test_what_reviewers_decide_is_in_the_next_version_and_stays(dirty, tmp_path):
    project, truth = dirty
    version = flow.prepare(project)
    records = flow.read(project, version)
    train = records.filter(split="train")
    wrong = {row["id"] for row in train.iter_rows(named=True) if truth[row["text"]] != row["label"]}
    assert len(wrong) >= 8
    found = flow.audit(project, version)
    asked = {item.target_id for item in found.items}
    assert len(asked) == len(found.items) == found.new
    assert wrong <= asked
    assert len(asked) < 2 * len(wrong)
    assert [item.score for item in found.items] == sorted((item.score for item in found.items), reverse=True)
    assert flow.audit(project, version).new == 0

    n_items, _ = review.export_review(project, tmp_path / "items.csv", "csv")
    assert n_items == len(asked)
    answers = pl.read_csv(tmp_path / "items.csv", infer_schema=False).with_columns(
        label=pl.col("text").replace_strict({text: label or DISCARD for text, label in truth.items()}), reviewer=pl.lit("ann")
    )
    answers.write_csv(tmp_path / "answers.csv")
    imported, new = review.import_review(project, tmp_path / "answers.csv")
    assert (len(imported.rejected), new) == (0, len(asked))

    clean = flow.prepare(project)
    assert clean.parent == version.id
    assert "corrected in review" in clean.reason
    kept = flow.read(project, clean)
    assert all(truth[text] == label for text, label in kept.filter(split="train").select("text", "label").iter_rows())
    assert kept.filter(pl.col("split") != "train").equals(records.filter(pl.col("split") != "train"))
    reasons = read_dropped(project.root, clean).filter(pl.col("reason").is_in(["superseded", "discarded"]))
    assert len(reasons) == len(wrong)
    assert flow.prepare(project) == clean
    # Another row comes: nothing that was discarded comes back.
    with (project.root / "data" / "records.csv").open("a", encoding="utf-8") as file:
        file.write("One more letter about a house and its mortgage escrow,mortgage\n")
    again = flow.read(project, flow.prepare(project))
    assert len(again) == len(kept) + 1
