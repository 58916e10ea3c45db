"""How much of a document's tables, headings and words is found, beside other readers, against truth that is known?

Truth comes with real documents (the CSV of tabula-py's PDFs, the XML inside factur-x's invoice, the text of an ocrmypdf
scan, which a machine wrote: where it differs from the picture to the eye it is mended, see `MENDED`, and scored as it came
too) or from pages made from a structure (`documents_made.py`). A
cell counts when it is found as a cell of a table, white space aside, as often as it is there; a heading when a heading has
its text; a word, in lower case and without punctuation, as often as it is there. Recall is the share of the truth that is
found, precision the share of what is found that is true; where the truth holds some cells only, precision says little.

Ours reads in this process, peers in one process each of their own environment (`--peers`, made from
requirements-documents.txt), in turn on the same files, one thread each. `ratio` is how many times better ours is: recall by
recall, time by time; its ends are the 5th and 95th percentile of 1,000 draws of the documents. Times are CPU seconds, those
of child processes included, because they count on a busy machine too. Peers that find nothing have no ratio.

The table of `README.md` between the marks is written by this script too, of `results/documents.json`.

    python benchmarks/documents.py [--quick] [--peers FOLDER] [--assets FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from documents_made import make_document, make_page, scan, sentences

from tunesmith.data.documents import ReadDocument, read_document
from tunesmith.data.ocr import Ocr, load_ocr
from tunesmith.data.settings import OcrSection

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "documents.json"
README = HERE / "README.md"
MARK = ("<!-- documents: written by benchmarks/documents.py -->", "<!-- /documents -->")
PACKAGES = ("tabula-py==2.10.0", "factur-x==7.8", "ocrmypdf==17.13.0")
TABLES = {"data.pdf": "data_1.csv", "campaign_donors.pdf": "campaign_donors.csv", "MultiColumn.pdf": "MultiColumn.csv"}
PEERS = ("pdfplumber", "markitdown")
# In the text of the real scan: 19 dots of lists are noughts, a word is misread, one is cut in two, and the logo is not read.
MENDED = ((r"^0 ", ""), (r"\b0r\b", "or"), (r"FOOTSWIT CH", "FOOTSWITCH"), (r"EDI\]", "Linn"))


@dataclass
class Read:
    """What a reader found in one file."""

    tables: list[list[list[str]]]
    headings: list[str]
    text: str
    seconds: float


@dataclass
class Case:
    """A file and what is true of it; `cells` is None where that is not known."""

    path: Path
    cells: list[str] | None = None
    headings: list[str] | None = None
    text: str | None = None


def read_ours(path: Path, ocr: Ocr | None) -> Read:
    began = cpu_seconds()
    found = read_document(path.read_bytes(), path.name, ocr)
    seconds = cpu_seconds() - began
    if not isinstance(found, ReadDocument):
        raise SystemExit(f"{path.name}: refused: {found.evidence}")
    tables = [[list(row) for row in block.cells] for block in found.blocks if block.kind == "table" and block.cells]
    return Read(tables, [block.text for block in found.blocks if block.kind == "heading"], found.text, seconds)


def cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Peer:
    """Another reader in a process of its own environment."""

    def __init__(self, environment: Path, name: str) -> None:
        command = [str(environment / "bin" / "python"), str(HERE / "documents_peer.py"), name]
        limits = {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=limits)

    def read(self, path: Path) -> Read:
        """Let it read one file."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        return Read(found["tables"], found["headings"], found["text"], found["cpu_seconds"])

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


# --- truth ------------------------------------------------------------------------------------------------------------


def fetch(folder: Path) -> Path:
    """Get the packages whose tests bring documents with their truth; nothing in them is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        stem = package.replace("==", "-").replace("-py-", "_py-").replace("factur-x", "factur_x")
        if not (folder / stem).is_dir():
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder), package], check=True)
            with tarfile.open(folder / f"{stem}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
    return folder


def real_tables(assets: Path) -> list[Case]:
    folder = assets / "tabula_py-2.10.0" / "tests" / "resources"
    cases = []
    for pdf, truth in TABLES.items():
        with (folder / truth).open(encoding="utf-8", newline="") as file:
            cases.append(Case(folder / pdf, cells=[cell for row in csv.reader(file) for cell in row]))
    invoice = assets / "factur_x-7.8" / "tests" / "fixtures" / "pdf" / "invoice_EN16931.pdf"
    return [*cases, Case(invoice, cells=invoice_cells(invoice))]


def invoice_cells(path: Path) -> list[str]:
    """Return quantity and total of each line of an invoice, as they are printed, from the XML inside the PDF."""
    import pypdfium2

    document = pypdfium2.PdfDocument(path.read_bytes())
    files = {document.get_attachment(at).get_name(): bytes(document.get_attachment(at).get_data()) for at in range(document.count_attachments())}
    document.close()
    xml = files["factur-x.xml"].decode("utf-8")
    cells = []
    for line in re.findall(r"<ram:IncludedSupplyChainTradeLineItem>.*?</ram:IncludedSupplyChainTradeLineItem>", xml, re.DOTALL):
        for name in ("BilledQuantity", "LineTotalAmount"):
            cells += [f"{float(value):.2f}".replace(".", ",") for value in re.findall(rf"<ram:{name}[^>]*>([^<]+)<", line)]
    return cells


def mended(text: str) -> str:
    """Return the text of the real scan as it stands in the picture."""
    for was, right in MENDED:
        text, n = re.subn(was, right, text, flags=re.MULTILINE)
        if not n:
            raise SystemExit(f"The text of the real scan must hold what is to be mended. Received: none of {was!r}.")
    return text


def made_documents(n: int, folder: Path) -> list[Case]:
    pool, cases = sentences(), []
    for seed in range(n):
        made = make_document(seed, pool)
        (folder / f"made{seed}.pdf").write_bytes(made.pdf)
        cells = [cell for table in made.tables for row in table for cell in row]
        cases.append(Case(folder / f"made{seed}.pdf", cells=cells or None, headings=made.headings))
    return cases


def scans(n: int, folder: Path, *, turned: bool) -> list[Case]:
    pool, cases = sentences(), []
    for seed in range(n):
        made = make_page(seed, pool)
        path = folder / f"{'turned' if turned else 'scan'}{seed}.jpg"
        path.write_bytes(scan(made.pdf, seed, quarters=1 + seed % 3 if turned else 0))
        cases.append(Case(path, text=made.text))
    return cases


# --- scores -----------------------------------------------------------------------------------------------------------


def shares(found: list[str], truth: list[str]) -> tuple[int, int, int]:
    """Return how many are right, how many are true and how many are found; white space aside, empty ones do not count."""
    got, want = (Counter(" ".join(each.split()) for each in side if each.strip()) for side in (found, truth))
    return sum(min(n, got[each]) for each, n in want.items()), want.total(), got.total()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def counted(read: Read, case: Case, what: str) -> tuple[int, int, int]:
    if what == "cells":
        return shares([cell for table in read.tables for row in table for cell in row], case.cells or [])
    return shares(read.headings, case.headings or []) if what == "headings" else shares(words(read.text), words(case.text or ""))


def recall(counts: list[tuple[int, int, int]]) -> float:
    return sum(right for right, _, _ in counts) / max(1, sum(true for _, true, _ in counts))


def precision(counts: list[tuple[int, int, int]]) -> float:
    return sum(right for right, _, _ in counts) / max(1, sum(found for _, _, found in counts))


def spread(measure: Any, ours: list[Any], peer: list[Any], *, less_is_better: bool = False) -> dict[str, float | None]:
    """Return the ratio and the 5th and 95th percentile of 1,000 draws of the documents."""

    def ratio(at: list[int]) -> float | None:
        mine, other = measure([ours[i] for i in at]), measure([peer[i] for i in at])
        above, below = (other, mine) if less_is_better else (mine, other)
        return above / below if below else None

    draw, every = random.Random(0), list(range(len(ours)))
    drawn = sorted(value for _ in range(1000) if (value := ratio(draw.choices(every, k=len(every)))) is not None)
    if not drawn:
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    return {"ratio": ratio(every), "ratio_low": drawn[len(drawn) // 20], "ratio_high": drawn[-1 - len(drawn) // 20]}


def rows(work: str, what: str, cases: list[Case], ours: list[Read], peers: dict[str, list[Read]], goals: dict[str, float]) -> list[dict[str, Any]]:
    """Return the rows of one kind of truth: recall, precision and time beside each peer."""
    mine = [counted(read, case, what) for read, case in zip(ours, cases, strict=True)]
    made = []
    for name, reads in peers.items():
        theirs = [counted(read, case, what) for read, case in zip(reads, cases, strict=True)]
        for measured, unit in ((recall, "recall"), (precision, "precision")):
            row = {"work": f"{work}: {what}", "ours": measured(mine), "peer": measured(theirs), "peer_name": name, "unit": unit}
            made.append(row | spread(measured, mine, theirs) | {"goal": goals.get(unit)})
        mean = {side: sum(read.seconds for read in side_reads) / len(cases) for side, side_reads in (("ours", ours), ("peer", reads))}
        times = spread(lambda each: sum(each), [read.seconds for read in ours], [read.seconds for read in reads], less_is_better=True)
        made.append({"work": f"{work}: {what}", **mean, "peer_name": name, "unit": "CPU seconds a file", **times, "goal": goals.get("seconds")})
    return made


def measure(cases: list[Case], engines: list[Ocr | None], environment: Path, names: tuple[str, ...]) -> tuple[list[list[Read]], dict[str, list[Read]]]:
    """Read all files by each engine and each peer, in turn; the first file is read once before, to warm up."""
    peers = {name: Peer(environment, name) for name in names}
    for ocr in engines:
        read_ours(cases[0].path, ocr)
    for peer in peers.values():
        peer.read(cases[0].path)
    ours: list[list[Read]] = [[] for _ in engines]
    found: dict[str, list[Read]] = {name: [] for name in names}
    for case in cases:
        for ocr, reads in zip(engines, ours, strict=True):
            reads.append(read_ours(case.path, ocr))
        for name, peer in peers.items():
            found[name].append(peer.read(case.path))
    for peer in peers.values():
        peer.close()
    return ours, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer documents, and no results file")
    parser.add_argument("--peers", type=Path, default=Path(".cache/peers-documents"), help="environment of requirements-documents.txt")
    parser.add_argument("--assets", type=Path, default=Path(".cache/documents"), help="where the real documents are kept")
    options = parser.parse_args()
    if not (options.peers / "bin" / "python").exists():
        raise SystemExit(f"Peers must be installed: python -m venv {options.peers} && {options.peers}/bin/pip install -r benchmarks/requirements-documents.txt")
    assets = fetch(options.assets)
    began, table = time.perf_counter(), []
    engines = {name: load_ocr(OcrSection(engine=name)) for name in ("tesseract", "tesserocr", "rapidocr")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = real_tables(assets)
        (ours,), peers = measure(real, [None], options.peers, PEERS)
        table += rows("real PDFs", "cells", real, ours, peers, {"recall": 0.85})
        made = made_documents(10 if options.quick else 60, folder)
        (ours,), peers = measure(made, [None], options.peers, PEERS)
        with_tables = [at for at, case in enumerate(made) if case.cells]
        some = [made[at] for at in with_tables], [ours[at] for at in with_tables], {name: [reads[at] for at in with_tables] for name, reads in peers.items()}
        table += rows("made PDFs", "cells", *some, {"recall": 0.85})
        table += rows("made PDFs", "headings", made, ours, {"markitdown": peers["markitdown"]}, {"recall": 0.75, "precision": 0.70})
        n_pages = 4 if options.quick else 16
        goals = {"recall": 0.985, "seconds": 1.2}
        upright, turned = scans(n_pages, folder, turned=False), scans(n_pages, folder, turned=True)
        linn = assets / "ocrmypdf-17.13.0" / "tests" / "resources"
        text = (linn / "linn.txt").read_text("utf-8")
        real_scan, as_it_came = ([Case(linn / "linn.png", text=each)] for each in (mended(text), text))
        scanned = (("leaning, noisy scans", upright), ("the same, turned", turned), ("a real scan", real_scan), ("a real scan, machine's text", as_it_came))
        few = turned[: 1 if options.quick else 4]
        fast = ("tesseract", "tesserocr")
        for work, cases, names in (*((work, cases, fast) for work, cases in scanned), ("turned scans", few, ("rapidocr",))):
            read, peers = measure(cases, [engines[each] for each in names], options.peers, ("pytesseract",))
            for each, reads in zip(names, read, strict=True):
                table += rows(f"{work}, {each}", "words", cases, reads, peers, goals)
    common = {
        "machine": f"{platform.processor() or platform.machine()}, one thread, {platform.system()}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("tunesmith", "liteparse", "pypdfium2", "rapidocr", "tesserocr")} | peer_versions(),
    }
    show(table)
    print(f"{time.perf_counter() - began:.0f} s")
    if not options.quick:
        table = [row | common for row in table]
        RESULTS.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        page = README.read_text(encoding="utf-8")
        before, after = page.partition(MARK[0])[0], page.partition(MARK[1])[2]
        README.write_text(f"{before}{MARK[0]}\n{as_markdown(table)}\n{MARK[1]}{after}", encoding="utf-8")


def is_missed(row: dict[str, Any]) -> bool:
    return row["goal"] is not None and bool(row["ours"] > row["goal"] if "seconds" in row["unit"] else row["ours"] < row["goal"])


def as_markdown(table: list[dict[str, Any]]) -> str:
    lines = [
        f"{table[0]['machine']}; {table[0]['date']}; ratio: how many times better ours is.",
        "",
        "| work | ours | goal | peer | ratio (low to high) |",
        "|---|---:|---|---|---|",
    ]
    for row in table:
        goal = "" if row["goal"] is None else f"{row['goal']:g}, {'**missed**' if is_missed(row) else 'reached'}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        lines.append(f"| {row['work']}, {row['unit']} | {row['ours']:.3f} | {goal} | {row['peer_name']} {row['peer']:.3f} | {ratio} |")
    return "\n".join(lines)


def peer_versions() -> dict[str, str]:
    lines = (HERE / "requirements-documents.txt").read_text("utf-8").splitlines()
    return {re.split(r"[\[=]", line)[0]: line.rpartition("==")[2] for line in lines if "==" in line}


def show(table: list[dict[str, Any]]) -> None:
    print(f"{'work':42} {'unit':20} {'ours':>8} {'peer':>8}  {'ratio':22} {'goal':>6}  peer")
    for row in table:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        goal = "" if row["goal"] is None else f"{row['goal']}{' missed' if is_missed(row) else ''}"
        print(f"{row['work']:42} {row['unit']:20} {row['ours']:8.3f} {row['peer']:8.3f}  {ratio:22} {goal:>6}  {row['peer_name']}")


if __name__ == "__main__":
    main()
