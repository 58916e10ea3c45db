"""`tunesmith serve` as its users run it: a process of its own, on a free port, that may be killed."""

import json
import socket
import subprocess
import sys
import urllib.request

import pytest

from tunesmith.entities import Prediction

COMMAND = "from tunesmith.app.cli import main; main()"


@pytest.fixture
def server(tiny):
    command = [sys.executable, "-c", COMMAND, "serve", "-C", str(tiny.root), "--set", "serve.port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process, tiny.store, process.stdout.readline()
        process.kill()


def test_an_answer_is_on_disk_when_the_server_is_killed_after_it(server):
    process, store, announced = server
    address = next(word.rstrip(",") for word in announced.split() if word.startswith("http://127.0.0.1:"))
    assert not address.endswith(":0")
    body = json.dumps({"text": "my student tuition payment"}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/classify", body, {"Content-Type": "application/json"})) as response:
        answer = json.load(response)
    process.kill()
    assert store.get(Prediction, answer["prediction_id"]).label == answer["label"]
    assert "Warning" not in process.stderr.read()


def test_a_port_that_is_taken_is_named(tiny, cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("serve", "-C", tiny.root, "--set", f"serve.port={port}")
    assert result.code == 6
    assert f"serve.host 127.0.0.1 and serve.port {port} must be free to listen on. Received: Address already in use" in result.err


def test_beyond_loopback_it_does_not_start_without_a_key(tiny, cli):
    result = cli("serve", "-C", tiny.root, "--set", "serve.host=0.0.0.0")
    assert result.code == 4
    assert "Next: export TUNESMITH_API_KEY=" in result.err
