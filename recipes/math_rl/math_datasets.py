"""Base classes of the math data sets: their config keys, test sets and batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import chz

from recipes.math_rl.boxed_env import MathEnv
from recipes.math_rl.problems import ProblemDataset, drop_held_out, sample_problems
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.math_problems.boxed_prompt import ONE_SHOT
from tinker_cookbook.math_problems.problem_rows import Columns, Problem, read_problems
from tinker_cookbook.renderers import Renderer, get_renderer
from tinker_cookbook.rl.types import Env, RLDataset, RLDatasetBuilder
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, SEED
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain

DEFAULT_TEST_SIZE = 100  # problems; a full test set would take nano minutes, 100 show a trend


@chz.chz
class MathDatasetBuilder(RLDatasetBuilder):
    """Base of the math data sets.

    A recipe sets keys that are None from its own keys with `chz.replace`, so that only the data's
    own keys are needed on the command line.
    """

    model_name_for_tokenizer: str | None = chz.field(
        default=None, doc="model whose tokenizer is used (None: from the recipe's keys)"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="renderer, e.g. qwen3_instruct (None: from the recipe's keys)"
    )
    group_size: int | None = chz.field(
        default=None,
        doc="rollouts per problem (None: from the recipe's keys)",
        metadata=COUNT,
    )
    groups_per_batch: int | None = chz.field(
        default=None,
        doc="problems per batch (None: from the recipe's keys)",
        metadata=COUNT,
    )
    seed: int | None = chz.field(
        default=None,
        doc="seed of the sampling and order of the problems (None: from the recipe's keys)",
        metadata=SEED,
    )
    num_epochs: int = chz.field(default=1, doc="passes over the training problems", metadata=COUNT)
    test_size: int | None = chz.field(
        default=None,
        doc="maximum problems in the test set; 0: no test (None: the whole test split,"
        f" {DEFAULT_TEST_SIZE} problems of it with nano; without a test split, a tenth of the"
        f" problems is held out, at most {DEFAULT_TEST_SIZE})",
        metadata=NON_NEGATIVE,
    )
    format_coef: float = chz.field(
        default=0.1, doc="penalty on the reward of a reply in the wrong format"
    )

    def default_max_tokens(self) -> int:
        """Enough tokens for the solution before the answer."""
        return 1024

    @property
    def renderer(self) -> Renderer:
        model = self.needed("model_name_for_tokenizer", self.model_name_for_tokenizer)
        name = self.needed("renderer_name", self.renderer_name)
        return get_renderer(name, get_tokenizer(model), model_name=model)

    def batches(
        self,
        problems: Sequence[Problem],
        make_env: Callable[[str, str], Env],
        name: str,
        test: bool = False,
    ) -> ProblemDataset:
        """Training batches, shuffled by `seed`; or a test set, with one rollout per problem."""
        return ProblemDataset(
            problems,
            make_env,
            group_size=1 if test else self.needed("group_size", self.group_size),
            groups_per_batch=self.needed("groups_per_batch", self.groups_per_batch),
            name=name,
            seed=None if test else self.needed("seed", self.seed),
            num_epochs=self.num_epochs,
        )


@chz.chz
class BoxedAnswers(MathDatasetBuilder):
    r"""Base of the data sets whose answers are asked for in `\boxed{}`."""

    path: str = chz.field(doc="data set: name on the hub, directory or file")
    test_path: str | None = chz.field(
        default=None, doc="evaluation file or data set (None: the test split of path)"
    )
    one_shot: bool = chz.field(default=True, doc="show one solved problem before each question")

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of local files; nothing for names on the hub."""
        test = {} if self.test_path is None else path_identity(self.test_path)
        return {**path_identity(self.path), **({"test_path": test["path"]} if test else {})}

    def name(self) -> str:
        """The name of the data set in metrics and reports."""
        return type(self).__name__.lower()

    def columns(self) -> Columns:
        raise ConfigurationError(
            f"{type(self).__name__} is an abstract base class; choose a data set"
        )

    def train_problems(self) -> list[Problem]:
        return read_problems(self.path, self.columns())

    def test_problems(self) -> list[Problem] | None:
        """The test split; None if there is none, so that some problems are held out instead."""
        return None if self.test_path is None else read_problems(self.test_path, self.columns())

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        problems, test_split = self.train_problems(), self.test_problems()
        test = self._hold_out(problems) if test_split is None else self._limit_test(test_split)
        # Exclude the whole test split from training, even if test_size evaluates only a part of it.
        train = drop_held_out(problems, test if test_split is None else test_split)
        if not train:
            raise DataValidationError(
                self._no_problems_left(problems, test, test_split is not None)
            )
        return (
            self.batches(train, self.env_maker(), self.name()),
            self.batches(test, self.env_maker(), self.name(), test=True) if test else None,
        )

    def _limit_test(self, problems: Sequence[Problem]) -> list[Problem]:
        nano = self.model_name_for_tokenizer == "nano"
        return sample_problems(
            problems, DEFAULT_TEST_SIZE if self.test_size is None and nano else self.test_size
        )

    def _hold_out(self, problems: Sequence[Problem]) -> list[Problem]:
        default = min(len(problems) // 10, DEFAULT_TEST_SIZE)
        return sample_problems(problems, default if self.test_size is None else self.test_size)

    def _no_problems_left(
        self, problems: Sequence[Problem], test: Sequence[Problem], has_test_split: bool
    ) -> str:
        given = f"data.path={self.path}"
        if not has_test_split:
            return (
                f"{self.name()}: holding out {len(test)} of the {len(problems)} problems of {given}"
                " leaves none for training: lower data.test_size= (0: no test)"
            )
        test_name = "the test set" if self.test_path is None else f"data.test_path={self.test_path}"
        return (
            f"{self.name()}: all {len(problems)} problems of {given} are also in {test_name}, so"
            " none is left for training: set data.path= or data.test_path= to other problems"
        )

    def env_maker(self) -> functools.partial[Env]:
        """Return a function that makes the environment of a question and its answer."""
        prefix = ONE_SHOT if self.one_shot else []
        return functools.partial(
            MathEnv, renderer=self.renderer, convo_prefix=prefix, format_coef=self.format_coef
        )
