"""Data sets of problems: what is read, what is refused, which problems come in which batch."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import chz
import pytest

from recipes.math_rl import math_env as known_names
from recipes.math_rl.arithmetic import Arithmetic, SumEnv
from recipes.math_rl.boxed_env import MathEnv
from recipes.math_rl.deepmath import DeepMath
from recipes.math_rl.gsm8k import Gsm8k
from recipes.math_rl.hendrycks_math import Math
from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.own_problems import OwnProblems
from recipes.math_rl.polaris import Polaris
from recipes.math_rl.problems import ProblemDataset, drop_held_out, sample_problems
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, DataValidationError
from tinker_cookbook.math_problems.math_grading import normalize_answer
from tinker_cookbook.math_problems.problem_rows import Problem
from tinker_cookbook.nano.tasks import held_out_pair
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import Env, RLDataset
from tinker_cookbook.tokenizer_utils import get_tokenizer

NANO: dict[str, Any] = {
    "model_name_for_tokenizer": "nano",
    "renderer_name": "qwen3_instruct",
    "group_size": 3,
    "groups_per_batch": 4,
    "seed": 5,
}


def datasets(builder: MathDatasetBuilder) -> tuple[RLDataset, RLDataset | None]:
    return asyncio.run(builder())


def envs(dataset: RLDataset, index: int) -> list[ProblemEnv]:
    """The first env of each group of a batch."""
    found: list[ProblemEnv] = []
    for builder in dataset.get_batch(index):
        made = asyncio.run(builder.make_envs())
        assert isinstance(made[0], ProblemEnv)
        found.append(made[0])
    return found


def questions(dataset: RLDataset, index: int) -> list[str]:
    return [env.get_question() for env in envs(dataset, index)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def step(env: Env, reply: str, stopped: bool = True) -> Any:
    tokenizer = get_tokenizer("nano")
    tokens = tokenizer.encode(reply + "<|im_end|>" * stopped, add_special_tokens=False)
    return asyncio.run(env.step(list(tokens), extra={"stop_reason": "stop"}))


# -------------------------------------------------------------------- batches


def numbered(count: int, **keys: Any) -> ProblemDataset:
    problems = [Problem(str(i), str(i)) for i in range(count)]
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    keys = {"group_size": 2, "groups_per_batch": 4, "name": "numbers", **keys}
    return ProblemDataset(
        problems, lambda problem, answer: MathEnv(problem, answer, renderer), **keys
    )


def drawn(dataset: ProblemDataset) -> list[list[int]]:
    return [[int(q.split()[0]) for q in questions(dataset, i)] for i in range(len(dataset))]


def test_epochs_run_on_and_leave_nothing_out() -> None:
    batches = drawn(numbered(10, seed=0, num_epochs=2))
    assert [len(batch) for batch in batches] == [4] * 5
    flat = [n for batch in batches for n in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_batches_depend_on_seed_and_index_alone() -> None:
    one, other = numbered(50, seed=3), numbered(50, seed=3)
    assert questions(one, 7) == questions(other, 7)
    assert [questions(one, i) for i in (2, 0)] == [questions(other, i) for i in (2, 0)]
    assert drawn(one) != drawn(numbered(50, seed=4))


def test_a_test_is_every_problem_once_in_its_order() -> None:
    assert drawn(numbered(10)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_fewer_problems_than_a_batch_are_one_batch() -> None:
    assert [sorted(batch) for batch in drawn(numbered(3, seed=0))] == [[0, 1, 2]]


def test_a_group_is_attempts_at_one_problem() -> None:
    (builder, *_) = numbered(8, seed=0, group_size=5).get_batch(0)
    made = asyncio.run(builder.make_envs())
    assert len({id(env) for env in made}) == 5
    assert len({env.get_question() for env in made if isinstance(env, MathEnv)}) == 1
    assert builder.logging_tags() == ["numbers"]


def test_no_problems_and_no_such_batch() -> None:
    with pytest.raises(DataValidationError, match="numbers: there are no problems"):
        numbered(0)
    with pytest.raises(IndexError):
        numbered(8).get_batch(2)


def test_some_and_without() -> None:
    problems = [Problem(f"q {i}", "") for i in range(100)]
    assert sample_problems(problems, None) == sample_problems(problems, 200) == problems
    few = sample_problems(problems, 10)
    assert (
        few == sample_problems(problems, 10)
        and few == sorted(few, key=problems.index)
        and len(few) == 10
    )
    assert few != problems[:10]
    left = drop_held_out(problems, [Problem("q  3\n", "another answer")])
    assert left == problems[:3] + problems[4:]


# ------------------------------------------------------------------ environments


def math_env(answer: str) -> MathEnv:
    return MathEnv("Add.", answer, get_renderer("qwen3_instruct", get_tokenizer("nano")))


@pytest.mark.parametrize(
    ("reply", "stopped", "reward", "in_form", "correct"),
    [
        ("It is \\boxed{1/2}", True, 1.0, 1, 1),
        ("It is \\boxed{3}", True, 0.0, 1, 0),
        ("It is 1/2", True, -0.1, 0, 0),
        ("\\boxed{0.5}", False, 0.9, 0, 1),
        ("\\boxed{0.5", True, -0.1, 0, 0),
        ("\\boxed{}", True, 0.0, 1, 0),
        ("", True, -0.1, 0, 0),
    ],
)
def test_rewards(reply: str, stopped: bool, reward: float, in_form: int, correct: int) -> None:
    result = step(math_env("\\frac{1}{2}"), reply, stopped)
    assert result.reward == pytest.approx(reward)
    assert result.metrics == {"format": in_form, "correct": correct}
    assert result.logs["reference"] == "\\frac{1}{2}"


@pytest.mark.parametrize(
    ("reply", "correct"),
    [("15", 1), ("The answer is 15.", 1), ("<think>\n15\n</think>\n\n16", 0), ("<think>\n15", 0)],
)
def test_sums_are_graded_by_the_last_number(reply: str, correct: int) -> None:
    train, _ = datasets(Arithmetic(**NANO))
    env = envs(train, 0)[0]
    assert isinstance(env, SumEnv)
    total = sum(env.numbers)
    result = step(env, reply.replace("15", str(total)).replace("16", str(total + 1)))
    assert result.metrics["correct"] == correct


def test_sums_of_nano() -> None:
    train, test = datasets(Arithmetic(**NANO, num_batches=50))
    assert test is not None and len(train) == 50 and len(test) == 1
    pairs = [env.numbers for i in range(50) for env in envs(train, i) if isinstance(env, SumEnv)]
    assert len(pairs) == 200 and not any(held_out_pair(*pair) for pair in pairs)
    held_out = [env.numbers for env in envs(test, 0) if isinstance(env, SumEnv)]
    assert len(held_out) == 500 and all(held_out_pair(*pair) for pair in held_out)
    assert max(max(pair) for pair in pairs + held_out) == 99
    again, _ = datasets(Arithmetic(**NANO))
    assert questions(again, 30) == questions(train, 30) != questions(train, 31)
    prompt, stop = asyncio.run(envs(train, 0)[0].initial_observation())
    text = get_tokenizer("nano").decode(prompt.to_ints())
    assert text.count("<|im_start|>user") == 1 and stop == [2]
    _, other_seed = datasets(Arithmetic(**{**NANO, "seed": 6}))
    assert other_seed is not None and questions(other_seed, 0) == questions(test, 0)


def test_sums_of_other_models(shared_data: Path) -> None:
    name = str(shared_data / "tokenizers" / "qwen3")
    keys = {**NANO, "model_name_for_tokenizer": name, "groups_per_batch": 3000}
    train, test = datasets(Arithmetic(**keys, test_size=0))
    assert test is None
    env = envs(train, 0)[0]
    prompt, _ = asyncio.run(env.initial_observation())
    text = str(get_tokenizer(name).decode(prompt.to_ints()))
    assert text.count("<|im_start|>user") == 2 and env.get_question() in text
    pairs = [env.numbers for env in envs(train, 0) if isinstance(env, SumEnv)]
    assert max(max(pair) for pair in pairs) == 100


# ------------------------------------------------------------------ what is read


def test_gsm8k(shared_data: Path) -> None:
    path = str(shared_data / "datasets" / "gsm8k")
    train, test = datasets(Gsm8k(**NANO, path=path, test_size=2000))
    assert isinstance(train, ProblemDataset) and isinstance(test, ProblemDataset)
    assert (len(train.problems), len(test.problems)) == (7473, 1319)
    assert len(train) == 7473 // 4 and len(test) == 330
    answers = {problem.question[:6]: problem.answer for problem in test.problems}
    assert answers["Janet\u2019"] == "18"
    (env, *_) = envs(test, 0)
    assert step(env, "She makes \\boxed{$18}").reward == 1.0


def test_a_few_test_problems(shared_data: Path) -> None:
    other = {"model_name_for_tokenizer": str(shared_data / "tokenizers" / "qwen3")}
    for given, expected in (({"test_size": 64}, 64), ({}, 100), (other, 1319)):
        builder = Gsm8k(**{**NANO, **given}, path=str(shared_data / "datasets" / "gsm8k"))
        _, test = datasets(builder)
        assert isinstance(test, ProblemDataset) and len(test.problems) == expected


@pytest.mark.parametrize("keys", [("path",), ("path", "test_path")])
def test_math_is_trained_without_its_test(shared_data: Path, keys: tuple[str, ...]) -> None:
    directory = str(shared_data / "datasets" / "math")
    train, _ = datasets(Math(**NANO, **dict.fromkeys(keys, directory), test_size=10))
    assert isinstance(train, ProblemDataset) and len(train.problems) == 4500
    train, test = datasets(Math(**NANO, **dict.fromkeys(keys, directory), test_size=500))
    assert isinstance(train, ProblemDataset) and isinstance(test, ProblemDataset)
    assert (len(train.problems), len(test.problems)) == (4500, 500)
    assert not {p.question for p in train.problems} & {p.question for p in test.problems}
    assert test.problems[0].answer == "\\left( 3, \\frac{\\pi}{2} \\right)"


def test_a_test_of_math_may_have_solutions_alone(shared_data: Path, tmp_path: Path) -> None:
    rows = [{"problem": f"{i} + 1?", "solution": f"\\boxed{{{i + 1}}}"} for i in range(4)]
    train_path = write(tmp_path / "train.jsonl", rows)
    test_path = write(tmp_path / "test.jsonl", rows[:1])
    train, test = datasets(Math(**NANO, path=train_path, test_path=test_path))
    assert isinstance(train, ProblemDataset) and isinstance(test, ProblemDataset)
    assert [p.answer for p in train.problems] == ["2", "3", "4"]
    assert [p.answer for p in test.problems] == ["1"]


@pytest.mark.parametrize(
    ("builder", "row"),
    [
        (Math, {"solution": "\\boxed{1}", "answer": "1"}),
        (Math, {"solution": "\\boxed{1}"}),
        (OwnProblems, {"answer": "1"}),
    ],
)
def test_the_same_file_to_train_and_to_test(
    builder: Any, row: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", [{"problem": f"{i}?", **row} for i in range(120)])
    with pytest.raises(DataValidationError) as caught:
        datasets(builder(**NANO, path=path, test_path=path))
    assert f"all 120 problems of data.path={path} are also in data.test_path={path}" in str(
        caught.value
    )


@pytest.mark.parametrize(("count", "held_out"), [(8, 0), (29, 2), (3000, 100)])
def test_a_tenth_at_most_is_held_out(count: int, held_out: int, tmp_path: Path) -> None:
    rows = [{"problem": f"{i} + 1?", "answer": i + 1} for i in range(count)]
    train, test = datasets(OwnProblems(**NANO, path=write(tmp_path / "x.jsonl", rows)))
    assert isinstance(train, ProblemDataset) and len(train.problems) == count - held_out
    assert (len(test.problems) if isinstance(test, ProblemDataset) else 0) == held_out


def test_a_test_that_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"problem": f"{i}?", "answer": i} for i in range(8)])
    with pytest.raises(DataValidationError) as caught:
        datasets(OwnProblems(**NANO, path=path, test_size=100))
    assert str(caught.value) == (
        f"ownproblems: holding out 8 of the 8 problems of data.path={path} leaves none for"
        " training: lower data.test_size= (0: no test)"
    )


@pytest.mark.parametrize(
    ("builder", "row"),
    [
        (Polaris, {"problem": "1 + 1?", "answer": "2", "difficulty": "3/8"}),
        (DeepMath, {"question": "1 + 1?", "final_answer": "2", "difficulty": 3.0}),
        (OwnProblems, {"problem": "1 + 1?", "answer": 2}),
    ],
)
def test_columns(builder: Any, row: dict[str, Any], tmp_path: Path) -> None:
    (question, answer, *_) = row
    rows = [{**row, question: f"{i} + 1?", answer: i + 1} for i in range(20)]
    path = write(tmp_path / "train.jsonl", rows)
    train, test = datasets(builder(**NANO, path=path, test_size=6))
    assert len(train.problems) == 14 and len(test.problems) == 6
    both = {int(p.answer) for p in (*train.problems, *test.problems)}
    assert both == set(range(1, 21))
    assert datasets(builder(**NANO, path=path, test_size=0))[1] is None
    other = write(tmp_path / "test.jsonl", rows[:2])
    train, test = datasets(builder(**NANO, path=path, test_path=other))
    assert len(train.problems) == 18 and len(test.problems) == 2


def test_columns_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [{"ask": "1 + 1?", "reply": "2"}])
    builder = OwnProblems(**NANO, path=path, question_field="ask", answer_field="reply")
    train, _ = datasets(builder)
    assert isinstance(train, ProblemDataset) and train.problems == [Problem("1 + 1?", "2")]


@pytest.mark.parametrize(
    ("builder", "missing"),
    [(Gsm8k, "question"), (Math, "problem"), (Polaris, "problem"), (DeepMath, "question")],
)
def test_a_missing_column_is_named_with_those_found(
    builder: Any, missing: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", [{"prompt": "1 + 1?", "target": "2"}])
    with pytest.raises(DataFormatError) as error:
        datasets(builder(**NANO, path=path, test_path=path))
    assert f"no column '{missing}'; found 'prompt', 'target'" in str(error.value)


def test_rows_without_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"question": "1 + 1?", "answer": "#### 2"}
    rows = [row, {**row, "answer": "no idea"}, {**row, "answer": None}, {**row, "question": " "}]
    train, _ = datasets(Gsm8k(**NANO, path=write(tmp_path / "some.jsonl", rows)))
    assert isinstance(train, ProblemDataset) and train.problems == [Problem("1 + 1?", "2")]
    assert "skipped 3 of 4 rows" in caplog.text
    with pytest.raises(DataFormatError, match="no row has a problem and an answer"):
        datasets(Gsm8k(**NANO, path=write(tmp_path / "none.jsonl", rows[1:])))


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file or directory"):
        datasets(Gsm8k(**NANO, path=str(tmp_path / "nowhere")))
    write(tmp_path / "math" / "math500.jsonl", [{"problem": "1?", "answer": "1"}])
    with pytest.raises(ConfigurationError, match="no training problems"):
        datasets(Math(**NANO, path=str(tmp_path / "math")))


def test_keys_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match="groups_per_batch=0: expected 1 or more"):
        Arithmetic(**{**NANO, "groups_per_batch": 0})
    with pytest.raises(ConfigurationError, match="without group_size: set group_size="):
        datasets(Arithmetic(**{**NANO, "group_size": None}))


def test_keys_are_filled_from_a_recipe() -> None:
    filled = chz.replace(Arithmetic(num_batches=2), **NANO)
    train, _ = datasets(filled)
    (builder, *_) = train.get_batch(1)
    assert isinstance(builder, ProblemGroupBuilder) and builder.num_envs == 3


def test_identity_follows_the_content_of_local_files(tmp_path: Path) -> None:
    row = {"problem": "1?", "answer": "1"}
    one = OwnProblems(path=write(tmp_path / "a" / "x.jsonl", [row])).identity()
    same = OwnProblems(path=write(tmp_path / "b" / "x.jsonl", [row])).identity()
    other = OwnProblems(path=write(tmp_path / "c" / "x.jsonl", [row, row])).identity()
    assert one == same != other
    assert Counter(Polaris().identity()) == Counter()


def test_known_names() -> None:
    assert known_names.safe_grade("\\frac{2}{4}", "1/2") is True
    with pytest.raises(ConfigurationError, match=r"grader='math_verify': the only grader is"):
        known_names.safe_grade("1", "1", grader="math_verify")
    assert normalize_answer(" \\boxed{5.} ") == "5"
    make = known_names.get_math_dataset_builder
    data = make("gsm8k", 8, "nano", "qwen3_instruct", group_size=4, seed=3)
    assert data == known_names.Gsm8kDatasetBuilder(8, "nano", "qwen3_instruct", 4, 3)
    assert data == Gsm8k(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        group_size=4,
        groups_per_batch=8,
        seed=3,
    )
    with pytest.raises(ConfigurationError, match=r"dataset_name='gsm9k': set one of arithmetic"):
        make("gsm9k", 8, "nano", "qwen3_instruct", 4)
