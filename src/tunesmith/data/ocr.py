"""The seam of OCR: a picture of a page -> its words, each with box and confidence.

    tesseract   the program tesseract, a system package (Apache-2.0); fast
    tesserocr   Tesseract as a library inside this process, by the package tesserocr (MIT); two thirds of the time
    rapidocr    PP-OCR models in ONNX, inside the Python package (Apache-2.0); needs nothing from the system, slower
    http        a service in the style of a cloud's document analysis: POST a picture, get words with polygons

The picture comes straightened (`scan.py`) and grey; words go to `layout.py`. Boxes are pixels of the picture, confidences
ratios in [0, 1]. An engine that fails stops the command with a BackendError: a page that no engine has seen is not an
empty page.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from tunesmith.data.blocks import Box, Word
from tunesmith.data.settings import OcrSection
from tunesmith.errors import BackendError, ConfigError, MissingExtraError
from tunesmith.plugins import load

if TYPE_CHECKING:
    from PIL.Image import Image


class Ocr(Protocol):
    """An OCR engine."""

    def recognise(self, image: Image) -> list[Word]:
        """Return the words of an upright grey picture, boxes in its pixels.

        Raises:
            BackendError: the engine failed, or is not there.
        """
        ...


def load_ocr(section: OcrSection) -> Ocr | None:
    """Return the engine that the settings name; None for `none`.

    Raises:
        ConfigError: no engine has that name, or it lacks a setting.
        BackendError: the engine is not installed.
    """
    engine: Ocr | None = None if section.engine == "none" else load("ocr", section.engine)(section)
    return engine


class Tesseract:
    """The program tesseract, one run a page.

    Raises:
        BackendError: it is not installed.
    """

    def __init__(self, section: OcrSection) -> None:
        self._section = section
        if shutil.which("tesseract") is None:
            raise BackendError(
                "OCR needs the program tesseract, which is not installed.",
                hint="apt-get install tesseract-ocr, or set data.ocr.engine: rapidocr",
            )

    def recognise(self, image: Image) -> list[Word]:
        """Return the words that the program writes as TSV.

        Raises:
            BackendError: the program failed.
        """
        picture = io.BytesIO()
        # Uncompressed: the program reads it at once. The resolution keeps it from guessing.
        image.save(picture, "BMP")
        command = ["tesseract", "-", "-", "-l", self._section.language, "--psm", "3", "--dpi", str(self._section.resolution), "tsv"]
        # One thread: its own threads spend more time waiting for each other than they save.
        done = subprocess.run(command, input=picture.getvalue(), capture_output=True, env={**os.environ, "OMP_THREAD_LIMIT": "1"}, check=False)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise _failed(f"exit code {done.returncode}: {said[-1] if said else 'no message'}", self._section.language)
        return read_tsv(done.stdout.decode("utf-8", "replace"))


def _failed(received: str, language: str) -> BackendError:
    return BackendError(
        f"tesseract must read the page. Received {received}.",
        hint=f"tesseract --list-langs shows whether {language!r} is installed (apt-get install tesseract-ocr-LANG).",
    )


class Tesserocr:
    """Tesseract inside this process: its model is loaded once, and the package brings a Tesseract of its own, built for this processor.

    It reads with the language data of the system, as the program does, and much the same words; where the two versions see the
    blocks of a page differently, one may miss a word between wide gaps that the other has.

    Raises:
        MissingExtraError: tesserocr is not installed.
        BackendError: no folder has the data of the languages.
    """

    def __init__(self, section: OcrSection) -> None:
        try:
            import tesserocr  # noqa: F401 - said now rather than at the first page
        except ImportError:
            raise MissingExtraError("tesserocr", "ocr") from None
        self._section, data = section, language_data(section.language)
        if data is None:
            raise BackendError(
                f"tesserocr needs the data of Tesseract for {section.language!r}. Received: no folder that has them.",
                hint="apt-get install tesseract-ocr-LANG, or say in TESSDATA_PREFIX which folder has LANG.traineddata",
            )
        self._data = data

    def recognise(self, image: Image) -> list[Word]:
        """Return the words of the library's TSV. Threads that ask at once are answered one after the other.

        Raises:
            BackendError: the library failed.
        """
        grey = image.convert("L")
        try:
            api, lock = _loaded(self._data, self._section.language)
            with lock:
                api.SetImageBytes(grey.tobytes(), grey.width, grey.height, 1, grey.width)
                api.SetSourceResolution(self._section.resolution)
                text = api.GetTSVText(0)
                api.Clear()
        except RuntimeError as error:
            raise _failed(str(error), self._section.language) from None
        return read_tsv("\t".join(_TSV) + "\n" + text)


_TSV = ("level", "page_num", "block_num", "par_num", "line_num", "word_num", "left", "top", "width", "height", "conf", "text")


@functools.cache
def _loaded(data: Path, languages: str) -> tuple[Any, threading.Lock]:
    """Return the library with its model, loaded once a process, and the lock that makes threads take turns."""
    from tesserocr import PSM, PyTessBaseAPI

    return PyTessBaseAPI(path=str(data), lang=languages, psm=PSM.AUTO, variables={"debug_file": os.devnull}), threading.Lock()


def language_data(languages: str) -> Path | None:
    """Return the folder that has Tesseract's data of all languages, joined by +; None where there is none.

    `TESSDATA_PREFIX` is the only folder asked where it is set, as the program does; else those of the systems' packages.
    """
    said = os.environ.get("TESSDATA_PREFIX")
    debian = sorted(Path("/usr/share/tesseract-ocr").glob("*/tessdata"), reverse=True)  # a folder a version, the newest first
    folders = [Path(said)] if said else [*debian, Path("/usr/share/tessdata"), Path("/usr/local/share/tessdata")]
    return next((folder for folder in folders if all((folder / f"{each}.traineddata").is_file() for each in languages.split("+"))), None)


def read_tsv(text: str) -> list[Word]:
    """Read the words of Tesseract's TSV; its level 5 is a word, its confidence a percentage.

    It takes the I of fonts without serifs for a bar, and the dot of a list for signs of money and rights: a bar between words
    that stand close to it is an I again, such a sign at the beginning of two lines or more of a page is a dot.
    """
    words: list[Word] = []
    lines: list[tuple[str, ...]] = []
    for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        if row["level"] == "5" and row["text"].strip():
            x, y, width, height = (float(row[name]) for name in ("left", "top", "width", "height"))
            words.append(Word(row["text"].strip(), Box(x, y, x + width, y + height), min(max(float(row["conf"]) / 100, 0.0), 1.0)))
            lines.append(tuple(row[name] for name in ("page_num", "block_num", "par_num", "line_num")))
    firsts = [at for at in range(len(words)) if (at == 0 or lines[at] != lines[at - 1]) and words[at].text in _DOTS]
    for at in firsts if len(firsts) > 1 else ():
        words[at] = words[at]._replace(text="\u2022")
    return [_mended(word, [words[near] for near in (at - 1, at + 1) if 0 <= near < len(words) and lines[near] == lines[at]]) for at, word in enumerate(words)]


_DOTS = {"\u00a2", "\u00a9", "\u00ae", "\u00ab"}


def _mended(word: Word, beside: Sequence[Word]) -> Word:
    if re.match(r"\|['\u2019]\w", word.text):
        return word._replace(text="I" + word.text[1:])
    height = word.box.y1 - word.box.y0
    near = [each for each in beside if max(each.box.x0 - word.box.x1, word.box.x0 - each.box.x1) < height and re.search(r"[a-z]", each.text)]
    is_letter = word.text == "|" and near and all(height < 1.5 * (each.box.y1 - each.box.y0) for each in near)
    return word._replace(text="I") if is_letter else word


class RapidOcr:
    """PP-OCR on onnxruntime. It gives lines; a line's width is shared among its words by their letters.

    Raises:
        MissingExtraError: rapidocr or onnxruntime is not installed.
    """

    def __init__(self, section: OcrSection) -> None:
        try:
            import onnxruntime  # noqa: F401 - rapidocr only says so when it is first used
            from rapidocr import RapidOCR
        except ImportError:
            raise MissingExtraError("rapidocr", "ocr") from None
        one_thread = {"EngineConfig.onnxruntime.intra_op_num_threads": 1, "EngineConfig.onnxruntime.inter_op_num_threads": 1}
        # As drawn: small pictures would be blown up to 736 pixels. The page is upright: lines turned one by one can only go wrong.
        self._engine = RapidOCR(
            params={"Global.log_level": "critical", "Global.use_cls": False, "Det.limit_type": "max", "Det.limit_side_len": 2000, **one_thread}
        )

    def recognise(self, image: Image) -> list[Word]:
        """Return the words of all lines found."""
        import numpy as np

        found: Any = self._engine(np.asarray(image.convert("RGB")))
        if found.boxes is None or found.txts is None:
            return []
        words: list[Word] = []
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            words += share_line(text, box_around([float(value) for value in np.asarray(corners).ravel()]), float(score))
        return words


def share_line(text: str, box: Box, confidence: float) -> list[Word]:
    """Cut a line into words, its width shared by number of characters."""
    per_letter = (box.x1 - box.x0) / max(len(text), 1)
    words, at = [], 0
    for part in text.split():
        start = text.index(part, at)
        at = start + len(part)
        words.append(Word(part, Box(box.x0 + start * per_letter, box.y0, box.x0 + at * per_letter, box.y1), min(max(confidence, 0.0), 1.0)))
    return words


def box_around(polygon: Sequence[float]) -> Box:
    """Return the box around a polygon x1, y1, x2, y2, ..."""
    return Box(min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2]))


class HttpOcr:
    """A document analysis service over HTTP, as Azure Document Intelligence's `read` answers.

    POST `url` with a PNG gives, at once or (202) at the address in `Operation-Location`, this JSON; polygons are x1, y1, x2,
    y2, ... in the unit of the page, which has the size of the picture:

        {"status": "succeeded", "analyzeResult": {"pages": [
            {"width": 1700, "height": 2200, "words": [{"content": "Total", "polygon": [...], "confidence": 0.98}]}]}}

    Pages with `lines` and no words are taken line by line. A busy service (429, 5xx) is asked again.

    Raises:
        ConfigError: `url` is missing or not http(s), or the environment variable of the key is not set.
    """

    def __init__(self, section: OcrSection) -> None:
        if not section.url.startswith(("http://", "https://")):
            raise ConfigError(f"data.ocr.url must be an http or https address for the engine http. Received: {section.url!r}.")
        self._section = section
        self._headers = {"Content-Type": "image/png", "Accept": "application/json"}
        if section.api_key_env:
            key = os.environ.get(section.api_key_env)
            if not key:
                raise ConfigError(f"The environment variable {section.api_key_env}, named by data.ocr.api_key_env, must hold the key. Received: nothing.")
            self._headers |= {"Ocp-Apim-Subscription-Key": key, "Authorization": f"Bearer {key}"}

    def recognise(self, image: Image) -> list[Word]:
        """Send a picture and return its words.

        Raises:
            BackendError: the service cannot be reached, refuses, fails three times, or answers something else.
        """
        picture = io.BytesIO()
        image.save(picture, "PNG")
        status, headers, answer = self._ask(self._section.url, picture.getvalue())
        deadline = time.monotonic() + self._section.timeout_seconds
        while status == 202 or answer.get("status") in ("notStarted", "running"):
            if time.monotonic() > deadline:
                raise BackendError(f"The OCR service at {self._section.url} must answer within {self._section.timeout_seconds} s. Received: still running.")
            address = headers.get("operation-location", "")
            if urlsplit(address)[:2] != urlsplit(self._section.url)[:2]:  # the key is told to nobody else
                raise BackendError(
                    f"The OCR service at {self._section.url} must name its result, on the same host, in Operation-Location. Received: {address!r}."
                )
            time.sleep(min(float(headers.get("retry-after", "0.2")), 5.0))
            status, later, answer = self._ask(address, None)
            headers = {"operation-location": address, **later}
        if answer.get("status", "succeeded") != "succeeded":
            raise BackendError(f"The OCR service at {self._section.url} must succeed. Received: {json.dumps(answer)[:200]}.")
        try:
            return [word for page in answer["analyzeResult"]["pages"] for word in _page_words(page, image.size)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BackendError(f"The OCR service at {self._section.url} must answer pages of words with polygons. Received: {error!r}.") from None

    def _ask(self, address: str, body: bytes | None) -> tuple[int, dict[str, str], dict[str, Any]]:
        headers = self._headers if body is not None else {name: value for name, value in self._headers.items() if name != "Content-Type"}
        request = urllib.request.Request(address, body, headers)  # noqa: S310 - http(s) was checked
        trouble = ""
        for pause in (0.2, 1.0, 0.0):
            try:
                with urllib.request.urlopen(request, timeout=self._section.timeout_seconds) as answer:  # noqa: S310
                    content = answer.read()
                    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, json.loads(content) if content.strip() else {}
            except urllib.error.HTTPError as error:
                trouble = f"{error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, ValueError) as error:
                trouble = str(getattr(error, "reason", error))
            time.sleep(pause)
        raise BackendError(f"The OCR service must answer at {address}. Received: {trouble}.", hint="Check data.ocr.url and data.ocr.api_key_env.")


def _page_words(page: dict[str, Any], size: tuple[int, int]) -> list[Word]:
    across, down = size[0] / float(page.get("width", size[0])), size[1] / float(page.get("height", size[1]))
    words: list[Word] = []
    for found in page.get("words") or []:
        words.append(Word(found["content"], _scaled(found["polygon"], across, down), min(max(float(found.get("confidence", 1.0)), 0.0), 1.0)))
    if not words:
        for line in page.get("lines") or []:
            words += share_line(line["content"], _scaled(line["polygon"], across, down), float(line.get("confidence", 1.0)))
    return [word for word in words if word.text.strip()]


def _scaled(polygon: Sequence[float], across: float, down: float) -> Box:
    box = box_around([float(value) for value in polygon])
    return Box(box.x0 * across, box.y0 * down, box.x1 * across, box.y1 * down)
