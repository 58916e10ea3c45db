"""What does the data tier find of defects that were planted, and is a model better for it?

Into the training rows of the example 5 % flipped labels, 10 % near copies and 2 % garbage are planted, with a list of what was
planted. `prepare` and `audit` do not see that list. Then a SIMULATED reviewer, who answers from the list, answers the first
tenth of the queue, and models are trained on the dirty and on the cleaned rows.

    python examples/complaints/dirty.py .demo/complaints/data .demo/dirty            # finds and reviews: a minute
    python examples/complaints/dirty.py .demo/complaints/data .demo/dirty --train    # and trains both: some 12 minutes

What is done stands in `done.json` of the folder, and a run in its checkpoints: killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tunesmith import Project, flow
from tunesmith.data.freeze import read_dropped
from tunesmith.entities import DatasetVersion
from tunesmith.evaluate.intervals import Bootstrap, mcnemar, wilson
from tunesmith.evaluate.predict_split import SplitScores
from tunesmith.files import write_json
from tunesmith.flow import review
from tunesmith.review.exchange import DISCARD

TEXT, LABEL = "Consumer complaint narrative", "Product"
FLIPS, COPIES, GARBAGE = 0.05, 0.10, 0.02
# Whose labels are taken for whose: a flip goes to a neighbouring product, as people mistake them.
NEIGHBOURS = {
    "Credit reporting, credit repair services, or other personal consumer reports": "Debt collection",
    "Debt collection": "Credit reporting, credit repair services, or other personal consumer reports",
    "Mortgage": "Consumer loan, Vehicle loan or lease, Payday loan, title loan, or personal loan",
    "Credit card or prepaid card": "Bank account or service, Savings account",
    "Bank account or service, Savings account": "Money transfer, virtual currency, or money service",
    "Consumer loan, Vehicle loan or lease, Payday loan, title loan, or personal loan": "Student loan",
    "Student loan": "Consumer loan, Vehicle loan or lease, Payday loan, title loan, or personal loan",
    "Money transfer, virtual currency, or money service": "Bank account or service, Savings account",
}
SETTINGS = ["data.dvc=false", "data.max_records={validation: 400, calibration: 800, test: 1200}", "data.checks.stop_above={conflicting_labels: 1}"]
# One changed word takes a text of fewer than 19 words below the default of 0.7, one of fewer than 14 below this.
SETTINGS += ["data.near_duplicate_threshold=0.6"]


def plant(rows: list[tuple[str, str]], seed: int) -> list[tuple[str, str, str, str]]:
    """Return rows of text, label, defect (`flip`, `copy`, `garbage` or none) and the right label."""
    draw = random.Random(seed)
    order = draw.sample(range(len(rows)), len(rows))
    n_flips, n_garbage, n_copies = (round(share * len(rows)) for share in (FLIPS, GARBAGE, COPIES))
    flips, garbage, copied = set(order[:n_flips]), set(order[n_flips : n_flips + n_garbage]), order[n_flips + n_garbage :][:n_copies]
    planted = []
    for at, (text, label) in enumerate(rows):
        if at in flips:
            planted.append((text, NEIGHBOURS[label], "flip", label))
        elif at in garbage:
            planted.append((noise(draw), label, "garbage", ""))
        else:
            planted.append((text, label, "", label))
    planted += [(edited(rows[at][0], draw), rows[at][1], "copy", rows[at][1]) for at in copied]
    draw.shuffle(planted)
    return planted


def edited(text: str, draw: random.Random) -> str:
    """Return a text with one to three words changed, fewer in short texts, so that it stays a near copy."""
    words = text.split()
    for _ in range(min(3, max(1, len(words) // 40))):
        words[draw.randrange(len(words))] = draw.choice(("however", "again", "please", "account", "today"))
    return " ".join(words)


def noise(draw: random.Random) -> str:
    """Return what ends up in text columns: keys hit at random, one line over and over, mojibake, words without order."""
    kind = draw.randrange(4)
    if kind == 0:
        return "".join(draw.choices("asdfjkl;qweruiop[]zxcvnm,./ ", k=draw.randrange(60, 200)))
    if kind == 1:
        return "\n".join(["Page 1 of 1 - do not reply"] * draw.randrange(5, 20))
    if kind == 2:
        return " ".join("".join(draw.choices("\u00c3\u00a9\u00e2\u20ac\u2122\u00ef\u00bf\u00bd\u00c2\u00a7", k=6)) for _ in range(20))
    return " ".join("".join(draw.choices("bcdfghklmnprstvwz", k=draw.randrange(3, 9))) for _ in range(draw.randrange(20, 60)))


def within(hits: int, n: int) -> str:
    """Return a share with its 95 % interval (Wilson)."""
    if n == 0:
        return "none"
    interval = wilson(hits, n)
    return f"{hits / n:.3f} [{interval.low:.3f}, {interval.high:.3f}] ({hits} of {n})"


def make_project(data: Path, folder: Path, seed: int, n_rows: int) -> dict[str, tuple[str, str]]:
    """Write the dirty project; return text -> (defect, right label) of its training rows."""
    csv.field_size_limit(10**7)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    shutil.copy(data / "test.csv", folder / "data")
    shutil.copy(Path(__file__).parent / "tunesmith.yaml", folder)
    with (data / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list({row[TEXT]: row[LABEL] for row in csv.DictReader(file)}.items())
    planted = plant(random.Random(seed).sample(rows, n_rows), seed)
    with (folder / "data" / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(TEXT, LABEL), *((text, label) for text, label, _, _ in planted)])
    return {text: (defect, right) for text, _, defect, right in planted}


def find(project: Project, truth: dict[str, tuple[str, str]]) -> tuple[dict[str, str], DatasetVersion]:
    """Prepare and audit; return what was found, in words, and the dirty version."""
    version = flow.prepare(project)
    train = flow.read(project, version).filter(split="train")
    dropped = read_dropped(project.root, version)
    gone = dropped.filter(pl.col("reason").is_in(["near_duplicate", "exact_duplicate", "conflicting_label"]), source="data/train.csv")
    texts = dict(pl.concat([train.select("document_id", "text"), dropped.select(document_id="id", text="text")]).iter_rows())
    # A pair is right when one of the two was planted as a copy; texts that were alike before anything was planted are not counted.
    copies = {text for text, (defect, _) in truth.items() if defect == "copy"}
    pairs = [(row["text"], texts.get(row["kept_id"], "")) for row in gone.iter_rows(named=True)]
    natural = sum(left not in copies and right not in copies for left, right in pairs)
    found_copies = sum(left in copies or right in copies for left, right in pairs)

    audit = flow.audit(project, version)
    by_id = {row["id"]: row["text"] for row in train.iter_rows(named=True)}
    flips = {each for each, text in by_id.items() if truth[text][0] == "flip"}
    proposed = [item.target_id for item in audit.items if item.reason == "label_error"]
    hits = sum(target in flips for target in proposed)
    first = [item.target_id for item in audit.items][: round(0.1 * len(train))]
    # A copy whose original went is no defect any more.
    defects = {each for each, text in by_id.items() if truth[text][0] in ("flip", "garbage")}
    caught = sum(target in defects for target in first) + min(found_copies, len(copies))
    figures = {
        "near copies found": within(min(found_copies, len(copies)), len(copies)),
        "pairs dropped that were alike before": str(natural),
        "flips found among the proposals": within(hits, len(flips)),
        "precision of the proposals": within(hits, len(proposed)),
        "estimated error rate": f"{audit.label_error_rate:.3f} (planted {len(flips) / len(train):.3f})",
        "all defects found, copies by prepare and the rest in the first tenth of the queue": within(caught, len(defects) + len(copies)),
        "flips and garbage that are in the first tenth of the queue": within(sum(target in defects for target in first), len(defects)),
    }
    return figures, version


def simulate_review(project: Project, truth: dict[str, tuple[str, str]], n_items: int) -> DatasetVersion:
    """Answer the first items from what was planted, and prepare the next version."""
    file = project.root / "items.csv"
    review.export_review(project, file, "csv", n_items)
    right = {text: DISCARD if defect == "garbage" else label for text, (defect, label) in truth.items()}
    answered = pl.read_csv(file, infer_schema=False).with_columns(label=pl.col("text").replace_strict(right), reviewer=pl.lit("simulated"))
    answered.write_csv(file)
    review.import_review(project, file)
    return flow.prepare(project)


def compare(project: Project, dirty: DatasetVersion, clean: DatasetVersion) -> Iterator[str]:
    """Train on both versions and tell the accuracies on the same test records, and their paired difference."""
    right = {}
    for name, version in (("dirty", dirty), ("cleaned", clean)):
        evaluation = flow.evaluate(project, flow.train(project, version))
        scores = SplitScores.load(project.root / evaluation.path / "tuned-test.parquet")
        labels = dict(flow.read(project, version).select("id", "label").iter_rows())
        y = np.array([scores.labels.index(labels[each]) for each in scores.ids])
        right[name] = (scores.logits.argmax(axis=1) == y).astype(float)
        yield f"  {name:<10}{within(int(right[name].sum()), len(y))}"
    gain = Bootstrap(len(right["dirty"])).interval(lambda sums: sums[..., 0], (right["cleaned"] - right["dirty"])[:, None] / len(right["dirty"]))
    p = mcnemar(right["cleaned"], right["dirty"])
    yield f"  cleaned minus dirty: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], McNemar p {p:.3f}"


def main() -> None:
    """Run what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.csv and test.csv, as fetch.py makes it")
    parser.add_argument("folder", type=Path, help="where to work; made anew where it holds other rows")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3, help="plantings; the last one is reviewed and trained on")
    parser.add_argument("--train", action="store_true", help="train on the dirty and on the cleaned rows")
    given = parser.parse_args()
    if not (given.data / "train.csv").exists():
        sys.exit(f"{given.data}: must hold train.csv and test.csv. Type: python examples/complaints/fetch.py {given.data}")
    file = given.folder / "done.json"
    done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if done.get("rows") != given.rows:
        shutil.rmtree(given.folder, ignore_errors=True)
        given.folder.mkdir(parents=True)
        done = {"rows": given.rows, "plantings": {}, "cleaned": {}}
    for seed in map(str, range(given.seeds)):
        truth = make_project(given.data, given.folder / f"seed{seed}", int(seed), given.rows)
        project = Project.load(given.folder / f"seed{seed}", SETTINGS)
        if seed not in done["plantings"]:
            figures, dirty = find(project, truth)
            done["plantings"][seed] = {"figures": figures, "dirty": dirty.id}
            write_json(file, done)
        print(f"\nplanting {seed}: {given.rows:,} rows, {FLIPS:.0%} flips, {COPIES:.0%} near copies, {GARBAGE:.0%} garbage")
        for name, value in done["plantings"][seed]["figures"].items():
            print(f"  {name:<84}{value}")
    dirty = project.store.get(DatasetVersion, done["plantings"][seed]["dirty"])
    if seed not in done["cleaned"]:
        done["cleaned"][seed] = simulate_review(project, truth, round(0.1 * dirty.rows["train"])).id
        write_json(file, done)
    clean = project.store.get(DatasetVersion, done["cleaned"][seed])
    print(f"\nafter the simulated reviewer: {json.dumps(clean.rows)}, {clean.reason}")
    if given.train:
        for line in compare(project, dirty, clean):
            print(line, flush=True)


if __name__ == "__main__":
    main()
