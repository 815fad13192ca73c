"""The tables of docs/algorithms.md, from what the code says.

    .venv/bin/python scripts/build_algorithms_page.py

Prose and formulas are written by hand. tests/algorithms_page_test.py fails where a table is not
what this writes, or where a loss, an advantage or a key has no place on the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin

import chz
import numpy as np

from recipes import rl_basic, sl_basic
from recipes.chat_sl import train as chat_sl
from recipes.math_rl import train as math_rl
from recipes.preference.dpo import train as dpo
from recipes.sdft import train as sdft_recipe
from tinker_cookbook.distillation import sdft
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.distillation.train_off_policy import DEFAULTS as OFF_POLICY
from tinker_cookbook.engine.losses import LOSSES
from tinker_cookbook.hyperparam_utils import NANO_LR
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.rl import train as rl
from tinker_cookbook.rl.config import LossName
from tinker_cookbook.rl.defaults import LEARNING_RATE, RL_DEFAULTS
from tinker_cookbook.rl.signals import AdvantageKind, group_advantages
from tinker_cookbook.sequences import Reduction, to_datum
from tinker_cookbook.sequences import Sequence as TokenSequence
from tinker_cookbook.supervised import train as supervised
from tinker_cookbook.supervised.defaults import SL_DEFAULTS
from tinker_cookbook.training.fields import range_of
from tinker_cookbook.utils.lr_scheduling import LRSchedule, compute_schedule_lr_multiplier

PAGE = Path(__file__).parent.parent / "docs" / "algorithms.md"

LOSS_RANGES = {  # of the keys of loss_fn_config; the test tries them on `get_loss`
    "clip_low_threshold": "0 or more, at most `clip_high_threshold`",
    "clip_high_threshold": "`clip_low_threshold` or more",
    "beta": "any finite number",
    "temperature": "1e-4 or more",
}

# Keys of the training loops by the table that has them; all others decide about the run's data,
# evaluations, checkpoints or display.
KEYS = {
    "advantage_keys": ("advantage", "remove_constant_reward_groups", "signals"),
    "kl_keys": (
        "kl_penalty_coef",
        "kl_discount_factor",
        "kl_reference_config",
        "compute_post_kl",
    ),
    "off_policy_keys": (
        "loss_fn",
        "loss_fn_config",
        "temperature",
        "max_lag",
        "num_substeps",
        "num_minibatches",
        "groups_at_a_time",
        "async_config",
        "stream_minibatch_config",
        "max_logprob_gap",
    ),
    "preference_keys": (
        "loss",
        "dpo_beta",
        "label_smoothing",
        "simpo_gamma",
        "desirable_weight",
        "undesirable_weight",
    ),
    "self_distillation_keys": (
        "topk",
        "skip_first_tokens",
        "reverse",
        "teacher_sync_every",
        "group_size",
    ),
    "optimizer_keys": (
        "learning_rate",
        "lr_schedule",
        "max_steps",
        "num_epochs",
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "weight_decay",
        "grad_clip_norm",
    ),
    "lora_keys": ("lora_rank", "train_attn", "train_mlp", "train_unembed", "seed"),
}
METHODS = {  # config of the loop, and of a recipe without keys, for their defaults
    "supervised": (supervised.Config, sl_basic.CLI()),
    "reinforcement learning": (rl.Config, rl_basic.CLI()),
    "preference": (train_dpo.Config, dpo.CLI()),
    "self-distillation": (sdft.Config, sdft_recipe.CLI()),
}
REWARDS, TOKENS, MAX_TOKENS = (1.0, 0.0, 0.0, 0.0), (10, 20, 20, 20), 40
STEPS = (0, 25, 50, 75, 99)  # of 100


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    lines = [re.sub(r"\|  (?=\|)", "| ", line) for line in lines]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def code(value: object) -> str:
    return f"`{value:g}`" if type(value) is float else f"`{value}`"


def losses() -> str:
    in_loop = {*get_args(LossName), "cross_entropy"}
    assert set(LOSSES) == in_loop, "a loss that no loop takes: the page has to say so"
    return table(
        ("`loss_fn`", "inputs beside `target_tokens`", "optional inputs", "gradient of a token"),
        (
            (
                f"[`{name}`](#{name})",
                ", ".join(map(code, loss.inputs)),
                ", ".join(map(code, loss.optional)),
                "depends on it alone" if loss.elementwise else "depends on its whole sequence",
            )
            for name, loss in LOSSES.items()
        ),
    )


def loss_settings() -> str:
    return table(
        ("`loss_fn`", "key of `loss_fn_config`", "default", "range"),
        (
            (code(name), code(key), code(default), LOSS_RANGES[key])
            for name, loss in LOSSES.items()
            for key, default in {**loss.config, "temperature": loss.temperature}.items()
        ),
    )


def advantages() -> str:
    default = rl_basic.CLI().advantage
    return table(
        ("`advantage`", "default", "the example"),
        (
            (
                f"[`{kind}`](#{kind})",
                "yes" if kind == default else "",
                ", ".join(
                    f"{each:.4g}" for each in group_advantages(REWARDS, kind, TOKENS, MAX_TOKENS)
                ),
            )
            for kind in get_args(AdvantageKind)
        ),
    )


def keys(name: str) -> str:
    return table(("key", "default", "range"), (_key(key) for key in KEYS[name]))


def _key(key: str) -> tuple[str, str, str]:
    loops = {
        method: (config, default)
        for method, (config, default) in METHODS.items()
        if key in chz.chz_fields(config)
    }
    defaults = {method: _default(getattr(default, key)) for method, (_, default) in loops.items()}
    if len(set(defaults.values())) == 1:
        shown = next(iter(defaults.values()))
    else:
        shown = ", ".join(f"{value} ({method})" for method, value in defaults.items())
    config = next(iter(loops.values()))[0]
    return code(key), shown, _range(config, key)


def _default(value: object) -> str:
    return "none" if value == [] else code(value)


def _range(config: type, key: str) -> str:
    """What the key takes, in words: its declared range, its choices or its type."""
    if (declared := range_of(config, key)) is not None:
        return declared.expected
    annotation = chz.chz_fields(config)[key].x_type
    if get_origin(annotation) is Literal:
        return ", ".join(map(code, get_args(annotation)))
    if annotation is bool:
        return "`True`, `False`"
    if get_origin(annotation) is UnionType:
        annotation = next(each for each in get_args(annotation) if each is not NoneType)
    fields = chz.chz_fields(annotation) if chz.is_chz(annotation) else ()
    return (
        ", ".join(f"`{key}.{name}`" for name in fields)
        or {
            "loss_fn_config": "keys of the loss, see above",
            "signals": "objects of your own, in Python",
        }[key]
    )


def reductions() -> str:
    def weights(reduction: Reduction) -> str:
        sequence = TokenSequence([1, 2, 3, 4], [0, 0, 1, 1])
        inputs = to_datum(sequence, reduction=reduction).loss_fn_inputs
        return ", ".join(f"{each:g}" for each in np.asarray(inputs["weights"].to_numpy()))

    return table(
        ("`reduction`", "weights of the three targets", "where"),
        ((code(each), weights(each), REDUCTIONS[each]) for each in sorted(get_args(Reduction))),
    )


REDUCTIONS: dict[Reduction, str] = {
    "mean": "all data sets and recipes; default of `conversation_to_datum`",
    "none": "preference data; default of `to_datum` and `datum_from_model_input_weights`",
}


def schedules() -> str:
    return table(
        ("`lr_schedule`", *(f"s = {step}" for step in STEPS)),
        (
            (
                code(each),
                *(f"{compute_schedule_lr_multiplier(each, step, 100):.3g}" for step in STEPS),
            )
            for each in get_args(LRSchedule)
        ),
    )


def learning_rates() -> str:
    nano_rl = RL_DEFAULTS.nano.learning_rate
    assert SL_DEFAULTS.others.learning_rate is None, "the formula"
    assert (
        math_rl.DEFAULTS.others.learning_rate == RL_DEFAULTS.others.learning_rate == LEARNING_RATE
    )
    return table(
        ("method", "nano", "other models"),
        (
            ("supervised", code(NANO_LR), "the formula"),
            ("reinforcement learning", code(nano_rl), code(LEARNING_RATE)),
            (
                "preference",
                *(code(each.learning_rate) for each in (DPO_DEFAULTS.nano, DPO_DEFAULTS.others)),
            ),
            (
                "off-policy distillation",
                *(code(each.learning_rate) for each in (OFF_POLICY.nano, OFF_POLICY.others)),
            ),
            (
                "self-distillation",
                *(code(each.learning_rate) for each in (SDFT_DEFAULTS.nano, SDFT_DEFAULTS.others)),
            ),
        ),
    )


def batches() -> str:
    columns = ("batch_size", "max_length", "groups_per_batch", "group_size", "max_tokens")
    methods = {
        "nano, supervised": SL_DEFAULTS.nano,
        "supervised": SL_DEFAULTS.others,
        "`chat_sl`": chat_sl.DEFAULTS.others,
        "preference (pairs)": DPO_DEFAULTS.others,
        "off-policy distillation": OFF_POLICY.others,
        "nano, self-distillation": SDFT_DEFAULTS.nano,
        "self-distillation": SDFT_DEFAULTS.others,
        "nano, reinforcement learning": RL_DEFAULTS.nano,
        "reinforcement learning": RL_DEFAULTS.others,
        "`math_rl`": math_rl.DEFAULTS.others,
    }
    return table(
        ("", *map(code, columns)),
        (
            (
                name,
                *(
                    f"{getattr(of.sizes, key, ''):,}" if hasattr(of.sizes, key) else ""
                    for key in columns
                ),
            )
            for name, of in methods.items()
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "loss_settings": loss_settings,
    "advantages": advantages,
    "reductions": reductions,
    "schedules": schedules,
    "learning_rates": learning_rates,
    "batches": batches,
    **{name: lambda name=name: keys(name) for name in KEYS},
}


def page(text: str) -> str:
    """The page with every table between `<!-- NAME -->` and `<!-- end -->` written anew."""

    def written(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", written, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(PAGE.parent.parent)}: {len(TABLES)} tables")
