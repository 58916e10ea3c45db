"""The peers of benchmarks/documents.py, in their own environment: a path a line comes in, what was found goes out as JSON.

    python documents_peer.py pdfplumber | markitdown | pytesseract

Each is used as its documentation shows. What it finds is brought to tables (rows of cells), headings and text.
"""

import json
import re
import sys
import time


def pdfplumber(path):
    import pdfplumber as library

    with library.open(path) as pdf:
        tables = [[[cell or "" for cell in row] for row in table] for page in pdf.pages for table in page.extract_tables()]
        return {"tables": tables, "headings": [], "text": "\n".join(page.extract_text() or "" for page in pdf.pages)}


def markitdown(path):
    global _converter
    if "_converter" not in globals():
        from markitdown import MarkItDown

        _converter = MarkItDown()
    text = _converter.convert(path).text_content
    lines = text.split("\n")
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.count("|") > 1 and not re.fullmatch(r"[|\s:-]+", line)]
    return {"tables": [rows], "headings": [line.lstrip("# ") for line in lines if re.match(r"#{1,6} ", line)], "text": text}


def pytesseract(path):
    import pytesseract as library
    from PIL import Image

    return {"tables": [], "headings": [], "text": library.image_to_string(Image.open(path))}


def main():
    read = {"pdfplumber": pdfplumber, "markitdown": markitdown, "pytesseract": pytesseract}[sys.argv[1]]
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        began, cpu = time.perf_counter(), _cpu()
        try:
            found = read(line.strip())
        except Exception as error:
            found = {"tables": [], "headings": [], "text": "", "error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**found, "seconds": time.perf_counter() - began, "cpu_seconds": _cpu() - cpu}), file=out, flush=True)


def _cpu():
    import resource

    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main()
