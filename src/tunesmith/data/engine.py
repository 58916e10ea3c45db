"""Where the data steps run: in this process, or on the machines of a Ray cluster.

    local   here; files are read in processes side by side
    ray     Ray Data: partitions go to actors on all nodes, and their results come back in order

What looks at one file or text at a time is handed to the engine, because that is where the hours go: reading and parsing
files with their OCR, finding personal data, cutting chunks with their embeddings. What must see all rows at once stays in
this process: validation, signatures and clusters of duplicates, splits, keep rules. That is compiled code or whole columns,
tens of thousands of records a second, and would gain nothing from sending the texts away. So the files may be more than one
machine holds; the text in them may not.

A partition depends on its items alone, never on the engine or the number of workers, and results keep the order of the
items: both engines give equal results. A worker that dies is replaced and its partition done again.

Workers get addresses and texts, never the key of the redaction. What Ray keeps of them is in the memory of its nodes, and on
their disks where that is full; it travels in the clear where the cluster's operator has not set up TLS.

Why Ray Data rather than plain tasks: it holds back what the object store has no room for, keeps the order, grows with the
cluster, and does again what was lost with a worker or a node. It costs some 3 s a step to start its actors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, Protocol, Self, TypeVar

from tunesmith.errors import BackendError, MissingExtraError, TunesmithError
from tunesmith.plugins import load

Item = TypeVar("Item")
Made = TypeVar("Made")

Open = Callable[[], AbstractContextManager[Callable[[Item], Made]]]
"""Opens a worker: what it needs is made when it is entered, once a worker, and it gives the function that works on an item."""


def stateless(work: Callable[[Item], Made]) -> Open[Item, Made]:
    """Return what opens a worker that is a function and nothing else."""
    return partial(nullcontext, work)  # type: ignore[return-value]


RunsIn = Literal["process", "python", "threads"]
"""What a worker spends: a `process` of its own; `python` in the worker's own process, of which one at a time runs on the local
engine; or `threads` of its own, which take all processors of a machine."""

_MOST_ITEMS = 64  # a task of Ray; more are lost with a worker, fewer cost more than they hold
_RETRIES = 60  # of a task whose worker died: one a second until Ray knows that a node is dead, and an end for what kills every worker


class DataEngine(Protocol):
    """Runs a function over items, somewhere. Use it as a context manager."""

    def __enter__(self) -> Self:
        """Take what the engine needs."""
        ...

    def __exit__(self, *_: object) -> None:
        """Give back all of it."""
        ...

    def map(self, open_worker: Open[Item, Made], items: Sequence[Item], *, runs_in: RunsIn = "python", n_workers: int = 0) -> Iterator[Made]:
        """Yield what workers make of the items, in the order of the items, as it gets ready.

        Args:
            open_worker: Opens a worker. It, the items and what is made of them must survive a pickle.
            items: The partitions.
            runs_in: What a worker spends, by which the engine chooses how many there are.
            n_workers: Most workers; 0 for as many as are worth it.

        Raises:
            TunesmithError: what a worker raised.
            BackendError: the engine failed.
        """
        ...


def load_engine(name: str, ray_address: str = "") -> DataEngine:
    """Return the engine that the settings name.

    Raises:
        ConfigError: no engine has that name.
    """
    engine: DataEngine = load("data_engine", name)(ray_address)
    return engine


class LocalEngine:
    """Works in this process, item after item; workers with a process of their own run side by side."""

    def __init__(self, _: str = "") -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, open_worker: Open[Item, Made], items: Sequence[Item], *, runs_in: RunsIn = "python", n_workers: int = 0) -> Iterator[Made]:
        """Yield the results in order; few items are in memory at once."""
        n = min(n_workers or max(1, (os.cpu_count() or 2) // 2), len(items)) if runs_in == "process" else 1
        with ExitStack() as opened:
            if n <= 1:
                yield from map(opened.enter_context(open_worker()), items)
                return
            idle: SimpleQueue[Callable[[Item], Made]] = SimpleQueue()
            for _ in range(n):
                idle.put(opened.enter_context(open_worker()))

            def work(item: Item) -> Made:
                worker = idle.get()  # a worker is lent to one thread at a time
                try:
                    return worker(item)
                finally:
                    idle.put(worker)

            with ThreadPoolExecutor(n) as pool:
                try:
                    yield from pool.map(work, items)
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)


class RayEngine:
    """Works on a Ray cluster: the one at an address, or a Ray of its own on this machine that ends with it.

    A Ray that this process is connected to already is used and left as it is. Every node needs the same release of Tunesmith
    and its extras, and must reach the files. No usage statistics are sent. A Ray of its own listens on loopback only.

    Args:
        address: Of a running cluster; empty takes RAY_ADDRESS, and where that is not set starts Ray here.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        """Connect, or start Ray.

        Raises:
            MissingExtraError: the package ray is not installed.
            BackendError: there is no cluster at the address, it is of another release, or it has no processor.
        """
        address = self._address or os.environ.get("RAY_ADDRESS", "")
        # Its core writes what it is about to retry to our stderr; logs of nodes stay as they are.
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
            os.environ.setdefault(name, value)
        try:
            import ray
            import ray.data
            from ray._private import ray_constants
        except ImportError:
            raise MissingExtraError("ray", "ray") from None
        for logger in ("ray", "ray.data"):  # what matters is raised
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        if ray.is_initialized():
            return self
        settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        if not address:
            folder = tempfile.mkdtemp(prefix="ts-ray")  # short: it holds sockets, whose paths may have 107 bytes
            self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
            settings |= {"_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
            self._opened.enter_context(_on_loopback(ray_constants))
        self._opened.callback(ray.shutdown)
        try:
            _reach(address)
            ray.init(address=address or "local", **settings)
            if not _node_sizes(ray):
                raise ConnectionError(f"no node with a processor among {len(ray.nodes())}")
        except Exception as error:  # noqa: BLE001, RUF100 - ConnectionError, RuntimeError for other releases, ValueError for addresses
            self._opened.close()
            said = str(error).strip().splitlines() or [""]
            raise BackendError(
                f"data.engine: ray needs a Ray cluster at {address or 'this machine'}. Received: {type(error).__name__}: {said[0][:200]}.",
                # A Ray that was started on a machine before leaves a token there, and from then on `ray start` asks for it; who connects must say so.
                hint=f"ray status --address {address or 'ADDRESS'}, with RAY_AUTH_MODE=token before it, and before the command, where the cluster asks for a "
                "token; or unset RAY_ADDRESS and data.ray_address, and Ray is started on this machine",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def map(self, open_worker: Open[Item, Made], items: Sequence[Item], *, runs_in: RunsIn = "python", n_workers: int = 0) -> Iterator[Made]:
        """Yield the results in order; what waits for its turn is in the cluster's object store.

        `process` and `python` get a worker a processor, `threads` one a node. The pool begins with what is free and grows with
        the cluster up to a worker a task.
        """
        if not items:
            return
        import pyarrow as pa  # type: ignore[import-untyped]
        import ray
        from ray.data import ActorPoolStrategy
        from ray.exceptions import RayError, RayTaskError

        sizes = _node_sizes(ray)
        n_cpus = min(sizes) if runs_in == "threads" else 1
        at_once = max(1, sum(int(size // n_cpus) for size in sizes))
        a_task = max(1, min(_MOST_ITEMS, len(items) // (4 * at_once)))
        tasks = [items[at : at + a_task] for at in range(0, len(items), a_task)]
        most = min(n_workers or len(tasks), len(tasks))
        dataset = ray.data.from_arrow([pa.table({"pickled": pa.array([pickle.dumps(item) for item in task], pa.large_binary())}) for task in tasks])
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the number of retries moves to another place in Ray 2.64; without one they never end
            done = dataset.map_batches(
                _Actor,
                fn_constructor_args=(open_worker,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=n_cpus,
                compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, at_once)),
                max_task_retries=_RETRIES,
            )
        try:
            for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                for pickled in table["pickled"]:
                    made = pickle.loads(pickled.as_buffer())  # noqa: S301 - from our own worker
                    if isinstance(made, TunesmithError):
                        raise made
                    yield made
        except RayTaskError:
            raise  # a bug of ours; its traceback tells where
        except RayError as error:
            raise BackendError(
                f"The Ray cluster must finish the work. Received after {_RETRIES} retries: {type(error).__name__}: {str(error).strip()[:300]}.",
                hint="ray status, and the logs of the node that it names",
            ) from None


class _Actor:
    """A worker on a node of the cluster."""

    def __init__(self, open_worker: Open[Any, Any]) -> None:
        self._open_worker = open_worker
        self._opened = ExitStack()
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        made = [pickle.dumps(self._made(pickle.loads(item.as_buffer()))) for item in table["pickled"]]  # noqa: S301 - from our own driver
        return pa.table({"pickled": pa.array(made, pa.large_binary())})

    def _made(self, item: Any) -> Any:
        """Return what is made of an item, or the error of a user, which must not look like one of the cluster."""
        try:
            if self._work is None:
                self._work = self._opened.enter_context(self._open_worker())
            return self._work(item)
        except TunesmithError as error:
            error.message = f"{error.message} On node {_node_address()} of the Ray cluster."
            return error

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._opened.close()


@contextlib.contextmanager
def _on_loopback(ray_constants: Any) -> Iterator[None]:
    """Let a Ray that starts now listen on loopback only: else it takes 127.0.0.1 for an address that others reach, and listens everywhere."""
    name, was = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    had = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for its processes, and for this one, which has read the variable
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was
        os.environ.pop(name)
        if had is not None:
            os.environ[name] = had


def _reach(address: str) -> None:
    """Fail at once where nothing listens; Ray would try for a quarter of an hour."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _node_sizes(ray: Any) -> list[float]:
    """Return the processors of each node that has one."""
    sizes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return [size for size in sizes if size >= 1]


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
