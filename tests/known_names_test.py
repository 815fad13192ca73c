"""Names that users' programs import, from the paths and with the parameters they know."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from operator import attrgetter

import chz
import pydantic
import pytest

from tests.known_names import LEFT_OUT, NAMES, NOT_YET, SIGNATURES


def missing(module: str, names: str) -> list[str]:
    found = importlib.import_module(module)
    return [name for name in names.split() if not hasattr(found, name)]


@pytest.mark.parametrize("module", NAMES)
def test_names(module: str) -> None:
    assert missing(module, NAMES[module]) == []


@pytest.mark.parametrize("package", NOT_YET)
def test_a_package_that_is_new_has_its_names(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"there is no {package} yet")
    assert {
        m: missing(m, names) for m, names in NOT_YET[package].items() if missing(m, names)
    } == {}


@pytest.mark.parametrize("module", LEFT_OUT)
def test_what_is_left_out_is_not_there(module: str) -> None:
    """Else it belongs to the names."""
    assert missing(module, LEFT_OUT[module]) == LEFT_OUT[module].split()


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures(path: str) -> None:
    """The known parameters come first, in their order; what follows has a default."""
    module, name = path.split(":")
    thing = attrgetter(name)(importlib.import_module(f"tinker_cookbook.{module}"))
    found = inspect.signature(thing).parameters
    positional, _, by_keyword = SIGNATURES[path].partition("*")
    known = [word.split("=") for word in positional.split()]
    if not is_made_by_keywords(thing):
        assert list(found)[: len(known)] == [name for name, *_ in known]
        more = list(found.values())[len(known) + len(by_keyword.split()) :]
        assert all(parameter.default is not parameter.empty for parameter in more)
    for name, *default in [*known, *(word.split("=") for word in by_keyword.split())]:
        assert name in found
        if default:
            assert [str(found[name].default)] == default
    for word in by_keyword.split():
        assert found[word.split("=")[0]].kind is inspect.Parameter.KEYWORD_ONLY


def is_made_by_keywords(thing: object) -> bool:
    """Whether the order of its parameters says nothing."""
    return isinstance(thing, type) and (chz.is_chz(thing) or issubclass(thing, pydantic.BaseModel))


LAZY_PACKAGES = [
    "tinker_cookbook.eval",
    "tinker_cookbook.preference",
    "tinker_cookbook.rl",
    "tinker_cookbook.supervised",
    "tinker_cookbook.weights",
]


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_packages_give_the_names_of_their_modules(package: str) -> None:
    """Each is the very thing that its module has; no other name is made up."""
    found = importlib.import_module(package)
    assert sorted(found.__all__) == sorted(NAMES[package].split()) == sorted(found._MODULES)
    for name, module in found._MODULES.items():
        there = importlib.import_module(f"tinker_cookbook.{module}")
        assert getattr(found, name) is getattr(there, name)
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'absent'"):
        _ = found.absent


def test_packages_load_nothing_before_a_name_is_asked_for() -> None:
    heavy = {"torch", "transformers", "datasets", "inspect_ai", "tinker"}
    program = f"import sys, {', '.join(LAZY_PACKAGES)}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_completers_are_classes() -> None:
    from tinker_cookbook import completers

    assert issubclass(completers.TinkerTokenCompleter, completers.TokenCompleter)
    assert issubclass(completers.TinkerMessageCompleter, completers.MessageCompleter)
    assert not issubclass(completers.TinkerMessageCompleter, completers.TokenCompleter)
