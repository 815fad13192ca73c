"""Evaluate a model on Inspect tasks: local ones, those of installed packages, or your own.

    python -m tinker_cookbook.eval.run_inspect_evals tasks=nano_sums
    python -m tinker_cookbook.eval.run_inspect_evals model_name=Qwen/Qwen3-8B \
        model_path=tinker://... tasks=ifeval,gsm8k
    python -m tinker_cookbook.eval.run_inspect_evals tasks=inspect_evals/gsm8k limit=100
    python -m tinker_cookbook.eval.run_inspect_evals tasks=my_task.py num_samples=8 k=1,8
    python -m tinker_cookbook.eval.run_inspect_evals tasks=gsm8k task_args.path=DIRECTORY

The run directory holds config.json, metrics.jsonl (a row for each task and a last row with all
results), logs.log, and in `inspect` Inspect's logs, for `./scripts/run inspect_ai view`. If the run
is stopped, the same command continues with the samples that are missing, and so it does with
samples that failed.

A program over this one passes its own config and tasks:

    config = Config(tasks=["aime2024"], task_args={"path": path}, num_samples=8, k=[1, 8])
    metrics = await run(config, recipe="aime")      # {"aime2024/pass@1": ..., ...}
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import yaml

from tinker_cookbook.checkpoint_utils import base_model_of_checkpoint
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.eval.tasks import LOCAL
from tinker_cookbook.exceptions import ConfigurationError, EvalError
from tinker_cookbook.service import EngineConfig, locate_checkpoint
from tinker_cookbook.training.fields import (
    COUNT,
    FRACTION,
    MAY_CHANGE,
    NON_NEGATIVE,
    SEED,
    CheckedConfig,
)
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.utils.data_identity import adapter_identity, data_set_identity
from tinker_cookbook.utils.display import DisplayMode, duration, is_terminal
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted, install_line
from tinker_cookbook.utils.ml_log import read_metrics

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model

    from tinker_cookbook.eval.running import EvaluationSettings

LOGS = "inspect"
"""The directory of the Inspect logs in a run directory."""


@chz.chz
class Config(CheckedConfig):
    tasks: list[str] = chz.field(
        default_factory=list,
        doc=f"what to run, e.g. tasks=ifeval,gsm8k: a local task ({', '.join(LOCAL)}), a"
        " registered one (package/name), file.py, file.py@name or module:function",
    )
    task_args: dict[str, str] = chz.field(
        default_factory=dict,
        doc="arguments of the tasks, e.g. task_args.path=DIRECTORY; each task gets those it has",
    )
    model_name: str | None = chz.field(
        default=None,
        doc="base model: nano (bundled), hub name or path (None: the checkpoint's, else nano)",
    )
    model_path: str | None = chz.field(
        default=None,
        doc="checkpoint to evaluate: a tinker:// path, a run directory or a PEFT adapter"
        " directory (None: the base model)",
    )
    renderer_name: str | None = chz.field(
        default=None,
        doc="renderer, i.e. chat template (None: the checkpoint's, else the model's default)",
    )
    limit: int | None = chz.field(
        default=None, doc="samples of each task, from the first (None: all)", metadata=COUNT
    )
    num_samples: int | None = chz.field(
        default=None, doc="completions per sample (None: the task's own number)", metadata=COUNT
    )
    k: list[int] = chz.field(
        default_factory=list,
        doc="values of k for pass@k, e.g. k=1,8 (empty: 1, 2, 4, ... num_samples, if that is"
        " given)",
    )
    max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per completion (None: the task's, else 256 for nano, 8192 for others)",
        metadata=COUNT,
    )
    temperature: float | None = chz.field(
        default=None,
        doc="sampling temperature (0: greedy decoding; None: the task's, else 1)",
        metadata=NON_NEGATIVE,
    )
    top_p: float | None = chz.field(
        default=None,
        doc="nucleus (top-p) sampling: cumulative probability to keep (None: the task's, else 1)",
        metadata=FRACTION,
    )
    top_k: int | None = chz.field(
        default=None, doc="number of most likely tokens to sample from (None: the task's, else all)"
    )
    seed: int = chz.field(default=0, doc="random seed of sampling", metadata=SEED)
    max_connections: int = chz.field(
        default=512, doc="requests in flight at once; the engine batches them", metadata=COUNT
    )
    allow_failures: bool = chz.field(
        default=False,
        doc="finish although samples failed; they have no score and are counted in <task>/failed",
        metadata=MAY_CHANGE,
    )
    log_path: str | None = chz.field(
        default=None, doc="run directory (None: named after the config)"
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None,
        doc="what to do if the run directory already holds a run (None: resume it if config and"
        " code match; resume: also with edited code; skip: exit if it is finished)",
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: run in process)"
    )
    engine: EngineConfig = chz.field(default_factory=EngineConfig, doc="in-process engine settings")
    display: DisplayMode = chz.field(
        default="auto", doc="progress display (auto: live on a terminal)"
    )

    @chz.validate
    def _ks(self) -> None:
        wanted = ",".join(map(str, self.k))
        if self.k and self.num_samples is None:
            raise ConfigurationError(f"k={wanted}: pass@k needs num_samples={max(self.k)} or more")
        if any(not 1 <= k <= (self.num_samples or 1) for k in self.k):
            raise ConfigurationError(
                f"k={wanted}: pass@k needs 1 to num_samples={self.num_samples}; set num_samples="
            )

    def data_paths(self) -> list[str]:
        """The local files and directories with tasks and their data."""
        files = [task.partition("@")[0] for task in self.tasks]
        paths = [file for file in files if file.endswith(".py")]
        paths += [value for value in self.task_args.values() if isinstance(value, str)]
        return [path for path in paths if Path(path).expanduser().exists()]

    def identity(self) -> Mapping[str, Plain]:
        """The content of local tasks, data and adapters: a changed one is a new run."""
        found = {path: data_set_identity(path) for path in self.data_paths()}
        adapter = adapter_identity(self.model_path).get("load_checkpoint_path")
        return {
            **({"files": found} if found else {}),
            **({"model_path": adapter} if adapter else {}),
        }


async def main(config: Config) -> None:
    await run(config)


async def run(config: Config, recipe: str = "inspect_evals") -> dict[str, float]:
    """Run the tasks, or what is missing of them; returns the metrics of `evaluation_metrics`."""
    try:
        import inspect_ai  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"evaluations need the package {error.name}: {install_line('eval')}"
        ) from error
    from tinker_cookbook.eval.task_names import make_tasks

    if config.model_path is not None:
        # A run's directory stands for its latest checkpoint. Fixed here, so that a resumed
        # evaluation does not switch to a later one if that run is still training.
        path = locate_checkpoint(
            config.model_path, "sampler_weights", "model_path", config.base_url
        )
        config = chz.replace(config, model_path=path)
    if config.model_name is None:
        trained_on = config.model_path and base_model_of_checkpoint(
            config.model_path, config.base_url
        )
        config = chz.replace(config, model_name=trained_on or "nano")
    _check_log_path(config)
    args = {key: _value(text) for key, text in config.task_args.items()}
    tasks = make_tasks(config.tasks, args)
    shown = _inspect_display(config.display)
    with Journal(
        # Inspect has a display of its own
        chz.replace(config, display="none" if shown == "none" else "plain"),
        recipe=recipe,
        total_steps=len(tasks),
        unit="task",
        count_done_rows=lambda directory: _count_done_rows(directory, len(tasks)),
        keeps_parts=True,
    ) as journal:
        return await _run_in(journal, config, tasks, _settings(config, shown))


def _check_log_path(config: Config) -> None:
    """Files of the run must not become part of the data that identifies it."""
    run = None if config.log_path is None else Path(config.log_path).expanduser().resolve()
    for path in config.data_paths():
        data = Path(path).expanduser()
        if run is not None and data.is_dir() and run.is_relative_to(data.resolve()):
            raise ConfigurationError(
                f"log_path={config.log_path} lies in {path}, the data of the tasks: set another"
                " log_path"
            )


async def _run_in(
    journal: Journal, config: Config, tasks: Sequence[Task], settings: EvaluationSettings
) -> dict[str, float]:
    from tinker_cookbook.eval.results import results_lines
    from tinker_cookbook.eval.running import evaluation_metrics, failures_line
    from tinker_cookbook.eval.task_names import task_name

    log_dir = journal.log_path / LOGS
    with journal.interruptible(), journal.timed("evaluate"):
        logs = await _evaluate_missing(journal, config, tasks, log_dir, settings)
    failures = [line for log in logs if (line := failures_line(log))]
    for line in failures:
        journal.log_line(line)
    if failures and not config.allow_failures:
        raise EvalError(
            f"{failures[0]}; the same command tries failed samples again, allow_failures=true"
            f" leaves them out (logs: {log_dir})"
        )
    for i, log in enumerate(logs):
        with journal.step(i) as row:
            row.update({"task": task_name(log.eval.task), **evaluation_metrics([log])})
    metrics = evaluation_metrics(logs)
    with journal.step(len(tasks)) as row:
        row.update(metrics)
    for line in results_lines(logs):
        journal.log_line(line)
    shown = shlex.quote(str(log_dir))
    journal.log_line(f"every sample: ./scripts/run inspect_ai view --log-dir {shown}")
    return metrics


async def _evaluate_missing(
    journal: Journal,
    config: Config,
    tasks: Sequence[Task],
    log_dir: Path,
    settings: EvaluationSettings,
) -> list[EvalLog]:
    """The complete logs of all tasks; those that the directory has are not run again."""
    from tinker_cookbook.eval.log_files import find_logs
    from tinker_cookbook.eval.running import evaluate, evaluate_rest, num_scored

    logs, unfinished = find_logs(log_dir, tasks)
    new = [task for task in tasks if task.name not in logs and task.name not in unfinished]
    model = _model(config)  # also where nothing is new, as a check of the model's arguments
    journal.log_line(_what_runs(config, model, tasks))
    if logs or unfinished:
        kept = sum(num_scored(log) for log in [*logs.values(), *unfinished.values()])
        journal.log_line(
            f"{counted(kept, 'sample')} of an earlier start kept ({len(logs)} of"
            f" {counted(len(tasks), 'task')} complete): running what is missing"
        )
    if unfinished:
        rest = await evaluate_rest(list(unfinished.values()), log_dir, settings)
        logs |= {log.eval.task: log for log in rest}
    if new:
        started = time.perf_counter()
        made = await evaluate(new, model, log_dir, settings)
        journal.log_line(_throughput(made, time.perf_counter() - started))
        logs |= {log.eval.task: log for log in made}
    return [logs[task.name] for task in tasks]


def _throughput(logs: Sequence[EvalLog], seconds: float) -> str:
    from tinker_cookbook.eval.running import num_output_tokens

    tokens, samples = sum(map(num_output_tokens, logs)), sum(len(log.samples or []) for log in logs)
    return (
        f"{counted(samples, 'sample')}, {counted(tokens, 'sampled token')} in {duration(seconds)}:"
        f" {samples / seconds:.3g} samples/s, {tokens / seconds:,.0f} tokens/s"
    )


def _model(config: Config) -> Model:
    """By name, so that the logs tell Inspect how to make it again."""
    from inspect_ai.model import GenerateConfig, get_model

    import tinker_cookbook.eval.inspect_model  # noqa: F401  # registers the model API

    names = {"model_path": config.model_path, "renderer_name": config.renderer_name}
    default = EngineConfig()
    changed = {
        key: getattr(config.engine, key)
        for key in chz.chz_fields(EngineConfig)
        if getattr(config.engine, key) != getattr(default, key)
    }
    arguments: dict[str, Any] = {k: v for k, v in names.items() if v is not None} | changed
    return get_model(
        f"tinker-cookbook/{config.model_name}",
        config=GenerateConfig(max_connections=config.max_connections),
        base_url=config.base_url,
        **arguments,
    )


def _settings(config: Config, display: Any) -> EvaluationSettings:
    from tinker_cookbook.eval.running import EvaluationSettings

    keys = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    ks = config.k
    if not ks and config.num_samples is not None and config.num_samples > 1:
        powers = [2**i for i in range(config.num_samples.bit_length())]
        ks = sorted({*powers, config.num_samples})
    return EvaluationSettings(
        limit=config.limit,
        epochs=config.num_samples,
        ks=ks,
        display=display,
        allow_failures=config.allow_failures,
        resumable=True,
        generate={key: value for key in keys if (value := getattr(config, key)) is not None},
    )


def _what_runs(config: Config, model: Model, tasks: Sequence[Task]) -> str:
    from tinker_cookbook.eval.inspect_model import TinkerSamplingAPI

    assert isinstance(model.api, TinkerSamplingAPI)
    origin = model.api.renderer.origin
    renderer_name = getattr(origin, "renderer_name", config.renderer_name)
    names = ", ".join(task.name for task in tasks)
    sampling = [
        f"temperature {1 if config.temperature is None else config.temperature:g}",
        f"at most {config.max_tokens or model.api.max_tokens()} tokens",
    ]
    return (
        f"{config.model_path or config.model_name}, renderer {renderer_name},"
        f" {', '.join(sampling)} (where a task has no setting of its own): {names}"
    )


def _inspect_display(mode: DisplayMode) -> Any:
    import sys

    if mode == "none":
        return "none"
    live = mode in ("auto", "live") and is_terminal(sys.stdout)
    return "rich" if live else "plain"


def _value(text: str) -> Any:
    """A number, boolean or text, as Inspect's own command line reads `-T key=value`."""
    return yaml.safe_load(text) if isinstance(text, str) else text


def _count_done_rows(directory: Path, total: int) -> int:
    """All rows are written from the logs once these are complete; before that, none counts."""
    rows = read_metrics(directory)
    return total + 1 if len(rows) == total + 1 else 0


FIRST_KEYS = (  # that `--help` explains first
    "tasks",
    "model_name",
    "model_path",
    "limit",
    "num_samples",
    "k",
    "max_tokens",
    "temperature",
    "task_args",
    "log_path",
    "base_url",
)

if __name__ == "__main__":
    cli(main, Config, first_keys=FIRST_KEYS)
