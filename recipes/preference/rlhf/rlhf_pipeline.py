"""RLHF in three stages: supervised fine-tuning, a preference model, RL with pairwise rewards.

    ./scripts/run recipes.preference.rlhf.rlhf_pipeline                         nano, polite replies
    ./scripts/run recipes.preference.rlhf.rlhf_pipeline preference_model=bradley_terry
    ./scripts/run recipes.preference.rlhf.rlhf_pipeline rl.kl_penalty_coef=0.1
    ./scripts/run recipes.preference.rlhf.rlhf_pipeline run_sft=False run_rm=False log_path=DIR
    ./scripts/run recipes.preference.rlhf.rlhf_pipeline judge=StyleJudgeBuilder ...preference=polite
    ./scripts/run recipes.preference.rlhf.rlhf_pipeline config=configs/rlhf/qwen3-8b-1xh100.yaml

The stages are runs of their own in log_path/sft, log_path/rm and log_path/rl, with the keys of
their loops under sft., rm. and rl., e.g. rl.learning_rate; `...lora_rank=64` sets a key in all of
them. The same command skips the stages that are finished and resumes the one that is not.

Without keys, nano learns to reply in friendly sentences; seeds 0, 1 and 2 (29 November 2026, 2 CPU
cores, one thread: 3 to 4 minutes of CPU time). Held out: 128 pairs, 128 sums.

| | generative | bradley_terry |
|---|---|---|
| accuracy of the preference model | 0.5 -> 1.00, 1.00, 1.00 | 0.77 -> 1.00, 1.00, 1.00 |
| polite replies, before and after RL | 0.09 -> 0.93, 0.99, 0.90 | 0.09 -> 0.99, 0.99, 0.99 |
| win rate against SFT, by the rule | 0.92, 0.95, 0.91 | 0.95, 0.96, 0.97 |
| by the preference model | 0.94, 0.97, 0.95 | 0.95, 0.96, 0.97 |
| right numbers, before and after RL | 0.75 -> 0.23, 0.35, 0.13 | 0.75 -> 0.13, 0.31, 0.52 |

The preference model does not ask for a right number. With rl.kl_penalty_coef=0.1 and the generative
model the policy keeps it (0.70, 0.72, 0.72), with 0.99 of the replies polite: README.md.
"""

from __future__ import annotations

from pathlib import Path

import chz

from recipes.preference.datasets import NanoPairs, NanoReplies, comparisons_of
from recipes.preference.rlhf import stages
from recipes.preference.rlhf.stages import Policy, PreferenceModelKind
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference import prompted_judge  # noqa: F401 (a class for judge=)
from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder
from tinker_cookbook.preference.types import PreferenceModelBuilder
from tinker_cookbook.rl.problem_config import ProblemConfig
from tinker_cookbook.service import locate_checkpoint
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.supervised.chat_config import ChatConfig
from tinker_cookbook.supervised.data import NoRobots
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.training.config import ProgramConfig
from tinker_cookbook.training.fields import MAY_CHANGE
from tinker_cookbook.training.stages import (
    check_not_continued,
    check_same_adapter,
    errors_of,
    last_metrics,
    open_program,
    program_directory,
    result_of_stage,
    run_stage,
    stage_config,
)

RECIPE = "rlhf"
# the Tinker cookbook's names
ALIASES = {
    "base_model": "model_name",
    "sft_learning_rate": "sft.learning_rate",
    "rm_learning_rate": "rm.learning_rate",
    "rl_learning_rate": "rl.learning_rate",
    "rl_max_tokens": "rl.max_tokens",
    "rl_group_size": "rl.group_size",
}
FIRST_KEYS = (
    "model_name",
    "dataset",
    "preference_model",
    "judge",
    "run_sft",
    "run_rm",
    "run_rl",
    "sft.learning_rate",
    "rm.learning_rate",
    "rl.learning_rate",
    "rl.kl_penalty_coef",
    "max_steps",
    "log_path",
)


@chz.chz
class CLI(ProgramConfig):
    dataset: str | None = chz.field(
        default=None,
        doc="comparisons: hhh, helpsteer3, ultrafeedback, nano_pairs, a file, a directory or a hub"
        " data set (None: nano_pairs for nano, else hhh)",
    )
    comparisons: ComparisonDatasetBuilder | None = chz.field(
        default=None,
        doc="comparisons by class, e.g. comparisons=NanoPairs comparisons.preference=short",
    )
    preference_model: PreferenceModelKind = chz.field(
        default="generative",
        doc="generative: reads both replies and writes A or B; bradley_terry: scores one reply",
    )
    judge: PreferenceModelBuilder | None = chz.field(
        default=None,
        doc="judge in place of a trained preference model, e.g."
        " judge=PromptedPreferenceModelBuilder judge.model_name=... judge.criteria=...",
    )
    run_sft: bool = chz.field(
        default=True, doc="run the stage of supervised fine-tuning", metadata=MAY_CHANGE
    )
    run_rm: bool = chz.field(
        default=True, doc="run the stage of the preference model", metadata=MAY_CHANGE
    )
    run_rl: bool = chz.field(default=True, doc="run the RL stage", metadata=MAY_CHANGE)
    sft_path: str | None = chz.field(
        default=None,
        doc="policy to start RL from with run_sft=False: a run directory or a PEFT adapter"
        " directory (None: that in log_path/sft, else the base model)",
    )
    rm_path: str | None = chz.field(
        default=None,
        doc="preference model with run_rm=False: a run directory, a tinker:// path or a PEFT"
        " adapter directory (None: that in log_path/rm)",
    )
    sft: ChatConfig = chz.field(default_factory=ChatConfig, doc="supervised fine-tuning")
    rm: ChatConfig = chz.field(default_factory=ChatConfig, doc="training of the preference model")
    rl: ProblemConfig = chz.field(default_factory=ProblemConfig, doc="reinforcement learning")

    @chz.validate
    def _check_combinations(self) -> None:
        if self.dataset and self.comparisons:
            raise ConfigurationError(
                f"dataset={self.dataset} and comparisons= both name the data: drop either"
            )
        for key, stage in (("sft_path", "run_sft"), ("rm_path", "run_rm")):
            if getattr(self, key) and getattr(self, stage):
                raise ConfigurationError(
                    f"{key}={getattr(self, key)} has no effect with {stage}=True: set {stage}=False"
                )
        for stage in ("rm", "rl"):
            if path := getattr(self, stage).load_checkpoint_path:
                raise ConfigurationError(
                    f"{stage}.load_checkpoint_path={path}: the preference model starts from the"
                    " base model and RL from the SFT stage; drop it, or set run_sft=False and"
                    " sft_path="
                )
        if not (self.run_sft or self.run_rm or self.run_rl):
            raise ConfigurationError("run_sft, run_rm and run_rl are False: nothing is left to run")
        if self.rm_path and self.judge:
            raise ConfigurationError(
                f"rm_path={self.rm_path} and judge= both name the preference model: drop either"
            )
        if self.judge and self.preference_model != "generative":
            raise ConfigurationError(
                f"preference_model={self.preference_model} has no effect with judge=: drop either"
            )
        if self.run_sft and self.run_rl:
            check_same_adapter("rl", self.rl, "sft", self.sft)
        if self.rl.dataset_builder is not None:
            raise ConfigurationError(
                f"rl.dataset_builder={type(self.rl.dataset_builder).__name__}: RL replies to the"
                " prompts of the comparisons and is rewarded by the preference model; set"
                " comparisons= and judge= instead"
            )

    def comparisons_or_default(self) -> ComparisonDatasetBuilder:
        name = self.dataset or ("nano_pairs" if self.model_name == "nano" else "hhh")
        return self.comparisons or comparisons_of(name)

    def prompts(self) -> ComparisonDatasetBuilder:
        """The comparisons whose prompts the policy replies to."""
        comparisons = self.comparisons_or_default()
        if self.comparisons is None and isinstance(comparisons, NanoPairs):
            return chz.replace(comparisons, num_train=stages.NANO_PROMPTS)
        return comparisons


async def main(config: CLI) -> None:
    directory = program_directory(config, RECIPE)
    sft = stage_config(config, "sft", config.sft, directory)
    rm = stage_config(config, "rm", config.rm, directory)
    rl = stage_config(config, "rl", config.rl, directory)
    comparisons = config.comparisons_or_default()
    train_rm = config.run_rm and config.judge is None
    # Resolve the stages before the first one runs: a mistake in the last should not show hours
    # later.
    sft_run = rm_run = None
    if config.run_sft:
        with errors_of("sft"):
            sft_run = stages.resolve_sft(sft, default_conversations(config))
    if train_rm:
        with errors_of("rm"):
            rm_run = stages.resolve_preference_model(rm, config.preference_model, comparisons)
    for name, resolved in (("sft", sft_run), ("rm", rm_run)):
        if resolved is not None:
            check_not_continued(directory, name, resolved.config, "rl")
    with errors_of("rl"):
        stages.resolve_rl(rl, config.judge or PreferenceModelBuilder(), config.prompts())
    if train_rm or config.run_rl:
        comparisons.open_splits()
    if config.run_rl and not train_rm:
        judge_of(config, directory)
    if config.run_rl and not config.run_sft:
        start_of_policy(config, directory)
    if config.sft_path is not None:
        locate_checkpoint(config.sft_path, "weights", "sft_path", config.base_url)
    with open_program(config, RECIPE):
        if sft_run is not None:
            title = f"supervised fine-tuning in {sft.log_path}"
            await run_stage(title, sl_train.run(sft_run, recipe="sft"))
        if rm_run is not None:
            title = f"preference model ({config.preference_model}) in {rm.log_path}"
            await run_stage(title, stages.run_preference_model(rm_run))
        if config.run_rl:
            policy, judge = start_of_policy(config, directory), judge_of(config, directory)
            start = policy.path or f"the base model {config.model_name}"
            title = f"reinforcement learning in {rl.log_path}, from {start}"
            await run_stage(title, stages.run_rl(rl, policy, judge, config.prompts()))
            rm_directory = None if config.judge else Path(config.rm_path or directory / "rm")
            for line in summary_lines(directory / "rl", rm_directory):
                print(line)


def summary_lines(policy: Path, preference_model: Path | None) -> list[str]:
    """The results of a finished pipeline, and what to do with the policy.

    The directories of their runs; preference_model: None for a judge that was not trained.
    """
    accuracy = {}
    if preference_model is not None:
        accuracy = last_metrics(preference_model, "test/preference_accuracy")
    lines = [
        f"preference model: {value:.3f} of the held-out verdicts right"
        for value in accuracy.values()
    ]
    rates = last_metrics(policy, "win_rate/")
    for name in (name for name in rates if not name.endswith("/stderr")):
        rate, error = rates[name], rates[f"{name}/stderr"]
        lines.append(
            f"policy: win rate {rate:.3f} ± {error:.3f} against the policy before RL, judged by"
            f" {name.removeprefix('win_rate/')}"
        )
    return [
        *lines,
        f"replies: {policy}/iteration_*/train.html; the policy is {policy}: load_checkpoint_path="
        " of another recipe trains it further, model_path= of a judge or an evaluation samples from"
        " it",
    ]


def default_conversations(config: CLI) -> ChatDatasetBuilder:
    if config.model_name != "nano":
        return NoRobots()
    comparisons = config.comparisons_or_default()
    is_nanos = isinstance(comparisons, NanoPairs)
    return NanoReplies(preference=comparisons.preference) if is_nanos else NanoReplies()


def start_of_policy(config: CLI, directory: Path) -> Policy:
    path = config.sft_path or result_of_stage(directory, "sft")
    return Policy(config.model_name, path, config.base_url)


def judge_of(config: CLI, directory: Path) -> PreferenceModelBuilder:
    if config.judge is not None:
        return config.judge
    path = config.rm_path or result_of_stage(directory, "rm")
    if path is None:
        raise ConfigurationError(
            f"run_rm=False, and {directory / 'rm'} holds no finished run: set rm_path=, judge= or"
            " run_rm=True"
        )
    kind = config.preference_model
    return stages.trained_preference_model(kind, config.model_name, path, config.base_url)


CLIConfig = CLI  # the Tinker cookbook's name

if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
