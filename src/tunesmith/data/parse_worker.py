"""A process that reads one file after the other, with limits, so that no file can crash, stop or fill the program.

The parent sends a name and the bytes and waits. It ends the worker, and all its children, when neither the answer nor a
finished page comes in time, or when more memory is resident than is allowed (looked at ten times a second, on Linux); what
grows faster than that runs into a limit of the kernel on address space, which children such as tesseract have too. Either
way the file is refused and the next one gets a fresh worker, which costs the half second that Python needs to start; as long
as files behave, one worker reads them all.

Messages are a length of 8 bytes and a pickle, over pipes between a program and its own child. The worker is started by its
module's name rather than by multiprocessing, which would run the user's own script again.

What this does not do: protect from a parser that is taken over by its input. The worker has the rights of the program.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import time
from typing import IO, Any

from tunesmith.data.documents import ReadDocument, Refused, read_document
from tunesmith.data.settings import OcrSection
from tunesmith.errors import BackendError, TunesmithError

_LENGTH = struct.Struct(">Q")
_GIB = 2**30


class ParseWorker:
    """One reading process; started when first needed, and again after it was ended.

    Use it as a context manager. Not for several threads at once.

    Args:
        section: The OCR, and the limits of time and memory.
    """

    def __init__(self, section: OcrSection) -> None:
        self._section = section
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ParseWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """The id of the process, None where none is running."""
        return self._process.pid if self._process else None

    def read(self, raw: bytes, name: str, content_sha256: str) -> ReadDocument | Refused:
        """Read one file as `read_document` does; what ends the process refuses the file.

        Raises:
            BackendError: the OCR failed, or the process cannot start.
            MissingExtraError: a package that the format needs is not installed.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()  # ended while idle: no file's fault
        process = self._process or self._start()
        assert process.stdin  # noqa: S101 - for mypy: it is a pipe
        try:
            _send(process.stdin, (name, raw))
            while (said := self._receive(process, self._section.max_seconds)) == "page":
                pass
        except _TooLongError:
            self.close()
            return Refused(name, content_sha256, "timed_out", f"No page was finished within {self._section.max_seconds:g} seconds.")
        except _TooLargeError:
            self.close()
            return Refused(name, content_sha256, "out_of_memory", f"Reading it needed more than {self._section.max_memory_gib:g} GiB.")
        except (OSError, EOFError):
            code = process.wait()
            self.close()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return Refused(name, content_sha256, "crashed", f"The process that read it ended with {how}, as on a broken file or without memory.")
        if isinstance(said, TunesmithError):
            raise said
        outcome: ReadDocument | Refused = said
        if isinstance(outcome, Refused) and outcome.reason == "out_of_memory":
            self.close()  # what could not be allocated may have left the libraries in any state
        return outcome

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tunesmith.data.parse_worker"]
        # Its threads would each reserve address space, and wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
            )
            assert self._process.stdin  # noqa: S101
            _send(self._process.stdin, self._section.model_dump())
            said = self._receive(self._process, 120)
        except (OSError, EOFError, _TooLongError, _TooLargeError) as error:
            self.close()
            raise BackendError(
                f"The process that reads files must start. Received: {error or 'it ended'}.",
                hint="Raise data.ocr.max_memory_gib: the packages alone may need more.",
            ) from None
        if isinstance(said, TunesmithError):
            self.close()
            raise said
        return self._process

    def _receive(self, process: subprocess.Popen[bytes], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        (length,) = _LENGTH.unpack(self._exactly(process, _LENGTH.size, deadline))
        return pickle.loads(self._exactly(process, length, deadline))  # noqa: S301 - from our own child

    def _exactly(self, process: subprocess.Popen[bytes], n_bytes: int, deadline: float) -> bytes:
        assert process.stdout  # noqa: S101
        got = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(got) < n_bytes:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _TooLongError
                if not selector.select(min(left, 0.1)):
                    if _resident(process.pid) > self._section.max_memory_gib * _GIB:
                        raise _TooLargeError
                    continue
                part = os.read(process.stdout.fileno(), min(n_bytes - len(got), 1 << 20))
                if not part:
                    raise EOFError
                got += part
        return bytes(got)

    def close(self) -> None:
        """End the process and its children."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()


class _TooLongError(Exception):
    """Nothing came in time."""


class _TooLargeError(Exception):
    """The worker has more memory than it may."""


def _resident(process_id: int) -> int:
    """Return how many bytes of memory a process has resident; 0 where the system does not say."""
    try:
        with open(f"/proc/{process_id}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _send(pipe: IO[bytes], message: Any) -> None:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(body)))
    pipe.write(body)
    pipe.flush()


def _limit_memory(n_bytes: int) -> None:
    """Allow that much beyond the address space that the libraries reserve without using it (PDFium alone takes 1 GiB)."""
    import resource

    from tunesmith.data.layout import parse_pdf
    from tunesmith.data.typeset import typeset

    with contextlib.suppress(TunesmithError):  # without the package there is nothing to reserve
        parse_pdf(typeset([], [], 72, 72)[0])
    with contextlib.suppress(OSError, ValueError):  # other systems have no /proc, or no such limit
        with open("/proc/self/statm", encoding="ascii") as file:
            size, resident = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in file.read().split()[:2])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = size - resident + n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _work() -> None:
    """Read files until the parent goes away."""
    from tunesmith.data.ocr import load_ocr

    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not get between the messages
    try:
        section = OcrSection.model_validate(_take(incoming))
        ocr = load_ocr(section)
        _limit_memory(int(section.max_memory_gib * _GIB))
    except TunesmithError as error:
        _send(outgoing, error)
        return
    _send(outgoing, "ready")
    while True:
        try:
            name, raw = _take(incoming)
        except EOFError:
            return
        try:
            outcome: Any = read_document(raw, name, ocr, section, lambda: _send(outgoing, "page"))
        except TunesmithError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001, RUF100 - a parser that chokes refuses one file
            import hashlib

            outcome = Refused(name, hashlib.sha256(raw).hexdigest(), "unreadable", f"{type(error).__name__}: {str(error)[:200]}")
        del raw
        _send(outgoing, outcome)


def _take(pipe: IO[bytes]) -> Any:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pickle.loads(pipe.read(_LENGTH.unpack(head)[0]))  # noqa: S301 - from our own parent


if __name__ == "__main__":
    from tunesmith.data import parse_worker

    parse_worker._work()  # by its name, so that what it sends is unpickled as the parent knows it
