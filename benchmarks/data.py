"""Are duplicates, label errors, swapped answers and leaks found, and how fast, beside the libraries that are used for it?

The truth is planted in real texts (`data_texts.py`), with a seed for each round. Both sides run in turn, each work in a
process of its own on one core, texts in and findings out; speed is CPU time without loading. Recall of near duplicates is over
planted copies whose true Jaccard similarity of word 3-shingles is 0.7 or more, precision over a sample of 1,500 pairs measured
exactly. Semantic duplicates are right when they are copies of one text or have a similarity of 0.5. `ratio` is how many times
better ours is: of speeds their quotient, of qualities too; its low and high ends are the smallest and the largest round.
Each table is kept in `results/data.json` as soon as it is measured, and stands in `README.md` between the marks, with the goals.

    python benchmarks/data_texts.py FOLDER                                   once
    python benchmarks/data.py --texts FOLDER --peers PYTHON [--quick] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from data_texts import LEAKS, flip, labelled, texts, with_copies, with_leaks

from tunesmith.data.dedup import clusters, jaccard

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "data.json"
README = HERE / "README.md"
MARK = ("<!-- data: written by benchmarks/data.py -->", "<!-- /data -->")
# What was asked for: of ours, of the ratio to the peer, or of ours above the peer. The first that fits the work and the peer counts.
GOALS: tuple[tuple[str, str, str, float], ...] = (
    (r"near duplicates.*: speed", "rensa", "ratio", 0.8),
    (r"near duplicates.*: speed", "datasketch", "ratio", 10),
    (r"near duplicates.*: speed", "datatrove", "ratio", 50),
    (r"near duplicates.*: recall", "", "ours", 0.98),
    (r"near duplicates.*: precision", "", "ours", 1.0),
    (r"semantic.*: speed", "semhash", "ratio", 3),
    (r"semantic.*: (precision|recall)", "semhash", "ratio", 1),
    (r"embeddings: speed", "", "ratio", 4),
    (r"label errors.*: average precision", "", "above", 0.10),
    (r"label errors.*: F1", "", "ours", 0.70),
    (r"swapped answers, random", "", "ours", 0.93),
    (r"swapped answers, hard", "", "ours", 0.80),
    (r"contamination: recall, all", "", "ours", 0.97),
    (r"contamination: clean texts", "", "ours", 0.99),
    (r".*", "goal", "ratio", 1),
)
Row = dict[str, Any]
Rounds = list[tuple[float, float]]


@dataclass(frozen=True)
class Bench:
    """Where the texts are, which Python has the peers, and whether this is the short cut."""

    texts: Path
    peers: str
    quick: bool
    folder: Path

    @property
    def seeds(self) -> range:
        """Seeds of the rounds."""
        return range(1 if self.quick else 3)

    def run(self, side: str, work: str, frame: pl.DataFrame, setting: str = "", *, cores: int = 1) -> dict[str, Any]:
        """Run one work of one side in a process of its own and return what it found."""
        source, target = self.folder / "input.parquet", self.folder / "output.json"
        frame.write_parquet(source)
        python, script = (sys.executable, "data_ours.py") if side == "ours" else (self.peers, "data_peer.py")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": str(cores), "RAYON_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

        def hold_cores() -> None:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

        command = [python, str(HERE / script), work, str(source), str(target), setting]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, preexec_fn=hold_cores)
        if done.returncode:
            raise SystemExit(f"{side}: {work} failed.\n{done.stderr}")
        found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return found


def machine() -> str:
    """Name this machine: processor and cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def result(work: str, peer: str, unit: str, rounds: Rounds) -> Row:
    """Return one row of the results, of (ours, peer) a round; higher is better."""
    ratios = [ours / theirs if theirs else float("nan") for ours, theirs in rounds]
    return {
        "work": work,
        "ours": statistics.median(ours for ours, _ in rounds),
        "peer": statistics.median(theirs for _, theirs in rounds),
        "peer_name": peer,
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("tunesmith", "numpy", "numba", "polars", "torch")}
        | {peer.split()[0].rstrip(","): found for found in [_pinned(peer)] if found},
    }


def _pinned(peer: str) -> str:
    """Return the version of a peer that requirements-data.txt asks for, or nothing for a goal."""
    lines = (HERE / "requirements-data.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split()[0].split("==") for line in lines if "==" in line and not line.startswith("#"))
    return pinned.get(peer.split()[0].rstrip(","), "")


def alone(work: str, unit: str, values: Sequence[float], goal: float) -> Row:
    """Return a row where the peer is the goal that was set."""
    return result(work, "goal", unit, [(value, goal) for value in values])


def near(bench: Bench) -> Iterator[Row]:
    """Near duplicates beside rensa, datasketch and datatrove."""
    for n, peers in ((10_000, ("rensa", "datasketch", "datatrove")), (100_000, ("rensa", "datasketch"))):
        if bench.quick and n > 10_000:
            return
        speed: dict[str, Rounds] = {peer: [] for peer in peers}
        recall: dict[str, Rounds] = {peer: [] for peer in peers}
        precision: dict[str, Rounds] = {peer: [] for peer in peers}
        for seed in bench.seeds:
            held, truth = with_copies(texts(bench.texts, round(n / 1.18), seed), 0.18, seed)
            frame = pl.DataFrame({"text": held})
            wanted = [(left, right) for left, right, _ in truth if jaccard(held[left], held[right]) >= 0.7]
            own = bench.run("ours", "near", frame)
            for peer in peers:
                theirs = bench.run(peer, peer, frame)
                speed[peer].append((len(held) / own["seconds"], len(held) / theirs["seconds"]))
                recall[peer].append((_recall(own, wanted, len(held)), _recall(theirs, wanted, len(held))))
                if "pairs" in theirs:
                    precision[peer].append((_precision(own, held), _precision(theirs, held)))
        for peer in peers:
            yield result(f"near duplicates, {n:,}: speed", peer, "records a CPU second", speed[peer])
            yield result(f"near duplicates, {n:,}: recall", peer, "share", recall[peer])
            if precision[peer]:
                yield result(f"near duplicates, {n:,}: precision", peer, "share", precision[peer])
    held, truth = with_copies(texts(bench.texts, 100_000, 0), 0.01, 0)
    found = bench.run("ours", "index", pl.DataFrame({"text": held}), str(len(truth)))
    named = set(map(tuple, found["pairs"]))
    wanted = [(left, right) for left, right, _ in truth if jaccard(held[left], held[right]) >= 0.7]
    yield alone("1,000 new against an index of 100,000: old match named", "share", [sum(pair in named for pair in wanted) / len(wanted)], 0.98)
    million = pl.DataFrame({"text": texts(bench.texts, 1_000_000, 0)})
    found = bench.run("ours", "near_dropped", million)
    yield alone("near duplicates dropped, 1,000,000: speed", "records a CPU second", [len(million) / found["seconds"]], 1_000_000 / 300)
    yield alone("near duplicates dropped, 1,000,000: 8 GiB over peak memory", "times", [8192 / found["peak_mib"]], 1.0)


def _recall(found: dict[str, Any], wanted: list[tuple[int, int]], n: int) -> float:
    """Return the share of planted pairs that end in one cluster; where a peer names no pairs, of which one text is gone."""
    if "pairs" not in found:
        gone = set(found["gone"])
        return sum(left in gone or right in gone for left, right in wanted) / len(wanted)
    cluster = clusters(n, pl.DataFrame(found["pairs"], schema=["left", "right"], orient="row"))
    return float(np.mean([cluster[left] == cluster[right] for left, right in wanted]))


def _precision(found: dict[str, Any], held: list[str]) -> float:
    sample = random.Random(0).sample(found["pairs"], min(1500, len(found["pairs"])))
    return float(np.mean([jaccard(held[left], held[right]) >= 0.7 for left, right in sample]))


def semantic(bench: Bench) -> Iterator[Row]:
    """Semantic duplicates beside SemHash on the same static vectors."""
    from tunesmith.models.catalog import cache_folder
    from tunesmith.models.embed import MINILM, _locate
    from tunesmith.models.static_embed import StaticEmbedder

    StaticEmbedder()
    (table,) = cache_folder().glob("embeddings/static-*.npy")
    model = bench.folder / "model2vec"
    bench.run("peers", "static_model", pl.DataFrame({"text": []}), f"{table}:{_locate(MINILM, Path())[0] / 'tokenizer.json'}:{model}")
    for n in (10_000,) if bench.quick else (10_000, 50_000):
        columns: dict[str, Rounds] = {}
        for seed in bench.seeds:
            held, truth = with_copies(texts(bench.texts, round(n / 1.18), seed), 0.18, seed)
            frame = pl.DataFrame({"text": held})
            own, theirs = bench.run("ours", "semantic", frame, "0.93"), bench.run("peers", "semhash", frame, f"{model}:0.95")
            measured = [_semantic_quality(found, held, truth) for found in (own, theirs)]
            columns.setdefault("speed", []).append((len(held) / own["seconds"], len(held) / theirs["seconds"]))
            for name in measured[0]:
                columns.setdefault(name, []).append((measured[0][name], measured[1][name]))
        for name, rounds in columns.items():
            yield result(f"semantic duplicates, {n:,}: {name}", "semhash at 0.95", "records a CPU second" if name == "speed" else "share", rounds)


def _semantic_quality(found: dict[str, Any], held: list[str], truth: list[tuple[int, int, str]]) -> dict[str, float]:
    origin = {copy: original for original, copy, _ in truth}
    gone = {worse for _, worse in found["pairs"]}
    right = [origin.get(left, left) == origin.get(worse, worse) or jaccard(held[left], held[worse]) >= 0.5 for left, worse in found["pairs"]]
    quality = {"precision": float(np.mean(right))}
    for kind in ("edit 8 %", "edit 15 %", "shuffle"):
        quality[f"recall, {kind}"] = float(np.mean([left in gone or copy in gone for left, copy, what in truth if what == kind]))
    return quality


def embeddings(bench: Bench) -> Iterator[Row]:
    """Embeddings beside sentence-transformers in float32."""
    from tunesmith.models.embed import MINILM, _locate

    model = _locate(MINILM, Path())[0]
    rounds, cosines = [], []
    n = 300 if bench.quick else 1500
    for seed in range(1 if bench.quick else 5):
        frame = pl.DataFrame({"text": texts(bench.texts, 20_000, seed)[:n]})
        files = [bench.folder / f"{side}.npy" for side in ("ours", "theirs")]
        own, theirs = bench.run("ours", "embed", frame, str(files[0])), bench.run("peers", "sentence_transformers", frame, f"{model}:{files[1]}")
        rounds.append((n / own["seconds"], n / theirs["seconds"]))
        cosines.append(float((np.load(files[0]) * np.load(files[1])).sum(1).min()))
    yield result("embeddings: speed", "sentence-transformers float32", "records a CPU second", rounds)
    yield alone("embeddings: lowest cosine to sentence-transformers float32", "cosine", cosines, 0.9999)


def label_errors(bench: Bench) -> Iterator[Row]:
    """Label errors beside cleanlab's default, on flips that depend on the class."""
    from sklearn.metrics import average_precision_score, f1_score

    for name in ("trec",) if bench.quick else ("trec", "sms", "debian", "complaints"):
        columns: dict[str, Rounds] = {}
        rates = []
        for seed in bench.seeds:
            rows = labelled(bench.texts, name, 1500 if bench.quick else 4000, seed)
            given = flip(rows["label"].to_list(), 0.08, seed)
            wrong = np.array(given) != rows["label"].to_numpy()
            frame, vectors = rows.with_columns(label=pl.Series(given)), str(bench.folder / "vectors.npy")
            bench.run("ours", "embed", frame, vectors)
            found = [bench.run("ours", "label_errors", frame, vectors), bench.run("peers", "cleanlab", frame, vectors)]
            columns.setdefault("average precision", []).append(tuple(float(average_precision_score(wrong, one["score"])) for one in found))  # type: ignore[arg-type]
            proposed = [np.isin(np.arange(len(wrong)), one["proposed"]) for one in found]
            columns.setdefault("F1", []).append(tuple(float(f1_score(wrong, one)) for one in proposed))  # type: ignore[arg-type]
            rates.append((found[0]["error_rate"], float(wrong.mean())))
        for what, rounds in columns.items():
            yield result(f"label errors, {name}: {what}", "cleanlab, logistic regression on embeddings", "share", rounds)
        yield result(f"label errors, {name}: estimated rate", "planted rate", "share", rates)


def mismatches(bench: Bench) -> Iterator[Row]:
    """Swapped answers: short against long descriptions of packages, 5 % swapped, among all or within a section."""
    from sklearn.metrics import average_precision_score

    descriptions = pl.read_parquet(bench.texts / "debian.parquet")
    for what in ("random", "hard"):
        rounds = []
        for seed in bench.seeds:
            rows = descriptions.sample(500 if bench.quick else 1500, shuffle=True, seed=seed)
            draw = np.random.default_rng(seed)
            swapped = draw.choice(len(rows), len(rows) // 20, replace=False)
            groups = (
                [swapped]
                if what == "random"
                else [swapped[(rows["label"].to_numpy() == label)[swapped]] for label in rows["label"].unique(maintain_order=True)]
            )
            order = np.arange(len(rows))
            for group in groups:
                order[group] = np.roll(group, 1)
            frame = pl.DataFrame({"prompt": rows["short"], "text": rows["text"].gather(order)})
            found = bench.run("ours", "mismatches", frame)
            wrong = order != np.arange(len(rows))
            rounds.append(tuple(float(average_precision_score(wrong, found[name])) for name in ("score", "cosine")))
        yield result(f"swapped answers, {what}: average precision", "cosine of the two", "share", rounds)  # type: ignore[arg-type]


def contamination(bench: Bench) -> Iterator[Row]:
    """Leaks in 10,000 teaching texts without natural overlap, of 500 measuring texts, 240 leaked in six ways."""
    from tunesmith.data.dedup import drop_near_duplicates

    every = pl.read_parquet(bench.texts / "debian.parquet").select("text").filter(pl.col("text").str.len_chars() > 200).with_row_index("id")
    apart = drop_near_duplicates(every.with_columns(pl.col("id").cast(pl.String)), 0.1).kept["text"]
    columns: dict[str, Rounds] = {}
    for seed in bench.seeds:
        drawn = apart.sample(3500 if bench.quick else 10_500, shuffle=True, seed=seed).to_list()
        measuring, (teaching, truth) = drawn[:500], with_leaks(drawn[:500], drawn[500:], 240, seed)
        found = bench.run("ours", "leaks", pl.DataFrame({"text": measuring + teaching}), "500")
        named, any_13 = {left for left, _ in found["pairs"]}, set(found["any_13"])
        for kind in ("all", *LEAKS):
            planted = [at for at, (_, what) in truth.items() if kind in ("all", what)]
            share = tuple(sum(at in held for at in planted) / len(planted) for held in (named, any_13))
            columns.setdefault(f"recall, {kind}", []).append(share)  # type: ignore[arg-type]
        columns.setdefault("clean texts not named", []).append(tuple(1 - sum(at >= 240 for at in held) / 260 for held in (named, any_13)))  # type: ignore[arg-type]
    for what, rounds in columns.items():
        yield result(f"contamination: {what}", "any common 13-gram", "share", rounds)


def whole(bench: Bench) -> Iterator[Row]:
    """Everything after another on 100,000 records with copies, two cores."""
    n = 10_000 if bench.quick else 100_000
    held, _ = with_copies(texts(bench.texts, round(n / 1.18), 0), 0.18, 0)
    found = bench.run("ours", "whole", pl.DataFrame({"text": held}), cores=2)
    print(f"whole: {found['steps']}, {found['kept']:,} of {found['of']:,} kept, {found['leaks']} leaks, peak {found['peak_mib']:,.0f} MiB", flush=True)
    yield alone(f"validation, three tiers and contamination, {n:,}", "records a second", [n / found["wall"]], 100_000 / 300)
    yield alone("4 GiB over peak memory", "times", [4096 / found["peak_mib"]], 1.0)


TABLES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    found.__name__: found for found in (near, semantic, embeddings, label_errors, mismatches, contamination, whole)
}


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="folder that data_texts.py filled")
    parser.add_argument("--peers", required=True, help="Python of the environment of requirements-data.txt")
    parser.add_argument("--quick", action="store_true", help="a cut that takes under two minutes; writes no results")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLES), default=list(TABLES), help="tables; others keep their results")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.texts, given.peers, given.quick, Path(folder))
        for name in given.only:
            for row in TABLES[name](bench):
                spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
                print(f"{row['work']:<62} {row['ours']:>10.4g} {row['peer']:>10.4g}  {spread:<24} {row['unit']}; {row['peer_name']}", flush=True)
                rows.append(row | {"table": name})
            if not given.quick:
                keep(name, rows)


def keep(name: str, rows: list[Row]) -> None:
    """Put the rows of one table in place of those kept before, and write the table of README.md anew."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    kept = [row for each in TABLES for row in (rows if each == name else old) if row["table"] == each]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    page = README.read_text(encoding="utf-8")
    before, after = page.partition(MARK[0])[0], page.partition(MARK[1])[2]
    README.write_text(f"{before}{MARK[0]}\n{as_markdown(kept)}\n{MARK[1]}{after}", encoding="utf-8")


def as_markdown(rows: list[Row]) -> str:
    """Return all rows as a table that says of each goal whether it is reached."""
    lines = [f"{rows[0]['machine']}; {' and '.join(sorted({row['date'] for row in rows}))}.", ""]
    lines += ["| work | ours | peer | ratio (low to high) | goal |", "|---|---:|---|---|---|"]
    for row in rows:
        ours, theirs = (f"{row[side]:,.0f}" if row[side] >= 1000 else f"{row[side]:.4g}" for side in ("ours", "peer"))
        peer = "" if row["peer_name"] == "goal" else f"{row['peer_name']} {theirs}"
        ratio = "" if row["peer_name"] == "goal" else f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        lines.append(f"| {row['work']}, {row['unit']} | {ours} | {peer} | {ratio} | {judged(row)} |")
    return "\n".join(lines)


def judged(row: Row) -> str:
    """Return the goal of a row and whether it is reached, or nothing where none was set."""
    for work, peer, what, goal in GOALS:
        if re.match(work, row["work"]) and row["peer_name"].startswith(peer):
            value = row["ours"] - row["peer"] if what == "above" else row[what]
            said = {"ours": f"{goal:g}", "ratio": f"{goal:g} times", "above": f"the peer's + {goal:.2f}"}[what]
            said = f"{row['peer']:,.4g}" if row["peer_name"] == "goal" else said
            return f"{said}, {'reached' if value >= goal else '**missed**'}"
    return ""


if __name__ == "__main__":
    main()
