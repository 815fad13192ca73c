"""Names of models in Tinker's lists that are not those of the published repositories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import sl_loop
from tinker_cookbook import models
from tinker_cookbook.hyperparam_utils import get_lr
from tinker_cookbook.model_info import get_model_attributes, get_recommended_renderer_name
from tinker_cookbook.supervised.defaults import SL
from tinker_cookbook.training.resolve import resolve_defaults

PUBLISHED = {
    "Qwen/Qwen3-235B-A22B-Instruct": "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "Qwen/Qwen3-30B-A3B-Instruct": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-4B-Instruct": "Qwen/Qwen3-4B-Instruct-2507",
    "meta-llama/Llama-3.3-70B": "meta-llama/Llama-3.3-70B-Instruct",
    "DeepSeek-V3.1": "deepseek-ai/DeepSeek-V3.1",
}
ASKED, MEANT = "Qwen/Qwen3-4B-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
LINE = f"model_name={ASKED}: loading {MEANT}, the published repository"
# once by each name: what a loop, a tokenizer and a client of the engine say of them
PROGRAM = f"""
import asyncio, sys
from recipes import sl_basic
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.service import connect
from tinker_cookbook.supervised.chat_config import ALIASES
from tinker_cookbook.tokenizer_utils import get_tokenizer

assert get_tokenizer({ASKED!r}) is get_tokenizer({MEANT!r})
keys = ["data=NumberWords", "max_steps=1", "batch_size=2", "max_length=64", "display=none"]
asyncio.run(sl_basic.main(parse(sl_basic.CLI, ["model_name={ASKED}", *keys], ALIASES)))
service = connect()
training_client = service.create_lora_training_client({ASKED!r}, rank=2)
assert training_client.get_info().model_name == {MEANT!r}
path = training_client.save_state("a").result().path
for name in ({ASKED!r}, {MEANT!r}):
    service.create_training_client_from_state(path, base_model=name).result()
sampler = service.create_sampling_client(base_model={ASKED!r}).result()
assert sampler.get_base_model() == {MEANT!r}
supported = service.get_server_capabilities().supported_models
assert {MEANT!r} in [model.model_name for model in supported]
"""


@pytest.mark.parametrize(("asked", "meant"), PUBLISHED.items())
@pytest.mark.parametrize("suffix", ["", ":peft:262144"])
def test_facts_are_those_of_the_published_model(asked: str, meant: str, suffix: str) -> None:
    assert models.published_name(asked + suffix) == meant
    assert models.lookup(asked + suffix) is models.lookup(meant)
    assert get_model_attributes(asked + suffix) == get_model_attributes(meant)
    assert get_recommended_renderer_name(asked + suffix) == models.lookup(meant).renderers[0]
    assert get_lr(asked + suffix) == get_lr(meant)
    assert models.context_length(asked + suffix) == models.context_length(meant)
    filled = resolve_defaults(sl_loop.Config(model_name=asked + suffix), SL)
    assert filled == resolve_defaults(sl_loop.Config(model_name=meant), SL)


@pytest.mark.parametrize(
    "name", [*models.TABLE, "nano:x", "tinker://a/b", "/data/a:b", "./DeepSeek-V3.1", "me/own"]
)
def test_other_names_are_left_alone(name: str) -> None:
    assert models.published_name(name) == name


def test_a_directory_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ASKED).mkdir(parents=True)
    assert models.published_name(ASKED) == models.load_path(ASKED) == ASKED


def test_the_tables_agree() -> None:
    assert dict(models.TINKER_NAMES) == PUBLISHED
    assert set(PUBLISHED.values()) <= set(models.TABLE)
    assert not set(PUBLISHED) & set(models.TABLE)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache that holds nano's files under the published name, and nothing else."""
    repository = tmp_path / "hf" / "hub" / f"models--{MEANT.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(models.load_path("nano"), snapshot, ignore=shutil.ignore_patterns("*.py"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return tmp_path / "hf"


def test_a_run_is_that_of_the_published_model_and_says_so_once(cache: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(LINE) == 1
    (directory,) = Path(os.environ["TINKER_COOKBOOK_RUNS_DIR"]).glob("sl_basic-*")
    assert json.loads((directory / "config.json").read_text())["model_name"] == MEANT
