"""From the flat keys of a command line to the config of the loop."""

import json
from pathlib import Path

import chz
import pytest

from recipes import sl_basic, sl_loop
from recipes.chat_sl import train as chat_sl
from recipes.number_words import NumberWords
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.data import HubChats, JsonlChats, NoRobots
from tinker_cookbook.supervised.defaults import SL
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilderCommonConfig,
    SupervisedDatasetBuilder,
)

OWN = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3", max_length=64, batch_size=2
)


def test_keys_reach_the_data() -> None:
    asked = ChatConfig(batch_size=3, max_length=99, train_on_what=TrainOnWhat.ALL_TOKENS)
    resolved = resolve_chat_config(asked, SL, NoRobots())
    config, filled = resolved.config, resolved.filled
    assert config.dataset_builder == NoRobots(
        common_config=ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="nano",
            renderer_name="qwen3_instruct",
            max_length=99,
            batch_size=3,
            train_on_what=TrainOnWhat.ALL_TOKENS,
        )
    )
    assert filled == {"learning_rate": 6e-3, "renderer_name": "qwen3_instruct", "num_epochs": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 8), ("max_length", 32), ("train_on_what", TrainOnWhat.ALL_TOKENS)],
)
@pytest.mark.parametrize("data", [NoRobots(common_config=OWN), SupervisedDatasetBuilder()])
def test_keys_that_the_data_would_not_follow_are_refused(
    data: SupervisedDatasetBuilder, key: str, value: int | TrainOnWhat
) -> None:
    with pytest.raises(ConfigurationError) as error:
        resolve_chat_config(ChatConfig(dataset_builder=data, **{key: value}), SL, NoRobots())
    message = str(error.value)
    assert message.startswith(f"{key}={value} has no effect on {type(data).__name__}")


def test_a_config_tells_the_settings_that_the_data_brings() -> None:
    resolved = resolve_chat_config(
        ChatConfig(dataset_builder=NoRobots(common_config=OWN)), SL, NoRobots()
    )
    config, filled = resolved.config, resolved.filled
    assert (config.batch_size, config.max_length, config.renderer_name) == (2, 64, "qwen3")
    assert set(filled) == {"learning_rate", "renderer_name", "num_epochs"}
    own_batches = ChatConfig(dataset_builder=SupervisedDatasetBuilder())
    other = resolve_chat_config(own_batches, SL, NoRobots()).config
    assert (other.batch_size, other.max_length, other.num_epochs) == (None, None, 1)


def test_a_missing_file_is_named_by_the_key_that_was_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^dataset_path=no\.jsonl: no such file"):
        resolve_chat_config(ChatConfig(dataset_path="no.jsonl"), SL, NoRobots())
    with pytest.raises(ConfigurationError, match=r"^dataset=no\.jsonl: no such file"):
        chat_sl.data_of(chat_sl.CLI(dataset="no.jsonl"))
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": []}))
    config = resolve_chat_config(ChatConfig(dataset_path=str(file)), SL, NoRobots()).config
    assert isinstance(config.dataset_builder, JsonlChats) and config.dataset_path is None


@pytest.mark.parametrize("key", ["dataset_path", "dataset"])
def test_other_data_than_jsonl_is_a_data_set(tmp_path: Path, key: str) -> None:
    """By either key; sl_loop does the same."""
    for path in (str(tmp_path / "chats.json"), str(tmp_path), "org/name"):
        (tmp_path / "chats.json").write_text("[]")
        if key == "dataset":
            assert chat_sl.data_of(chat_sl.CLI(dataset=path)) == HubChats(path=path)
        else:
            config = resolve_chat_config(ChatConfig(dataset_path=path), SL, NoRobots()).config
            assert chz.replace(config.dataset_builder, common_config=None) == HubChats(path=path)
            assert sl_loop.data(sl_loop.Config(dataset_path=path)) == HubChats(path=path)
    with pytest.raises(ConfigurationError, match=rf"^{key}=.*chat\.csv: no such file"):
        path = str(tmp_path / "chat.csv")
        if key == "dataset":
            chat_sl.data_of(chat_sl.CLI(dataset=path))
        resolve_chat_config(ChatConfig(dataset_path=path), SL, NoRobots())
    with pytest.raises(ConfigurationError, match="dataset='no_robot' is unknown; set no_robots"):
        chat_sl.data_of(chat_sl.CLI(dataset="no_robot"))


def test_lengths_above_the_context() -> None:
    with pytest.raises(ConfigurationError, match=r"^max_length=4096: nano has a context of 2048"):
        resolve_chat_config(ChatConfig(max_length=4096), SL, NumberWords())


def test_number_words_are_the_same_in_both_recipes() -> None:
    """Epochs, evaluators and rates come with the data: the curve is the same."""
    cli = chat_sl.CLI()
    in_chat_sl = resolve_chat_config(cli, chat_sl.DEFAULTS, chat_sl.data_of(cli)).config
    in_sl_basic = resolve_chat_config(sl_basic.CLI(), SL, NumberWords()).config
    fields = set(chz.chz_fields(sl_basic.CLI)) & set(chz.chz_fields(chat_sl.CLI))
    for key in fields:
        assert getattr(in_chat_sl, key) == getattr(in_sl_basic, key), key
    assert in_chat_sl.num_epochs == 30
    assert [each.name for each in in_chat_sl.evaluator_builders] == ["seen", "held_out"]
    asked = resolve_chat_config(
        chat_sl.CLI(num_epochs=2, dataset="number_words"), chat_sl.DEFAULTS, NumberWords()
    ).config
    assert asked.num_epochs == 2


def test_evaluators_of_ones_own_are_kept() -> None:
    config = resolve_chat_config(ChatConfig(evaluator_builders=[dict]), SL, NumberWords()).config
    assert config.evaluator_builders == [dict]
