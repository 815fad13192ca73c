"""Words that are not key=value, as other tools' command lines have them."""

from __future__ import annotations

import shlex

import pytest

from recipes import sl_basic
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.command_line import parse


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--max-steps=10", "'--max-steps=10': write max_steps=10 without hyphens"),
        ("--max_steps 10", "'--max_steps 10': write max_steps=10"),
        ("seed=1 --lr 1e-4 lora_rank=2", "'--lr 1e-4': write learning_rate=1e-4"),
        ("--lr=1e-4", "'--lr=1e-4': write learning_rate=1e-4 without hyphens"),
        ("-lr 1e-4", "'-lr 1e-4': write learning_rate=1e-4"),
        ("--lr -1", "'--lr -1': write learning_rate=-1"),
        ("lr = 1e-4", "'lr = 1e-4': write learning_rate=1e-4 without spaces"),
        ("max_steps = 10", "'max_steps = 10': write max_steps=10 without spaces"),
        ("max_steps =10", "'max_steps =10': write max_steps=10 without spaces"),
        ("max_steps= 10", "'max_steps= 10': write max_steps=10 without spaces"),
        ("max_steps 10", "'max_steps 10': write max_steps=10"),
        ("max_steps", "'max_steps': write max_steps=..."),
        ("--train-attn", "'--train-attn': write train_attn=True"),
        ("--train-attn lora_rank=8", "'--train-attn': write train_attn=True"),
        ("--no-train-attn", "'--no-train-attn': write train_attn=False"),
        ("--config a.yaml", "'--config a.yaml': write config=a.yaml"),
        ("data=JsonlChats --data.path x", "'--data.path x': write data.path=x"),
        ("--bf16 --lr 1", "'--bf16': here it is engine.dtype=, which is bfloat16 or float32"),
        (
            "--report-to none",
            "'--report-to none': here it is wandb_project=, the name of a project",
        ),
        ("--lora-alpha 16", "'--lora-alpha 16': LoRA's alpha is 32 at any rank here; drop it"),
        ("--learning-rat 3", "'--learning-rat 3': did you mean learning_rate=3?"),
        ("--unheard-of 3", "'--unheard-of 3' is not key=value; --help lists the keys"),
        ("--num-generations 8", "'--num-generations 8' is not key=value; --help lists the keys"),
        ("words", "'words' is not key=value; --help lists the keys"),
        ("'two words'", "'two words' is not key=value; --help lists the keys"),
        ("=3", "'=3' is not key=value; --help lists the keys"),
        ("seed=1 =3", "'=3' is not key=value; --help lists the keys"),
        ("=", "'=' is not key=value; --help lists the keys"),
        ("''", "'' is not key=value; --help lists the keys"),
        ("-", "'-' is not key=value; --help lists the keys"),
        ("--", "'--' is not key=value; --help lists the keys"),
        ("--=", "'--=' is not key=value; --help lists the keys"),
    ],
)
def test_what_to_write_instead(line: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(sl_basic.CLI, shlex.split(line), sl_basic.ALIASES)
    assert str(caught.value) == said
