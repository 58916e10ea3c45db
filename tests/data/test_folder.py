import hashlib

import fsspec
import polars as pl
import pytest
from known_documents import as_docx, as_html, as_mail, as_pdf, prose

from tunesmith.data.address import canonical
from tunesmith.data.blocks import block_schema, text_of
from tunesmith.data.folder import DOCUMENT_SCHEMA, PAGE_SCHEMA, read_folder
from tunesmith.data.settings import OcrSection
from tunesmith.data.sifted import DROPPED_SCHEMA
from tunesmith.entities import content_id
from tunesmith.errors import BackendError, DataError, MissingExtraError, NotFoundError

WITHOUT_OCR = OcrSection(engine="none", n_workers=1)
FILES = {
    "a.pdf": as_pdf(),
    "b/c.docx": as_docx(),
    "b/d.html": as_html(),
    "b/e.eml": as_mail(),
    "f.txt": prose(1).encode(),
    "g.pdf": as_pdf(encrypted=True),
    "h.pdf": as_pdf()[:-500],
    "i.docx": as_pdf(),
    "j.csv": b"text,label\n",
    ".hidden/k.txt": b"not me",
    ".l.txt": b"nor me",
}


@pytest.fixture
def folder(tmp_path):
    for name, raw in FILES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return tmp_path


def test_every_file_is_read_or_refused_with_its_reason(folder):
    found = read_folder("in", WITHOUT_OCR, root=folder)
    assert found.documents.schema == pl.Schema(DOCUMENT_SCHEMA)
    assert found.blocks.schema == pl.Schema(block_schema())
    assert found.pages.schema == pl.Schema(PAGE_SCHEMA)
    assert found.dropped.schema == pl.Schema(DROPPED_SCHEMA)
    assert found.documents["source"].to_list() == ["in/a.pdf", "in/b/c.docx", "in/b/d.html", "in/b/e.eml", "in/f.txt"]
    assert found.dropped.select("source", "reason").rows() == [
        ("in/g.pdf", "encrypted"),
        ("in/h.pdf", "truncated"),
        ("in/i.docx", "mislabelled"),
        ("in/j.csv", "rows_file"),
    ]
    assert found.dropped["evidence"].str.len_chars().min() > 10
    for row in found.documents.iter_rows(named=True):
        raw = FILES[row["source"].removeprefix("in/")]
        assert row["content_sha256"] == hashlib.sha256(raw).hexdigest()
        assert row["id"] == content_id("doc", row["source"], row["content_sha256"])
        own = found.blocks.filter(document_id=row["id"])
        assert text_of(own).text == row["text"]
        assert own["position"].to_list() == list(range(len(own)))
        assert row["n_pages"] == len(found.pages.filter(document_id=row["id"])) == 1


def test_the_outcome_is_the_same_however_many_read_and_from_wherever(folder):
    one = read_folder("in", WITHOUT_OCR, root=folder)
    two = read_folder("in", WITHOUT_OCR.model_copy(update={"n_workers": 2}), root=folder)
    for name in ("documents", "blocks", "pages", "dropped"):
        assert getattr(one, name).equals(getattr(two, name))


def test_any_address_of_fsspec_is_read():
    system = fsspec.filesystem("memory")
    for name, raw in FILES.items():
        system.pipe_file(f"/bucket/in/{name}", raw)
    found = read_folder("memory://bucket/in", WITHOUT_OCR)
    assert found.documents["source"].to_list() == [f"memory://bucket/in/{name}" for name in ("a.pdf", "b/c.docx", "b/d.html", "b/e.eml", "f.txt")]
    assert len(found.dropped) == 4
    system.rm("/bucket", recursive=True)


def test_one_file_is_a_folder_of_one_and_a_pattern_chooses(folder):
    assert read_folder("in/a.pdf", WITHOUT_OCR, root=folder).documents["source"].to_list() == ["in/a.pdf"]
    assert read_folder("in", WITHOUT_OCR, root=folder, pattern="**/*.html").documents["source"].to_list() == ["in/b/d.html"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    (tmp_path / "in [2026]*").mkdir()
    (tmp_path / "in [2026]*" / "a.txt").write_text("text")
    for pattern in ("**", "*.txt"):
        assert len(read_folder("in [2026]*", WITHOUT_OCR, root=tmp_path, pattern=pattern).documents) == 1


def test_two_sources_of_one_text_are_two_documents(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    assert read_folder(".", WITHOUT_OCR, root=tmp_path).documents["id"].n_unique() == 2


def test_a_file_that_is_too_large_is_not_even_fetched(tmp_path):
    with (tmp_path / "a.pdf").open("wb") as file:
        file.truncate(2 * 2**20)
    found = read_folder(".", WITHOUT_OCR.model_copy(update={"max_file_mib": 1}), root=tmp_path)
    assert found.dropped.select("reason", "content_sha256").rows() == [("too_large", "")]
    assert found.documents.is_empty()


def test_progress_is_told_of_each_file(folder):
    told = []
    read_folder("in", WITHOUT_OCR, root=folder, progress=lambda *said: told.append(said))
    assert told[0] == ("in/a.pdf", 1, 9)
    assert [done for _, done, _ in told] == list(range(1, 10))


def test_addresses_that_cannot_be_read(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere: nothing is there"):
        read_folder("nowhere", WITHOUT_OCR, root=tmp_path)
    with pytest.raises(NotFoundError, match="no file is there that matches"):
        read_folder(".", WITHOUT_OCR, root=tmp_path)
    with pytest.raises(DataError, match="must be an address that can be read"):
        read_folder("rubbish://a", WITHOUT_OCR)


@pytest.mark.parametrize("name", ["{root}/in", "../{root.name}/in", "./in/", "in/../in", "."])
def test_documents_are_named_as_the_address_that_was_read(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    address = name.format(root=tmp_path)
    (named,) = read_folder(address, WITHOUT_OCR, root=tmp_path).documents["source"]
    assert named == ("in/a.txt" if name == "." else f"{canonical(address)}/a.txt")
    assert (tmp_path / named).is_file()


def test_what_the_ocr_lacks_is_said_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendError, match="tesseract, which is not installed"):
        read_folder("in", OcrSection(), root=folder)


def test_an_address_whose_package_is_missing_names_it(monkeypatch):
    def missing(address, **_):
        raise ImportError("Install s3fs to access S3", name="s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingExtraError, match="'s3fs'") as error:
        read_folder("s3://bucket", WITHOUT_OCR)
    assert error.value.hint == "pip install 'tunesmith[s3]'"
