import json
import shutil

import polars as pl
import pytest
from rows import documents, record, records

from tunesmith.data import freeze as freezing
from tunesmith.data.freeze import freeze, read_dropped, read_records
from tunesmith.data.sifted import DROPPED_SCHEMA, as_dropped
from tunesmith.entities import DatasetVersion
from tunesmith.errors import DataError
from tunesmith.store import Store

RECORDS = records(
    *(record(f"text {number}", split=split, number=number) for number, split in enumerate(["train", "train", "validation", "calibration", "test"]))
)
DROPPED = as_dropped(documents(("a.csv", "")).with_columns(reason=pl.lit("empty")))


@pytest.fixture
def make(tmp_path):
    def make(rows=RECORDS, parent=None, settings=None, root=tmp_path):
        store = Store.at(root / ".tunesmith" / "store.db")
        return freeze(rows, DROPPED, root, "complaints", ("yes", "no"), parent, "first version", settings or {"seed": 0}, store, dvc=False)

    return make


def test_what_is_frozen_is_read_back(make, tmp_path):
    version = make()
    assert read_records(tmp_path, version).equals(RECORDS.sort("id"))
    assert read_dropped(tmp_path, version).equals(DROPPED)
    assert read_dropped(tmp_path, version).schema == pl.Schema(DROPPED_SCHEMA)
    assert version.rows == {"train": 2, "validation": 1, "calibration": 1, "test": 1}
    assert version.dropped == {"empty": 1}
    assert version.path == f"datasets/{version.id}"
    manifest = json.loads((tmp_path / version.path / "manifest.json").read_text())
    assert manifest["files"]["records.parquet"] == version.sha256
    assert manifest["settings"] == {"seed": 0}
    assert Store.at(tmp_path / ".tunesmith" / "store.db").all(DatasetVersion) == [version]


def test_a_version_of_an_earlier_release_is_read_with_the_defaults_of_new_columns(make, tmp_path):
    version = make()
    path = tmp_path / version.path / "records.parquet"
    RECORDS.sort("id").drop("weight", "block_ids").write_parquet(path)
    earlier = version.model_copy(update={"sha256": freezing._sha256(path)})
    assert read_records(tmp_path, earlier).equals(RECORDS.sort("id"))


def test_equal_inputs_give_the_same_version_and_the_same_bytes(make, tmp_path):
    version = make()
    assert make(RECORDS.reverse()) == version
    (tmp_path / "elsewhere").mkdir()
    assert make(root=tmp_path / "elsewhere").sha256 == version.sha256


def test_the_id_names_parent_settings_records_and_splits(make):
    first = make()
    others = [
        make(parent=first),
        make(settings={"seed": 1}),
        make(RECORDS[:4]),
        make(RECORDS.with_columns(split=pl.lit("train"))),
    ]
    assert len({first.id, *(version.id for version in others)}) == 5
    assert others[0].parent == first.id


@pytest.mark.parametrize("name", ["records.parquet", "dropped.parquet"])
def test_missing_and_changed_bytes_are_noticed_and_repaired(make, tmp_path, name):
    version = make()
    read = read_records if name.startswith("records") else read_dropped
    path = tmp_path / version.path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name} must have the SHA-256 .* Received: .*; it was changed") as error:
        read(tmp_path, version)
    assert error.value.hint == "tunesmith prepare"
    path.unlink()
    (tmp_path / f"{version.path}.dvc").touch()
    with pytest.raises(DataError, match=f"{name} is missing") as error:
        read(tmp_path, version)
    assert error.value.hint == f"dvc checkout --force {version.path}.dvc"
    assert make() == version
    assert len(read(tmp_path, version))


def test_a_folder_that_is_not_the_one_in_the_store_is_refused(make, tmp_path):
    version = make()
    manifest = tmp_path / version.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(version.sha256, freezing._sha256(tmp_path / version.path / "dropped.parquet")))
    shutil.copy(tmp_path / version.path / "dropped.parquet", tmp_path / version.path / "records.parquet")
    with pytest.raises(DataError, match=f"records.parquet must have the SHA-256 {version.sha256}"):
        make()


def test_a_missing_manifest_is_told(make, tmp_path):
    version = make()
    (tmp_path / version.path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        read_dropped(tmp_path, version)


def test_a_kill_while_writing_leaves_no_half_folder(make, tmp_path, monkeypatch):
    def kill(path):
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr(freezing, "_flush", kill)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            make()
    assert list(tmp_path.glob("datasets/dsv_*")) == []
    assert Store.at(tmp_path / ".tunesmith" / "store.db").all(DatasetVersion) == []
    version = make()
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [version.id]
    assert read_records(tmp_path, version).equals(RECORDS.sort("id"))


def test_a_kill_between_bytes_and_row_is_repaired_by_the_next_run(make, tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", kill)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            make()
    (folder,) = tmp_path.glob("datasets/dsv_*")
    born = (folder / "records.parquet").stat().st_mtime_ns
    version = make()
    assert version.id == folder.name
    assert version.created_at == json.loads((folder / "manifest.json").read_text())["created_at"]
    assert (folder / "records.parquet").stat().st_mtime_ns == born
