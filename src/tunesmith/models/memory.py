"""How much memory this process holds, and its peak over a stretch of work."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import TracebackType

import psutil

_INTERVAL_SECONDS = 0.02


def resident_bytes() -> int:
    """Return the memory that this process holds now: resident set size, in bytes."""
    return int(psutil.Process().memory_info().rss)


def trim_heap() -> None:
    """Give freed heap back to the operating system, where the C library is glibc; elsewhere do nothing.

    Passes side by side differ in shape: what one frees does not fit the next, and the heap grows to twice what is live.
    """
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None


_LIBC = _glibc()


class PeakMemory:
    """Context manager that samples the resident set size 50 times a second.

    Attributes:
        bytes: The largest size seen so far. A shorter peak can be missed.
    """

    def __init__(self) -> None:
        self.bytes = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(_INTERVAL_SECONDS):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())
