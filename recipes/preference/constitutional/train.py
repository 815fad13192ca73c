"""Constitutional AI (Bai et al. 2022, arXiv 2212.08073): train a model on its own revisions.

    ./scripts/run recipes.preference.constitutional.train
    ./scripts/run recipes.preference.constitutional.train principles=FILE.txt prompts=FILE.jsonl
    ./scripts/run recipes.preference.constitutional.train model_name=Qwen/Qwen3-8B-Base

Four stages in one run directory; a stage that is complete is skipped, one that was stopped resumes:

    revisions.jsonl     replies to prompts, each criticized under a principle and revised
    sft/                supervised fine-tuning on the last revisions
    comparisons.jsonl   two replies of that model to each prompt, judged under a principle
    dpo/                DPO on these comparisons, from the weights of sft/

run_revisions, run_sft, run_judge and run_dpo=False leave a stage out; later stages then use the
files that are there, and the start model if sft/ is not finished. README.md: principles, prompts,
base and instruct models, and what a model of 135 million parameters makes of it.

Without keys, nano on 64 sums (29 November 2026, 2 CPU cores, one thread: 15 s of CPU time). This
shows the stages and no more: nano knows sums and two novels, but no sentence about a reply.

    user         Add 53 and 5.
    first reply  69
    principle    Answer what was asked, clearly and in few words.
    critique     five fwhile, extraordin,": 5
    revision     farl: and Mrs. Bennet, white

53 revisions are usable, 11 are truncated. Of 64 comparisons, 16 have a |preference| of 0.1 or more
(mean 0.16), 41 less, 7 are of identical replies. Training on this teaches nothing good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import chz

from recipes.preference.constitutional import judging, revisions
from recipes.preference.constitutional.config import (
    CLI,
    MAX_TOKENS,
    NANO_MAX_TOKENS,
    NANO_PROMPTS,
    NUM_PROMPTS,
)
from recipes.preference.constitutional.judging import JudgedPairs, PairJudge, comparisons_file
from recipes.preference.constitutional.principles import load_principles
from recipes.preference.constitutional.revisions import RevisedReplies, Reviser, revisions_file
from recipes.preference.constitutional.wording import ModelKind
from recipes.prompts import Conversation, load_prompts
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import TinkerMessageCompleter, completer_from
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.chat_labels import ChatLabels
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.prompted_judge import PromptedPreferenceModel
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.service import connect_run, locate_checkpoint
from tinker_cookbook.supervised import train as supervised
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.defaults import SL_DEFAULTS, Batches
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.training.run_directory import choose_resume_or_delete, holds_run
from tinker_cookbook.training.sample_file import SampleFile
from tinker_cookbook.training.stages import (
    check_not_continued,
    open_program,
    program_directory,
    result_of_stage,
    run_stage,
    stage_config,
)
from tinker_cookbook.utils.json_types import Plain

RECIPE = "constitutional"


async def main(config: CLI) -> None:
    # everything that can be wrong with the keys, before hours of sampling
    pipeline = Pipeline.prepare(config)
    pipeline.check_files()
    with open_program(config, RECIPE):
        await pipeline.run()


@dataclass(frozen=True)
class Pipeline:
    """The stages with their resolved settings. renderer_name: that of all stages."""

    config: CLI
    directory: Path
    kind: ModelKind
    renderer_name: str
    principles: Sequence[str]
    prompts: Sequence[Conversation]
    max_tokens: int

    @classmethod
    def prepare(cls, config: CLI) -> Pipeline:
        """Check the keys and read the files that they name."""
        nano = models.is_nano(config.model_name)
        number = config.num_prompts or (NANO_PROMPTS if nano else NUM_PROMPTS)
        directory = program_directory(config, RECIPE)
        sft = _resolve_sft(config, directory)
        if config.run_sft:
            check_not_continued(directory, "sft", sft.config, "dpo")
        stage_config(config, "dpo", config.dpo, directory)  # checks its keys
        if config.run_judge:
            tokenizer = get_tokenizer(config.model_name)
            ChatLabels(
                get_renderer(sft.renderer_name, tokenizer, model_name=config.model_name), "AB"
            )
        return cls(
            config,
            directory,
            _model_kind(config),
            sft.renderer_name,
            load_principles(config.principles, "principles"),
            load_prompts(config.prompts, "prompts", number, config.seed, config.model_name),
            config.max_tokens or (NANO_MAX_TOKENS if nano else MAX_TOKENS),
        )

    def check_files(self) -> None:
        """Raise ConfigurationError if a stage that is left out has not left its file."""
        config = self.config
        for name, makes, reads, reader in (
            ("revisions", config.run_revisions, config.run_sft, "run_sft"),
            ("comparisons", config.run_judge, config.run_dpo, "run_dpo"),
        ):
            file = self.directory / f"{name}.jsonl"
            if reads and not makes and not file.exists():
                raise ConfigurationError(
                    f"{reader}=True needs {file}, which does not exist: run the stage that makes it"
                )

    async def run(self) -> None:
        config = self.config
        connect_run(config.base_url, config.engine)
        if config.run_revisions:
            await self.make_revisions()
        if config.run_sft:
            await self.train_sft()
        if config.run_judge:
            await self.make_comparisons()
        if config.run_dpo:
            await self.train_dpo()
        if trained := self.dpo_path if config.run_dpo else self.policy_path():
            _print_line(
                f"the trained model is {trained}: load_checkpoint_path= of another recipe trains it"
                " further, model_path= of a judge or an evaluation samples from it"
            )

    @property
    def dpo_path(self) -> str:
        return str(self.directory / "dpo")

    def policy_path(self) -> str | None:
        """The checkpoint whose replies are compared: that of sft/, or without it the start model's.

        Raises ConfigurationError if sft/ is not finished.
        """
        return result_of_stage(self.directory, "sft") or self.config.load_checkpoint_path

    async def make_revisions(self) -> None:
        config = self.config
        model = await self._load(config.load_checkpoint_path)
        reviser = Reviser(model, self.kind, self.principles, config.num_revisions, config.seed)
        file = self._open(revisions_file(self.directory / "revisions.jsonl"), "sft")
        settings = {
            **self._sampling_settings(config.load_checkpoint_path),
            "num_revisions": config.num_revisions,
        }
        _print_line(f"stage 1: {len(self.prompts)} prompts, {self.kind} model, {file.path}")
        await file.complete(settings, self.prompts, reviser)
        for line in revisions.summary_lines(file.rows()):
            _print_line(line)

    async def make_comparisons(self) -> None:
        config, policy_path = self.config, self.policy_path()
        judge_path = policy_path if config.judge_model == "sft" else config.load_checkpoint_path
        policy, judge = await self._load(policy_path), await self._load(judge_path)
        judges = {
            principle: PromptedPreferenceModel(
                judge.sampling_client, judge.renderer, principle, judge.context_window
            )
            for principle in self.principles
        }
        kind = self.kind if policy_path == config.load_checkpoint_path else "instruct"
        make_row = PairJudge(policy, kind, judges, config.min_preference, config.seed)
        file = self._open(comparisons_file(self.directory / "comparisons.jsonl"), "dpo")
        settings = {
            **self._sampling_settings(policy_path),
            "judge": self._locate(judge_path),
            "min_preference": config.min_preference,
        }
        _print_line(f"stage 3: replies of {policy_path or config.model_name}, {file.path}")
        await file.complete(settings, self.prompts, make_row)
        for line in judging.summary_lines(file.rows()):
            _print_line(line)

    async def train_sft(self) -> None:
        title = f"stage 2: supervised fine-tuning, {self.directory / 'sft'}"
        resolved = _resolve_sft(self.config, self.directory)
        await run_stage(title, supervised.run(resolved, recipe="sft"))

    async def train_dpo(self) -> None:
        comparisons = JudgedPairs(path=str(self.directory / "comparisons.jsonl"))
        data = DPODatasetBuilderFromComparisons(comparison_builder=comparisons)
        stage = chz.replace(
            stage_config(self.config, "dpo", self.config.dpo, self.directory),
            renderer_name=self.renderer_name,
            load_checkpoint_path=self.policy_path(),
        )
        resolved = resolve_chat_config(stage, DPO_DEFAULTS, data)
        await run_stage(f"stage 4: DPO, {self.dpo_path}", train_dpo.run(resolved, recipe="dpo"))

    async def _load(self, path: str | None) -> TinkerMessageCompleter:
        return await completer_from(
            self.config.model_name,
            self._locate(path),
            max_tokens=self.max_tokens,
            temperature=self.config.temperature,
            renderer_name=self.renderer_name,
        )

    def _open(self, file: SampleFile, reader: str) -> SampleFile:
        """The file, deleted first if behavior_if_log_dir_exists says so. Raises ConfigurationError
        if it would get more rows although the stage that reads it has started."""
        behavior = self.config.behavior_if_log_dir_exists
        if file.path.exists():
            number = len(file.rows())
            extends = behavior != "delete" and number < len(self.prompts)
            if extends and holds_run(self.directory / reader):
                raise ConfigurationError(
                    f"num_prompts={len(self.prompts)}: {file.path} has {number} prompts, and"
                    f" {self.directory / reader} holds a run that read them; set"
                    f" num_prompts={number}, or another log_path"
                )
            found = f"{number} rows of {file.path.name}"
            if choose_resume_or_delete(self.directory, behavior, found) == "delete":
                file.path.unlink()
        return file

    def _locate(self, path: str | None) -> str | None:
        key = "load_checkpoint_path"
        return path and locate_checkpoint(path, "sampler_weights", key, self.config.base_url)

    def _sampling_settings(self, path: str | None) -> dict[str, Plain]:
        """The settings that the rows of a sampling stage depend on, apart from the prompts."""
        config = self.config
        return {
            "model_name": config.model_name,
            "model_kind": self.kind,
            "renderer_name": self.renderer_name,
            "checkpoint": self._locate(path),
            "principles": self.principles,
            "max_tokens": self.max_tokens,
            "temperature": config.temperature,
            "seed": config.seed,
        }


def _model_kind(config: CLI) -> ModelKind:
    if config.model_kind != "auto":
        return config.model_kind
    try:
        return "instruct" if models.lookup(config.model_name).is_chat else "base"
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; and model_kind=base or instruct") from None


def _resolve_sft(config: CLI, directory: Path) -> Resolved[ChatConfig, Batches]:
    stage = stage_config(config, "sft", config.sft, directory)
    stage = chz.replace(stage, load_checkpoint_path=config.load_checkpoint_path)
    data = RevisedReplies(path=str(directory / "revisions.jsonl"))
    return resolve_chat_config(stage, SL_DEFAULTS, data)


def _print_line(text: str) -> None:
    print(text, flush=True)


FIRST_KEYS = (  # that `--help` explains first
    "model_name",
    "model_kind",
    "principles",
    "prompts",
    "num_prompts",
    "num_revisions",
    "judge_model",
    "min_preference",
    "max_steps",
    "log_path",
)

if __name__ == "__main__":
    cli(main, CLI, first_keys=FIRST_KEYS)
