"""What a run may go on with, changed: exact names of each loop, and never a pattern."""

import chz
import pytest

from recipes import rl_basic, rl_loop, sl_basic, sl_loop
from recipes.chat_sl import train as chat_sl
from recipes.math_rl import aime
from recipes.math_rl import train as math_rl
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.supervised.types import SupervisedDatasetBuilder
from tinker_cookbook.training.run_identity import changeable_keys

OF_ALL = {
    *("max_steps", "num_epochs", "evaluator_builders", "infrequent_evaluator_builders"),
    *("eval_every", "infrequent_eval_every", "save_every", "rolling_save_every", "ttl_seconds"),
    *("engine", "display", "wandb_project", "wandb_name"),
    *("log_path", "behavior_if_log_dir_exists"),
}
OF_SL = {"submit_ahead", "sample_replies"}
OF_RL = {
    *("max_logprob_gap", "compute_post_kl", "eval_greedy", "groups_at_a_time"),
    *("transcripts_every", "limits.env_timeout", "limits.sample_timeout"),
}


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (sl_train.Config(dataset_builder=SupervisedDatasetBuilder()), OF_SL),
        (sl_basic.CLI(), OF_SL),
        (chat_sl.CLI(), OF_SL | {"inline_evals", "inspect_tasks", "inspect_limit"}),
        (sl_loop.Config(), set()),
        (rl_train.Config(dataset_builder=RLDatasetBuilder()), OF_RL),
        (rl_basic.CLI(), OF_RL),
        (math_rl.CLI(), OF_RL),
        (rl_loop.Config(), set()),
        (aime.CLI(), set()),
    ],
    ids=lambda each: type(each).__module__ if chz.is_chz(each) else "",
)
def test_of_each_loop(config: type, own: set[str]) -> None:
    assert changeable_keys(config) == OF_ALL | own
    for name in own:
        held = config
        for key in name.split("."):
            assert key in chz.chz_fields(held)
            held = getattr(held, key)


def test_each_name_of_all_loops_is_a_key_of_the_supervised_loop() -> None:
    assert set(chz.chz_fields(sl_train.Config)) >= OF_ALL


@chz.chz
class WithTeacher(rl_basic.CLI):
    teacher_sync_every: int = 10
    eval_every: int = chz.field(default=7, doc="another default")


def test_a_name_that_looks_alike_may_not_change() -> None:
    assert changeable_keys(WithTeacher()) == OF_ALL | OF_RL
