"""Prompt distillation, first part: a teacher answers questions that follow a long prompt.

    ./scripts/run recipes.prompt_distillation.create_data                         nano, all defaults
    ./scripts/run recipes.prompt_distillation.create_data model_name=Qwen/Qwen3-8B \\
        renderer_name=qwen3_disable_thinking
    ./scripts/run recipes.prompt_distillation.create_data prompt=rules.txt questions=asked.jsonl
    ./scripts/run recipes.prompt_distillation.create_data teacher_model=Qwen/Qwen3-32B \\
        renderer_name=qwen3_disable_thinking num_samples=4
    ./scripts/run recipes.prompt_distillation.create_data teacher_checkpoint=RUN_DIRECTORY

The questions and replies are written without the long prompt, one conversation per line; the same
command resumes if it was stopped. `recipes.prompt_distillation.train` trains on them. The replies
are hard targets (text), so that teacher and student may have different tokenizers and chat
templates. Prompts, questions and measurements: README.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import chz

from recipes.prompt_distillation.tasks import (
    TASKS,
    default_task,
    load_prompt,
    load_questions,
    put_before,
)
from recipes.prompts import Conversation
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import completer_from
from tinker_cookbook.distillation.teacher import TeacherConfig, locate_teacher
from tinker_cookbook.distillation.teacher_samples import (
    describe_usable,
    sample_replies,
    samples_file,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service import EngineConfig, connect_run
from tinker_cookbook.training.fields import (
    COUNT,
    MAY_CHANGE,
    NON_NEGATIVE,
    SEED,
    CheckedConfig,
)
from tinker_cookbook.training.run_identity import RunIdentity
from tinker_cookbook.training.sample_file import SavedRow
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted

NANO_MAX_TOKENS, MAX_TOKENS = 48, 1000


def default_max_tokens(model_name: str) -> int:
    """Maximum tokens per reply of a model, to sample and to evaluate."""
    return NANO_MAX_TOKENS if models.is_nano(model_name) else MAX_TOKENS


@chz.chz
class CLI(CheckedConfig):
    model_name: str = chz.field(default="nano", doc="base model: nano (bundled), hub name or path")
    teacher_model: str | None = chz.field(
        default=None, doc="base model of the teacher: name or directory (None: model_name)"
    )
    teacher_checkpoint: str | None = chz.field(
        default=None,
        doc="weights of the teacher: tinker://.../sampler_weights/..., a run directory or a PEFT"
        " adapter directory (None: the base model itself)",
    )
    renderer_name: str | None = chz.field(
        default=None,
        doc="the teacher's renderer, i.e. chat template (None: the checkpoint's, else the model's"
        " default)",
    )
    prompt: str | None = chz.field(
        default=None,
        doc="the long prompt: reply_rule, bakery, languages or a text file (None: reply_rule for"
        " nano, else languages)",
    )
    questions: str | None = chz.field(
        default=None,
        doc="questions to reply to: reply_rule, bakery, languages, a text file with one per line,"
        " or a file, a directory or a hub data set of prompts or conversations (None: those of the"
        " bundled prompt)",
    )
    num_questions: int = chz.field(
        default=4096,
        doc="questions to reply to, at most; raising it extends the file",
        metadata=COUNT | MAY_CHANGE,
    )
    num_samples: int | None = chz.field(
        default=None,
        doc="replies per question (None: 1; 4 for bakery and 16 for languages, which are few)",
        metadata=COUNT,
    )
    temperature: float = chz.field(
        default=0.15, doc="sampling temperature (0: greedy decoding)", metadata=NON_NEGATIVE
    )
    max_tokens: int | None = chz.field(
        default=None,
        doc=f"maximum tokens per reply (None: {NANO_MAX_TOKENS} for nano, else {MAX_TOKENS})",
        metadata=COUNT,
    )
    seed: int = chz.field(default=0, doc="random seed (questions, sampling)", metadata=SEED)
    output_file: str | None = chz.field(
        default=None,
        doc="JSONL file to write, or to complete (None: in a directory named after the config)",
        metadata=MAY_CHANGE,
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: run in process)", metadata=MAY_CHANGE
    )
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig, doc="in-process engine settings", metadata=MAY_CHANGE
    )


@dataclass(frozen=True)
class DataPlan:
    """What is to be sampled, with every key resolved. task: the bundled task with this prompt and
    these questions; None for others."""

    config: CLI
    teacher: TeacherConfig
    prompt: str
    questions: Sequence[Conversation]
    task: str | None
    path: Path

    @classmethod
    def prepare(cls, config: CLI) -> DataPlan:
        """Check the keys and read the files that they name."""
        name = config.prompt or default_task(config.model_name)
        prompt = load_prompt(name)
        questions = config.questions or name
        if config.questions is None and name not in TASKS:
            raise ConfigurationError(
                f"prompt={name}: a prompt of your own needs questions=, a file or a data set"
            )
        located = locate_teacher(
            TeacherConfig(
                base_model=config.teacher_model, load_checkpoint_path=config.teacher_checkpoint
            ),
            config.model_name,
            "teacher_checkpoint",
            config.base_url,
        )
        base = located.base_model or config.model_name
        if config.base_url is None:
            base = models.loaded_name(base)
            located = chz.replace(located, base_model=base)
        config = chz.replace(
            config,
            prompt=name,
            questions=questions,
            teacher_model=base,
            teacher_checkpoint=located.load_checkpoint_path,
            num_samples=config.num_samples
            or (TASKS[questions]().num_samples if questions in TASKS else 1),
            max_tokens=config.max_tokens or default_max_tokens(base),
        )
        return cls(
            config,
            located,
            prompt,
            load_questions(questions, config.num_questions, config.seed, config.model_name),
            name if name == questions and name in TASKS else None,
            _output_file(config),
        )

    async def sample(self) -> None:
        """Write the replies that the file does not hold yet, and print what is in it."""
        config = self.config
        connect_run(config.base_url, config.engine)
        teacher = await completer_from(
            str(self.teacher.base_model),
            self.teacher.load_checkpoint_path,
            max_tokens=config.max_tokens or MAX_TOKENS,
            temperature=config.temperature,
            renderer_name=config.renderer_name,
            base_url=config.base_url,
        )
        settings: dict[str, Plain] = {
            "teacher": self.teacher.base_model,
            "checkpoint": self.teacher.load_checkpoint_path,
            "identity": self.teacher.identity(),
            "renderer": teacher.renderer.origin and teacher.renderer.origin.renderer_name,
            "prompt": self.prompt,
        }
        print(f"replies of {self._teacher_name()} to {self._questions_name()}: {self.path}")
        await sample_replies(
            self.path,
            teacher,
            self.questions,
            seed=config.seed,
            settings=settings,
            num_samples=config.num_samples or 1,
            teacher_prompt=lambda question: put_before(self.prompt, question),
        )
        for line in summary_lines(samples_file(self.path).rows()):
            print(line, flush=True)

    def _teacher_name(self) -> str:
        return str(self.teacher.load_checkpoint_path or self.teacher.base_model)

    def _questions_name(self) -> str:
        return f"{counted(len(self.questions), 'question')} of {self.config.questions}"


def sampled_max_tokens(path: str) -> int | None:
    """The `max_tokens` that the replies in a file were sampled with; None for other data."""
    settings = samples_file(Path(path).expanduser()).settings_path
    if not settings.is_file():
        return None
    return json.loads(settings.read_bytes()).get("max_tokens")


def _output_file(config: CLI) -> Path:
    if config.output_file is not None:
        return Path(config.output_file).expanduser().absolute()
    return RunIdentity(config, "prompt_distillation_data").directory() / "samples.jsonl"


def summary_lines(rows: Sequence[SavedRow]) -> list[str]:
    """How many replies can be trained on, their length, and one of them."""
    usable = [row for row in rows if row["problem"] is None]
    lines = [describe_usable(rows, "sample")]
    if not usable:
        return lines
    tokens = sum(row["num_tokens"] for row in usable) / len(usable)
    lines.append(f"{tokens:.1f} tokens per reply; the first:")
    return [*lines, *(f"  {m['role']}: {m['content']!r}" for m in usable[0]["messages"])]


async def main(config: CLI) -> None:
    plan = DataPlan.prepare(config)
    await plan.sample()
    graded = f" task={plan.task}" if plan.task else ""
    print(
        "train on them: ./scripts/run recipes.prompt_distillation.train"
        f" model_name={config.model_name} dataset_path={plan.path}{graded}"
    )


FIRST_KEYS = (  # that `--help` explains first
    "model_name",
    "teacher_model",
    "teacher_checkpoint",
    "prompt",
    "questions",
    "num_questions",
    "num_samples",
    "output_file",
)

if __name__ == "__main__":
    cli(main, CLI, first_keys=FIRST_KEYS)
