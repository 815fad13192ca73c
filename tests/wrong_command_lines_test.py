"""Command lines that are wrong in every way we know of: each gets one line that leads on."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from recipes import rl_loop, sl_basic, sl_loop
from recipes.math_rl import aime
from recipes.math_rl import train as math_rl
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.evaluations import Evaluations
from tinker_cookbook.utils.data_files import open_rows

FILES = {
    "own.py": "class Mine:\n    pass\n",
    "broken.py": "x = 1\ndef (:\n",
    "two.yaml": "max_steps: 1\n---\nseed: 2\n",
    "unclosed.yaml": "max_steps: [1\n",
    "tab.yaml": "max_steps: 3\n\tseed: 1\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "list.yaml": "- a\n",
    "foreign.yaml": "lr: 1e-4\n",
    "nested.yaml": "model_name: {a: 1}\n",
    "no_class.yaml": "data: {path: x.jsonl}\n",
    "quote.yaml": 'log_path: "x\n',
    "empty_value.yaml": 'dataset_path: ""\n',
    "rows.jsonl": "{}\n",
}
PROGRAMS = {
    "sl_basic": (sl_basic.CLI, sl_basic.ALIASES),
    "sl_loop": (sl_loop.Config, None),
    "rl_loop": (rl_loop.Config, None),
    "math_rl": (math_rl.CLI, math_rl.ALIASES),
    "aime": (aime.CLI, None),
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # typos
        ("sl_basic learning_rat=1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("sl_basic SEED=3", "unknown key 'SEED'; did you mean 'seed'?"),
        ("sl_basic max-steps=3", "unknown key 'max-steps'; did you mean 'max_steps'?"),
        ("sl_basic 'seed = 3'", "unknown key 'seed '; did you mean 'seed'?"),
        ("sl_basic seed.x=3", "unknown key 'seed.x'; seed is a value, without keys of its own"),
        ("sl_basic seed.=3", "'seed.=3': the name of a key is missing after the dot"),
        ("sl_basic ...=3", "'...=3': the name of a key is missing after the dot"),
        # values
        ("sl_basic num_epochs=three", "num_epochs='three': expected int or None"),
        ("sl_basic num_epochs=", "num_epochs='': expected int or None"),
        ("sl_basic train_attn=yes", "train_attn='yes': expected True or False"),
        ("sl_basic lr_schedule=Linear", "lr_schedule='Linear': expected linear or cosine or const"),
        ("sl_basic engine=cpu", "engine='cpu': it has keys of its own instead, such as engine.dev"),
        ("math_rl limits=5", "limits='5': it has keys of its own instead, such as limits.max_turn"),
        (
            "math_rl kl_reference_config=Qwen/Qwen3-8B",
            "kl_reference_config='Qwen/Qwen3-8B': it has keys of its own instead, such as"
            " kl_reference_config.base_model=",
        ),
        (
            "math_rl loss_fn_config.clip_high_threshold=high",
            "loss_fn_config.clip_high_threshold='high': expected float",
        ),
        ("math_rl loss_fn_config=x", "loss_fn_config='x': expected dict[str, float] or None"),
        ("sl_basic evaluator_builders=x", "evaluator_builders='x': expected module:function, or s"),
        (
            "aime year=2023",
            "year='2023': expected 2024 or 2025 or 2026, or several",
        ),
        ("aime k=x", "k='x': expected int, or several separated by commas"),
        ("sl_basic seed@=nope", "Invalid reference target 'nope' for param seed"),
        ("sl_basic seed@=max_steps", "'max_steps': a key@= needs a key with a value"),
        # nothing where a text is expected, as an unset variable of a shell leaves it
        ("sl_basic dataset_path=", "dataset_path= is empty; give a value, or leave the key out"),
        ("sl_basic model_name=", "model_name= is empty; give a value, or leave the key out"),
        ("sl_basic data=JsonlChats data.path=", "data.path= is empty; give a value, or leave"),
        ("math_rl env=gsm8k env.path=", "env.path= is empty; give a value, or leave the key out"),
        ("rl_loop wandb_project=", "wandb_project= is empty; give a value, or leave the key out"),
        ("sl_basic ...renderer_name=", "...renderer_name= is empty; give a value, or leave"),
        ("sl_basic config=empty_value.yaml", "dataset_path= is empty in empty_value.yaml; give a"),
        ("sl_basic config=", "config= is empty; give a YAML file of keys"),
        # classes
        ("sl_basic data=JsonChats", "data='JsonChats': expected ChatDatasetBuilder or "),
        ("math_rl env=gsm9k", "env='gsm9k': expected arithmetic or word_problems or "),
        (
            "math_rl env=own:Mine",
            "env='own:Mine': expected arithmetic or word_problems or gsm8k or math or polaris or"
            " deepmath or own, or module:name of another RLDatasetBuilder",
        ),
        ("sl_basic data=own:Other", "data='own:Other': module 'own' has no 'Other'"),
        ("sl_basic data=broken:X", "{directory}/broken.py:2: SyntaxError: invalid syntax"),
        ("sl_basic data=absent:X", "data='absent:X': no module 'absent' in the working directory"),
        ("sl_basic data=JsonlChats", "missing data.path; --help says what to give"),
        ("sl_basic data.path=x.jsonl", "data.path=x.jsonl: data= must name a class first, e.g."),
        ("math_rl env=gsm8k data=math", "env=gsm8k and data=math are two names of one key: give"),
        # files of keys
        (
            "sl_basic config=absent.yaml",
            "config=absent.yaml cannot be read: No such file or direct",
        ),
        ("sl_basic config=folder", "config=folder cannot be read: Is a directory"),
        ("sl_basic config=unclosed.yaml", "unclosed.yaml:2 is not YAML: expected ',' or ']', but "),
        ("sl_basic config=quote.yaml", "quote.yaml:2 is not YAML: found unexpected end of stream"),
        ("sl_basic config=tab.yaml", "tab.yaml:2 is not YAML: found character "),
        ("sl_basic config=twice.yaml", "twice.yaml:2 is not YAML: key 'seed' twice"),
        ("sl_basic config=two.yaml", "two.yaml:2 is not YAML: expected a single document in the "),
        ("sl_basic config=list.yaml", "list.yaml must hold keys and values, but holds a list"),
        ("sl_basic config=foreign.yaml", "unknown key 'lr' in foreign.yaml; here it is learning_r"),
        (
            "sl_basic config=nested.yaml",
            "unknown key 'model_name.a' in nested.yaml; model_name is ",
        ),
        ("sl_basic config=no_class.yaml", "data.path=x.jsonl in no_class.yaml: data= must name a "),
        ("sl_basic config=a.yaml config=b.yaml", "config= is given twice (a.yaml, b.yaml); give "),
    ],
)
def test_one_line(directory: Path, line: str, said: str) -> None:
    program, *words = shlex.split(line)
    with pytest.raises(ConfigurationError) as caught:
        parse(PROGRAMS[program][0], words, PROGRAMS[program][1])
    text = str(caught.value)
    assert text.startswith(said.format(directory=directory)) and "\n" not in text


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("sl_basic evaluator_builders=", []),
        ("aime k=", []),
        ("math_rl loss_fn_config=", {}),
        ("sl_basic load_checkpoint_path=None", None),
    ],
)
def test_nothing_is_an_empty_list_or_mapping(line: str, value: object) -> None:
    program, word = line.split()
    config = parse(PROGRAMS[program][0], [word], PROGRAMS[program][1])
    assert getattr(config, word.partition("=")[0]) == value


def test_the_class_that_an_example_names_leads_on(directory: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(sl_basic.CLI, ["data.path=rows.jsonl"], sl_basic.ALIASES)
    words = str(caught.value).partition("e.g. ")[2].split()
    # which class depends on the classes that other tests have imported
    assert words[0].startswith("data=") and words[1:] == ["data.path=rows.jsonl"]
    assert parse(sl_basic.CLI, words, sl_basic.ALIASES).dataset_builder is not None


async def test_data_that_nano_does_not_read() -> None:
    with pytest.raises(ConfigurationError, match=r"^data_path=x: nano only adds"):
        await rl_loop.main(rl_loop.Config(data_path="x"))


def test_a_file_that_is_absent_is_looked_for_on_no_hub(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^path=row\.jsonl: no such file; there is rows"):
        open_rows("row.jsonl")


def test_what_is_no_evaluator() -> None:
    with pytest.raises(ConfigurationError, match="evaluator_builders: object is not an evaluator"):
        Evaluations([(1, [object()])], None)  # type: ignore[list-item, arg-type]
