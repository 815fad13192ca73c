"""`config=<run>/config.json` is that configuration again, for every recipe."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.plain_data import comparable

ROOT = Path(__file__).parent.parent
LISTED = re.findall(r"^recipes\.[\w.]+", (ROOT / "scripts/recipes").read_text(), re.MULTILINE)
RECIPES = list(dict.fromkeys(LISTED))


class Started(Exception):
    """Instead of training: the config.json that would have been written, and where."""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a recipe up to its config.json; gives that and the run's directory."""

    def enter(journal: Journal) -> None:
        raise Started(jsonl.encode(journal.identity.config_json), journal.identity.directory())

    def write_program(path: Path, text: str) -> None:
        raise Started(text, path.parent)

    monkeypatch.setattr(Journal, "__enter__", enter)
    # what a program of several runs does first
    monkeypatch.setattr("tinker_cookbook.training.stages.replace_file", write_program)
    monkeypatch.chdir(tmp_path)

    async def start(recipe: str, *words: str) -> tuple[dict[str, Any], Path]:
        module = importlib.import_module(recipe)
        config_class = getattr(module, "CLI", None) or module.Config
        aliases = getattr(module, "ALIASES", {})
        with pytest.raises(Started) as started:
            await module.main(parse(config_class, list(words), aliases))
        text, directory = started.value.args
        return json.loads(text), directory

    return start


def write(config: dict[str, Any], directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return f"config={directory}/config.json"


def test_all_recipes_are_asked() -> None:
    assert len(RECIPES) >= 6 and {"recipes.sl_basic", "recipes.math_rl.train"} <= set(RECIPES)


CHATS = [{"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}] * 40
MORE = {
    "recipes.sl_basic": [
        "data=JsonlChats data.path=c.jsonl data.test_size=4 batch_size=2 learning_rate=1e-05"
        " train_on_what=last_assistant_message log_path=there engine.deterministic=true"
        " behavior_if_log_dir_exists=delete ttl_seconds=None",
        "dataset_path=c.jsonl max_length=64",
        "data=InterleavedChatDatasetBuilder data.sources.0.path=c.jsonl"
        " data.sources.0.weight=0.5 data.sources.1.path=d.jsonl batch_size=2"
        " evaluator_builders.0=run_config_code:evaluator",
    ],
    "recipes.chat_sl.train": [
        "dataset=c.jsonl batch_size=2",
        "data=Gsm8kChats data.path=q.jsonl data.test_size=2 data.max_tokens=9 batch_size=2",
        "data=Oasst data.path=t.jsonl data.test_size=1 data.lang=None batch_size=2",
    ],
    "recipes.preference.dpo.train": [
        "data=DPODatasetBuilderFromComparisons batch_size=2 loss=cdpo label_smoothing=0.1"
        " data.comparison_builder=NanoPairs data.comparison_builder.num_train=9",
    ],
    "recipes.preference.shorter.train": [
        "data=Shorter data.comparison_builder.prompt=Hi! data.comparison_builder.num_prompts=8"
        " data.tournament_pattern=all_pairs_one_way groups_per_batch=2 group_size=4",
    ],
    "recipes.distillation.off_policy_reasoning": [
        "dataset=c.jsonl batch_size=2 topk=5 teacher_model=nano",
        "data=OpenThoughts data.path=c.jsonl data.length=8 data.message_field=messages"
        " batch_size=2",
        "prompts=nano_sums num_prompts=3 num_samples=4 max_tokens=20 batch_size=1"
        " teacher_model=nano topk=5",
    ],
    "recipes.sdft.train": [
        "dataset=c.jsonl reverse=true teacher_sync_every=2 topk=5 batch_size=2 group_size=2",
        "data=DemonstrationChats data.path=c.jsonl data.test_size=2 batch_size=2 max_tokens=9",
    ],
    "recipes.rl_basic": [
        "kl_penalty_coef=0.1 kl_reference_config.base_model=nano rollout_strategy=RetryOnFailure"
        " loss_fn=ppo loss_fn_config.clip_low_threshold=0.7 limits.max_turns=3 max_lag=2",
        "data=run_config_code:Puzzles data.size=7 group_size=4",
        "stream_minibatch_config.num_minibatches=2 stream_minibatch_config.groups_per_batch=32",
    ],
    "recipes.math_rl.train": ["env=own data.path=p.jsonl data.test_size=2 groups_per_batch=2"],
}
# recipes whose default is to train a teacher first, which would be the run that starts
WITH_TEACHERS = [recipe for recipe in RECIPES if recipe.startswith("recipes.distillation.")]
NO_KEYS = {recipe: [] if recipe in WITH_TEACHERS else [""] for recipe in RECIPES}
CODE = """
from recipes.math_rl.arithmetic import Arithmetic
import chz

@chz.chz
class Puzzles(Arithmetic):
    size: int = 3
    names: tuple[str, ...] = ("a,b", "None", "")

def evaluator():
    pass
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c", "d"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(c)}\n" for c in CHATS))
    rows = [json.dumps({"problem": f"{i}+1?", "answer": str(i + 1)}) for i in range(9)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"question": f"{i}+1?", "answer": f"#### {i + 1}"}) for i in range(9)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    reply = {"text": "Yo", "role": "assistant", "lang": "en"}
    tree = {"prompt": {"text": "Hi", "role": "prompter", "lang": "en", "replies": [reply]}}
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(tree)}\n" * 4)
    (tmp_path / "run_config_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [(recipe, words) for recipe in RECIPES for words in [*NO_KEYS[recipe], *MORE.get(recipe, [])]],
)
async def test_it_is_the_same_run_again(
    start: Any, files: None, tmp_path: Path, recipe: str, words: str
) -> None:
    first, directory = await start(recipe, *words.split())
    given = write(first, tmp_path / "run")
    again, there = await start(recipe, given)
    own = ("log_path", "behavior_if_log_dir_exists")
    assert comparable(again) == comparable(first | {key: None for key in own if key in first})
    assert again["config_class"].startswith(recipe.rpartition(".")[0])
    if "log_path=" not in words:
        assert there == directory
    moved, elsewhere = await start(recipe, given, "log_path=other", "max_steps=3")
    assert elsewhere == tmp_path / "other"
    assert moved == again | {"log_path": "other", "max_steps": 3}


async def test_keys_given_beside_it_decide_what_follows_from_them(
    start: Any, files: None, tmp_path: Path
) -> None:
    first, _ = await start("recipes.sl_basic")
    given = write(first, tmp_path / "run")
    changed, _ = await start("recipes.sl_basic", "batch_size=5", given, "renderer_name=role_colon")
    common = changed["dataset_builder"]["common_config"]
    assert (common["batch_size"], common["renderer_name"]) == (5, "role_colon")
    assert {each["renderer_name"] for each in changed["evaluator_builders"]} == {"role_colon"}
    other, _ = await start("recipes.sl_basic", given, "data=JsonlChats", "data.path=c.jsonl")
    assert other["dataset_builder"]["path"] == "c.jsonl"
    first, _ = await start("recipes.rl_basic")
    given = write(first, tmp_path / "rl")
    changed, _ = await start("recipes.rl_basic", given, "groups_per_batch=8", "data.num_batches=5")
    assert changed["dataset_builder"]["groups_per_batch"] == changed["groups_per_batch"] == 8
    assert changed["dataset_builder"]["num_batches"] == 5


async def test_classes_of_this_package_may_have_moved_since(start: Any, tmp_path: Path) -> None:
    first, directory = await start("recipes.rl_basic", "limits.max_turns=3")
    old = {"limits": "rl.limits", "rollout_strategy": "rl.rollout_strategy"}
    there = {
        key: first[key] | {"class": f"tinker_cookbook.{module}:{first[key]['class'].split(':')[1]}"}
        for key, module in old.items()
    }
    assert all(there[key] != first[key] for key in old)
    given = write(first | there, tmp_path / "run")
    assert await start("recipes.rl_basic", given) == (first, directory)


async def test_of_another_recipe_it_is_refused(start: Any, tmp_path: Path) -> None:
    first, _ = await start("recipes.sl_loop")
    given = write(first, tmp_path / "run")
    with pytest.raises(ConfigurationError) as refused:
        await start("recipes.sl_basic", given)
    assert str(refused.value) == (
        f"{given} belongs to a run of sl_loop (recipes.sl_loop:Config), not recipes.sl_basic:CLI;"
        " pass it to that program"
    )


async def test_what_cannot_be_read_back_is_refused_by_name(start: Any, tmp_path: Path) -> None:
    first, _ = await start("recipes.rl_basic")
    signal = {"class": "tinker_cookbook.rl.signals:ReferenceKL", "identity": {"coef": 1.0}}
    given = write(first | {"signals": [signal]}, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"json: signals\.0 is a .*:ReferenceKL .* Python"):
        await start("recipes.rl_basic", given)
    reward = {"class": "tinker_cookbook.rl.signals:GroupReward", "kind": "grpo", "max_tokens": 3}
    given = write(first | {"signals": [reward]}, tmp_path / "run")
    again, _ = await start("recipes.rl_basic", given)
    assert again["signals"] == [reward]
    data = first["dataset_builder"] | {"class": "gone_module:Game"}
    given = write(first | {"dataset_builder": data}, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"dataset_builder is gone_module:Game, .* No mod"):
        await start("recipes.rl_basic", given)
    given = write(first | {"old_key": 1}, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"unknown key 'old_key' in .*config\.json"):
        await start("recipes.rl_basic", given)


async def test_of_an_earlier_version_it_is_refused(start: Any, tmp_path: Path) -> None:
    first, _ = await start("recipes.sl_loop")
    del first["config_class"]
    given = write(first, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"config\.json was written by an earlier version"):
        await start("recipes.sl_loop", given)
