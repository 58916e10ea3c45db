"""How long does `tunesmith prepare` take for many records, and how much memory?

Real texts (`data_texts.py`), cut to their first 80 words, 18 % of them copies, in one JSONL file of a fresh project go through
the whole step: read, validated, exact, near and, where asked, semantic duplicates dropped, personal data replaced, held
against a benchmark of 500 of the texts, split, frozen and reported. Wall time and the peak resident memory of the process,
PyTorch and all else in it included; texts are made by another process and not counted. Versions with DVC are off.

    python benchmarks/data_texts.py FOLDER                                        once
    python benchmarks/prepare.py --texts FOLDER [--rows N] [--with semantic redact contamination]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 80
PARTS = ("semantic", "redact", "contamination")


def make(texts_folder: Path, n: int, folder: Path) -> None:
    """Write the records, and the benchmark texts, of a project."""
    from data_texts import texts, with_copies

    held, _ = with_copies([" ".join(text.split()[:WORDS]) for text in texts(texts_folder, round(n / 1.18), 0)], 0.18, 0)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "label": ("card", "loan", "mortgage")[at % 3]}) + "\n" for at, text in enumerate(held))
    with (folder / "benchmark.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in held[: 500 * 7 : 7])


def prepare(folder: Path, parts: list[str]) -> None:
    """Prepare the project in this process and print each step's seconds and the memory so far."""
    from tunesmith import Project, flow
    from tunesmith.project import Progress

    class Lap(Progress):
        """Prints each step when the next one begins."""

        running, since = "identify the sources", time.monotonic()

        def advance(self, done: int, total: int, detail: str = "") -> None:
            now, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{now - self.since:8.1f} s {peak:6.2f} GiB  {self.running}", flush=True)
            self.running, self.since = detail, now

    settings = ["data.dvc=false", "data.sources=[{path: records.jsonl}]", "data.checks.stop_above={conflicting_labels: 1}"]
    settings += ["data.dedup.semantic=true"] if "semantic" in parts else []
    settings += ["data.redact.enabled=true"] if "redact" in parts else []
    settings += ["data.contamination.benchmarks=[benchmark.jsonl]"] if "contamination" in parts else []
    project = Project.load(folder, settings, Lap())
    began = time.monotonic()
    version = flow.prepare(project)
    project.progress.advance(1, 1)  # freeze and report, after `records ready`
    seconds, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:8.1f} s {peak:6.2f} GiB  in all; {sum(version.rows.values()):,} records, dropped {version.dropped}")


def main() -> None:
    """Make the project, then measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="folder that data_texts.py filled")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--with", dest="parts", nargs="*", choices=PARTS, default=[], help="what else than the default steps")
    parser.add_argument("--project", type=Path, help="measure this project, made before, in this process")
    given = parser.parse_args()
    if given.project:
        prepare(given.project, given.parts)
        return
    from tunesmith.testing import tiny_project

    with tempfile.TemporaryDirectory() as temporary:
        folder = tiny_project(Path(temporary) / "project")
        make(given.texts, given.rows, folder)
        environment = os.environ | {"TUNESMITH_REDACTION_KEY": "of this benchmark alone"}
        subprocess.run([sys.executable, __file__, "--project", str(folder), "--with", *given.parts], env=environment, check=True)


if __name__ == "__main__":
    main()
