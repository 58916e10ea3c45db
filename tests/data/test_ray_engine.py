"""The data steps on Ray give what they give here."""

import os
from pathlib import Path

import pytest
from known_documents import labelled_folder
from polars.testing import assert_frame_equal

from tunesmith.data.engine import LocalEngine, RayEngine, load_engine, stateless
from tunesmith.data.folder import read_folder
from tunesmith.data.prepare import prepare_records
from tunesmith.data.settings import DataSection, OcrSection
from tunesmith.errors import BackendError, ConfigError, DataError

KEY = "TUNESMITH_TEST_KEY"
FOUR = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def engine():
    """The engine with a Ray of its own, which ends with it."""
    with RayEngine() as started:
        yield started


@pytest.fixture
def folder(tmp_path):
    return labelled_folder(tmp_path)


def test_results_keep_the_order_of_the_items_and_come_from_other_processes(engine):
    def where(number):
        return number, os.getpid()

    made = list(engine.map(stateless(where), range(60)))
    assert [number for number, _ in made] == list(range(60))
    assert os.getpid() not in {process for _, process in made}


def test_documents_are_read_on_the_cluster_as_here(engine, folder):
    section = OcrSection(engine="none")
    here = read_folder("in", section, root=folder)
    there = read_folder("in", section, root=folder, engine=engine)
    for name in ("documents", "blocks", "pages", "dropped"):
        assert_frame_equal(getattr(there, name), getattr(here, name))
    assert here.dropped["reason"].to_list() == ["truncated"]


def test_prepare_gives_equal_records_on_both_engines(engine, folder, monkeypatch):
    monkeypatch.setenv(KEY, "00" * 32)

    def prepared(name):
        source = {"path": "in", "label_from": "folder", "splits": FOUR}
        section = DataSection(sources=[source], engine=name, dvc=False, ocr={"engine": "none"}, redact={"enabled": True, "key_env": KEY, "vault": ""})
        return prepare_records(section, ("no", "yes"), folder, project="p")

    here, there = prepared("local"), prepared("ray")
    assert_frame_equal(there.kept, here.kept)
    assert_frame_equal(there.dropped, here.dropped)
    assert there.redacted == here.redacted
    assert sum(here.redacted.values()) >= 1
    assert not here.kept["text"].str.contains("ann.example").any()


def test_a_worker_that_dies_is_replaced(engine, tmp_path):
    marker = tmp_path / "died"

    def once(number):
        if number == 7 and not marker.exists():
            marker.touch()
            os._exit(1)
        return number * number

    assert list(engine.map(stateless(once), range(12))) == [number * number for number in range(12)]
    assert marker.exists()


def test_an_error_of_a_user_keeps_its_kind(engine):
    def refuse(number):
        raise DataError(f"Received {number}.", hint="do this")

    with pytest.raises(DataError, match=r"Received 0\. On node .* of the Ray cluster") as caught:
        list(engine.map(stateless(refuse), range(2)))
    assert caught.value.hint == "do this"


def test_a_file_that_a_node_cannot_reach_is_said(engine, folder):
    with pytest.raises(BackendError, match=r"On node .* of the Ray cluster"):
        read_folder("in", OcrSection(engine="none"), root=folder, engine=_Moved(folder))


class _Moved(RayEngine):
    """Takes a file away between the listing and the reading."""

    def __init__(self, folder):
        super().__init__()
        self._folder = folder

    def map(self, open_worker, items, **settings):
        Path(self._folder / "in/no/0.txt").unlink()
        return super().map(open_worker, items, **settings)


def test_nothing_to_do_starts_nothing(engine):
    assert list(RayEngine().map(stateless(str), [])) == []


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="data_engine must be one of local, ray"):
        load_engine("spark")


def test_here_results_keep_the_order_of_the_items():
    assert list(LocalEngine().map(stateless(str), range(5))) == ["0", "1", "2", "3", "4"]
