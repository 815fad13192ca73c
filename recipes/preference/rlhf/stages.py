"""The three stages of RLHF, each a run of a loop that exists for its own sake."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.comparison_datasets import (
    ComparisonDatasetBuilder,
    DatasetBuilderFromComparisons,
)
from tinker_cookbook.preference.envs import PairwisePreferenceRLDatasetBuilder
from tinker_cookbook.preference.preference_datasets import ChatDatasetBuilderFromComparisons
from tinker_cookbook.preference.reward_model import (
    RewardDatasetBuilderFromComparisons,
    RewardModelBuilder,
)
from tinker_cookbook.preference.reward_objective import make_reward_objective
from tinker_cookbook.preference.types import (
    PreferenceModelBuilder,
    PreferenceModelBuilderFromChatRenderer,
)
from tinker_cookbook.preference.win_rate import WinRate
from tinker_cookbook.renderers.lengths import NANO_MAX_LENGTH
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.config import KLReferenceConfig
from tinker_cookbook.rl.defaults import Groups
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.service import locate_checkpoint
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.training.run_identity import load_saved_config
from tinker_cookbook.utils.plain_data import CLASS, lasting_name

if TYPE_CHECKING:
    from tinker_cookbook.training.evaluators import EvaluatorBuilder

PreferenceModelKind = Literal["generative", "bradley_terry"]

_REAL_BATCHES = Batches(batch_size=256, max_length=16_384)
_NANO_BATCHES = Batches(batch_size=32, max_length=NANO_MAX_LENGTH)
SFT_DEFAULTS = Defaults(
    nano=ModelDefaults(_NANO_BATCHES, learning_rate=1e-3, renderer_name="qwen3_instruct"),
    others=ModelDefaults(_REAL_BATCHES, learning_rate=2e-4),
    within_context=("max_length",),
)
RM_DEFAULTS = Defaults(
    nano=ModelDefaults(_NANO_BATCHES, learning_rate=1e-3, renderer_name="qwen3_instruct"),
    others=ModelDefaults(_REAL_BATCHES, learning_rate=3e-4),
    within_context=("max_length",),
)
NANO_PROMPTS = 25 * 16  # 25 steps
RL_DEFAULTS = Defaults(
    nano=ModelDefaults(
        Groups(groups_per_batch=16, group_size=8, max_tokens=40),
        learning_rate=1e-3,
        renderer_name="qwen3_instruct",
    ),
    others=ModelDefaults(
        Groups(groups_per_batch=256, group_size=4, max_tokens=1024), learning_rate=1e-5
    ),
)
_TRAINING_DATA: dict[PreferenceModelKind, type[DatasetBuilderFromComparisons]] = {
    "generative": ChatDatasetBuilderFromComparisons,
    "bradley_terry": RewardDatasetBuilderFromComparisons,
}
ResolvedChat = Resolved[ChatConfig, Batches]


@dataclass(frozen=True)
class Policy:
    """Where RL starts: a run directory, a PEFT adapter, or (path=None) the base model."""

    model_name: str
    path: str | None
    base_url: str | None

    @property
    def sampler_path(self) -> str | None:
        if self.path is None:
            return None
        return locate_checkpoint(self.path, "sampler_weights", "sft_path", self.base_url)


def resolve_sft(config: ChatConfig, default_data: ChatDatasetBuilder) -> ResolvedChat:
    return resolve_chat_config(config, SFT_DEFAULTS, default_data)


def resolve_preference_model(
    config: ChatConfig, kind: PreferenceModelKind, comparisons: ComparisonDatasetBuilder
) -> ResolvedChat:
    """Raises ConfigurationError for a renderer that cannot write the labels, too."""
    make = _TRAINING_DATA[kind]
    resolved = resolve_chat_config(config, RM_DEFAULTS, make(comparison_builder=comparisons))
    data = resolved.config.dataset_builder
    if not isinstance(data, make):
        raise ConfigurationError(
            f"rm.dataset_builder={type(data).__name__}: preference_model={kind} is trained on"
            f" {make.__name__}"
        )
    data.make_render()
    return resolved


async def run_preference_model(resolved: ResolvedChat) -> None:
    data = resolved.config.dataset_builder
    make_objective = None
    if isinstance(data, RewardDatasetBuilderFromComparisons):
        make_objective = partial(make_reward_objective, data)
    await sl_train.run(resolved, "rm", make_objective)


def trained_preference_model(
    kind: PreferenceModelKind, model_name: str, path: str, base_url: str | None
) -> PreferenceModelBuilder:
    """The preference model at a path, e.g. the directory of its run."""
    check_kind(kind, path)
    weights = locate_checkpoint(path, "sampler_weights", "rm_path", base_url)
    make = RewardModelBuilder if kind == "bradley_terry" else PreferenceModelBuilderFromChatRenderer
    return make(model_name=model_name, rm_weights_path=weights, base_url=base_url)


def check_kind(kind: PreferenceModelKind, path: str) -> None:
    """Raise ConfigurationError if a run directory holds a preference model of the other kind,
    whose verdicts would be noise. Other paths do not tell the kind."""
    try:
        data = load_saved_config(Path(path).expanduser()).get("dataset_builder")
    except (OSError, ValueError):
        return
    trained_on = lasting_name(data.get(CLASS)) if isinstance(data, dict) else None
    for other, make in _TRAINING_DATA.items():
        if other != kind and trained_on == make.__name__:
            raise ConfigurationError(
                f"preference_model={kind}, but {path} holds one of the other kind: set"
                f" preference_model={other}"
            )


def resolve_rl(
    config: ProblemConfig, judge: PreferenceModelBuilder, comparisons: ComparisonDatasetBuilder
) -> Resolved[ProblemConfig, Groups]:
    data = PairwisePreferenceRLDatasetBuilder(
        comparison_builder=comparisons, preference_model_builder=judge
    )
    resolved = resolve_problem_config(config, RL_DEFAULTS, data)
    rl_train.check_config(resolved.config)
    return resolved


async def run_rl(
    config: ProblemConfig,
    policy: Policy,
    judge: PreferenceModelBuilder,
    comparisons: ComparisonDatasetBuilder,
) -> None:
    """RL from the policy, evaluated by its win rate against it."""
    config = chz.replace(config, load_checkpoint_path=policy.path)
    if config.kl_penalty_coef and config.kl_reference_config is None:
        reference = KLReferenceConfig(
            base_model=policy.model_name, load_checkpoint_path=policy.sampler_path
        )
        config = chz.replace(config, kl_reference_config=reference)
    resolved = resolve_rl(config, judge, comparisons)
    if not config.evaluator_builders:
        evaluators = rl_evaluators(resolved.config, policy, judge, comparisons)
        config = chz.replace(resolved.config, evaluator_builders=evaluators)
        resolved = replace(resolved, config=config)
    await rl_train.run(resolved, recipe="rlhf")


def rl_evaluators(
    config: ProblemConfig,
    policy: Policy,
    judge: PreferenceModelBuilder,
    comparisons: ComparisonDatasetBuilder,
) -> list[EvaluatorBuilder]:
    """The evaluators of the comparisons; their win rate is that against the policy before RL, with
    the judge's own opinion beside it."""
    rendering = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=config.model_name,
        renderer_name=config.renderer_name or "",
        max_length=None,
        batch_size=1,
    )
    builders = comparisons.default_evaluator_builders(rendering)
    rules = [each.judges for each in builders if isinstance(each, WinRate)]
    win_rate = WinRate(
        model_name=config.model_name,
        renderer_name=rendering.renderer_name,
        comparison_builder=comparisons,
        judges={**(rules[0] if rules else {}), "preference_model": judge},
        baseline_path=policy.sampler_path,
        max_tokens=config.max_tokens or 1,
        temperature=config.temperature,
        seed=config.seed,
        base_url=policy.base_url,
    )
    return [*(each for each in builders if not isinstance(each, WinRate)), win_rate]
