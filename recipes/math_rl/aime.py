r"""pass@k on AIME 2024, 2025 and 2026: 30 problems a year, each answer a number from 0 to 999.

    ./scripts/run recipes.math_rl.aime model_name=Qwen/Qwen3-8B max_tokens=8192 num_samples=8
    ./scripts/run recipes.math_rl.aime model_name=Qwen/Qwen3-8B model_path=tinker://... year=2026
    ./scripts/run recipes.math_rl.aime path=DIRECTORY num_samples=2

A shorthand for `tinker_cookbook.eval.run_inspect_evals tasks=aime2024,aime2025,aime2026`, whose
docstring says what the run's directory holds and how an evaluation is resumed.

The last command runs nano on a local copy. nano cannot solve these problems: on 2024 and 2025, 60
problems with 2 replies each, pass@1 and pass@2 are 0.
"""

from __future__ import annotations

import chz

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.eval import run_inspect_evals
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems.aime import (
    DEFAULT,
    HUB,
    YEARS,
    Year,
    chosen_years,
    problem_files,
)
from tinker_cookbook.training.fields import COUNT
from tinker_cookbook.utils.json_types import Json


@chz.chz
class CLI(run_inspect_evals.Config):
    path: str = chz.field(
        default="hub",
        doc=f"local directory or file, or a name on the hub (hub: {', '.join(DEFAULT.values())};"
        f" known besides: {', '.join(name for name in HUB if name not in DEFAULT.values())})",
    )
    year: tuple[Year, ...] = chz.field(
        default=(), doc=f"which of {', '.join(YEARS)}, e.g. year=2025,2026 (empty: all of path)"
    )
    num_samples: int | None = chz.field(default=8, doc="completions per problem", metadata=COUNT)
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")

    def data_paths(self) -> list[str]:
        return problem_files(self.path)

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        return {key: value for key, value in config.items() if key not in ("tasks", "task_args")}


async def main(config: CLI) -> None:
    for key in ("tasks", "task_args"):
        if value := getattr(config, key):
            raise ConfigurationError(
                f"{key}={value}: here it follows from year=, path= and one_shot=; for other tasks"
                f" use tinker_cookbook.eval.run_inspect_evals {key}="
            )
    years = chosen_years(config.path, config.year)
    await run_inspect_evals.run(
        chz.replace(
            config,
            tasks=[f"aime{year}" for year in years],
            task_args={"path": config.path, "one_shot": str(config.one_shot)},
        ),
        recipe="aime",
    )


FIRST_KEYS = (  # that `--help` explains first
    "model_name",
    "model_path",
    "year",
    "num_samples",
    "k",
    "max_tokens",
    "temperature",
    "path",
    "log_path",
    "base_url",
)

if __name__ == "__main__":
    cli(main, CLI, first_keys=FIRST_KEYS)
