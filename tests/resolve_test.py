"""What is filled in, and each value that is refused before anything is read or trained."""

import importlib
import math
import pkgutil
from dataclasses import astuple
from typing import Any

import chz
import numpy as np
import pytest

import recipes
import tinker_cookbook
from recipes import rl_basic, rl_loop, sl_basic, sl_loop
from recipes.chat_sl import train as chat_sl
from recipes.distillation.held_out_sums import HeldOutSums
from recipes.math_rl import train as math_rl
from recipes.math_rl.aime import CLI as AimeCLI
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook import models
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.rollouts.limits import RolloutLimits
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.service import connect
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import HubChats, InMemoryChats, JsonlChats
from tinker_cookbook.supervised.defaults import SL_DEFAULTS
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDatasetBuilder,
)
from tinker_cookbook.training.config import LoopConfig
from tinker_cookbook.training.defaults import Defaults
from tinker_cookbook.training.fields import CheckedConfig, range_of
from tinker_cookbook.training.resolve import check_types, resolve_defaults

OWN = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3", max_length=64, batch_size=2
)


def config(**changes: Any) -> train.Config:
    return train.Config(**{"dataset_builder": SupervisedDatasetBuilder(), **changes})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", -1.0, "0 or more"),
        ("learning_rate", math.nan, "0 or more"),
        ("learning_rate", math.inf, "0 or more"),
        ("num_epochs", 0, "1 or more"),
        ("max_steps", 0, "1 or more"),
        ("lora_rank", 0, "1 or more"),
        ("seed", -1, "0 to 4294967295"),
        ("seed", 2**32, "0 to 4294967295"),
        ("adam_beta1", 1.0, "0 or more and below 1"),
        ("adam_beta2", -0.1, "0 or more and below 1"),
        ("adam_eps", 0.0, "above 0"),
        ("weight_decay", -1e-3, "0 or more"),
        ("grad_clip_norm", -1.0, "0 or more"),
        ("eval_every", -1, "0 or more"),
        ("infrequent_eval_every", -1, "0 or more"),
        ("save_every", -1, "0 or more"),
        ("rolling_save_every", -1, "0 or more"),
        ("ttl_seconds", 0, "1 or more"),
        ("submit_ahead", -1, "0 or more"),
    ],
)
async def test_a_value_that_cannot_work(key: str, value: float, expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        await train.main(config(**{key: value}))
    assert str(error.value) == f"{key}={value}: expected {expected}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_epochs", "three", "'three': expected int"),
        ("num_epochs", 2.0, "2.0: expected int"),
        ("num_epochs", None, "None: expected int"),
        ("learning_rate", "1e-4", "'1e-4': expected float or None"),
        ("max_steps", True, "True: expected int or None"),
        ("train_mlp", 1, "1: expected bool"),
        ("log_path", 5, "5: expected str or None"),
        ("lr_schedule", "linaer", "'linaer': expected "),
        ("evaluator_builders", 3, "3: expected list["),
    ],
)
async def test_a_value_of_another_type(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        await train.main(config(**{key: value}))
    assert str(error.value).startswith(f"{key}={expected}")


def test_an_evaluator_builder_with_annotations_as_text() -> None:
    """As in every module with `from __future__ import annotations`."""
    builder = HeldOutSums(renderer_name="qwen3", max_tokens=4)
    check_types(config(evaluator_builders=[builder]))
    with pytest.raises(ConfigurationError, match=r"evaluator_builders=.*: expected"):
        check_types(config(evaluator_builders=[builder, 3]))
    with pytest.raises(ConfigurationError, match=r"evaluator_builders=.*: expected"):
        check_types(config(evaluator_builders=[3]))


async def test_a_value_of_another_type_further_down() -> None:
    data = JsonlChats(path=3.5, common_config=OWN)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^dataset_builder\.path=3\.5: expected str"):
        await train.main(config(dataset_builder=data))
    problems = rl_train.Config(dataset_builder=RLDatasetBuilder(), max_lag="1")
    with pytest.raises(ConfigurationError, match=r"^max_lag='1': expected int$"):
        await rl_train.main(problems)


def test_numbers_of_other_libraries_are_numbers() -> None:
    check_types(config(num_epochs=np.int64(2), learning_rate=np.float32(0.5)))
    check_types(config(learning_rate=1))
    with pytest.raises(ConfigurationError, match="expected int"):
        check_types(config(num_epochs=np.float64(2)))


def test_values_at_the_edge_work() -> None:
    config(learning_rate=0.0, seed=2**32 - 1, submit_ahead=0, ttl_seconds=None, save_every=0)


def test_lengths_above_the_context() -> None:
    length = chz.replace(OWN, max_length=2049)
    data = InMemoryChats(common_config=length, conversations=[])
    with pytest.raises(ConfigurationError, match=r"^max_length=2049: nano has a context of 2048 "):
        resolve_defaults(config(dataset_builder=data), SL_DEFAULTS)
    resolve_defaults(config(dataset_builder=chz.replace(data, common_config=OWN)), SL_DEFAULTS)
    # what no table knows, a server may
    resolve_defaults(
        config(dataset_builder=data, model_name="me/unheard-of", learning_rate=1.0), SL_DEFAULTS
    )


@pytest.mark.parametrize("given", ["Qwen/Qwen3-4B-Instruct", "Qwen/Qwen3-8B:peft:131072"])
def test_a_server_is_asked_for_the_name_as_given(given: str) -> None:
    """In process the model is that of the published repository; a server has names of its own."""
    here = resolve_defaults(config(model_name=given), SL_DEFAULTS)
    there = resolve_defaults(config(model_name=given, base_url="http://127.0.0.1:9"), SL_DEFAULTS)
    assert there.model_name == given and here.model_name == models.published_name(given) != given
    assert there.learning_rate == here.learning_rate and there.renderer_name == here.renderer_name


@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("max_length", -5)])
def test_sizes_of_batches(key: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}={value}: expected"):
        chz.replace(OWN, **{key: value})


def test_the_seed_of_the_data() -> None:
    with pytest.raises(ConfigurationError, match=r"^shuffle_seed=-1: expected 0 to 4294967295$"):
        InMemoryChats(common_config=OWN, conversations=[], shuffle_seed=-1)


@pytest.mark.parametrize(
    ("config_class", "words"),
    [
        (rl_train.Config, "max_tokens=0 temperature=0.0 num_substeps=0 num_minibatches=0"),
        (rl_train.Config, "max_lag=-1 groups_at_a_time=0 max_logprob_gap=0.0 eval_every=-1"),
        (rl_train.Config, "kl_penalty_coef=-1.0 kl_discount_factor=1.5 transcripts_every=-1"),
        (rl_basic.CLI, "group_size=0 groups_per_batch=0 eval_every=-1"),
        (sl_basic.CLI, "batch_size=0 max_length=1 num_epochs=0 eval_every=-1 sample_replies=-1"),
        (sl_loop.Config, "learning_rate=-1.0 batch_size=0 max_length=1 num_epochs=0 max_steps=0"),
        (sl_loop.Config, "lora_rank=0 seed=-1 save_every=-1"),
        (rl_loop.Config, "learning_rate=-1.0 groups_per_batch=0 group_size=0 max_tokens=0"),
        (rl_loop.Config, "max_steps=0 lora_rank=0 seed=-1 save_every=-1"),
        (RolloutLimits, "max_turns=0 max_trajectory_tokens=0 env_timeout=0.0 sample_timeout=nan"),
        (HubChats, "shuffle_seed=-1"),
        (Arithmetic, "group_size=0 groups_per_batch=0 seed=-1 num_epochs=0 test_size=-1"),
        (AimeCLI, "num_samples=0"),
    ],
)
def test_ranges_of_each_config(config_class: type, words: str) -> None:
    """From Python and from the command line in the same words."""
    needed = {rl_train.Config: {"dataset_builder": RLDatasetBuilder()}, HubChats: {"path": "x"}}
    for word in words.split():
        key, value = word.split("=")
        number = float(value) if "." in value or value == "nan" else int(value)
        with pytest.raises(ConfigurationError, match=f"^{key}={value}: expected ") as error:
            config_class(**needed.get(config_class, {}), **{key: number})
        if config_class in (rl_train.Config, HubChats):
            continue
        with pytest.raises(ConfigurationError) as in_words:
            parse(config_class, [word])
        assert str(in_words.value) == str(error.value)


def test_no_range_is_forgotten() -> None:
    """Whatever declares a range has the base that checks it."""
    found = set()
    for package in (tinker_cookbook, recipes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(("_test", "conftest", "__main__")):
                continue
            for cls in vars(importlib.import_module(module.name)).values():
                if isinstance(cls, type) and chz.is_chz(cls):
                    ranges = [range_of(cls, key) for key in chz.chz_fields(cls)]
                    found |= {cls} if any(ranges) else set()
    assert len(found) > 15 and LoopConfig in found
    assert [cls for cls in found if not issubclass(cls, CheckedConfig)] == []


def test_fill_by_the_model() -> None:
    filled = resolve_defaults(config(), SL_DEFAULTS)
    assert filled.filled == {"learning_rate": 6e-3, "renderer_name": "qwen3_instruct"}
    assert filled.config.learning_rate == 6e-3


SL_RATES = {"Qwen/Qwen3-8B": 4.73e-4, "meta-llama/Llama-3.1-8B": 2.856e-4}


@pytest.mark.parametrize("model", SL_RATES)
@pytest.mark.parametrize(
    ("config_class", "defaults", "sizes", "rate"),
    [
        (sl_loop.Config, SL_DEFAULTS, (128, 32_768), None),
        (chat_sl.CLI, chat_sl.DEFAULTS, (256, 16_384), None),
        (rl_loop.Config, RL_DEFAULTS, (128, 16, 256), 4e-5),
        (math_rl.CLI, math_rl.DEFAULTS, (100, 4, 1024), 4e-5),
    ],
)
def test_defaults_of_each_method(
    model: str, config_class: type, defaults: Defaults, sizes: tuple[int, ...], rate: float | None
) -> None:
    resolved = resolve_defaults(config_class(model_name=model), defaults)
    assert astuple(resolved.sizes) == sizes
    assert resolved.learning_rate == pytest.approx(rate or SL_RATES[model], rel=1e-3)
    nano = resolve_defaults(config_class(), defaults)
    supervised = len(sizes) == 2
    assert astuple(nano.sizes) == ((32, 512) if supervised else (32, 8, 40))
    assert nano.learning_rate == (6e-3 if supervised else 1e-3)
    assert nano.renderer_name == "qwen3_instruct"


def test_the_renderer_of_the_data_goes_first() -> None:
    with_data = config(dataset_builder=ChatDatasetBuilder(common_config=OWN))
    filled = resolve_defaults(with_data, SL_DEFAULTS)
    assert filled.config.renderer_name == filled.filled["renderer_name"] == "qwen3"
    with pytest.raises(ConfigurationError, match=r"^renderer_name=role_colon, but the data's"):
        resolve_defaults(chz.replace(with_data, renderer_name="role_colon"), SL_DEFAULTS)


def test_the_renderer_of_the_checkpoint_goes_before_that_of_the_model() -> None:
    client = connect().create_lora_training_client(
        base_model="nano", rank=1, user_metadata={"renderer_name": "qwen3_disable_thinking"}
    )
    path = client.save_state("x").result().path
    from_checkpoint = config(load_checkpoint_path=path)
    filled = resolve_defaults(from_checkpoint, SL_DEFAULTS)
    assert filled.config.renderer_name == "qwen3_disable_thinking"
    assert filled.filled["renderer_name"] == "qwen3_disable_thinking"
    asked = resolve_defaults(chz.replace(from_checkpoint, renderer_name="qwen3"), SL_DEFAULTS)
    assert asked.config.renderer_name == "qwen3" and "renderer_name" not in asked.filled


@pytest.mark.parametrize(("given", "lines"), [(None, 0), ("qwen3", 0), ("role_colon", 1)])
def test_a_renderer_that_does_not_fit_the_model_gets_one_line(
    given: str | None, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_defaults(config(renderer_name=given), SL_DEFAULTS)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == lines
    assert all("renderer_name=role_colon is not known to fit nano" in each for each in messages)


def test_the_renderer_of_the_data_is_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    own = chz.replace(OWN, renderer_name="role_colon")
    resolve_defaults(config(dataset_builder=ChatDatasetBuilder(common_config=own)), SL_DEFAULTS)
    assert "renderer_name=role_colon is not known to fit nano" in caplog.text
