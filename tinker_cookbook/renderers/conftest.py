"""Tokenizers of the renderer tests: nano's ships, others stand in the test data."""

from __future__ import annotations

import os

import pytest

from tinker_cookbook.renderers.testing import DATA, load
from tinker_cookbook.tokenizer_utils import Tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(params=["qwen3", "nano"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer with Qwen3's special tokens and chat template."""
    return load(request.param)


@pytest.fixture
def instruct_template() -> str:
    path = DATA / "chat_templates" / "qwen3-instruct-2507.jinja"
    if not path.is_file():
        pytest.skip("no ../shared/data")
    return path.read_text()
