"""Replies of a teacher to prompts, sampled once for all runs that train on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.prompts import Conversation
from tinker_cookbook.completers import completer_from
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.distillation.teacher_samples import (
    count_problems,
    sample_replies,
    samples_file,
)
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted, runs_path
from tinker_cookbook.utils.plain_data import plain


@dataclass(frozen=True)
class TeacherReplies:
    """How a teacher replies to prompts, and the file of its replies.

    The file is in a directory under the runs directory that is named after everything the replies
    depend on, so runs with other targets or another seed share it, also at the same time: one
    samples, the others wait for it. The prompts are among it, so that a run never trains on more
    of them than it asks for: another number of prompts samples all of them again. teacher: located.
    renderer_name: of the teacher's prompts.
    """

    teacher: TeacherConfig
    renderer_name: str
    prompts: Sequence[Conversation]
    num_samples: int
    temperature: float
    max_tokens: int
    seed: int
    base_url: str | None

    @property
    def path(self) -> Path:
        key = {
            **self._settings,
            "prompts": self.prompts,
            "num_samples": self.num_samples,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }
        digest = hashlib.sha256(jsonl.encode(plain(key)).encode()).hexdigest()[:8]
        model = str(self.teacher.base_model).rstrip("/").rpartition("/")[2]
        return runs_path(f"teacher-samples-{model}-{digest}", "samples.jsonl")

    @property
    def _settings(self) -> dict[str, Plain]:
        return {
            "teacher": plain(self.teacher),
            "renderer_name": self.renderer_name,
            "base_url": self.base_url,
        }

    async def sample(self, engine: EngineConfig) -> None:
        """Sample the replies that the file lacks, and print what it holds."""
        path, number = self.path, len(self.prompts) * self.num_samples
        print(f"teacher samples: {path}", flush=True)
        if len(samples_file(path).rows()) < number:
            await self._complete(path, engine)
        rows = samples_file(path).rows()
        problems = count_problems(rows)
        left_out = ", ".join(f"{count} {problem}" for problem, count in problems.items())
        print(
            f"teacher samples: {len(rows):,} replies to {counted(len(self.prompts), 'prompt')},"
            f" {counted(sum(row['num_tokens'] for row in rows), 'sampled token')}; not trained on:"
            f" {left_out or 'none'}",
            flush=True,
        )

    async def _complete(self, path: Path, engine: EngineConfig) -> None:
        model = await completer_from(
            str(self.teacher.base_model),
            self.teacher.load_checkpoint_path,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            renderer_name=self.renderer_name,
            base_url=self.base_url,
            engine=None if self.base_url else engine,
        )
        await sample_replies(
            path,
            model,
            self.prompts,
            seed=self.seed,
            settings=self._settings,
            num_samples=self.num_samples,
        )
