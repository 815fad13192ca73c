"""`--help` of every recipe: ten keys, two commands that can be parsed, the rest by group."""

import importlib
import runpy
import shlex
import sys

import pytest

from tinker_cookbook.utils.command_line import parse

RECIPES = [
    "recipes.sl_basic",
    "recipes.sl_loop",
    "recipes.rl_basic",
    "recipes.rl_loop",
    "recipes.chat_sl.train",
    "recipes.preference.dpo.train",
    "recipes.preference.constitutional.train",
    "recipes.preference.shorter.train",
    "recipes.distillation.off_policy_reasoning",
    "recipes.distillation.on_policy_distillation",
    "recipes.distillation.on_policy_multi_teacher",
    "recipes.sdft.train",
    "recipes.prompt_distillation.train",
    "recipes.math_rl.train",
    "recipes.math_rl.aime",
]


def printed(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> list[str]:
    monkeypatch.setattr(sys, "argv", [recipe, *words])
    monkeypatch.delitem(sys.modules, recipe, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    runpy.run_module(recipe, run_name="__main__", alter_sys=True)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_keys_and_two_commands(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(recipe, monkeypatch, capsys, "--help")
    start, end = lines.index("keys to set first"), lines.index("", lines.index("keys to set first"))
    keys = [line.split()[0] for line in lines[start + 1 : end] if line[2] != " "]
    assert len(keys) == len(set(keys)) == 10 and keys[0] == "model_name" and "log_path" in keys
    examples = lines[lines.index("examples") + 1 :][:2]
    for example in examples:
        command = shlex.split(example.strip().split("   ")[0])  # a remark stands behind it
        assert recipe in command
        words = [word for word in command[command.index(recipe) + 1 :] if "=" in word]
        module = importlib.import_module(recipe)
        config = getattr(module, "CLI", None) or module.Config
        parse(config, words, getattr(module, "ALIASES", {}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_is_listed_once(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = " ".join(printed(recipe, monkeypatch, capsys, "--help"))
    lines = printed(recipe, monkeypatch, capsys, "--help", "all")
    start = next(i for i, line in enumerate(lines) if line.startswith("keys of "))
    keys = [line.split()[0] for line in lines[start:] if line[:2] == "  " and line[2:3].strip()]
    keys = [key for key in keys if "=" not in key and key not in ("all",)]
    words = [word.partition("=")[0] for word in short.split()]
    assert len(keys) > 15
    missing = [key for key in keys if key not in words]
    assert not missing
