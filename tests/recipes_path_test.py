"""`tinker_cookbook.recipes.X` and `recipes.X` are one module."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["sl_basic", "math_rl", "math_rl.arithmetic"])
def test_both_paths_give_one_module_with_its_own_spec(name: str) -> None:
    module = importlib.import_module(f"recipes.{name}")
    assert importlib.import_module(f"tinker_cookbook.recipes.{name}") is module
    assert module.__name__ == f"recipes.{name}"
    assert module.__spec__ is not None and module.__spec__.name == f"recipes.{name}"


def test_the_longer_path_first() -> None:
    """In a process of its own, in which nothing was imported before."""
    code = (
        "from tinker_cookbook.recipes.math_rl.arithmetic import Arithmetic as one\n"
        "from recipes.math_rl.arithmetic import Arithmetic as other\n"
        "assert one is other and one.__module__ == 'recipes.math_rl.arithmetic'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_there_is_not_found() -> None:
    assert importlib.util.find_spec("tinker_cookbook.recipes.nothing") is None
    with pytest.raises(ModuleNotFoundError, match=r"tinker_cookbook\.recipes\.nothing"):
        importlib.import_module("tinker_cookbook.recipes.nothing")
