"""How much memory this process holds, and its peak over a stretch of work: on a GPU where there is one, which is what runs out there."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import TracebackType

import psutil
import torch

_INTERVAL_SECONDS = 0.02


def resident_bytes() -> int:
    """Return the memory that this process holds now, in bytes: resident set size, or tensors on the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
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
    """Context manager that samples the resident set size 50 times a second; of a GPU, torch keeps account itself."""

    def __init__(self) -> None:
        self._bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def bytes(self) -> int:
        """The most so far; a shorter peak can be missed. On a GPU what torch took from it: tensors, and what it keeps for the next ones."""
        if torch.cuda.is_available() and not self._stop.is_set():
            self._bytes = torch.cuda.max_memory_reserved()
        return self._bytes

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(_INTERVAL_SECONDS):
            self._bytes = max(self._bytes, process.memory_info().rss)

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._bytes = resident_bytes()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if torch.cuda.is_available():
            self._bytes = self.bytes
            self._stop.set()
        else:
            self._stop.set()
            self._thread.join()
            self._bytes = max(self._bytes, resident_bytes())
