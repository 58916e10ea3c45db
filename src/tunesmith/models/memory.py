"""How much memory this process holds, and its peak over a stretch of work."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

_INTERVAL_SECONDS = 0.02


def resident_bytes() -> int:
    """Return the memory that this process holds now: resident set size, in bytes."""
    return int(psutil.Process().memory_info().rss)


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
