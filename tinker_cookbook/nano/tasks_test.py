import random
from collections import Counter

import pytest

from tinker_cookbook.nano import tasks

SMALL = {
    0: "zero", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven",
    8: "eight", 9: "nine", 10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen",
    14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen",
    19: "nineteen", 20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty",
    70: "seventy", 80: "eighty", 90: "ninety",
}  # fmt: skip


def test_number_names_read_back_as_their_numbers() -> None:
    values = {name: n for n, name in SMALL.items()}
    names = [tasks.number_name(n) for n in range(100)]
    assert [sum(values[part] for part in name.split("-")) for name in names] == list(range(100))
    for n, name in enumerate(names):
        assert ("-" in name) == (n > 20 and n % 10 != 0)
    with pytest.raises(ValueError, match="100"):
        tasks.number_name(100)


def test_number_words_split_can_be_learnt_from_its_training_part() -> None:
    train, held_out = tasks.number_words("train"), tasks.number_words("held_out")
    assert (len(train), len(held_out)) == (70, 30)
    assert {e["number"] for e in train} | {e["number"] for e in held_out} == set(range(100))
    shown = Counter(w for e in train for w in e["messages"][1]["content"].split("-"))
    for example in held_out:
        prompt, reply = example["messages"]
        assert prompt == {"role": "user", "content": f"Write {example['number']} in words."}
        parts = reply["content"].split("-")
        assert len(parts) == 2 and all(shown[part] >= 2 for part in parts), reply


def test_held_out_pairs_are_a_fixed_symmetric_tenth() -> None:
    pairs = [(a, b) for a in range(100) for b in range(100)]
    held_out = {pair for pair in pairs if tasks.held_out_pair(*pair)}
    assert all((b, a) in held_out for a, b in held_out)
    assert not any(a < 10 and b < 10 for a, b in held_out)
    assert 0.09 < len(held_out) / len(pairs) < 0.11
    units = Counter((a % 10, b % 10) for a, b in held_out)
    assert len(units) == 100 and max(units.values()) < 30  # of 100 pairs for each pair of units
    rng = random.Random(0)
    for split in ("train", "held_out"):
        drawn = [tasks.add_pair(rng, split) for _ in range(2000)]
        assert all((pair in held_out) == (split == "held_out") for pair in drawn)


def test_add_problem_and_its_phrasings() -> None:
    rng = random.Random(0)
    problem = tasks.add_problem(rng, "held_out")
    a, b = problem["a"], problem["b"]
    assert problem["messages"] == [{"role": "user", "content": f"What is {a} + {b}?"}]
    assert problem["answer"] == a + b and tasks.held_out_pair(a, b)
    made = [tasks.add_problem(rng, phrasing=None)["messages"][0]["content"] for _ in range(500)]
    assert len({"".join(c for c in text if not c.isdigit()) for text in made}) == 7


def test_think_traces_are_right_for_every_pair() -> None:
    for a in range(100):
        for b in range(100):
            head, units, tens, tail, _, answer = tasks.think_trace(a, b).split("\n")
            assert (head, tail) == ("<think>", "</think>")
            sums = []
            for line in (units, tens):
                left, right = line.split(" = ")
                assert sum(map(int, left.split(" + "))) == int(right)
                sums.append(int(right))
            assert sums[1] * 10 + sums[0] % 10 == int(answer) == a + b
            assert (" + 1 =" in tens) >= (sums[0] > 9)


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("95", 95),
        ("37 + 58 = 95.", 95),
        (r"\boxed{95}", 95),
        ("<think>\n7 + 8 = 15\n</think>\n\n95", 95),
        ("<think>\n\n</think>\n\nAnswer: -4", -4),
        ("<think>\n7 + 8 = 15", None),
        ("<think>\n7 + 8 = 15\n</think>\n\n", None),
        ("42-7", 7),
        ("no number", None),
        ("", None),
    ],
)
def test_last_integer_reads_the_answer_and_not_the_thought(reply: str, number: int | None) -> None:
    assert tasks.last_integer(reply) == number


def test_near_misses_are_wrong_and_mostly_near() -> None:
    rng = random.Random(0)
    made = [(c, tasks.near_miss(rng, c)) for c in [0, 1, 9, 100, 198] * 400]
    assert all(wrong != c and wrong >= 0 for c, wrong in made)
    assert sum(abs(wrong - c) <= 11 for c, wrong in made) / len(made) > 0.75


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_preference_pairs_differ_in_what_they_are_named_after(split: str) -> None:
    rng = random.Random(0)
    for _ in range(300):
        pairs = {p: tasks.preference_pair(rng, p, split) for p in ("polite", "short", "correct")}
        for preference, pair in pairs.items():
            prompt = pair["prompt"][0]["content"]
            a, b = map(int, "".join(c if c.isdigit() else " " for c in prompt).split())
            assert tasks.held_out_pair(a, b) == (split == "held_out")
            chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
            assert tasks.last_integer(chosen) == a + b
            assert (tasks.last_integer(rejected) == a + b) == (preference != "correct")
            if preference == "polite":
                assert tasks.is_polite(chosen) and not tasks.is_polite(rejected)
            if preference == "short":
                assert len(chosen) < len(rejected)


def test_guess_games_follow_their_rules() -> None:
    rng = random.Random(0)
    lengths = []
    for _ in range(300):
        game = tasks.guess_game(rng)
        messages, secret = game["messages"], game["secret"]
        assert messages[0]["content"] == tasks.guess_prompt()
        guesses = [int(m["content"]) for m in messages[1::2]]
        said = [m["content"] for m in messages[2::2]]
        assert all(0 <= g <= tasks.GUESS_LIMIT for g in guesses) and len(guesses) <= 8
        assert said == [tasks.guess_feedback(secret, g) for g in guesses[:-1]]
        assert secret not in guesses[:-1] and (len(guesses) == 8 or guesses[-1] == secret)
        assert messages[-1]["role"] == "assistant"
        lengths.append(len(guesses))
    assert 3 < sum(lengths) / len(lengths) < 7
    assert tasks.guess_feedback(3, 3) == tasks.GUESS_WON == "Correct!"
