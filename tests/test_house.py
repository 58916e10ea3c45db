"""The manners of the house that no linter checks."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import tunesmith
from tunesmith import plugins
from tunesmith.errors import BUG_EXIT_CODE, ConfigError, TunesmithError

SOURCE = Path(tunesmith.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))


def names(path):
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_every_module_opens_with_what_it_does(path):
    described = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert described
    assert described.splitlines()[0].endswith((".", "?", "!"))


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_public_names_are_listed_in_order(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = [node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"]
    for names_listed in map(ast.literal_eval, listed):
        assert list(names_listed) == sorted(names_listed)


def test_the_public_names_are_there():
    assert all(getattr(tunesmith, name) is not None for name in tunesmith.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = tunesmith.nonsense


@pytest.mark.parametrize(("seam", "name"), [(seam, name) for seam, table in plugins.BUILT_IN.items() for name in table])
def test_every_built_in_plug_in_can_be_imported(seam, name):
    module, _, attribute = plugins.BUILT_IN[seam][name].partition(":")
    assert plugins.load(seam, name) is getattr(import_module(module), attribute)


def test_an_unknown_plug_in_names_the_nearest():
    with pytest.raises(ConfigError, match=r"calibrator must be one of beta, isotonic, logistic, none, platt, temperature\. Received: 'plat'") as raised:
        plugins.load("calibrator", "plat")
    assert raised.value.hint == "Did you mean 'platt'?"


def test_every_error_of_a_user_has_an_exit_code_of_its_own():
    direct = TunesmithError.__subclasses__()
    codes = [kind.exit_code for kind in direct]
    assert sorted(codes) == sorted(set(codes)) == [2, 3, 4, 5, 6, 7]
    assert BUG_EXIT_CODE not in codes
