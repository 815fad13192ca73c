"""Generated word problems: answers by hand, and the split."""

from __future__ import annotations

import asyncio
import collections
import random
import re

import pytest

from recipes.math_rl.problems import GeneratedDataset
from recipes.math_rl.word_problem_templates import ONE_STEP, TEMPLATES, TWO_STEPS, Template
from recipes.math_rl.word_problems import (
    NUM_EXAMPLES,
    SOLVED,
    WordProblem,
    WordProblemEnv,
    WordProblems,
    draw_groups,
    draw_numbers,
    draw_problem,
    is_held_out,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.nano.tasks import Split
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.tokenizer_utils import get_tokenizer

# For each template, in order: the numbers in its text and the answer, solved by hand.
ONE_STEP_BY_HAND = [
    (12, 3, 15),  # has 12, finds 3
    (12, 3, 15),  # 12 in a box, 3 on a shelf
    (12, 3, 15),  # miles on two days
    (12, 3, 9),  # gives 3 away
    (12, 3, 9),  # 3 fewer
    (12, 3, 9),  # 3 get off
    (4, 5, 20),  # 4 bags of 5
    (4, 5, 20),  # 5 tickets at 4 dollars
    (4, 5, 20),  # 4 pages on each of 5 days
    (12, 3, 4),  # 12 among 3 friends
    (12, 3, 4),  # boxes of 3
    (12, 3, 4),  # 3 pieces of 12 meters
]
TWO_STEPS_BY_HAND = [
    (10, 6, 4, 12),  # 10 and 6 more, gives 4
    (10, 6, 4, 8),  # 10, loses 6, finds 4
    (10, 6, 4, 12),  # lends 10 and 6, 4 come back
    (5, 3, 4, 11),  # 5 boxes of 3, gives 4
    (5, 3, 4, 19),  # 5 bags of 3, has 4
    (5, 3, 20, 5),  # 5 tickets at 3 dollars, pays with 20
    (10, 6, 4, 4),  # 10 and 6 among 4 children
    (14, 6, 4, 2),  # 14, eats 6, 4 baskets
    (12, 3, 4, 8),  # 12 among 3, one had 4
    (2, 3, 4, 20),  # 2 and 3 hours at 4 dollars
    (10, 6, 4, 16),  # 10 without 6, 4 pencils each
    (6, 4, 3, 8),  # 6 tables of 4 chairs over 3 rooms
]


@pytest.mark.parametrize(
    ("templates", "by_hand"), [(ONE_STEP, ONE_STEP_BY_HAND), (TWO_STEPS, TWO_STEPS_BY_HAND)]
)
def test_the_operations_of_each_template_give_the_answer_by_hand(
    templates: tuple[Template, ...], by_hand: list[tuple[int, ...]]
) -> None:
    assert len(templates) == len(by_hand)
    for template, (*numbers, answer) in zip(templates, by_hand):
        assert template.values(numbers)[-1] == answer, template


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("largest", [20, 100])
def test_problems_hold_to_the_range_and_are_complete(steps: int, largest: int) -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(400):
        problem = draw_problem(rng, "train", steps, largest)
        numbers = [int(word) for word in re.findall(r"\d+", problem.question)]
        assert len(numbers) == steps + 1
        assert all(2 <= number <= largest for number in [*numbers, problem.answer])
        assert not re.search(r"[{}]", problem.question)
        assert problem.question.endswith("?") and len(problem.question.split()) < 60
        seen.add(problem.tag)
    assert seen == {template.tag for template in TEMPLATES[steps]}


def test_a_fifth_is_held_out_and_every_template_has_both_splits() -> None:
    for templates in TEMPLATES.values():
        for template in templates:
            rng = random.Random(1)
            drawn = {tuple(draw_numbers(rng, template, 20)) for _ in range(4000)}
            held_out = sum(is_held_out(template, numbers) for numbers in drawn)
            assert 0 < held_out < len(drawn), template
        shares = [
            is_held_out(template, [a, b])
            for template in templates
            for a in range(40)
            for b in range(40)
        ]
        assert 0.18 < sum(shares) / len(shares) < 0.22


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_template_is_equally_likely_in_both_splits(steps: int, split: Split) -> None:
    rng = random.Random(0)
    tags = collections.Counter(draw_problem(rng, split, steps, 20).tag for _ in range(3000))
    templates = collections.Counter(template.tag for template in TEMPLATES[steps])
    for tag, count in templates.items():  # binomial, four standard deviations at most
        expected = 3000 * count / 12
        assert abs(tags[tag] - expected) < 4 * expected**0.5, tag


@pytest.mark.parametrize("steps", [1, 2])
def test_no_question_repeats_within_a_batch(steps: int) -> None:
    problems: list[WordProblem] = []

    def note(problem: WordProblem) -> WordProblemEnv:
        problems.append(problem)
        return WordProblemEnv(problem, get_renderer("role_colon", get_tokenizer("nano")))

    groups = draw_groups(
        random.Random(0),
        200,
        make_env=note,
        split="held_out",
        steps=steps,
        largest=20,
        group_size=1,
    )
    for group in groups:
        asyncio.run(group.make_envs())
    assert len({problem.question for problem in problems}) == len(problems) == 200


@pytest.mark.parametrize("steps", sorted(TEMPLATES))
def test_solved_examples_are_right_and_have_as_many_steps_as_the_problems(steps: int) -> None:
    """Models copy their form: after an example of one step, SmolLM2 stops behind the first step."""
    for question, solution in SOLVED[steps]:
        calculations = solution.split(", ")
        assert len(calculations) == steps
        for calculation in calculations:
            expression, result = calculation.split(" = ")
            assert eval(expression) == int(result)
        given = [int(number) for number in re.findall(r"\d+", question)]
        assert len(given) == steps + 1
        assert all(str(number) in solution for number in given)


@pytest.mark.parametrize(("steps", "num_examples"), [(1, None), (2, None), (1, 0), (2, 3)])
def test_solved_examples_come_before_each_question(steps: int, num_examples: int | None) -> None:
    config = WordProblems(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        group_size=1,
        groups_per_batch=1,
        seed=0,
        steps=steps,
        num_examples=num_examples,
    )
    train, _ = asyncio.run(config())
    (env,) = asyncio.run(train.get_batch(0)[0].make_envs())
    assert isinstance(env, WordProblemEnv)
    expected = NUM_EXAMPLES[steps] if num_examples is None else num_examples
    pairs = zip(env.convo_prefix[::2], env.convo_prefix[1::2], strict=True)
    shown = [(question["content"], solution["content"]) for question, solution in pairs]
    assert shown == list(SOLVED[steps][:expected])


def test_a_held_out_problem_is_held_out_under_any_name() -> None:
    problems = [draw_problem(random.Random(seed), "held_out", 1, 20) for seed in range(50)]
    for problem in problems:
        (template,) = [t for t in ONE_STEP if _fits(t.text, problem.question)]
        numbers = [int(word) for word in re.findall(r"\d+", problem.question)]
        assert is_held_out(template, numbers)


def _fits(text: str, question: str) -> bool:
    pattern = re.escape(text).replace(r"\{", "{").replace(r"\}", "}")
    pattern = re.sub(r"\{[abc]\}", r"\\d+", pattern)
    pattern = re.sub(r"\{\w+\}", r"\\w+", pattern)
    return re.fullmatch(pattern, question) is not None


def test_batches_depend_on_seed_and_index_alone() -> None:
    def questions(seed: int, index: int) -> list[str]:
        config = WordProblems(
            model_name_for_tokenizer="nano",
            renderer_name="qwen3_instruct",
            group_size=2,
            groups_per_batch=5,
            seed=seed,
        )
        train, test = asyncio.run(config())
        assert isinstance(test, GeneratedDataset) and test.batch_sizes == [200]
        envs = [asyncio.run(builder.make_envs()) for builder in train.get_batch(index)]
        assert all(len(group) == 2 for group in envs)
        return [group[0].get_question() for group in envs]  # type: ignore[attr-defined]

    assert questions(0, 1) == questions(0, 1)
    assert len({str(questions(seed, index)) for seed in (0, 1) for index in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 3), ("largest", 19), ("largest", 501), ("num_examples", 5)]
)
def test_refuses_what_it_cannot_draw(key: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.{key}={value}: expected"):
        WordProblems(**{key: value})
