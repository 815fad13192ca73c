"""What the data sets of problems share: their keys, and how problems become batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import chz

from recipes.math_rl.boxed_env import ONE_SHOT, MathEnv
from recipes.math_rl.problems import Columns, Problem, ProblemDataset, read_problems, some, without
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.renderers import Renderer, get_renderer
from tinker_cookbook.rl.types import Env, RLDataset, RLDatasetBuilder
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import COUNT, NOT_NEGATIVE, SEED
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain

T = TypeVar("T")
DEFAULT_TEST = 100  # problems: nano would need minutes for a whole test; enough to see a trend


@chz.chz
class MathDatasetBuilder(RLDatasetBuilder):
    """Base of the data sets of problems. Keys that are None are filled from the recipe's own keys
    with `chz.replace`, so that on the command line the data's own keys are enough."""

    model_name_for_tokenizer: str | None = chz.field(
        default=None, doc="model whose tokenizer is used (None: from the recipe's own keys)"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="how messages become tokens (None: from the recipe's own keys)"
    )
    group_size: int | None = chz.field(
        default=None,
        doc="attempts at each problem (None: from the recipe's own keys)",
        metadata=COUNT,
    )
    groups_per_batch: int | None = chz.field(
        default=None,
        doc="problems of a batch (None: from the recipe's own keys)",
        metadata=COUNT,
    )
    seed: int | None = chz.field(
        default=None,
        doc="seed of what is drawn and in which order (None: from the recipe's keys)",
        metadata=SEED,
    )
    num_epochs: int = chz.field(default=1, doc="passes over the training problems", metadata=COUNT)
    test_size: int | None = chz.field(
        default=None,
        doc="problems of the test at most; 0: no test (None: all of the test that the data set has,"
        f" {DEFAULT_TEST} of it with nano; of one without, a tenth is held out, at most"
        f" {DEFAULT_TEST})",
        metadata=NOT_NEGATIVE,
    )
    one_shot: bool = chz.field(default=True, doc="show one solved problem before each question")
    format_coef: float = chz.field(
        default=0.1, doc="taken from the reward of a reply that is not in the asked form"
    )

    def default_max_tokens(self) -> int:
        """With room for the solution that the answer comes from."""
        return 1024

    @property
    def renderer(self) -> Renderer:
        model = self.needed("model_name_for_tokenizer", self.model_name_for_tokenizer)
        name = self.needed("renderer_name", self.renderer_name)
        return get_renderer(name, get_tokenizer(model), model_name=model)

    def needed(self, key: str, value: T | None) -> T:
        """`value` of `key`, or ConfigurationError where nobody has filled it."""
        if value is None:
            raise ConfigurationError(f"{type(self).__name__} was called without {key}: set {key}=")
        return value

    def batches(
        self,
        problems: Sequence[Problem],
        make_env: Callable[[str, str], Env],
        name: str,
        test: bool = False,
    ) -> ProblemDataset:
        """Training batches by `seed`; of a test, each problem once, tried once, in its order."""
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
        default=None, doc="file or data set of the test (None: what belongs to path)"
    )

    def identity(self) -> Mapping[str, Plain]:
        """Of local data, what its files tell at a glance; a name on the hub is enough."""
        test = {} if self.test_path is None else path_identity(self.test_path)
        return {**path_identity(self.path), **({"test_path": test["path"]} if test else {})}

    def name(self) -> str:
        """How metrics and reports call the data set."""
        return type(self).__name__.lower()

    def columns(self) -> Columns:
        raise ConfigurationError(f"{type(self).__name__} is only the base of data sets: name one")

    def train_problems(self) -> list[Problem]:
        return read_problems(self.path, self.columns())

    def test_problems(self) -> list[Problem] | None:
        """None: the data set has no test of its own, and some of its problems are held out."""
        return None if self.test_path is None else read_problems(self.test_path, self.columns())

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        problems, own_test = self.train_problems(), self.test_problems()
        test = self._held_out(problems) if own_test is None else self._of_test(own_test)
        # all of a test of its own, of which a small test_size plays only some
        train = without(problems, test if own_test is None else own_test)
        if not train:
            raise DataValidationError(self._nothing_left(problems, test, own_test is not None))
        return (
            self.batches(train, self.env_maker(), self.name()),
            self.batches(test, self.env_maker(), self.name(), test=True) if test else None,
        )

    def _of_test(self, problems: Sequence[Problem]) -> list[Problem]:
        nano = self.model_name_for_tokenizer == "nano"
        return some(problems, DEFAULT_TEST if self.test_size is None and nano else self.test_size)

    def _held_out(self, problems: Sequence[Problem]) -> list[Problem]:
        default = min(len(problems) // 10, DEFAULT_TEST)
        return some(problems, default if self.test_size is None else self.test_size)

    def _nothing_left(
        self, problems: Sequence[Problem], test: Sequence[Problem], own_test: bool
    ) -> str:
        given = f"data.path={self.path}"
        if not own_test:
            return (
                f"{self.name()}: a test of {len(test)} of the {len(problems)} problems of {given}"
                " leaves none to train on: set data.test_size= to less (0: no test)"
            )
        there = "the test" if self.test_path is None else f"data.test_path={self.test_path}"
        return (
            f"{self.name()}: all {len(problems)} problems of {given} are in {there}, too, and what"
            " is tested is not trained on: set data.path= or data.test_path= to other problems"
        )

    def env_maker(self) -> functools.partial[Env]:
        """Makes the env of a question and its answer."""
        prefix = ONE_SHOT if self.one_shot else []
        return functools.partial(
            MathEnv, renderer=self.renderer, convo_prefix=prefix, format_coef=self.format_coef
        )
