"""Prompts for on-policy distillation, and data sets that each have a teacher of their own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import chz
import tinker

from tinker_cookbook.completers import StopCondition
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, DataValidationError
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.rl.interleaved import ChainedRLDataset, InterleavedRLDataset
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder, shorten_for_logs
from tinker_cookbook.rl.shuffled_dataset import ShuffledRLDataset
from tinker_cookbook.rl.types import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    Metrics,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
    Trajectory,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import COUNT, SEED, CheckedConfig
from tinker_cookbook.training.resolve import set_unset_fields
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.misc_utils import counted

__all__ = [
    "CompositeDataset",
    "DistillationDatasetConfig",
    "PromptOnlyDatasetBuilder",
    "PromptOnlyEnv",
    "TeacherConfig",
    "TeacherDatasets",
    "load_deepmath_prompts",
    "load_tulu3_prompts",
]

logger = logging.getLogger(__name__)

DEEPMATH, TULU3 = "zwhe99/DeepMath-103K", "allenai/tulu-3-sft-mixture"
Conversation = list[Message]


class PromptOnlyEnv(Env):
    """One reply to a prompt, with reward 0."""

    def __init__(
        self,
        prompt: str | Sequence[Message],
        renderer: Renderer,
        convo_prefix: Sequence[Message] | None = None,
    ) -> None:
        """prompt: the user's message, or a conversation that ends with one."""
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        self.messages = [*(convo_prefix or []), *messages]
        self.renderer = renderer

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        prompt = self.renderer.build_generation_prompt(self.messages)
        return prompt, self.renderer.get_stop_sequences()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        message, termination = self.renderer.parse_response(action)
        return StepResult(
            reward=0.0,
            episode_done=True,
            next_observation=tinker.ModelInput.empty(),
            next_stop_condition=self.renderer.get_stop_sequences(),
            metrics={"ended": float(termination.is_clean)},
            logs={"reply": shorten_for_logs(str(message["content"]))},
        )


def load_deepmath_prompts(split: str = "train") -> list[str]:
    """The questions of DeepMath-103K."""
    rows = _open(DEEPMATH, split, "question")
    return [str(row["question"]) for row in rows if row["question"]]


def load_tulu3_prompts(split: str = "train") -> list[str]:
    """The first user message of each conversation of the Tülu 3 mixture."""
    prompts: list[str] = []
    for row in _open(TULU3, split, "messages"):
        texts = [m["content"] for m in row["messages"] if m["role"] == "user" and m["content"]]
        prompts += map(str, texts[:1])
    return prompts


def _open(path: str, split: str, column: str) -> Rows:
    rows = open_rows(path, None, split)
    if column not in rows.column_names:
        found = ", ".join(map(repr, rows.column_names))
        raise DataFormatError(f"data set {path}: no column {column!r}; found {found}")
    return rows.only(column)


PROMPTS: Mapping[str, Callable[[], list[str]]] = {
    "deepmath": load_deepmath_prompts,
    "tulu3": load_tulu3_prompts,
}


@chz.chz
class PromptOnlyDatasetBuilder(RLDatasetBuilder):
    """Prompts without a reward, shuffled by `seed`; no test set."""

    dataset_name: str = chz.field(default="deepmath", doc="deepmath or tulu3, from the hub")
    model_name_for_tokenizer: str | None = chz.field(
        default=None, doc="model whose tokenizer is used (None: from the recipe's keys)"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="renderer, e.g. qwen3_instruct (None: from the recipe's keys)"
    )
    group_size: int | None = chz.field(
        default=None, doc="rollouts per prompt (None: from the recipe's keys)", metadata=COUNT
    )
    groups_per_batch: int | None = chz.field(
        default=None, doc="prompts per batch (None: from the recipe's keys)", metadata=COUNT
    )
    seed: int | None = chz.field(
        default=None,
        doc="seed of the order of the prompts (None: from the recipe's keys)",
        metadata=SEED,
    )
    num_epochs: int = chz.field(default=1, doc="passes over the prompts", metadata=COUNT)
    max_prompt_tokens: int = chz.field(
        default=1024, doc="longer prompts are left out, and counted in the log", metadata=COUNT
    )

    def name(self) -> str:
        """The name of the data set in metrics."""
        return self.dataset_name

    def load_prompts(self) -> Sequence[str | Conversation]:
        """All prompts; a subclass may read others."""
        if self.dataset_name not in PROMPTS:
            raise ConfigurationError(
                f"dataset_name={self.dataset_name!r}: expected {', '.join(PROMPTS)}"
            )
        return PROMPTS[self.dataset_name]()

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        model = self.needed("model_name_for_tokenizer", self.model_name_for_tokenizer)
        renderer_name = self.needed("renderer_name", self.renderer_name)
        renderer = get_renderer(renderer_name, get_tokenizer(model), model_name=model)
        every = self.load_prompts()
        overhead = _num_tokens("", renderer)
        prompts = [prompt for prompt in every if self._fits(prompt, renderer, overhead)]
        if not prompts:
            raise DataValidationError(
                f"{self.name()}: none of the {len(every)} prompts has at most"
                f" max_prompt_tokens={self.max_prompt_tokens} tokens; raise it"
            )
        if len(prompts) < len(every):
            left_out = counted(len(every) - len(prompts), "prompt")
            logger.warning(
                "%s: %s longer than max_prompt_tokens=%d left out, %d remain",
                *(self.name(), left_out, self.max_prompt_tokens, len(prompts)),
            )
        group_size = self.needed("group_size", self.group_size)

        def make_group(index: int) -> EnvGroupBuilder:
            make_env = functools.partial(PromptOnlyEnv, prompts[index], renderer)
            return ProblemGroupBuilder(make_env, group_size, self.name())

        return ShuffledRLDataset(
            len(prompts),
            make_group,
            groups_per_batch=self.needed("groups_per_batch", self.groups_per_batch),
            seed=self.needed("seed", self.seed),
            num_epochs=self.num_epochs,
        ), None

    def _fits(self, prompt: str | Conversation, renderer: Renderer, overhead: int) -> bool:
        """overhead: tokens that the chat template adds to a prompt."""
        # a token has at least one byte, so most prompts need not be tokenized
        if isinstance(prompt, str) and len(prompt.encode()) + overhead <= self.max_prompt_tokens:
            return True
        return _num_tokens(prompt, renderer) <= self.max_prompt_tokens


def _num_tokens(prompt: str | Conversation, renderer: Renderer) -> int:
    return renderer.build_generation_prompt(PromptOnlyEnv(prompt, renderer).messages).length


@dataclass(frozen=True)
class _GroupOfDataset(EnvGroupBuilder):
    """A group that knows the data set that it comes from."""

    group: EnvGroupBuilder
    dataset: int

    async def make_envs(self) -> Sequence[Env]:
        return await self.group.make_envs()

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        return await self.group.compute_group_rewards(trajectory_group, env_group)

    async def cleanup(self) -> None:
        await self.group.cleanup()

    def logging_tags(self) -> list[str]:
        return self.group.logging_tags()


def dataset_of(builder: EnvGroupBuilder | None) -> int:
    """The index of the data set that a group of a `CompositeDataset` comes from."""
    if not isinstance(builder, _GroupOfDataset):
        raise ConfigurationError(
            "several teachers need groups of a CompositeDataset, which tells each group's data set;"
            f" found {type(builder).__name__}"
        )
    return builder.dataset


class _NumberedDataset(RLDataset):
    def __init__(self, dataset: RLDataset, number: int) -> None:
        self._dataset, self._number = dataset, number

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        return [_GroupOfDataset(group, self._number) for group in self._dataset.get_batch(index)]

    def __len__(self) -> int:
        return len(self._dataset)


class CompositeDataset(InterleavedRLDataset):
    """Batches with a fixed number of groups from each data set, interleaved.

    It ends with the data set that ends first. `dataset_of` gives a group's data set.
    """

    def __init__(self, datasets: Sequence[RLDataset], groups_per_batch_list: Sequence[int]) -> None:
        super().__init__(
            [_NumberedDataset(dataset, number) for number, dataset in enumerate(datasets)],
            weights=groups_per_batch_list,
            groups_per_batch=sum(groups_per_batch_list),
        )


@chz.chz
class DistillationDatasetConfig(CheckedConfig):
    """Prompts, and the teacher of the replies to them."""

    dataset_builder: RLDatasetBuilder = chz.field(doc="prompts; their rewards are not trained on")
    teacher_config: TeacherConfig = chz.field(
        default_factory=TeacherConfig, doc="teacher of these prompts"
    )
    groups_per_batch: int = chz.field(doc="groups of this data set in a batch", metadata=COUNT)


@chz.chz
class TeacherDatasets(RLDatasetBuilder):
    """Several data sets with a teacher each. Every batch has groups of each; tests on all."""

    datasets: list[DistillationDatasetConfig] = chz.field(doc="the data sets and their teachers")
    model_name_for_tokenizer: str | None = chz.field(
        default=None, doc="model whose tokenizer is used (None: from the recipe's keys)"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="renderer, e.g. qwen3_instruct (None: from the recipe's keys)"
    )
    group_size: int | None = chz.field(
        default=None, doc="rollouts per prompt (None: from the recipe's keys)", metadata=COUNT
    )
    seed: int | None = chz.field(
        default=None,
        doc="seed of the order of the prompts (None: from the recipe's keys)",
        metadata=SEED,
    )

    def default_max_tokens(self) -> int | None:
        defaults = [each.dataset_builder.default_max_tokens() for each in self.datasets]
        return max((default for default in defaults if default is not None), default=None)

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        if not self.datasets:
            raise ConfigurationError("datasets is empty: set datasets.0.dataset_builder and so on")
        names = ("model_name_for_tokenizer", "renderer_name", "group_size", "seed")
        values = {name: getattr(self, name) for name in names}
        built = [
            await set_unset_fields(
                each.dataset_builder, {**values, "groups_per_batch": each.groups_per_batch}
            )()
            for each in self.datasets
        ]
        tests = [test for _, test in built if test is not None]
        train = CompositeDataset(
            [train for train, _ in built], [each.groups_per_batch for each in self.datasets]
        )
        return train, ChainedRLDataset(tests) if tests else None
