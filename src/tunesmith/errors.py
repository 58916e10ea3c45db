"""Every error that a user can cause, each with its exit code.

    TunesmithError
    ├── ConfigError      2   tunesmith.yaml or a --set is wrong
    ├── NotFoundError    3   a file, project, id or alias does not exist
    ├── RefusedError     4   a gate or a limit said no
    ├── DataError        5   the data cannot be used as it is
    ├── BackendError     6   a program or service below us failed
    │   ├── DivergedError
    │   └── MissingExtraError
    └── BusyError        7   another command holds the project

    Terminated         143   SIGTERM came; what was done is saved

A message says the rule and what was received; the hint is the next command to type. Anything else that escapes is a bug:
it keeps its traceback and the process exits with 70.
"""

from __future__ import annotations

from typing import Any, ClassVar

BUG_EXIT_CODE = 70


class TunesmithError(Exception):
    """Base of all errors shown without a traceback.

    Args:
        message: The rule that was broken and what was received.
        hint: What to type next; empty when there is nothing sensible to type.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive a pickle, whatever the constructor of the class: errors come back from the processes that read files."""
        return _restored, (type(self), self.message, self.hint)


def _restored(kind: type[TunesmithError], message: str, hint: str) -> TunesmithError:
    error = kind.__new__(kind)
    TunesmithError.__init__(error, message, hint=hint)
    return error


class ConfigError(TunesmithError):
    """The project file or an override breaks a rule."""

    exit_code = 2


class NotFoundError(TunesmithError):
    """Something that was named does not exist."""

    exit_code = 3


class RefusedError(TunesmithError):
    """A gate or a limit that the user set said no."""

    exit_code = 4


class DataError(TunesmithError):
    """Input data breaks a rule that cannot be repaired by dropping rows."""

    exit_code = 5


class BackendError(TunesmithError):
    """A program, library or service that we call failed."""

    exit_code = 6


class DivergedError(BackendError):
    """The loss left the finite numbers, or exploded: the settings do not fit the data."""


class MissingExtraError(BackendError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This step needs the package '{package}', which is not installed.",
            hint=f"pip install 'tunesmith[{extra}]'",
        )


class BusyError(TunesmithError):
    """Another command is working on the same project."""

    exit_code = 7


class Terminated(BaseException):
    """SIGTERM came, what was done is saved, and the same command continues. Like Ctrl-C no error, so that no handler of errors takes it."""

    exit_code: ClassVar[int] = 143
