"""Prompt distillation, second part: train on a teacher's replies without its long prompt.

    ./scripts/run recipes.prompt_distillation.train                               nano, all defaults
    ./scripts/run recipes.prompt_distillation.train dataset_path=replies.jsonl
    ./scripts/run recipes.prompt_distillation.train model_name=Qwen/Qwen3-8B \\
        renderer_name=qwen3_disable_thinking
    ./scripts/run recipes.prompt_distillation.train dataset_path=replies.jsonl task=languages
    ./scripts/run recipes.prompt_distillation.train task=languages \\
        config=configs/prompt_distillation/qwen3-8b-1xh100.yaml

Askell et al. 2021 (arXiv 2112.00861), "context distillation": the student behaves as if it had read
the prompt. dataset_path is the output_file of create_data; without it, the replies are sampled
first, in a directory named after the settings, and found by the next run with the same settings.
Replies are hard targets: cross-entropy on text, so the teacher may have another tokenizer.

Without keys, nano is to begin every reply with the word iron, which only the prompt of 8 sentences
says: 483 questions with a reply each, 56 steps, seeds 0, 1 and 2 for sampling and training
(29 November 2026, 2 CPU cores, one thread: 38 to 49 s of CPU time). Greedy replies to 100 held-out
questions, right if they follow the rule and answer the question:

| step | right without the prompt | right with the prompt | held-out nll | loss |
|---|---|---|---|---|
| 0 | 0, 0, 0 | 0.86 | 1.67, 1.55, 1.94 | 1.81, 1.64, 1.69 |
| 5 | 0.78, 0.70, 0.75 | | 0.05, 0.12, 0.09 | 0.14, 0.09, 0.03 |
| 10 | 0.92, 0.86, 0.87 | | 0.03, 0.05, 0.08 | 0.05, 0.10, 0.09 |
| 40 | 0.88, 0.94, 0.87 | | 0.02, 0.07, 0.05 | 0.02, 0.02, 0.01 |
| 56 | 0.86, 0.87, 0.86 | 0.68, 0.72, 0.65 | 0.02, 0.06, 0.04 | |

100, 101 and 100 % of the gap are closed. Other tasks and a real model: README.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import chz

from recipes.distillation.student import describe_student
from recipes.prompt_distillation import create_data
from recipes.prompt_distillation.tasks import HeldOutQuestions, check_is_task
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation.teacher_samples import TeacherSamples
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import (
    ALIASES,
    FIRST_KEYS,
    ChatConfig,
    resolve_chat_config,
)
from tinker_cookbook.supervised.defaults import NANO, Batches
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.training.fields import MAY_CHANGE
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.ml_log import METRICS_FILE
from tinker_cookbook.utils.plain_data import CLASS, plain

DEFAULTS = Defaults(
    nano=NANO,
    others=ModelDefaults(Batches(batch_size=128, max_length=32_768), learning_rate=1e-4),
    within_context=("max_length",),
)
RECIPE = "prompt_distillation"
MAX_TEST_SIZE = 32  # questions of a bundled task whose replies are held out
RIGHT, PROMPTED = "test/exact_match", "with_prompt/exact_match"


@chz.chz
class CLI(ChatConfig):
    dataset_path: str | None = chz.field(
        default=None,
        doc="replies: the output_file of create_data, or conversations as in other recipes (None:"
        " made with the default keys of create_data, or found if they have been made)",
    )
    task: str | None = chz.field(
        default=None,
        doc="bundled task whose held-out questions are graded, without and with its prompt, and"
        " whose replies are made without dataset_path: reply_rule, bakery, languages (None:"
        " reply_rule for nano, else languages; with dataset_path, none)",
        metadata=MAY_CHANGE,
    )
    num_epochs: int | None = chz.field(
        default=4, doc="passes over the data (None: the data set's default, usually 1)"
    )
    eval_every: int = chz.field(
        default=5, doc="steps between evaluations (0: only before and after training)"
    )
    infrequent_eval_every: int = chz.field(
        default=0,
        doc="steps between infrequent evaluations (0: only before and after training)",
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        """The evaluators of the task are built again, e.g. for another model."""
        config = ChatConfig.drop_resolved_keys(config)
        name = plain(HeldOutQuestions)
        for key in ("evaluator_builders", "infrequent_evaluator_builders"):
            if isinstance(builders := config.get(key), list):
                others = [b for b in builders if not isinstance(b, dict) or b.get(CLASS) != name]
                config = {**config, key: others}
        return config


async def main(config: CLI) -> None:
    plan = None if config.dataset_path or config.dataset_builder else plan_data(config)
    run = resolve(config, plan)
    if plan is not None:
        await plan.sample()
    directory = await train.run(run, RECIPE)
    if line := gap_line(directory):
        print(line)
    print(describe_student(directory))


def plan_data(config: CLI) -> create_data.DataPlan:
    """The replies of the student's base model to the questions of a bundled task."""
    if config.task is not None:
        check_is_task(config.task, "task")
    if config.load_checkpoint_path is not None:
        raise ConfigurationError(
            f"load_checkpoint_path={config.load_checkpoint_path} needs dataset_path=: make the"
            " replies with recipes.prompt_distillation.create_data, whose teacher_checkpoint= may"
            " be the same"
        )
    return create_data.DataPlan.prepare(
        create_data.CLI(
            model_name=config.model_name,
            renderer_name=config.renderer_name,
            prompt=config.task,
            seed=config.seed,
            base_url=config.base_url,
            engine=config.engine,
        )
    )


def resolve(config: CLI, plan: create_data.DataPlan | None) -> Resolved[CLI, Batches]:
    """Resolve the config, with evaluators of the task. plan: the replies to train on, if the
    recipe makes them itself."""
    task, data = config.task, TeacherSamples(path="")
    if plan is not None:
        task, test_size = plan.task, min(MAX_TEST_SIZE, len(plan.questions) // 10)
        data = TeacherSamples(path=str(plan.path), test_size=test_size)
    if task is not None:
        check_is_task(task, "task")
        config = chz.replace(config, task=task)
    run = resolve_chat_config(config, DEFAULTS, data)
    return run if task is None else _add_evaluators(run, task, _reply_limit(config, plan))


def _reply_limit(config: CLI, plan: create_data.DataPlan | None) -> int:
    """Maximum tokens per reply in the evaluation: those of the replies to train on, if
    `create_data` made them."""
    limit = None if plan is None else plan.config.max_tokens
    path = config.dataset_path or getattr(config.dataset_builder, "path", None)
    if limit is None and path:
        limit = create_data.sampled_max_tokens(path)
    return limit or create_data.default_max_tokens(config.model_name)


def _add_evaluators(
    run: Resolved[CLI, Batches], task: str, max_tokens: int
) -> Resolved[CLI, Batches]:
    """Grade the held-out questions: often without the prompt; with it before and after training."""
    without, with_prompt = (
        HeldOutQuestions(
            task=task,
            with_prompt=prompted,
            model_name=run.model_name,
            renderer_name=run.renderer_name,
            max_tokens=max_tokens,
        )
        for prompted in (False, True)
    )
    config = chz.replace(
        run.config,
        evaluator_builders=[*run.config.evaluator_builders, without],
        infrequent_evaluator_builders=[*run.config.infrequent_evaluator_builders, with_prompt],
    )
    return replace(run, config=config)


def gap_line(directory: Path) -> str | None:
    """How much of the gap between the start model without and with the prompt is closed.

    None if the run does not grade a task.
    """
    rows = [line.value for line in jsonl.read_lines(directory / METRICS_FILE)]
    right = [float(row[RIGHT]) for row in rows if RIGHT in row]
    ceiling = next((float(row[PROMPTED]) for row in rows if PROMPTED in row), None)
    if ceiling is None or not right:
        return None
    line = (
        f"held-out questions right: {ceiling:.2f} with the prompt before training, {right[0]:.2f}"
        f" without it, {right[-1]:.2f} without it after training"
    )
    if ceiling <= right[0]:
        return line
    return f"{line}: {(right[-1] - right[0]) / (ceiling - right[0]):.0%} of the gap is closed"


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
