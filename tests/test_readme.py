"""The Python of the README and of the tutorial runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tunesmith import Project, flow
from tunesmith.testing import tiny_project

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_project(tmp_path_factory.mktemp("readme") / "letters")
    flow.run(Project.load(folder))
    return folder


@pytest.mark.parametrize(("page", "shown_path"), [("README.md", ".demo/complaints"), ("docs/tutorial.md", "letters")])
def test_python_block_runs(page: str, shown_path: str, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert f'"{shown_path}"' in block
    copy = shutil.copytree(letters, tmp_path / "copy", symlinks=True)
    exec(compile(block.replace(shown_path, str(copy)), page, "exec"), {})
    label, confidence = capsys.readouterr().out.split()[:2]
    assert label in Project.load(copy).config.task.names
    assert 0 <= float(confidence) <= 1


def test_commands_that_the_pages_name_exist() -> None:
    known = {line.split("`")[1] for line in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").splitlines() if line.startswith("- `tunesmith ")}
    for page in ("README.md", "docs/tutorial.md"):
        for command in re.findall(
            r"tunesmith ((?:config |data |review )?[a-z]+)", "\n".join(re.findall(r"```\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL))
        ):
            assert f"tunesmith {command}" in known, f"{page} names `tunesmith {command}`"
