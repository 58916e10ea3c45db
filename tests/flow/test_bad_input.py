"""Bad input through the command line: a clear message, its exit code, and nothing lost."""

import os
import subprocess
import sys
import time

import polars as pl
import pytest

from tunesmith.data.freeze import read_dropped
from tunesmith.entities import DatasetVersion
from tunesmith.project import Project


@pytest.fixture
def prepare(fresh, cli):
    """Prepare the fresh project after its rows were changed; without DVC, which has tests of its own."""

    def prepare(change=lambda raw: raw, *overrides):
        file = fresh / "data" / "records.csv"
        file.write_bytes(change(file.read_bytes()))
        return cli("prepare", "-C", fresh, "--set", "data.dvc=false", *(part for override in overrides for part in ("--set", override)))

    return prepare


def dropped(fresh):
    project = Project.load(fresh)
    (version,) = project.store.all(DatasetVersion)
    return read_dropped(fresh, version)


def test_a_missing_source_is_named_with_the_nearest_file(prepare, fresh):
    result = prepare(lambda raw: raw, "data.sources.0.path=data/record.csv")
    assert result.code == 3
    assert "Error: data/record.csv: no such file in" in result.err
    assert "Next: Did you mean 'records.csv', in the same folder?" in result.err


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"caf\xe9,card\n", "data/records.csv:242: must be UTF-8. Received: byte 0xe9"),
        (b'"never closed,card\n', "data/records.csv:242: a quoted field must be closed. Received: a row that starts here"),
        (b"one,two,three\n", "data/records.csv:242: each row must have 2 fields, as the first one. Received: 3."),
    ],
)
def test_a_broken_file_is_refused_with_its_line_and_no_version_is_made(prepare, fresh, tail, message):
    result = prepare(lambda raw: raw + tail)
    assert result.code == 5
    assert message in result.err
    assert "Traceback" not in result.err
    assert list(fresh.glob("datasets/*")) == []
    assert prepare(lambda raw: raw.removesuffix(tail)).code == 0


def test_an_unknown_key_is_refused_before_anything_is_read(fresh, cli):
    with (fresh / "tunesmith.yaml").open("a") as file:
        file.write("trian:\n  lora_r: 8\n")
    result = cli("prepare", "-C", fresh)
    assert result.code == 2
    assert "trian: unknown key. Did you mean 'train'?" in result.err


def test_rows_that_cannot_be_used_are_kept_with_their_reason(prepare, fresh):
    rows = b"an unknown label here,card-ish\n,card\n   ,card\nno label at all,\n" + b"x" * 1_000_000 + b",card\n"
    result = prepare(lambda raw: raw + rows)
    assert result.code == 0
    kept = dict(dropped(fresh).select("source_line", "reason").iter_rows())
    assert kept == {242: "unknown_label", 243: "empty", 244: "empty", 245: "missing_label", 246: "too_long"}
    evidence = dropped(fresh).filter(pl.col("source_line") == 242)["evidence"].item()
    assert evidence == "'card-ish' is not in task.labels; the nearest is 'card'"
    assert "5 rows dropped with their reason" in result.err
    assert "1 dropped: unknown_label" in result.out


def test_a_megabyte_in_one_field_is_read_whole_where_it_is_allowed(prepare, fresh):
    long = b"word " * 200_000
    assert prepare(lambda raw: raw + long + b",card\n", "data.max_characters=2000000").code == 0
    assert len(dropped(fresh)) == 0
    (version,) = Project.load(fresh).store.all(DatasetVersion)
    records = pl.read_parquet(fresh / version.path / "records.parquet")
    assert records["text"].str.len_chars().max() >= 999_999


def test_too_many_useless_rows_mean_a_wrong_column(prepare, fresh):
    result = prepare(lambda raw: raw.replace(b",card", b",Card").replace(b",loan", b",Loan"))
    assert result.code == 5
    assert "data/records.csv: at most 50% of its rows may be unusable (data.max_dropped_share). Received: 160 of 240." in result.err
    assert "unknown_label: 160, for example line" in result.err
    assert list(fresh.glob("datasets/*")) == []


def test_two_commands_at_once(fresh, cli):
    with Project.load(fresh).lock("tunesmith run"):
        result = cli("run", "-C", fresh)
    assert result.code == 7
    assert f"It is held by 'tunesmith run', process {os.getpid()}, since 20" in result.err
    assert "Next: Wait for it to end, then try again." in result.err


HOLDER = """
import sys, time
from tunesmith.project import Project
with Project.load(sys.argv[1]).lock("tunesmith train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_command_frees_the_project(fresh, cli):
    with subprocess.Popen([sys.executable, "-c", HOLDER, fresh], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        busy = cli("prepare", "-C", fresh, "--set", "data.dvc=false")
        assert busy.code == 7
        assert f"'tunesmith train', process {holder.pid}" in busy.err
        holder.kill()
    deadline = time.monotonic() + 5
    while (result := cli("prepare", "-C", fresh, "--set", "data.dvc=false")).code == 7 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert result.code == 0
