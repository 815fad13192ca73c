"""Keys of other tools, in a program that has some of ours and in one that has few."""

from __future__ import annotations

import re

import chz
import pytest

from recipes import rl_basic, rl_loop, sl_basic, sl_loop
from recipes.chat_sl import train as chat_sl
from recipes.math_rl import aime
from recipes.math_rl import train as math_rl
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised.data import JsonlChats
from tinker_cookbook.utils import foreign_keys
from tinker_cookbook.utils.command_line import parameters, parse
from tinker_cookbook.utils.foreign_keys import TABLE, Advice, meaning

PROGRAMS = {
    "sl_basic": (sl_basic.CLI, sl_basic.ALIASES),
    "chat_sl": (chat_sl.CLI, chat_sl.ALIASES),
    "sl_loop": (sl_loop.Config, None),
    "rl_basic": (rl_basic.CLI, rl_basic.ALIASES),
    "math_rl": (math_rl.CLI, math_rl.ALIASES),
    "rl_loop": (rl_loop.Config, None),
    "aime": (aime.CLI, None),
}


def error(program: str, line: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(PROGRAMS[program][0], line.split(), PROGRAMS[program][1])
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("program", "word", "hint"),
    [
        ("sl_basic", "lr=1e-4", "here it is learning_rate="),
        ("sl_basic", "path=x.jsonl", "here it is dataset_path="),
        ("sl_basic", "data=JsonlChats path=x.jsonl", "here it is data.path="),
        ("rl_loop", "path=x", "here it is data_path="),
        ("math_rl", "env=gsm8k path=x", "here it is data.path="),
        ("math_rl", "path=x", "here it is data.path=, e.g. data=own data.path=..."),
        ("math_rl", "epochs=3", "here it is data.num_epochs=, e.g. data=arithmetic "),
        ("sl_basic", "epochs=3", "here it is num_epochs="),
        ("rl_basic", "num_generations=8", "here it is group_size="),
        ("rl_loop", "actor_rollout_ref.rollout.n=8", "here it is group_size="),
        ("sl_loop", "output_dir=x", "here it is log_path="),
        ("sl_loop", "report_to=wandb", "here it is wandb_project="),
        ("chat_sl", "data.train_files=x", "here it is dataset_path="),
        ("chat_sl", "per_device_train_batch_size=2", "here it is batch_size=, the size of a whole"),
        ("rl_basic", "train_batch_size=2", "here it is groups_per_batch=, the size of a whole"),
        ("rl_basic", "beta=0.1", "here it is kl_penalty_coef="),
        ("rl_basic", "+trainer.total_training_steps=9", "here it is max_steps="),
        ("sl_basic", "warmup_ratio=0.1", "there is no warm-up here; drop it"),
        ("rl_loop", "lora_alpha=16", "LoRA's alpha is 32 at any rank here; drop it"),
        ("sl_basic", "gradient_accumulation_steps=4", "a batch is one optimizer step here,"),
        ("math_rl", "epsilon_high=0.2", "here it is loss_fn_config=, e.g. loss_fn=ppo loss_fn_c"),
        # what the program lacks is no hint, nor what looks alike by chance
        ("sl_basic", "num_generations=8", "--help lists the keys"),
        ("sl_loop", "eval_steps=8", "--help lists the keys"),
        ("sl_loop", "eval_every=8", "only the recipes on the library's loops have it, such as"),
        ("sl_basic", "data.eval_every=8", "did you mean 'eval_every'?"),
        ("sl_loop", "kl_coef=8", "--help lists the keys"),
        ("sl_basic", "data=HubChats eval_file=x", "--help lists the keys"),
        # a typo is one as before
        ("sl_basic", "learning_rat=1", "did you mean 'learning_rate'?"),
        ("sl_loop", "lora_rnk=1", "did you mean 'lora_rank'?"),
    ],
)
def test_a_hint_names_what_this_program_has(program: str, word: str, hint: str) -> None:
    said = error(program, word)
    key = word.split()[-1].partition("=")[0]
    assert said.startswith(f"unknown key '{key}'; {hint}")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_hint_can_be_followed(name: str) -> None:
    """Whatever is named for any of the names is a key of that program, or of a class of its own."""
    cls, aliases = PROGRAMS[name]
    known = parameters(chz.Blueprint(cls))
    hints = 0
    for foreign in TABLE:
        if foreign in known or foreign in (aliases or {}):
            continue
        said = error(name, f"{foreign}=x")
        assert said.startswith(f"unknown key '{foreign}'; ")
        for key in re.findall(r"here it is ([\w.]+)=", said):
            hints += 1
            head, dot, rest = key.partition(".")
            long = (aliases or {}).get(head, head)
            if long + dot + rest not in known:
                assert f"e.g. {head}=" in said and known[long].choices
    assert hints > 50


def test_the_table_names_each_once_and_in_one_spelling() -> None:
    names = " ".join(foreign_keys._NAMES.values()).split()
    assert len(names) == len(set(names)) == len(TABLE)
    assert all(re.fullmatch(r"[a-z0-9_.]+", name) for name in names)
    ours = {key for each in TABLE.values() for key in each.keys.split()}
    programs = [parameters(chz.Blueprint(cls)) for cls, _ in PROGRAMS.values()]
    objects = {"dataset_builder.path", "dataset_builder.test_path", "dataset_builder.num_epochs"}
    left = {key for key in ours if not any(key in known for known in programs)} - objects
    assert left == {"dataset_builder.message_field"}


@pytest.mark.parametrize(
    "key", ["lr", "LR", "--lr", "optim.lr", "actor.optim.lr", "++trainer.lr", "Optim.LR"]
)
def test_spellings(key: str) -> None:
    assert meaning(key) == TABLE["lr"]
    assert meaning(key + "x") is None


def test_advice() -> None:
    def spell(key: str) -> str:
        return key.replace("dataset_builder", "data")

    known = {"max_steps": {}, "dataset_builder": {"Jsonl": JsonlChats}}
    assert str(foreign_keys.advice("max-iters", known, spell)) == "here it is max_steps="
    assert foreign_keys.advice("path", known, spell) == Advice(
        "data.path", "", "data=Jsonl data.path=..."
    )
    assert foreign_keys.advice("lr", known, spell) is None
    assert foreign_keys.advice("unheard_of", known, spell) is None
