r"""pass@k on AIME 2024 and 2025: 30 problems a year, each answer a whole number from 0 to 999.

    python -m recipes.math_rl.aime model_name=Qwen/Qwen3-8B max_tokens=8192 num_samples=8
    python -m recipes.math_rl.aime model_name=Qwen/Qwen3-8B model_path=tinker://... year=2025
    python -m recipes.math_rl.aime path=../shared/data/datasets/aime num_samples=2

The last line runs nano, which knows nothing of this: expect pass@k of 0, or near it.

On the hub: HuggingFaceH4/aime_2024, split train, and math-ai/aime25, split test, both with columns
`problem` and `answer` (their data cards, as far as remembered: not fetched here). A local directory
holds aime2024.jsonl and aime2025.jsonl.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Literal

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from recipes.math_rl.pass_at_k import PassAtKEvaluator
from recipes.math_rl.problems import Columns, Problem, ProblemDataset, read_problems
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import completer_from
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.service import EngineConfig

Year = Literal["2024", "2025"]
_HUB = {"2024": ("HuggingFaceH4/aime_2024", "train"), "2025": ("math-ai/aime25", "test")}
YEARS: tuple[Year, ...] = typing.get_args(Year)
_PER_YEAR = 30


@chz.chz
class Aime(BoxedAnswers):
    """The problems of one year. There is nothing to train on: `test_set()` and `evaluator()`."""

    path: str = chz.field(default="hub", doc="local directory or file (hub: the year's data set)")
    year: Year = chz.field(default="2024", doc="2024 or 2025")
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")

    def name(self) -> str:
        return f"aime{self.year}"

    def columns(self) -> Columns:
        return Columns("problem", "answer")

    def problems(self) -> list[Problem]:
        local = Path(self.path).expanduser()
        if self.path == "hub":
            path, split = _HUB[self.year]
        elif local.is_dir() and (local / f"{self.name()}.jsonl").is_file():
            path, split = str(local / f"{self.name()}.jsonl"), "train"
        elif local.is_dir() and any((local / f"aime{year}.jsonl").is_file() for year in YEARS):
            raise ConfigurationError(
                f"path={self.path} holds no {self.name()}.jsonl: set year= to a year that it holds"
            )
        else:
            path, split = self.path, "train"
        return read_problems(path, self.columns(), split)

    def test_set(self, num_samples: int) -> ProblemDataset:
        """All problems, each tried `num_samples` times."""
        return ProblemDataset(
            self.problems(),
            self.env_maker(),
            group_size=num_samples,
            groups_per_batch=_PER_YEAR,
            name=self.name(),
        )

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        raise ConfigurationError(
            "data=Aime: its 30 problems are for evaluation only; train on another data set, and "
            "evaluate with python -m recipes.math_rl.aime model_path=tinker://..."
        )


@chz.chz
class CLI:
    model_name: str = chz.field(default="nano", doc="nano, a hub name, or a directory")
    model_path: str | None = chz.field(
        default=None, doc="tinker://..., a run's or PEFT adapter's directory (None: base model)"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="how messages become tokens (None: what suits checkpoint or model)"
    )
    path: str = chz.field(default="hub", doc="local directory or file (hub: the year's data set)")
    year: tuple[Year, ...] = chz.field(
        default=YEARS, doc="which years, each by itself, e.g. year=2025"
    )
    num_samples: int = chz.field(default=8, doc="replies to each problem")
    k: list[int] = chz.field(
        default_factory=list, doc="which pass@k, e.g. k=1,8 (empty: 1, 2, 4, ... num_samples)"
    )
    max_tokens: int | None = chz.field(
        default=None, doc="tokens of a reply at most (None: 256 for nano, else 8192)"
    )
    temperature: float = chz.field(default=1.0, doc="of sampling")
    top_p: float = chz.field(default=1.0, doc="share of the probability that is sampled from")
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")
    seed: int = chz.field(default=0, doc="seed of the replies")
    base_url: str | None = chz.field(default=None, doc="server that samples (None: in process)")
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig, doc="settings of the engine in process"
    )

    @chz.validate
    def _counts(self) -> None:
        if self.num_samples < 1:
            raise ConfigurationError(f"num_samples={self.num_samples}: expected 1 or more")
        if not self.year or len(set(self.year)) < len(self.year):
            raise ConfigurationError(
                f"year={','.join(self.year)}: expected one or more of {', '.join(YEARS)}"
            )
        if len(self.year) > 1 and Path(self.path).expanduser().is_file():
            raise ConfigurationError(
                f"path={self.path} is one file, and year={','.join(self.year)} are"
                f" {len(self.year)} sets of problems: set year= to its year, or path= to a"
                " directory with aime2024.jsonl and aime2025.jsonl"
            )


async def main(config: CLI) -> None:
    max_tokens = config.max_tokens or (256 if config.model_name == "nano" else 8192)
    model = await completer_from(
        config.model_name,
        config.model_path,
        max_tokens=max_tokens,
        renderer_name=config.renderer_name,
        base_url=config.base_url,
        engine=config.engine if config.base_url is None else None,
    )
    renderer_name = getattr(model.renderer.origin, "renderer_name", config.renderer_name)
    print(f"{config.model_path or config.model_name}, renderer {renderer_name}")
    for year in config.year:
        aime = Aime(
            path=config.path,
            year=year,
            one_shot=config.one_shot,
            model_name_for_tokenizer=config.model_name,
            renderer_name=renderer_name,
        )
        evaluator = PassAtKEvaluator(
            aime.test_set(config.num_samples),
            max_tokens,
            ks=config.k,
            temperature=config.temperature,
            top_p=config.top_p,
            context_window=models.context_length(config.model_name),
            seed=config.seed,
        )
        metrics = await evaluator(model.sampling_client)
        print("\n".join([*evaluator.lines(), *(f"{key} = {metrics[key]:.4g}" for key in metrics)]))


if __name__ == "__main__":
    cli(main, CLI)
