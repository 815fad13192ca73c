"""Tokenizers for the renderer tests: nano's, which ships, and Qwen3's, where test data is there."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(__file__).parents[3] / "shared" / "data"


@cache
def load(name: str):
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    if name == "nano":
        if not (Path(__file__).parents[1] / "nano" / "tokenizer.json").is_file():
            pytest.skip("nano is not built")
        return get_tokenizer("nano")
    if not (DATA / "tokenizers" / name).is_dir():
        pytest.skip("no ../shared/data")
    return get_tokenizer(str(DATA / "tokenizers" / name))


@pytest.fixture(params=["qwen3", "nano"])
def tokenizer(request):
    """A tokenizer with Qwen3's special tokens and chat template."""
    return load(request.param)


@pytest.fixture
def instruct_template() -> str:
    path = DATA / "chat_templates" / "qwen3-instruct-2507.jinja"
    if not path.is_file():
        pytest.skip("no ../shared/data")
    return path.read_text()
