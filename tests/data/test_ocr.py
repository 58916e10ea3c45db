import io
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from known_documents import STRUCTURE, as_pdf, as_scan, picture_of, png, scan_pdf, text_of_structure, word_recall
from ocr_stand_in import analysis, ocr_service
from PIL import Image

from tunesmith.data.blocks import Box, Word
from tunesmith.data.documents import read_document
from tunesmith.data.ocr import HttpOcr, Ocr, language_data, load_ocr, read_tsv, share_line
from tunesmith.data.settings import OcrSection
from tunesmith.errors import BackendError, ConfigError, MissingExtraError

needs_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs the program tesseract (apt-get install tesseract-ocr)")
PAGE = Image.new("L", (500, 1000), 255)
PAGE.putpixel((100, 100), 0)  # a page that is blank is not sent to the OCR


def kinds(blocks):
    return [block.kind for block in blocks]


# --- tesseract --------------------------------------------------------------------------------------------------------


@needs_tesseract
@pytest.mark.parametrize(("lean", "quarters"), [(0.7, 0), (-1.5, 1), (0.4, 2)])
def test_a_scanned_page_that_leans_and_is_turned_gives_its_structure_back(lean, quarters):
    scan = as_scan(as_pdf(), lean=lean, quarters=quarters, noise=5)
    read = read_document(scan_pdf(scan) if quarters == 0 else scan, "a", load_ocr(OcrSection()))
    assert kinds(read.blocks) == [kind for kind, _ in STRUCTURE]
    assert word_recall(read.text.replace("|", " "), text_of_structure().replace("|", " ")) >= 0.97
    (page,) = read.pages
    assert page.is_scan
    assert (page.quarters + quarters) % 4 == 0
    assert page.lean == pytest.approx(-lean, abs=0.3)
    assert all(0.5 < block.confidence < 1 for block in read.blocks)
    assert 0.8 < read.confidence < 1
    table = next(block for block in read.blocks if block.kind == "table")
    assert table.cells[1] == ("January", "1,200.50", "12.00")


@needs_tesseract
def test_an_unknown_language_says_what_to_install():
    with pytest.raises(BackendError, match="tesseract must read the page") as raised:
        load_ocr(OcrSection(language="xyz")).recognise(PAGE)
    assert "apt-get install tesseract-ocr-LANG" in raised.value.hint


def test_without_the_program_the_error_names_both_ways_out(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendError, match="tesseract, which is not installed") as raised:
        load_ocr(OcrSection())
    assert "apt-get install tesseract-ocr" in raised.value.hint
    assert "data.ocr.engine: rapidocr" in raised.value.hint


# --- tesserocr --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tesserocr():
    pytest.importorskip("tesserocr", reason="needs the package tesserocr (extra ocr)")
    if language_data("eng") is None:
        pytest.skip("needs the language data eng (apt-get install tesseract-ocr)")
    return load_ocr(OcrSection(engine="tesserocr"))


@needs_tesseract
def test_package_and_program_read_the_same_words_in_the_same_places(tesserocr):
    page = picture_of(as_pdf())
    inside, outside = ({word.text: word for word in engine.recognise(page)} for engine in (tesserocr, load_ocr(OcrSection())))
    common = inside.keys() & outside.keys()
    assert len(common) >= 0.95 * len(inside.keys() | outside.keys())
    for text in common:
        assert inside[text].confidence == pytest.approx(outside[text].confidence, abs=0.2)
    near = [text for text in common if inside[text].box == pytest.approx(outside[text].box, abs=4)]
    assert len(near) >= 0.9 * len(common)  # a word that is there twice may be the other one


def test_the_package_reads_for_several_threads_what_it_reads_for_one(tesserocr):
    page = picture_of(as_pdf())
    pages = [page.crop((0, 0, page.width, page.height * part // 8)) for part in (1, 2, 3, 4)]
    alone = [tesserocr.recognise(each) for each in pages]
    assert len({len(words) for words in alone}) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tesserocr.recognise, pages)) == alone


def test_the_package_says_which_data_it_lacks_or_cannot_read(tesserocr, tmp_path, monkeypatch):
    with pytest.raises(BackendError, match="data of Tesseract for 'xyz'") as raised:
        load_ocr(OcrSection(engine="tesserocr", language="xyz"))
    assert "TESSDATA_PREFIX" in raised.value.hint
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    (tmp_path / "eng.traineddata").write_bytes(b"no data")
    with pytest.raises(BackendError, match="tesseract must read the page") as raised:
        load_ocr(OcrSection(engine="tesserocr")).recognise(PAGE)
    assert "tesseract --list-langs" in raised.value.hint


def test_data_are_found_where_all_languages_are_and_only_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    (tmp_path / "eng.traineddata").touch()
    assert language_data("eng") == tmp_path
    assert language_data("eng+deu") is None


def test_without_the_package_the_error_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tesserocr", None)
    with pytest.raises(MissingExtraError, match="tesserocr"):
        load_ocr(OcrSection(engine="tesserocr"))


def test_words_of_tsv_have_boxes_and_confidences_in_zero_to_one():
    head = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"
    rows = '4\t1\t1\t1\t1\t0\t10\t20\t300\t30\t-1\t\n5\t1\t1\t1\t1\t1\t10\t20\t30\t40\t96.5\tsay"\n5\t1\t1\t1\t1\t2\t0\t0\t1\t1\t95\t \n'
    assert read_tsv(head + rows) == [Word('say"', Box(10, 20, 40, 60), 0.965)]


def test_bars_between_words_are_letters_and_signs_before_list_items_are_dots():
    head = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"

    def line(number, *words):
        return "".join(f"5\t1\t1\t1\t{number}\t1\t{left}\t10\t{width}\t{height}\t90\t{text}\n" for left, width, height, text in words)

    rows = line(1, (0, 50, 20, "and"), (58, 3, 22, "|"), (70, 40, 20, "paid")) + line(2, (0, 50, 20, "left"), (90, 3, 22, "|"), (140, 40, 20, "right"))
    rows += line(3, (0, 50, 20, "tall"), (58, 3, 60, "|")) + line(4, (0, 30, 20, "|'ve"))
    dots = line(5, (0, 10, 20, "\u00a9"), (20, 40, 20, "item")) + line(6, (0, 10, 20, "\u00a2"), (20, 40, 20, "item"))
    assert [word.text for word in read_tsv(head + dots)] == ["\u2022", "item", "\u2022", "item"]
    assert [word.text for word in read_tsv(head + line(5, (0, 10, 20, "\u00a9"), (20, 40, 20, "2026")))] == ["\u00a9", "2026"]
    assert [word.text for word in read_tsv(head + rows)] == ["and", "I", "paid", "left", "|", "right", "tall", "|", "I've"]


# --- rapidocr ---------------------------------------------------------------------------------------------------------


def test_rapidocr_reads_a_page_without_any_program_of_the_system():
    pytest.importorskip("rapidocr")
    engine = load_ocr(OcrSection(engine="rapidocr"))
    page = picture_of(as_pdf(STRUCTURE[:2]), resolution=110).crop((0, 60, 935, 260))
    words = engine.recognise(page)
    assert word_recall(" ".join(word.text for word in words), text_of_structure(STRUCTURE[:2])) >= 0.95
    assert all(0 <= word.confidence <= 1 and 0 <= word.box.x0 < word.box.x1 <= page.width + 2 for word in words)


def test_a_line_is_shared_among_its_words_by_their_letters():
    assert share_line("ab  cde", Box(0, 5, 70, 9), 0.5) == [Word("ab", Box(0, 5, 20, 9), 0.5), Word("cde", Box(40, 5, 70, 9), 0.5)]


# --- http -------------------------------------------------------------------------------------------------------------


def http(url, **keys):
    return HttpOcr(OcrSection(engine="http", url=url, **keys))


def test_a_service_gets_a_png_and_the_key_and_gives_words_in_pixels(monkeypatch):
    monkeypatch.setenv("OCR_KEY", "secret")
    with ocr_service([(200, analysis([("Total", 100, 200, 300, 240, 0.9)]), {})]) as (url, seen):
        words = http(url, api_key_env="OCR_KEY").recognise(PAGE)
    assert words == [Word("Total", Box(50, 100, 150, 120), 0.9)]
    ((method, path, headers, body),) = seen
    assert (method, path, headers["Content-Type"], headers["Ocp-Apim-Subscription-Key"]) == ("POST", "/analyze", "image/png", "secret")
    assert Image.open(io.BytesIO(body)).size == PAGE.size


def test_a_result_that_is_ready_later_is_fetched():
    later = {"Operation-Location": "http://{host}/results/1", "Retry-After": "0"}
    with ocr_service([(202, b"", later), (200, {"status": "running"}, {"Retry-After": "0"}), (200, analysis([("a", 0, 0, 10, 10, 1)]), {})]) as (url, seen):
        assert len(http(url).recognise(PAGE)) == 1
    assert [(method, path) for method, path, *_ in seen] == [("POST", "/analyze"), ("GET", "/results/1"), ("GET", "/results/1")]


def test_a_busy_service_is_asked_again():
    with ocr_service([(503, {}, {}), (200, analysis([("a", 0, 0, 10, 10, 1)]), {})]) as (url, seen):
        assert len(http(url).recognise(PAGE)) == 1
    assert len(seen) == 2


def test_lines_serve_where_there_are_no_words():
    page = {"width": 500, "height": 1000, "lines": [{"content": "two words", "polygon": [0, 0, 90, 0, 90, 10, 0, 10]}]}
    with ocr_service([(200, {"analyzeResult": {"pages": [page]}}, {})]) as (url, _):
        assert [word.text for word in http(url).recognise(PAGE)] == ["two", "words"]


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((401, {}, {}), "must answer at .* Received: 401"),
        ((200, {"status": "failed"}, {}), "must succeed"),
        ((200, {"pages": []}, {}), "must answer pages of words"),
        ((200, b"<html>", {}), "must answer at"),
        ((202, {}, {"Operation-Location": "http://elsewhere.example/1"}), "on the same host"),
    ],
)
def test_a_service_that_fails_stops_the_command(answer, match):
    with ocr_service([answer]) as (url, _), pytest.raises(BackendError, match=match):
        http(url).recognise(PAGE)


def test_a_service_that_is_not_there():
    with ocr_service([(200, {}, {})]) as (url, _):
        pass
    with pytest.raises(BackendError, match="must answer at"):
        http(url).recognise(PAGE)


def test_settings_of_the_service_are_checked(monkeypatch):
    with pytest.raises(ConfigError, match=r"data\.ocr\.url must be an http or https address"):
        http("ftp://somewhere")
    monkeypatch.delenv("OCR_KEY", raising=False)
    with pytest.raises(ConfigError, match="OCR_KEY"):
        http("http://localhost", api_key_env="OCR_KEY")


# --- the seam ---------------------------------------------------------------------------------------------------------


def test_engines_are_plug_ins():
    assert load_ocr(OcrSection(engine="none")) is None
    with pytest.raises(ConfigError, match="ocr must be one of http, rapidocr, tesseract, tesserocr"):
        load_ocr(OcrSection(engine="tesserakt"))


def test_anything_with_recognise_is_an_engine():
    class Mine:
        def recognise(self, image):
            return [Word("mine", Box(100, 100, 200, 130), 0.4)]

    engine: Ocr = Mine()
    (block,) = read_document(png(PAGE), "a.png", engine).blocks
    assert (block.text, block.confidence) == ("mine", 0.4)
