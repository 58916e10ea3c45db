import hashlib
import os
import pickle
import shutil
import signal
import threading
import time

import pytest
from known_documents import as_docx, as_pdf, png
from ocr_stand_in import analysis, ocr_service
from PIL import Image

from tunesmith.data.documents import ReadDocument, Refused, read_document
from tunesmith.data.parse_worker import ParseWorker
from tunesmith.data.settings import OcrSection
from tunesmith.errors import BackendError, MissingExtraError


def read(worker, raw, name):
    return worker.read(raw, name, hashlib.sha256(raw).hexdigest())


def scan():
    """A page for the OCR."""
    return png(Image.effect_noise((300, 400), 60))


def test_one_process_reads_many_files_as_this_one_would():
    files = [(as_pdf(), "a.pdf"), (as_docx(), "b.docx"), (b"text", "c.txt"), (b"no pdf", "d.pdf"), (as_pdf(encrypted=True), "e.pdf")]
    with ParseWorker(OcrSection(engine="none")) as worker:
        outcomes = [read(worker, *file) for file in files]
        first = worker.process_id
        again = [read(worker, *file) for file in files]
        assert worker.process_id == first
    assert worker.process_id is None
    assert outcomes == again == [read_document(*file) for file in files]
    assert [type(outcome) for outcome in outcomes] == [ReadDocument, ReadDocument, ReadDocument, Refused, Refused]


def test_a_file_that_takes_too_long_is_refused_and_the_next_one_is_read():
    with ocr_service([(202, b"", {"Operation-Location": "http://{host}/never", "Retry-After": "5"})]) as (url, _), ParseWorker(
        OcrSection(engine="http", url=url, max_seconds=0.4)
    ) as worker:  # fmt: skip
        read(worker, b"text", "start.txt")
        refused = read(worker, scan(), "slow.png")
        assert (refused.reason, refused.name) == ("timed_out", "slow.png")
        assert worker.process_id is None
        assert isinstance(read(worker, b"text", "next.txt"), ReadDocument)


def test_a_page_that_is_done_gives_the_next_one_its_full_time():
    frames = [Image.effect_noise((300, 400), 60) for _ in range(4)]
    import io

    out = io.BytesIO()
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    slow = {"Operation-Location": "http://{host}/later", "Retry-After": "0.3"}
    done = analysis([("word", 100, 100, 200, 150, 1)])
    answers = [(202, b"", slow), (200, done, {})] * 4 + [(200, done, {})]
    with ocr_service(answers) as (url, _), ParseWorker(OcrSection(engine="http", url=url, max_seconds=1.0)) as worker:
        read(worker, b"text", "start.txt")
        began = time.monotonic()
        outcome = read(worker, out.getvalue(), "four.tiff")
        assert isinstance(outcome, ReadDocument), outcome
        assert len(outcome.pages) == 4
        assert time.monotonic() - began > 1.0  # longer than any one page may take


def test_a_file_that_needs_too_much_memory_is_refused():
    bomb = png(Image.new("L", (10_000, 10_000)))
    assert len(bomb) < 300_000
    with ParseWorker(OcrSection(engine="http", url="http://127.0.0.1:9", max_memory_gib=0.15)) as worker:
        refused = read(worker, bomb, "bomb.png")
        assert refused.reason == "out_of_memory"
        assert isinstance(read(worker, b"text", "next.txt"), ReadDocument)


def test_a_process_that_ends_while_it_reads_refuses_the_file():
    with ocr_service([(202, b"", {"Operation-Location": "http://{host}/never"})]) as (url, seen), ParseWorker(OcrSection(engine="http", url=url)) as worker:
        read(worker, b"text", "start.txt")

        def end():
            while not seen:
                time.sleep(0.01)
            os.kill(worker.process_id, signal.SIGSEGV)

        killer = threading.Thread(target=end)
        killer.start()
        refused = read(worker, scan(), "a.png")
        killer.join()
        assert refused.reason == "crashed"
        assert "SIGSEGV" in refused.evidence
        assert isinstance(read(worker, b"text", "next.txt"), ReadDocument)


def test_a_process_that_ended_between_files_is_no_files_fault():
    with ParseWorker(OcrSection(engine="none")) as worker:
        read(worker, b"text", "a.txt")
        os.kill(worker.process_id, signal.SIGKILL)
        time.sleep(0.1)
        assert isinstance(read(worker, b"text", "b.txt"), ReadDocument)


def test_an_ocr_that_fails_stops_the_command_with_its_hint():
    with ocr_service([(401, {}, {})]) as (url, _), ParseWorker(OcrSection(engine="http", url=url)) as worker:
        with pytest.raises(BackendError, match="Received: 401") as raised:
            read(worker, scan(), "a.png")
        assert "data.ocr.url" in raised.value.hint
        assert isinstance(read(worker, b"text", "next.txt"), ReadDocument)


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs the program tesseract (apt-get install tesseract-ocr)")
def test_what_is_missing_is_said_when_the_process_starts(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with ParseWorker(OcrSection()) as worker, pytest.raises(BackendError, match="tesseract, which is not installed") as raised:
        read(worker, b"text", "a.txt")
    assert "rapidocr" in raised.value.hint


def test_a_missing_package_keeps_its_kind_and_hint_on_its_way():
    error = MissingExtraError("liteparse", "documents")
    made = pickle.loads(pickle.dumps(error))
    assert (type(made), str(made), made.hint) == (type(error), str(error), error.hint)
