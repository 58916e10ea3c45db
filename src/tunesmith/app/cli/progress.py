"""Progress on the terminal: a line for each finished step, a bar with the time left for the running one."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tunesmith import project
from tunesmith.app.cli.options import duration


class TerminalProgress(project.Progress):
    """Shows steps with Rich. Where the output is no terminal, it prints finished steps and a line a tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = 0
        self._step = ""

    def start(self, step: str, detail: str = "") -> None:
        """Begin a step."""
        self._step, self._told = step, 0
        if self._console.is_terminal:
            columns = (TextColumn("{task.description:<10}"), BarColumn(24), TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[detail]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True)
            self._task = None
            self._bar.start()

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Show how far the step is."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._step, total=total, detail=detail)
            self._bar.update(self._task, completed=done, total=total, detail=detail)
        elif total and done * 10 // total > self._told:
            self._told = done * 10 // total
            self._console.print(f"  {self._step}: {done:,}/{total:,} {detail}", markup=False)

    def finish(self, step: str, detail: str, *, seconds: float, skipped: bool = False) -> None:
        """Print the finished step."""
        self.stop()
        took = "done before" if skipped else duration(seconds)
        self._console.print(f"{step:<10} {took:>13}  {detail}", markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the bar away, also when the step failed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
