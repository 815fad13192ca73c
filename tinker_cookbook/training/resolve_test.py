"""Keys that were left out: what they become, in which order it is said, and what cannot be told."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.models import load_path
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.training.resolve import (
    check_key_has_effect,
    resolve_defaults,
    restore_unset_fields,
    set_unset_fields,
    unset_fields,
)
from tinker_cookbook.utils.plain_data import plain


@dataclass(frozen=True)
class Sizes:
    max_length: int
    batch_size: int  # no key of Config


DEFAULTS = Defaults(
    nano=ModelDefaults(Sizes(512, 32), learning_rate=6e-3, renderer_name="qwen3_instruct"),
    others=ModelDefaults(Sizes(32_768, 128)),
    within_context=("max_length",),
)
WITH_RATE = Defaults(nano=DEFAULTS.nano, others=ModelDefaults(Sizes(9, 9), learning_rate=4e-5))


@chz.chz
class Config:
    model_name: str
    learning_rate: float | None = None
    renderer_name: str | None = None
    load_checkpoint_path: str | None = None
    base_url: str | None = None
    max_length: int | None = None
    save_every: int | None = None


def model_directory(path: Path, template: str | None = "", **config: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"vocab_size": 9, "hidden_size": 64, **config}))
    if template is not None:
        content = {"chat_template": template}
        (path / "tokenizer_config.json").write_text(json.dumps(content))
    return str(path)


def test_what_is_none_and_known_is_filled_in() -> None:
    resolved = resolve_defaults(Config(model_name="nano", max_length=64), DEFAULTS)
    assert resolved.filled == {"learning_rate": 6e-3, "renderer_name": "qwen3_instruct"}
    assert resolved.config == Config(
        model_name="nano", learning_rate=6e-3, renderer_name="qwen3_instruct", max_length=64
    )
    assert (resolved.learning_rate, resolved.renderer_name) == (6e-3, "qwen3_instruct")
    assert resolved.sizes == Sizes(max_length=64, batch_size=32)


def test_nano_by_its_path_is_nano() -> None:
    resolved = resolve_defaults(Config(model_name=load_path("nano")), DEFAULTS)
    assert (resolved.learning_rate, resolved.sizes.max_length) == (6e-3, 512)


def test_what_was_filled_is_one_line() -> None:
    resolved = resolve_defaults(Config(model_name="Qwen/Qwen3-8B"), DEFAULTS)
    assert resolved.line() == (
        "Qwen/Qwen3-8B: learning_rate=0.000473 renderer_name=qwen3 max_length=32768"
    )


@pytest.mark.parametrize(
    "name, rate",
    [
        ("openai/gpt-oss-20b", "0.000376"),
        ("deepseek-ai/DeepSeek-V3.1", "0.000185"),
        ("moonshotai/Kimi-K2-Thinking", "0.000185"),
    ],
)
def test_a_rate_that_nobody_fitted_is_called_an_estimate(name: str, rate: str) -> None:
    resolved = resolve_defaults(Config(model_name=name, renderer_name="template"), DEFAULTS)
    assert resolved.line() == f"{name}: learning_rate={rate} (an estimate) max_length=32768"
    # a plain number to whoever stores it
    assert type(resolved.config.learning_rate) is float is type(resolved.learning_rate)
    given = resolve_defaults(Config(model_name=name, learning_rate=1e-4), DEFAULTS)
    same_for_all_models = resolve_defaults(Config(model_name=name), WITH_RATE)
    for each in (given, same_for_all_models):
        assert "estimate" not in str(each.line())
    assert same_for_all_models.learning_rate == 4e-5


def test_a_length_is_cut_to_the_context_where_the_method_says_so(tmp_path: Path) -> None:
    short = model_directory(tmp_path / "m", model_type="qwen3", max_position_embeddings=1024)
    assert resolve_defaults(Config(model_name=short), DEFAULTS).sizes.max_length == 1024
    with pytest.raises(ConfigurationError, match=r"^max_length=2000: .* context of 1024 tokens"):
        resolve_defaults(Config(model_name=short, max_length=2000), DEFAULTS)


def test_what_cannot_be_told_is_asked_for_by_its_key(tmp_path: Path) -> None:
    mistral = model_directory(tmp_path / "mistral", "[INST]", model_type="mistral")
    with pytest.raises(ConfigurationError, match=r"learning_rate= must be given"):
        resolve_defaults(Config(model_name=mistral), DEFAULTS)
    bare = model_directory(tmp_path / "bare", None, model_type="llama")
    (Path(bare) / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ConfigurationError,
        match=r"neither tokenizer_config\.json .*renderer_name= .* must be given",
    ):
        resolve_defaults(Config(model_name=bare), DEFAULTS)


def test_an_unknown_model_works_when_every_key_is_given() -> None:
    given = Config(model_name="me/x", learning_rate=1e-4, renderer_name="qwen3", max_length=9)
    resolved = resolve_defaults(given, DEFAULTS)
    assert (resolved.config, resolved.filled, resolved.line()) == (given, {}, None)
    for key in ("learning_rate", "max_length"):
        with pytest.raises(ConfigurationError, match="me/x"):
            resolve_defaults(chz.replace(given, **{key: None}), DEFAULTS)


def test_zero_is_a_value() -> None:
    config = Config(model_name="nano", learning_rate=0.0, renderer_name="qwen3", max_length=1)
    assert resolve_defaults(config, DEFAULTS).filled == {}


@chz.chz
class Data:
    path: str
    group_size: int | None = None
    seed: int | None = None
    width: int | None = 4


def test_data_takes_what_it_leaves_open_and_gives_it_back() -> None:
    data, values = Data(path="x", seed=7), {"group_size": 3, "seed": 1, "width": 9, "other": 5}
    assert unset_fields(data) == {"group_size"}
    filled = set_unset_fields(data, values)
    assert filled == Data(path="x", group_size=3, seed=7)
    stored = plain(filled)
    assert restore_unset_fields(stored, Data, values) == {
        k: v for k, v in stored.items() if k != "group_size"
    }
    # a seed of its own that is the recipe's by chance is the same run with the next seed, too
    assert "seed" not in restore_unset_fields(stored, Data, values | {"seed": 7})
    assert "width" in restore_unset_fields(
        stored, Data, values | {"width": 4}
    )  # 4 without being filled


def test_a_key_that_data_would_not_follow_is_refused_by_name() -> None:
    check_key_has_effect("group_size", None, Data(path="x"))
    with pytest.raises(ConfigurationError, match=r"^group_size=3 has no effect on Data, .* drop "):
        check_key_has_effect("group_size", 3, Data(path="x"))
