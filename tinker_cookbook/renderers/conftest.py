"""What the renderer tests share: tokenizers (nano's ships, others stand in the test data), messages
in short, and examples as readable text."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.renderers.base import Renderer, SupervisedExample
from tinker_cookbook.tokenizer_utils import Tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(__file__).parents[3] / "shared" / "data"


@cache
def load(name: str) -> Tokenizer:
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    if name == "nano":
        if not (Path(__file__).parents[1] / "nano" / "tokenizer.json").is_file():
            pytest.skip("nano is not built")
        return get_tokenizer("nano")
    if not (DATA / "tokenizers" / name).is_dir():
        pytest.skip("no ../shared/data")
    return get_tokenizer(str(DATA / "tokenizers" / name))


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


# Messages, in short


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def tool(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


def assistant(
    text: str, thinking: str | None = None, calls: Iterable[tuple[str, str]] = (), **more: Any
) -> dict[str, Any]:
    """`calls`: pairs of a function's name and its arguments, JSON in text."""
    content = text
    if thinking is not None:
        content = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": text}]
    message = {"role": "assistant", "content": content, **more}
    if calls:
        message["tool_calls"] = [{"function": {"name": n, "arguments": a}} for n, a in calls]
    return message


# Examples, to be compared with ids and to be read


def rendered_ids(
    renderer: Renderer, messages: list[Any], mode: str = "last_assistant_message"
) -> list[int]:
    return renderer.build_supervised_example(messages, mode).model_input.to_ints()


def marked(tokenizer: Tokenizer, example: SupervisedExample, short: dict[str, str]) -> str:
    """Runs of tokens with weight 1 inside «», decoded run by run, tags shortened."""
    runs: list[tuple[float, list[int]]] = []
    for token, weight in zip(example.model_input.to_ints(), example.weights.tolist(), strict=True):
        assert weight in (0.0, 1.0)
        if not runs or runs[-1][0] != weight:
            runs.append((weight, []))
        runs[-1][1].append(token)
    text = "".join(f"«{tokenizer.decode(t)}»" if w else f"{tokenizer.decode(t)}" for w, t in runs)
    for tag, sign in short.items():
        text = text.replace(tag, sign)
    return text.replace("\n", "⏎")
