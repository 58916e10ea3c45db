"""Broken files through the readers: they may be refused, but never crash, hang or grow the program.

    python tests/fuzz_documents.py [N_FILES] [SEED]       2,000 files by default, as `make fuzz` does

Good files of each format are broken in the ways that transfers and programs break them. PDF, DOCX, PNG, HTML and mail go to
a reading process with a stand-in for the OCR, so that pictures are decoded; CSV goes to the reader of rows, in this process.
"""

import hashlib
import io
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "data"))

from known_documents import as_docx, as_html, as_mail, as_pdf, as_scan, new_pdf, picture_of, png, scan_pdf  # noqa: E402
from ocr_stand_in import analysis, ocr_service  # noqa: E402

from tunesmith.data.documents import ReadDocument, Refused  # noqa: E402
from tunesmith.data.formats import REASONS  # noqa: E402
from tunesmith.data.parse_worker import ParseWorker  # noqa: E402
from tunesmith.data.read import read_documents  # noqa: E402
from tunesmith.data.settings import OcrSection, Source  # noqa: E402
from tunesmith.errors import DataError  # noqa: E402

MOST_SECONDS = 20.0
MOST_MEMORY = 2 * 2**30


@dataclass
class Fuzzed:
    """What came of the files."""

    n_files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    slowest: str = ""
    peak_bytes: int = 0


def good_files() -> list[tuple[str, bytes]]:
    """Name and bytes of one good file of each kind; 200 real complaints are the CSV."""
    plain = new_pdf()
    plain.set_compression(False)
    plain.set_font("Helvetica", "", 10)
    plain.multi_cell(0, 14, "An uncompressed page, so that flipped bits reach the operators. " * 20)
    small = as_scan(as_pdf(), resolution=50)
    return [
        ("text.pdf", as_pdf()),
        ("plain.pdf", bytes(plain.output())),
        ("scan.pdf", scan_pdf(small)),
        ("page.docx", as_docx()),
        ("rows.csv", (HERE / "fixtures" / "complaints.csv").read_bytes()),
        ("page.png", png(picture_of(as_pdf(), resolution=60))),
        ("page.jpg", small),
        ("page.html", as_html()),
        ("mail.eml", as_mail(html_body="<p>rich</p>", attachments=[("a.pdf", b"123")])),
    ]


def broken(raw: bytes, draw: random.Random) -> bytes:
    """Break a file once or a few times."""
    out = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not out:
            break
        at, length = draw.randrange(len(out)), draw.choice((1, 8, 100, 2000))
        way = draw.choice(("truncate", "flip", "flip", "flip many", "zero", "cut out", "repeat", "random", "number", "keep the end"))
        if way == "truncate":
            del out[at:]
        elif way == "keep the end":
            out[at : max(at, len(out) - 400)] = b""
        elif way == "flip":
            for _ in range(draw.choice((1, 4, 32))):
                out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        elif way == "flip many":
            for _ in range(len(out) // 100):
                out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        elif way == "zero":
            out[at : at + length] = bytes(min(length, len(out) - at))
        elif way == "cut out":
            del out[at : at + length]
        elif way == "repeat":
            out[at:at] = out[at : at + length] * draw.choice((2, 50))
        elif way == "random":
            out[at : at + length] = draw.randbytes(length)
        else:  # digits become larger ones: sizes, counts, lengths
            digits = [place for place in range(max(0, at - 300), min(len(out), at + 300)) if 48 <= out[place] <= 57]
            for place in digits[: draw.choice((1, 3, 20))]:
                out[place] = 57
    return bytes(out)


def broken_inside(raw: bytes, draw: random.Random) -> bytes:
    """Break a member of a ZIP archive and pack it again, so that what is broken comes as far as the reader of XML."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        names = archive.namelist()
        chosen = draw.choice(("word/document.xml", "word/document.xml", draw.choice(names)))
        for name in names:
            packed.writestr(name, broken(archive.read(name), draw) if name == chosen else archive.read(name))
    return out.getvalue()


def fuzz(n_files: int, seed: int) -> Fuzzed:
    """Read broken files.

    Raises:
        AssertionError: one did what it must not.
    """
    draw, files, done = random.Random(seed), good_files(), Fuzzed()
    answer = analysis([("word", 100, 100, 300, 140, 0.9), ("other", 320, 100, 500, 140, 0.8)])
    with tempfile.TemporaryDirectory() as folder, ocr_service([(200, answer, {})]) as (url, seen):
        section = OcrSection(engine="http", url=url, max_seconds=MOST_SECONDS, resolution=72)
        with ParseWorker(section) as worker:
            for number in range(n_files):
                name, raw = files[number % len(files)]
                raw = broken_inside(raw, draw) if name.endswith(".docx") and draw.random() < 0.7 else broken(raw, draw)
                began = time.perf_counter()
                outcome = _rows(raw, Path(folder)) if name.endswith(".csv") else _document(worker, raw, name)
                seconds = time.perf_counter() - began
                done.n_files += 1
                done.outcomes[f"{name}: {outcome}"] += 1
                if seconds > done.slowest_seconds:
                    done.slowest_seconds, done.slowest = seconds, f"file {number} ({name}), {outcome}"
                assert seconds < MOST_SECONDS + 5, f"file {number} ({name}, seed {seed}) took {seconds:.1f} s"
                done.peak_bytes = max(done.peak_bytes, _peak(worker.process_id))
                assert done.peak_bytes < MOST_MEMORY, f"file {number} ({name}, seed {seed}) grew the reader to {done.peak_bytes:,} bytes"
                seen.clear()
    return done


def _document(worker: ParseWorker, raw: bytes, name: str) -> str:
    digest = hashlib.sha256(raw).hexdigest()
    outcome = worker.read(raw, name, digest)
    assert outcome.content_sha256 == digest
    if isinstance(outcome, Refused):
        assert outcome.reason in REASONS
        assert outcome.evidence
        return outcome.reason
    assert isinstance(outcome, ReadDocument)
    outcome.text.encode("utf-8")
    assert all(0 <= block.confidence <= 1 and block.page >= 1 for block in outcome.blocks)
    return "read"


def _rows(raw: bytes, folder: Path) -> str:
    (folder / "rows.csv").write_bytes(raw)
    try:
        rows = read_documents(Source(path="rows.csv", text_column="Consumer complaint narrative", label_column="Product"), folder)
    except DataError as error:
        return "refused" if str(error).startswith("rows.csv") else f"another error: {error}"
    assert len(rows) > 0
    return "read"


def _peak(process_id: int | None) -> int:
    """Most memory that the reading process ever had; 0 where it is gone or the system does not say."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    found = fuzz(*(numbers + [2000, 0][len(numbers) :]))
    for what, n in sorted(found.outcomes.items()):
        print(f"{n:6}  {what}")
    print(f"{found.n_files} files; slowest {found.slowest_seconds:.2f} s: {found.slowest}; most memory {found.peak_bytes / 2**20:.0f} MiB")
