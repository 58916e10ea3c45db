"""Documents and rows in a bucket, on an S3-compatible server on loopback, give what the same files give in a local folder."""

import urllib.request
from pathlib import Path

import polars as pl
import pytest
from known_documents import as_docx, as_html, as_pdf, as_text, prose
from polars.testing import assert_frame_equal

from tunesmith import Project, flow
from tunesmith.data.freeze import read_blocks, read_dropped

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LABELS = ("card", "loan", "mortgage")
SPLITS = "{train: 0.4, validation: 0.2, calibration: 0.2, test: 0.2}"
MAKERS = {"pdf": as_pdf, "docx": as_docx, "html": as_html, "txt": as_text}


@pytest.fixture
def letters(fresh):
    """24 letters in four formats, in a folder for each label; one cut short, and a hidden one. And rows of as many others."""
    rows = []
    for at, label in enumerate(LABELS):
        (fresh / "letters" / label).mkdir(parents=True)
        for number, (name, make) in enumerate(2 * list(MAKERS.items())):
            structure = [("heading", (1, f"Letter {at} {number}")), ("paragraph", prose(100 * at + number, 6))]
            (fresh / "letters" / label / f"{number}.{name}").write_bytes(make(structure))
            rows.append({"text": prose(1000 + 100 * at + number), "label": label})
    (fresh / "letters" / "loan" / "cut.pdf").write_bytes(as_pdf()[:-500])
    (fresh / "letters" / "loan" / ".note.txt").write_text("nobody reads me")
    pl.DataFrame(rows).write_csv(fresh / "rows.csv")
    files = [(path.relative_to(fresh).as_posix(), path.parent.name) for path in (fresh / "letters").rglob("*.*")]
    pl.DataFrame(files, schema=["path", "label"], orient="row").write_csv(fresh / "labels.csv")
    return fresh


@pytest.fixture
def uploaded(letters, bucket):
    """The same files in a bucket, with the empty object that consoles leave where a folder is made."""
    put(bucket, "letters/card/", b"")
    for path in [*letters.glob("letters/*/*"), letters / "rows.csv"]:
        put(bucket, path.relative_to(letters).as_posix(), path.read_bytes())
    table = pl.read_csv(letters / "labels.csv").with_columns(path=pl.format("{}/{}", pl.lit(bucket), "path"))
    put(bucket, "labels.csv", table.write_csv().encode())
    return bucket


def put(bucket, key, raw):
    import boto3

    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=raw)


def sources(*sources):
    return "data.sources=[" + ", ".join(f"{{{source}, splits: {SPLITS}}}" for source in sources) + "]"


def prepared(folder, *given):
    settings = [sources(*given), "data.dvc=false", "data.ocr.engine=none", "train.report_to=[]"]
    project = Project.load(folder, settings)
    return project, flow.prepare(project, fresh=True)


def without_ids(frame, bucket):
    """What a frame says but for the ids, which name the address."""
    kept = frame.drop("id", "document_id", "block_ids", "created_at", "kept_id", strict=False)
    return kept.with_columns(pl.col("^source$").str.strip_prefix(f"{bucket}/")).sort(pl.all())


def test_a_bucket_gives_what_the_folder_gives(letters, uploaded):
    here, there = prepared(letters, "path: letters"), prepared(letters, f"path: {uploaded}/letters/")
    for read in (
        lambda project, version: flow.read(project, version),
        *(lambda project, version, by=by: by(project.root, version) for by in (read_blocks, read_dropped)),
    ):
        assert_frame_equal(without_ids(read(*there), uploaded), without_ids(read(*here), uploaded))
    records = flow.read(*there)
    assert len(records) == 24
    assert records["source"].str.starts_with(f"{uploaded}/letters/").all()
    assert there[1].dropped == {"truncated": 1}
    report = Path(letters / there[1].path / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4


def test_rows_and_tables_of_labels_may_stand_in_a_bucket(letters, uploaded):
    given = ["path: rows.csv", "path: letters, label_from: labels.csv"]
    there = [f"path: {uploaded}/rows.csv", f"path: {uploaded}/letters, label_from: {uploaded}/labels.csv"]
    here, there = prepared(letters, *given), prepared(letters, *there)
    assert_frame_equal(without_ids(flow.read(*there), uploaded), without_ids(flow.read(*here), uploaded))
    assert there[1].rows == here[1].rows


def test_a_bucket_that_did_not_change_makes_no_version(letters, uploaded):
    project, version = prepared(letters, f"path: {uploaded}/letters", f"path: {uploaded}/rows.csv")
    assert flow.prepare(project) == version
    put(uploaded, "letters/loan/7.txt", as_text([("paragraph", prose(77, 6))]))
    changed = flow.prepare(project)
    assert changed.parent == version.id
    assert flow.read(project, changed)["text"].str.contains(prose(77, 6)[:40], literal=True).any()


@pytest.mark.parametrize("path", ["letters", "rows.csv"])
def test_what_cannot_be_read_is_said_with_what_to_type(letters, uploaded, s3, cli, monkeypatch, path):
    def run(address):
        return cli("prepare", "-C", letters, "--set", sources(f"path: {address}"), "--set", "data.ocr.engine=none", "--set", "data.dvc=false")

    none = run(f"s3://no-such-bucket/{path}")
    assert none.code == 3
    assert f"s3://no-such-bucket/{path}: nothing is there. Received: The specified bucket does not exist." in flat(none.err)
    assert "nothing is there." in flat(run(f"{uploaded}/other-{path}").err)

    allow(s3, 0)
    try:
        refused = run(f"{uploaded}/{path}")
    finally:
        allow(s3, "inf")
    assert refused.code == 6
    assert f"{uploaded}/{path}: whoever asks must be allowed to read. Received: PermissionError" in flat(refused.err)
    assert "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..." in flat(refused.err)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    nobody = run(f"{uploaded}/{path}")
    assert nobody.code == 6
    assert "Unable to locate credentials" in flat(nobody.err)
    for said in (none, refused, nobody):
        assert "Traceback" not in said.err
    assert cli("data", "log", "-C", letters, "--json").json == []


def flat(text):
    return " ".join(text.split())


def allow(s3, requests):
    """Let the server answer as many further requests without asking who it is."""
    request = urllib.request.Request(f"{s3}/moto-api/reset-auth", str(requests).encode(), {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request).close()
