"""Two nodes of a Ray cluster share the work of prepare, and give what one process gives."""

import os

import pytest
from known_documents import labelled_folder
from polars.testing import assert_frame_equal

from tunesmith.data.engine import RayEngine, stateless
from tunesmith.data.prepare import prepare_records
from tunesmith.data.settings import DataSection
from tunesmith.errors import BackendError

KEY = "TUNESMITH_TEST_KEY"


@pytest.fixture(scope="module")
def address():
    """The address of two nodes with a processor each."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    if ray.util.get_node_ip_address().startswith("127."):
        pytest.skip("two nodes do not find each other on loopback alone")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


def test_both_nodes_work_and_results_keep_the_order_of_the_items(address):
    def where(number):
        import time

        import ray

        time.sleep(0.1)  # long enough that one worker cannot take all
        return number, ray.get_runtime_context().get_node_id()

    with RayEngine(address) as engine:
        made = list(engine.map(stateless(where), range(60)))
    assert [number for number, _ in made] == list(range(60))
    assert len({node for _, node in made}) == 2


def test_prepare_on_two_nodes_gives_what_it_gives_here(address, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "00" * 32)
    source = {"path": "in", "label_from": "folder", "splits": {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}}
    rules = {"sources": [source], "dvc": False, "ocr": {"engine": "none"}, "redact": {"enabled": True, "key_env": KEY}}
    root = labelled_folder(tmp_path)
    here, there = (
        prepare_records(DataSection(**rules, **engine), ("no", "yes"), root, project="p") for engine in ({}, {"engine": "ray", "ray_address": address})
    )
    for name in ("kept", "dropped", "blocks", "pages"):
        assert_frame_equal(getattr(there, name), getattr(here, name))
    assert there.redacted == here.redacted
    assert len(here.kept) > 25


def test_a_cluster_that_is_not_there_is_said_at_once():
    with pytest.raises(BackendError, match=r"needs a Ray cluster at 127\.0\.0\.1:1") as raised:
        RayEngine("127.0.0.1:1").__enter__()
    assert "ray status --address 127.0.0.1:1, with RAY_AUTH_MODE=token" in raised.value.hint
