from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from recipes.math_rl.boxed_env import MathEnv
from recipes.math_rl.pass_at_k import (
    Outcome,
    PassAtKEvaluator,
    ks_up_to,
    pass_at_k,
    pass_at_k_metrics,
    summary,
)
from recipes.math_rl.problems import ProblemDataset
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems.problem_rows import Problem
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.testing import ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_against_all_subsets(n: int, c: int) -> None:
    """The definition: of all choices of k replies, the share that holds a right one."""
    replies = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(replies, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_is_unbiased() -> None:
    """Its mean over the binomial number of right replies is 1 - (1 - p)^k, for any n."""
    n, k, p = 9, 4, 0.3
    mean = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k"):
        pass_at_k(n, c, k)


def test_ks() -> None:
    assert [ks_up_to(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def dataset(group_size: int) -> ProblemDataset:
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    return ProblemDataset(
        [Problem("1 + 1?", "2"), Problem("2 + 2?", "4")],
        lambda problem, answer: MathEnv(problem, answer, renderer),
        group_size=group_size,
        groups_per_batch=2,
        name="sums",
    )


async def test_evaluator(tmp_path: Path) -> None:
    """Of four replies to each problem, two are right for the first and one for the second."""
    evaluator = PassAtKEvaluator(dataset(4), 32)
    replies = ["\\boxed{2}", "\\boxed{4}", "nothing", "\\boxed{ 2.0 }"]
    engine = ScriptedEngine(scripted_text("nano", lambda asked: replies[asked.time] + "<|im_end|>"))
    service = scripted_service(engine, tmp_path)
    metrics = await evaluator(await service.create_sampling_client(base_model="nano"))
    assert metrics["sums/pass@1"] == metrics["sums/correct"] == pytest.approx(3 / 8)
    assert metrics["sums/pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert metrics["sums/pass@4"] == 1.0
    assert metrics["sums/format"] == pytest.approx(6 / 8)
    assert metrics["sums/failed"] == 0
    assert "pass@2 0.667" in evaluator.lines()[0]


def test_k_above_the_replies() -> None:
    with pytest.raises(ConfigurationError, match="k=4: expected 1 to num_samples=2"):
        PassAtKEvaluator(dataset(2), 32, ks=[1, 4])


@pytest.mark.slow
def test_the_program(shared_data: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    words = [f"path={shared_data / 'datasets' / 'aime'}", "num_samples=2", "max_tokens=16"]
    program = [sys.executable, "-m", "recipes.math_rl.aime", *words, f"log_path={tmp_path / 'run'}"]
    run = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "30 problems, 2 replies each: pass@1 0." in run.stdout
    assert (tmp_path / "run/iteration_000000/eval_aime.html").is_file()


def test_standard_error_by_hand() -> None:
    """Four problems, 4 replies each, 0, 1, 2 and 4 of them right."""
    outcomes = [Outcome(4, 4, c, well_formatted=4, truncated=1, tokens=10) for c in (0, 1, 2, 4)]
    metrics = pass_at_k_metrics("x", outcomes, [1, 2])
    ones, twos = [0, 1 / 4, 2 / 4, 1], [0, 1 / 2, 5 / 6, 1]  # C(3,2)/C(4,2) = 1/2, 1/6
    for k, values in ((1, ones), (2, twos)):
        mean = sum(values) / 4
        variance = sum((value - mean) ** 2 for value in values) / 3
        assert metrics[f"x/pass@{k}"] == pytest.approx(mean)
        assert metrics[f"x/pass@{k}_stderr"] == pytest.approx(math.sqrt(variance / 4))
    assert metrics["x/truncated"] == 0.25 and metrics["x/ac_tokens"] == 2.5
    alone = pass_at_k_metrics("x", outcomes[:1], [1])
    assert alone["x/pass@1"] == 0 and "x/pass@1_stderr" not in alone
    assert summary("x", outcomes[:1], [1], alone).startswith("x: 1 problem, 4 replies each: pass@1")
