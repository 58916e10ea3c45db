"""Download 1,164 labelled sentences of loan agreements filed with the SEC, and write them as records.

The wheel is fetched with pip and its SHA-256 checked; nothing in it is installed or imported. Its labels, lists of
`NAME - TYPE` in the order of the sentence, become JSON: the distinct names of each type (Alvarado et al. 2015, Domain
Adaption of Named Entity Recognition to Support Credit Risk Assessment; the wheel is under the MIT licence).

    python examples/loan-agreements/fetch.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "evals==3.0.1.post1"
SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
MEMBER = "evals/registry/data/ner_finance/samples.jsonl"
FILE = "sentences.jsonl"
PROPERTIES = {"PERSON": "person", "ORGANIZATION": "organization", "LOCATION": "location"}

_ENTITY = re.compile(r"(.+?) - (PERSON|ORGANIZATION|LOCATION)(?:, |$)")


def main(folder: Path) -> int:
    """Put the records into a folder. A file that is there already is left alone."""
    if (folder / FILE).exists():
        print(f"{FILE} is in {folder} already.")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        download = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", temporary, PACKAGE)
        done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *download], capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            print(f"Error: pip could not download {PACKAGE}.\n{done.stderr.strip()}\nNext: check the connection to the package index.", file=sys.stderr)
            return 6
        found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if found != SHA256:
            print(f"Error: the wheel must have sha256 {SHA256}. Received: {found}.", file=sys.stderr)
            return 5
        with zipfile.ZipFile(wheels[0]) as archive:
            samples = [json.loads(line) for line in archive.read(MEMBER).decode("utf-8").splitlines()]
    partial = folder / f".{FILE}.part"
    partial.write_text("".join(f"{json.dumps(to_record(sample), ensure_ascii=False)}\n" for sample in samples), encoding="utf-8")
    partial.replace(folder / FILE)
    print(f"{len(samples):,} sentences are in {folder / FILE}.")
    return 0


def to_record(sample: dict[str, object]) -> dict[str, str]:
    """Return text and label of a sample; the label is JSON."""
    answer: dict[str, list[str]] = {name: [] for name in PROPERTIES.values()}
    for name, kind in _ENTITY.findall(str(sample["ideal"])[1:-1]) if str(sample["ideal"]).startswith("[") else []:
        if name not in answer[PROPERTIES[kind]]:
            answer[PROPERTIES[kind]].append(name)
    return {"text": sample["input"][1]["content"], "label": json.dumps(answer, ensure_ascii=False)}  # type: ignore[index]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python fetch.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
