from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import FAMILIES, Family
from tinker_cookbook.renderers import (
    get_registered_renderer_names,
    get_renderer,
    is_renderer_registered,
    register_renderer,
    unregister_renderer,
)
from tinker_cookbook.renderers.base import Renderer
from tinker_cookbook.renderers.role_colon import RoleColonRenderer
from tinker_cookbook.tokenizer_utils import Tokenizer


def test_names() -> None:
    names = ["qwen3", "qwen3_disable_thinking", "qwen3_instruct", "role_colon"]
    assert set(names) <= set(get_registered_renderer_names())
    assert all(is_renderer_registered(name) for name in names)
    assert not is_renderer_registered("qwen4")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_what_a_family_names_is_there(family: Family) -> None:
    named = [each.renderers for each in (*family.models, *family.chat_formats)]
    assert all(is_renderer_registered(name) for names in named for name in names)


def test_unknown_name_lists_what_there_is(tokenizer: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_renderer("qwen3-instruct", tokenizer)
    message = str(caught.value)
    assert "did you mean 'qwen3_instruct'" in message
    assert all(name in message for name in get_registered_renderer_names())
    assert "\n" not in message


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5_disable_thinking", "kimi_k25"])
def test_a_known_format_that_is_not_here_is_not_taken_for_another(
    tokenizer: str, name: str
) -> None:
    with pytest.raises(ConfigurationError, match="renderer_name=template uses") as error:
        get_renderer(name, tokenizer)
    assert "did you mean" not in str(error.value)


def test_a_renderer_of_ones_own_by_module_and_name(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_formats.py").write_text(
        "from tinker_cookbook.renderers.role_colon import RoleColonRenderer\n"
        "class Mine(RoleColonRenderer):\n    pass\n"
        "def make(tokenizer, image_processor):\n    return Mine(tokenizer)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_formats:Mine", "my_formats:make"):
        renderer = get_renderer(name, tokenizer)
        assert type(renderer).__name__ == "Mine"
        again = pickle.loads(pickle.dumps(renderer))
        assert type(again) is type(renderer) and again.origin.renderer_name == name
    for name, problem in [
        ("my_formats:Absent", "renderer_name=my_formats:Absent: cannot be imported: module"),
        ("no_formats:Mine", "renderer_name=no_formats:Mine: cannot be imported: No module named"),
        ("my_formats:number", "expected a subclass of Renderer, or a function"),
    ]:
        with pytest.raises(ConfigurationError, match=problem):
            get_renderer(name, tokenizer)


def test_registering(tokenizer: str) -> None:
    seen = []

    def factory(tokenizer: Tokenizer, image_processor: Any) -> Renderer:
        seen.append(image_processor)
        return RoleColonRenderer(tokenizer)

    register_renderer("mine", factory)
    try:
        assert is_renderer_registered("mine")
        renderer = get_renderer("mine", tokenizer, image_processor="p", model_name="m")
        assert seen == ["p"]
        assert renderer.origin == ("mine", "m")
        renderer = get_renderer("mine", tokenizer)
        again = pickle.loads(pickle.dumps(renderer))
        assert type(again) is RoleColonRenderer and again.origin == renderer.origin
        assert pickle.loads(pickle.dumps(again)).origin == renderer.origin
        register_renderer("mine", factory)  # again, as a notebook cell does
    finally:
        unregister_renderer("mine")
    assert not is_renderer_registered("mine")
    with pytest.raises(ConfigurationError, match="'mine'"):
        unregister_renderer("mine")


def test_built_in_names_are_taken() -> None:
    with pytest.raises(ConfigurationError, match="built in"):
        register_renderer("qwen3", lambda t, i: RoleColonRenderer(t))
    with pytest.raises(ConfigurationError, match="built in"):
        unregister_renderer("qwen3")


def test_importing_is_light() -> None:
    """Configs name TrainOnWhat, so `--help` imports this package."""
    code = (
        "import sys, tinker_cookbook.renderers, tinker_cookbook.models, "
        "tinker_cookbook.hyperparam_utils, tinker_cookbook.model_info;"
        "print(*({'torch', 'tinker', 'transformers', 'huggingface_hub', 'tokenizers'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("", "")
