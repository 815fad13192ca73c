from __future__ import annotations

import time

import pytest

from tinker_cookbook.eval.tasks.stated_letter import stated_letter

STATED = {  # of four options
    "Answer: C": "C",
    "answer:A": "A",
    "ANSWER: B": "B",
    "Answer = D": "D",
    "Answer - D": "D",
    "Answer：C": "C",
    "**Answer:** C": "C",
    "**Answer: (C)**": "C",
    "Answer: **C**": "C",
    'Answer: "C"': "C",
    "Answer: 'C'": "C",
    "Answer:\n\nC": "C",
    "Answer:\n\n**C) carbon**": "C",
    "Answer: C carbon": "C",
    "Answer: A) mitochondria": "A",
    "Answer: A. Mitochondria": "A",
    "Answer: a) mitochondria": "A",
    "Answer: B, since C is too small": "B",
    "Final answer: option C": "C",
    "The answer is (C).": "C",
    "The answer is [D]": "D",
    "the answer is c.": "C",
    "The answer is A": "A",
    "The answer is A because it fits.": "A",
    "The answer is (A) mitochondria": "A",
    "The answer is: B": "B",
    "The answer is \\(C\\)": "C",
    "The correct option is therefore **D**": "D",
    "The best choice would be B.": "B",
    "The answer is A, not B.": "A",
    "So \\boxed{C}": "C",
    "\\boxed{\\textbf{(C) } 42}": "C",
    "$\\boxed{\\text{(C)}}$": "C",
    "\\boxed{\\mathbf{c}}": "C",
    "Option B is correct.": "B",
    "C is the correct answer, since A is wrong.": "C",
    "I choose D": "D",
    "I'll go with option (B).": "B",
    "C": "C",
    " (C)\n": "C",
    "**C**": "C",
    "C.": "C",
    "It must be large.\n\nC": "C",
    "C) 42 metres": "C",
    "### Final Answer\nB": "B",
    # the last statement counts
    "I first think of A. But finally, Answer: B": "B",
    "Answer: B\nWait, no. Answer: D": "D",
    "\\boxed{A} is what I thought, but the answer is B.": "B",
    "Answer: A\nHence \\boxed{B}": "B",
    "<think>Answer: A</think>\nAnswer: B": "B",
    '"Answer: X", as asked. Answer: B\n(of the form "Answer: X")': "B",
}
NOT_STATED = [
    "",
    " \n ",
    "The answer is a matter of taste.",
    "The answer is A matter of taste.",
    "Answer: A triangle has three sides.",
    "A triangle has three sides.",
    "The answer: I think it is large",
    "The answer is I'm not sure",
    "The answer is e.g. 5",
    "My answer is yes.",
    "The answer is not C.",
    "Answer: C6H12O6",
    "Answer: C-14 dating",
    "Answer: C++",
    "Answer: D = 2r",
    "Answer: N/A",
    "Answer: None of them",
    "Answer: 42",
    "\\boxed{42}",
    "Answer: X",
    "Answer: J",
    "\\boxed{E}",
    "Answer: B\nNo, it is none of them. Answer: J",
    "The answer is A or B",
    "Answer: B, C",
    "Answer: (B) and (D)",
    "\\boxed{A, C}",
    "the options are A, B and C",
    "A) one\nB) two\nC) three\nD) four",
    "Which is right?\nA) one\nB) two",
    "答案是丙",
]


@pytest.mark.parametrize("reply", STATED)
def test_stated(reply: str) -> None:
    assert stated_letter(reply, 4) == STATED[reply]
    assert stated_letter(f"A dog barks. I think so.\n\n{reply}", 4) == STATED[reply]


@pytest.mark.parametrize("reply", NOT_STATED)
def test_not_stated(reply: str) -> None:
    assert stated_letter(reply, 4) is None


def test_the_first_line_may_be_the_answer() -> None:
    assert stated_letter("B. Paris\n\nIt is the capital.", 4) == "B"
    assert stated_letter("**B**\n\nIt is the capital.", 4) == "B"
    assert stated_letter("It is:\nB. Paris\nthe capital.", 4) is None


def test_letters_are_those_of_the_options() -> None:
    assert stated_letter("Answer: J", 10) == "J" and stated_letter("Answer: I", 10) == "I"
    assert stated_letter("Answer: X", 26) == "X" and stated_letter("Answer: X", 23) is None


@pytest.mark.parametrize(
    "part",
    ["answer: ", "answer", "\\boxed{", "\\text{", "*", "(", "\n ", "A, ", "I choose ", "W", ".-"],
)
def test_long_replies_take_no_time(part: str) -> None:
    started = time.process_time()
    stated_letter("Answer:" + part * 100_000 + "!", 4)
    assert time.process_time() - started < 4
