"""Inspect tasks as evaluators during training.

    train.Config(..., evaluator_builders=[InspectEvaluatorBuilder(tasks=["gsm8k"], limit=100)])

The training loop waits for them. All tasks of an evaluator run at once on a snapshot of the
weights; several evaluators run one after the other, because Inspect allows one evaluation at a time
in a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import chz
import yaml

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import SamplingClientEvaluator
from tinker_cookbook.training.fields import COUNT, FRACTION, NON_NEGATIVE, CheckedConfig
from tinker_cookbook.training.run_directory import current_run_directory
from tinker_cookbook.utils.misc_utils import install_line

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.model import GenerateConfig

    from tinker_cookbook.service.api import SamplingClient


@chz.chz
class InspectEvaluatorBuilder(CheckedConfig):
    """Builds an evaluator of Inspect tasks; its fields are the task's defaults where a task has its
    own setting. A call raises ConfigurationError for unknown tasks, before training starts."""

    tasks: list[str] = chz.field(
        doc="what to run: a local task, a registered one (package/name), file.py, file.py@name or"
        " module:function"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="renderer, i.e. chat template (None: the model's default)"
    )
    model_name: str | None = chz.field(
        default=None, doc="name of the base model in the logs (None: the sampling client's)"
    )
    temperature: float = chz.field(
        default=1.0, doc="sampling temperature (0: greedy decoding)", metadata=NON_NEGATIVE
    )
    max_tokens: int | None = chz.field(
        default=1000,
        doc="maximum tokens per completion (None: 256 for nano, else 8192, as in"
        " run_inspect_evals)",
        metadata=COUNT,
    )
    top_p: float = chz.field(
        default=1.0,
        doc="nucleus (top-p) sampling: cumulative probability to keep",
        metadata=FRACTION,
    )
    top_k: int = chz.field(default=-1, doc="number of most likely tokens to sample from (-1: all)")
    num_choices: int = chz.field(
        default=1, doc="completions per request, of which tasks use the first", metadata=COUNT
    )
    limit: int | None = chz.field(
        default=None, doc="samples of each task, from the first (None: all)", metadata=COUNT
    )
    epochs: int | None = chz.field(
        default=None, doc="completions per sample (None: the task's own number)", metadata=COUNT
    )
    seed: int | None = chz.field(
        default=0, doc="random seed of sampling, the same at every evaluation (None: random)"
    )
    max_connections: int = chz.field(
        default=512, doc="requests in flight at once; the engine batches them", metadata=COUNT
    )
    task_args: dict[str, str] = chz.field(
        default_factory=dict,
        doc="arguments of the tasks, e.g. task_args.path=DIRECTORY; each task gets those it has",
    )
    log_dir: str | None = chz.field(
        default=None, doc="directory of the Inspect logs (None: `inspect` in the run directory)"
    )

    def __call__(self) -> InspectEvaluator:
        try:
            from tinker_cookbook.eval.task_names import make_tasks
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"evaluations need the package {error.name}: {install_line('eval')}"
            ) from error
        args = {
            key: yaml.safe_load(text) if isinstance(text, str) else text
            for key, text in self.task_args.items()
        }
        return InspectEvaluator(self, make_tasks(self.tasks, args))


class InspectEvaluator(SamplingClientEvaluator):
    """Runs Inspect tasks on a sampling client; the metrics are those of `evaluation_metrics`.

    Samples that fail are counted in `<task>/failed` and reported in a line; EvalError if all do.
    """

    def __init__(self, settings: InspectEvaluatorBuilder, tasks: Sequence[Task]) -> None:
        self.settings, self.tasks = settings, list(tasks)
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        from tinker_cookbook.eval.inspect_model import model_for
        from tinker_cookbook.eval.results import results_lines
        from tinker_cookbook.eval.running import (
            EvaluationSettings,
            evaluate,
            evaluation_metrics,
            failures_line,
        )

        name = self.settings.model_name or client.get_base_model()
        renderer = get_renderer(
            self.settings.renderer_name or models.recommended_renderer(name),
            get_tokenizer(name),
            model_name=name,
        )
        logs = await evaluate(
            self.tasks,
            model_for(client, renderer, name, self._config()),
            self._log_dir(),
            EvaluationSettings(
                limit=self.settings.limit, epochs=self.settings.epochs, allow_failures=True
            ),
        )
        failures = [line for log in logs if (line := failures_line(log))]
        self._lines = [*results_lines(logs), *failures]
        return evaluation_metrics(logs)

    def lines(self) -> list[str]:
        return self._lines

    def _log_dir(self) -> Path:
        if self.settings.log_dir is not None:
            return Path(self.settings.log_dir)
        run = current_run_directory()
        return (run or Path()) / "inspect"

    def _config(self) -> GenerateConfig:
        from inspect_ai.model import GenerateConfig

        return GenerateConfig(
            temperature=self.settings.temperature,
            max_tokens=self.settings.max_tokens,
            top_p=self.settings.top_p,
            top_k=self.settings.top_k,
            num_choices=self.settings.num_choices,
            seed=self.settings.seed,
            max_connections=self.settings.max_connections,
        )
