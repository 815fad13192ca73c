r"""Off-policy distillation: a student learns from a teacher's replies, or from its probabilities.

    ./scripts/run recipes.distillation.off_policy_reasoning
    ./scripts/run recipes.distillation.off_policy_reasoning topk=20
    ./scripts/run recipes.distillation.off_policy_reasoning dataset=traces.jsonl
    ./scripts/run recipes.distillation.off_policy_reasoning model_name=Qwen/Qwen3-8B-Base \
        renderer_name=qwen3 teacher_model=Qwen/Qwen3-32B prompts=prompts.txt topk=20
    ./scripts/run recipes.distillation.off_policy_reasoning \
        config=configs/off_policy_reasoning/qwen3-8b-1xh100.yaml

The replies are traces (dataset=), or sampled from the teacher before training (prompts=), into a
directory that runs with other targets or another seed share. Without topk the targets are hard, the
tokens of the replies; with topk=k they are soft, the teacher's probabilities of its k most probable
tokens at each position. README.md: which to take, and what a teacher has to have.

Without keys, nano on 4 replies of an RL-trained teacher to each of 200 sums (21,334 sampled
tokens), seed 0 (29 November 2026, 2 CPU cores, one thread: 56 s of CPU time with the sampling, 59 s
with topk=20, and 80 s once for the teacher):

| step | 0 | 5 | 10 | 15 | 20 | 22 |
|---|---|---|---|---|---|---|
| held-out sums right | 0.48 | 0.69 | 0.94 | 0.96 | 0.97 | 0.97 |
| topk=20 | 0.48 | 0.71 | 0.96 | 0.98 | 0.97 | 0.97 |
| topk=20, test/forward_kl | 0.070 | 0.020 | 0.0045 | 0.0029 | 0.0027 | 0.0027 |

The teacher has 0.97. With 15 replies instead of 720, hard targets end at 0.90, soft ones at 0.97.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import chz

from recipes.distillation.held_out_sums import HeldOutSums
from recipes.distillation.nano_teachers import train_teacher
from recipes.distillation.open_thoughts import OpenThoughts
from recipes.distillation.sampling import TeacherReplies
from recipes.distillation.student import describe_student
from recipes.prompts import NANO_SUMS, Conversation, load_prompts
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import train_off_policy
from tinker_cookbook.distillation.teacher import (
    TeacherConfig,
    choose_teacher_renderer,
    locate_teacher,
)
from tinker_cookbook.distillation.teacher_samples import TeacherSamples
from tinker_cookbook.distillation.train_off_policy import ALIASES, Config, check_teacher_keys
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised.data import builder_for_path
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.supervised.types import SupervisedDatasetBuilder
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, SEED
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.plain_data import plain

RECIPE = "off_policy_reasoning"
OPEN_THOUGHTS = "open_thoughts"
NANO_PROMPTS, NUM_PROMPTS = 200, 4096
NUM_SAMPLES, TEMPERATURE = 4, 1.0
NANO_MAX_TOKENS, MAX_TOKENS = 40, 4096
MAX_TEST_PROMPTS = 128

FIRST_KEYS = (
    "model_name",
    "dataset",
    "prompts",
    "teacher",
    "topk",
    "learning_rate",
    "batch_size",
    "max_length",
    "max_steps",
    "log_path",
)


@chz.chz
class CLI(Config):
    dataset: str | None = chz.field(
        default=None,
        doc="traces: open_thoughts, or anything that dataset_path accepts (None: open_thoughts, or"
        " the teacher's replies to prompts=; nano: the teacher's replies)",
    )
    prompts: str | None = chz.field(
        default=None,
        doc="prompts that the teacher replies to: nano_sums, hhh, a text file with one per line, or"
        " a file, a directory or a hub data set of prompts or conversations (None: nano_sums for"
        " nano, else none)",
    )
    num_prompts: int | None = chz.field(
        default=None,
        doc=f"prompts that the teacher replies to, at most (None: {NANO_PROMPTS} for nano, else"
        f" {NUM_PROMPTS}); a tenth of them, at most {MAX_TEST_PROMPTS}, is held out",
        metadata=COUNT,
    )
    num_samples: int = chz.field(
        default=NUM_SAMPLES, doc="replies of the teacher to each prompt", metadata=COUNT
    )
    temperature: float = chz.field(
        default=TEMPERATURE, doc="sampling temperature (0: greedy decoding)", metadata=NON_NEGATIVE
    )
    max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per completion (None: the default for model and data)",
        metadata=COUNT,
    )
    sampling_seed: int = chz.field(
        default=0,
        doc="seed of prompts and replies, apart from seed, so that runs with any seed share them",
        metadata=SEED,
    )
    eval_every: int = chz.field(
        default=5, doc="steps between evaluations (0: only before and after training)"
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        config = Config.drop_resolved_keys(config)
        derived = set[str]()
        # dataset= names it, or the replies are sampled: num_prompts is set for them alone
        if config.get("dataset") or config.get("num_prompts"):
            derived.add("dataset_builder")
        name, limit = config.get("renderer_name"), config.get("max_tokens")
        if isinstance(name, str) and isinstance(limit, int):
            evaluators = [plain(HeldOutSums(renderer_name=name, max_tokens=limit))]
            if config.get("evaluator_builders") == evaluators:
                derived.add("evaluator_builders")
        return {key: value for key, value in config.items() if key not in derived}


async def main(config: CLI) -> None:
    check_data_keys(config)
    if samples_replies(config):
        resolved = await sample_data(await with_teacher(config))
    else:
        check_teacher_keys(config)
        resolved = train_off_policy.resolve(config, traces_of(config))
    directory = await train_off_policy.run(resolved, RECIPE)
    print(describe_student(directory))


def named_traces(config: CLI) -> list[str]:
    """The keys that name a data set of traces."""
    named = [f"{key}={v}" for key in ("dataset", "dataset_path") if (v := getattr(config, key))]
    return named + (["data="] if config.dataset_builder is not None else [])


def samples_replies(config: CLI) -> bool:
    """Whether the data are replies to sample, not traces that exist."""
    return not named_traces(config) and (
        config.prompts is not None or models.is_nano(config.model_name)
    )


def check_data_keys(config: CLI) -> None:
    """Raise ConfigurationError for two names of the data, and for keys without effect on traces."""
    named = named_traces(config)
    if len(named) > 1:
        raise ConfigurationError(f"{named[0]} and {named[1]} both name the data: drop either")
    if samples_replies(config):
        if config.temperature == 0 and config.num_samples > 1:
            raise ConfigurationError(
                f"temperature=0 gives the same reply {config.num_samples} times: set num_samples=1"
            )
        return
    unset = {
        "prompts": None,
        "num_prompts": None,
        "num_samples": NUM_SAMPLES,
        "temperature": TEMPERATURE,
        "max_tokens": None,
        "sampling_seed": 0,
    }
    for key, default in unset.items():
        if getattr(config, key) != default:
            remedy = f"drop {key} or {named[0]}" if named else "set prompts= as well"
            raise ConfigurationError(
                f"{key}={getattr(config, key)} has no effect on traces, which are not sampled:"
                f" {remedy}"
            )


def traces_of(config: CLI) -> SupervisedDatasetBuilder:
    if config.dataset_builder is not None:
        return config.dataset_builder
    for key in ("dataset", "dataset_path"):
        name = getattr(config, key)
        if name not in (None, OPEN_THOUGHTS):
            return builder_for_path(name, key)
    return OpenThoughts()


async def with_teacher(config: CLI) -> CLI:
    """The config with a located teacher; nano's default is trained first, if it is not there."""
    teacher = config.teacher
    if teacher == TeacherConfig():
        if not models.is_nano(config.model_name) or config.prompts is not None:
            raise ConfigurationError(
                f"prompts={config.prompts}: there is no teacher to reply to them; set"
                " teacher_model= or teacher_checkpoint="
            )
        teacher = TeacherConfig(load_checkpoint_path=await train_teacher("sums", config))
    student, url = config.model_name, config.base_url
    return chz.replace(config, teacher=locate_teacher(teacher, student, "teacher_checkpoint", url))


async def sample_data(config: CLI) -> Resolved[CLI, Batches]:
    """Resolve and check all other keys, then sample the teacher's replies as the data."""
    nano = models.is_nano(config.model_name)
    chosen = {
        "num_prompts": config.num_prompts or (NANO_PROMPTS if nano else NUM_PROMPTS),
        "max_tokens": config.max_tokens or (NANO_MAX_TOKENS if nano else MAX_TOKENS),
    }
    unset = {key: value for key, value in chosen.items() if getattr(config, key) is None}
    config = chz.replace(config, **chosen)
    prompts = load_prompts(
        config.prompts, "prompts", chosen["num_prompts"], config.sampling_seed, config.model_name
    )
    data = TeacherSamples(path="", test_size=min(MAX_TEST_PROMPTS, len(prompts) // 10))
    resolved = train_off_policy.resolve(config, data)
    replies = teacher_replies(resolved, prompts, chosen["max_tokens"])
    await replies.sample(config.engine)
    config, path = resolved.config, str(replies.path)
    evaluators = config.evaluator_builders
    if nano and config.prompts in (None, NANO_SUMS) and not evaluators:
        sums = HeldOutSums(renderer_name=resolved.renderer_name, max_tokens=chosen["max_tokens"])
        evaluators = [sums]
    config = chz.replace(
        config,
        dataset_builder=chz.replace(config.dataset_builder, path=path),
        evaluator_builders=evaluators,
    )
    return dataclasses.replace(resolved, config=config, filled={**resolved.filled, **unset})


def teacher_replies(
    resolved: Resolved[CLI, Batches], prompts: Sequence[Conversation], max_tokens: int
) -> TeacherReplies:
    config, student, name = resolved.config, resolved.model_name, resolved.renderer_name
    return TeacherReplies(
        teacher=config.teacher,
        renderer_name=choose_teacher_renderer(config.teacher, student, name, config.base_url),
        prompts=prompts,
        num_samples=config.num_samples,
        temperature=config.temperature,
        max_tokens=max_tokens,
        seed=config.sampling_seed,
        base_url=config.base_url,
    )


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
