"""What starting the command line loads, and what works without the extras."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "mlflow", "polars", "sklearn", "scipy", "numpy", "pandas", "dvc", "fastapi", "sqlalchemy", "pydantic")

TELL = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
BLOCK = """
import sys
_, packages, *arguments = sys.argv
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in packages.split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Missing())
from tunesmith.app.cli import main
sys.argv = ["tunesmith", *arguments]
main()
"""
TRAIN = "torch,transformers,peft,mlflow,sklearn,scipy,accelerate,safetensors,gguf,tokenizers,matplotlib,psutil"


def run(*arguments):
    return subprocess.run([sys.executable, "-c", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def loaded(code):
    return set(run(f"{code}\n{TELL}").stdout.splitlines()[-1].split())


def test_the_help_loads_nothing_heavy():
    modules = loaded("import sys; sys.argv = ['tunesmith', '--help']\nfrom tunesmith.app.cli import main\ntry: main()\nexcept SystemExit: pass")
    assert "tunesmith" in modules
    assert modules.isdisjoint(HEAVY)


def test_importing_the_package_loads_no_torch():
    assert loaded("import tunesmith; from tunesmith import Project, flow").isdisjoint({"torch", "transformers", "mlflow", "sklearn", "dvc"})


def without(packages, *arguments):
    return run(BLOCK, packages, *arguments)


@pytest.mark.parametrize("command", [("config", "check"), ("data", "log"), ("review", "next", "--json")])
def test_the_core_works_without_the_extras(finished, command):
    result = without(f"{TRAIN},dvc,fastapi,uvicorn", *command, "-C", finished.project.root)
    assert result.returncode == 0, result.stderr


def test_lineage_works_without_the_extras(finished):
    result = without(f"{TRAIN},dvc,fastapi,uvicorn", "lineage", finished.outcome.run.id, "-C", finished.project.root)
    assert result.returncode == 0, result.stderr
    assert finished.outcome.dataset.id in result.stdout


@pytest.mark.parametrize(
    ("packages", "command", "missing", "extra"),
    [
        (TRAIN, ("plan",), "torch", "train"),
        (TRAIN, ("predict", "a text"), "torch", "serve"),
        ("fastapi,uvicorn", ("serve",), "uvicorn", "serve"),
        ("dvc", ("prepare", "--fresh", "--set", "data.min_characters=2"), "dvc", "data"),
    ],
)
def test_a_missing_extra_is_named(tiny, packages, command, missing, extra):
    result = without(packages, *command, "-C", tiny.root)
    assert result.returncode == 6, result.stderr
    assert result.stderr.splitlines()[-2:] == [
        f"Error: This step needs the package '{missing}', which is not installed.",
        f"Next: pip install 'tunesmith[{extra}]'",
    ]
