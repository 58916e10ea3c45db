"""Progress on the terminal: a line for each finished step, a bar with the time left for the running one."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tunesmith import project
from tunesmith.app.cli.options import duration

_FIRST_LINE_SECONDS = 5.0
_LINE_SECONDS = 20.0


class TerminalProgress(project.Progress):
    """Shows steps with Rich. Where the output is no terminal, a long step prints a line now and then, with the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: list[str] = []  # a step may need another one first: the model, when it is planned
        self._bar: Progress | None = None
        self._began = self._line_due = 0.0
        self._first = self._last = 0

    def start(self, step: str, detail: str = "") -> None:
        """Begin a step."""
        self._hide()
        self._steps.append(step)
        self._last = 0
        self._line_due = time.monotonic() + _FIRST_LINE_SECONDS
        if self._console.is_terminal:
            self._show(1, detail)

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Show how far the step is."""
        now = time.monotonic()
        if self._last == 0 or done < self._last:  # a new part of the step counts from its own beginning
            self._began, self._first = now, done
        self._last = done
        if self._console.is_terminal:
            bar = self._bar or self._show(total, detail)
            bar.update(bar.task_ids[0], completed=done, total=total, detail=detail)
        elif now >= self._line_due:
            self._line_due = now + _LINE_SECONDS
            left = (now - self._began) / (done - self._first) * (total - done) if done > self._first else None
            rest = f", {duration(left)} left" if left is not None else ""
            self._console.print(f"  {self._steps[-1]}: {done:,}/{total:,} {detail}{rest}", markup=False)

    def finish(self, step: str, detail: str, *, seconds: float, skipped: bool = False) -> None:
        """Print the finished step."""
        self.stop()
        took = "done before" if skipped else duration(seconds)
        self._console.print(f"{step:<10} {took:>13}  {detail}", markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Leave the running step, also when it failed."""
        self._hide()
        self._steps.pop()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def _show(self, total: int, detail: str) -> Progress:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[detail]}"),
        )
        self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True)
        self._bar.add_task(self._steps[-1], total=total, detail=detail)
        self._bar.start()
        return self._bar

    def _hide(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
