"""Runs the loop, or a sweep, on a project again and again, and kills it with SIGKILL at one named moment after the other.

    python kill_points.py run PROJECT MOMENT...
    python kill_points.py sweep PROJECT MOMENT...

A moment reads `before` or `after`, a number n, and a function as `module:qualified.name`: the process dies around its
n-th call. Each run is a child of this process, forked when everything heavy is imported but nothing has begun. Prints, a
line each, the moment and whether the child was killed there.
"""

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dvc.repo  # noqa: F401 - heavy, so imported once before the forks, as are the others
import mlflow  # noqa: F401
import sklearn.linear_model  # noqa: F401

import tunesmith.evaluate.report
import tunesmith.models.artifact
import tunesmith.train.fit
import tunesmith.train.sweep  # noqa: F401
from tunesmith import flow
from tunesmith.project import Project


def die_at(moment: str) -> None:
    """Patch the function that a moment names."""
    when, number, address = moment.split()
    module, _, path = address.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @functools.wraps(function)
    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < int(number):
            return function(*args, **kwargs)
        if when == "after":
            function(*args, **kwargs)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)


def main() -> None:
    """Run once for each moment."""
    what, folder, *moments = sys.argv[1:]
    for moment in moments:
        child = os.fork()
        if not child:
            die_at(moment)
            project = Project.load(Path(folder))
            flow.run(project) if what == "run" else flow.sweep(project, flow.prepare(project))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"{moment}: {'killed' if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else f'status {status}'}", flush=True)


if __name__ == "__main__":
    main()
