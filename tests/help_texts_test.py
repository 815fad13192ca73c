"""One key has one help text in all recipes and loops."""

import importlib
import inspect
import pkgutil
from collections import defaultdict

import chz

import recipes
from tinker_cookbook.distillation import sdft, train_off_policy, train_on_policy
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.rl import problem_config
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.supervised import chat_config
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.training.config import LoopConfig
from tinker_cookbook.utils.private_apis import field_doc

LOOPS = [
    LoopConfig,
    sl_train.Config,
    chat_config.ChatConfig,
    rl_train.Config,
    train_dpo.Config,
    train_on_policy.Config,
    train_off_policy.Config,
    sdft.Config,
]
ON_POLICY = {"kl_penalty_coef", "kl_discount_factor", "teacher"}
# class -> the keys that it uses in another sense, or with other defaults, than most
EXCEPTIONS = {
    "tinker_cookbook.supervised.train.Config": {"dataset_builder", "num_epochs"},
    "tinker_cookbook.preference.train_dpo.Config": {"batch_size"},  # it counts pairs
    "recipes.preference.dpo.train.CLI": {"batch_size", "dataset"},
    # questions, their completions, and a loss at temperature 1
    "tinker_cookbook.distillation.sdft.Config": {"batch_size", "group_size", "temperature"},
    "recipes.sdft.train.CLI": {"batch_size", "group_size", "temperature", "dataset"},
    "tinker_cookbook.rl.config.Config": {"dataset_builder"},
    "tinker_cookbook.rl.problem_config.ProblemConfig": {"dataset_builder"},
    "recipes.preference.rlhf.rlhf_pipeline.CLI": {"dataset"},
    "recipes.preference.constitutional.config.CLI": {"temperature"},  # no policy gradient
    # the teacher's divergence, not a penalty
    "tinker_cookbook.distillation.train_on_policy.Config": {*ON_POLICY, "dataset_builder"},
    "recipes.distillation.on_policy_distillation.CLI": {*ON_POLICY, "dataset", "dataset_builder"},
    "recipes.distillation.on_policy_multi_teacher.CLI": {*ON_POLICY, "dataset_builder"},
    "tinker_cookbook.distillation.train_off_policy.Config": {"topk"},
    "recipes.distillation.off_policy_reasoning.CLI": {
        *("topk", "temperature", "dataset", "prompts", "num_prompts", "num_samples"),
    },
    "recipes.preference.shorter.train.CLI": {"dataset_builder"},
    "recipes.prompt_distillation.train.CLI": {"dataset_path"},  # the output of create_data
    "recipes.rl_basic.CLI": {"dataset_builder"},
    "recipes.math_rl.train.CLI": {"dataset_builder"},
    "recipes.rl_loop.Config": {"max_steps"},  # it draws problems at random: its data has no end
    "recipes.math_rl.aime.CLI": {
        "model_name",
        "seed",
        "max_tokens",
        "temperature",
    },  # it only samples
}


def config_classes() -> list[type]:
    """The config classes of all recipes: those that describe a run, not only its data."""
    classes = [*LOOPS, problem_config.ProblemConfig]
    for module in pkgutil.walk_packages(recipes.__path__, "recipes."):
        loaded = importlib.import_module(module.name)
        classes += [
            cls
            for _, cls in inspect.getmembers(loaded, inspect.isclass)
            if cls.__module__ == module.name
            and chz.is_chz(cls)
            and "log_path" in chz.chz_fields(cls)
        ]
    return classes


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def help_of(cls: type) -> dict[str, str]:
    return {key: field_doc(field) for key, field in chz.chz_fields(cls).items()}


def test_one_key_has_one_help_text() -> None:
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cls in config_classes():
        for key, text in help_of(cls).items():
            if key not in EXCEPTIONS.get(name_of(cls), ()):
                texts[key][text].append(name_of(cls))
    assert {key: dict(found) for key, found in texts.items() if len(found) > 1} == {}


def test_each_exception_differs_from_the_text_of_the_others() -> None:
    classes = {name_of(cls): cls for cls in config_classes()}
    for name, keys in EXCEPTIONS.items():
        for key in keys:
            others = {
                help_of(cls)[key]
                for other, cls in classes.items()
                if key in help_of(cls) and key not in EXCEPTIONS.get(other, ())
            }
            assert help_of(classes[name])[key] not in others, (name, key)


def test_every_key_has_a_help_text_and_every_recipe_is_walked() -> None:
    classes = config_classes()
    for recipe in ("sl_basic", "sl_loop", "rl_basic", "rl_loop", "chat_sl.train", "math_rl.aime"):
        assert any(cls.__module__ == f"recipes.{recipe}" for cls in classes), recipe
    assert [(cls, key) for cls in classes for key, text in help_of(cls).items() if not text] == []
