"""The command line: `tunesmith COMMAND`. Starting it loads no torch.

Every command takes `--project`, `--set` and `--json`. Errors of users end with their exit code and no traceback; anything
else is a bug, keeps its traceback and exits with 70.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback

import typer

from tunesmith.app.cli import compare, config, data, lineage, loop, models, prefer, review, serve, sweep
from tunesmith.errors import BUG_EXIT_CODE, BackendError, Terminated, TunesmithError
from tunesmith.libraries import quiet_libraries

_INTERRUPTED = 130
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    name="tunesmith",
    help="Turn an open model into your team's model and keep it good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config.add_to(app)
loop.add_to(app)
compare.add_to(app)
sweep.add_to(app)
models.add_to(app)
prefer.add_to(app)
serve.add_to(app)
review.add_to(app)
data.add_to(app)
lineage.add_to(app)


def main() -> None:
    """Run the command line and turn every outcome into an exit code."""
    quiet_libraries()
    try:
        code = app(prog_name="tunesmith", standalone_mode=False)  # of a typer.Exit, or None
        if code == _INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except TunesmithError as error:
        _show(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("\nStopped. The same command continues where it was.", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except Terminated as end:
        print(f"\n{end} The same command continues.", file=sys.stderr)
        sys.exit(end.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            _show(BackendError(f"The disk must take what is written. Received: {error}.", hint="Free disk space, then type the same command: it continues."))
            sys.exit(BackendError.exit_code)
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a wrong option or argument, or none: then the help
            shown = error.format_message()
            print(shown if shown.startswith("Usage:") else f"Error: {shown}\nNext: tunesmith --help", file=sys.stderr)
            sys.exit(error.exit_code)
        traceback.print_exc()
        print("\nThis is a bug in Tunesmith. Please report it with the lines above.", file=sys.stderr)
        sys.exit(BUG_EXIT_CODE)


def _show(error: TunesmithError) -> None:
    if "--json" in sys.argv:
        shown = {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print(json.dumps({"error": shown}, ensure_ascii=False))
        return
    print(f"Error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"Next: {error.hint}", file=sys.stderr)
