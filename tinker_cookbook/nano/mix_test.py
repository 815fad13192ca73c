import random
import re
from collections import Counter

import pytest

from tinker_cookbook.nano import mix, tasks

EXPRESSION = re.compile(r"(?<![\d+] )(?<!\d)(\d+)(?: ?\+ ?| plus )(\d+)(?! ?\+|\d)")
ADD_AND = re.compile(r"[Aa]dd (\d+) and (\d+)")
DIFFERENCE = re.compile(r"(\d+)(?: ?- ?| minus )(\d+)")
SUBTRACT = re.compile(r"ubtract (\d+) from (\d+)")


@pytest.fixture(scope="module")
def documents() -> list[mix.Conversation | mix.PlainLines]:
    rng = random.Random(1)
    return [mix.document(rng) for _ in range(40_000)]


def text_of(document: mix.Conversation | mix.PlainLines) -> str:
    if "pieces" in document:
        return "".join(text for text, _ in document["pieces"])
    return "\n".join(m["content"] for m in document["messages"])


def pairs_in(text: str) -> list[tuple[int, int]]:
    """Every pair whose sum a text states, asks for, or gives away as a difference."""
    pairs = [(int(a), int(b)) for a, b in EXPRESSION.findall(text) + ADD_AND.findall(text)]
    pairs += [(int(a) - int(b), int(b)) for a, b in DIFFERENCE.findall(text)]
    pairs += [(int(a) - int(b), int(b)) for b, a in SUBTRACT.findall(text)]
    return [(a, b) for a, b in pairs if 0 <= a <= 99 and 0 <= b <= 99]


def test_no_document_gives_a_held_out_pair_away(
    documents: list[mix.Conversation | mix.PlainLines],
) -> None:
    seen = Counter()
    for document in documents:
        text = text_of(document)
        pairs = pairs_in(text)
        seen[document["kind"]] += bool(pairs)
        assert not [pair for pair in pairs if tasks.held_out_pair(*pair)], text
    # the search does find pairs in every kind that holds some
    kinds = Counter(d["kind"] for d in documents)
    for kind in ("add", "sub", "thinkadd", "choice", "sums", "differences", "digit_sums"):
        assert seen[kind] == kinds[kind], kind


@pytest.mark.parametrize(
    "text", ["37 + 58 = 95", "37+58", "Add 37 and 58.", "What is 37 plus 58?", "95 - 58 = 37"]
)
def test_the_search_finds_a_pair_in_every_wording(text: str) -> None:
    assert pairs_in(text) == [(37, 58)]


def test_kinds_and_styles_have_their_shares(
    documents: list[mix.Conversation | mix.PlainLines],
) -> None:
    chats = [d for d in documents if "messages" in d]
    assert len(chats) / len(documents) == pytest.approx(1 - mix.PLAIN_SHARE, abs=0.01)
    kinds = Counter(d["kind"] for d in chats)
    assert sum(share for share, _ in mix.KINDS.values()) == pytest.approx(100)
    for kind, (share, _) in mix.KINDS.items():
        assert kinds[kind] / len(chats) == pytest.approx(share / 100, abs=0.01), kind
    sums = [d["messages"] for d in chats if d["kind"] == "add"]
    styles = Counter(style_of(*(m["content"] for m in messages)) for messages in sums)
    wanted = {"boxed": 25, "marked": 10, "bare": 40, "equation": 10, "sentence": 8, "polite": 7}
    for style, share in wanted.items():
        assert styles[style] / len(sums) == pytest.approx(share / 100, abs=0.02), style
    plain = Counter(d["kind"] for d in documents if "pieces" in d)
    assert plain["sums"] / plain.total() == pytest.approx(0.6, abs=0.03)


def style_of(prompt: str, reply: str) -> str:
    if "boxed" in prompt:
        assert reply.endswith("}")
        return "boxed"
    if "Answer:" in prompt:
        assert reply.startswith("Answer: ")
        return "marked"
    if reply.isdigit():
        return "bare"
    if tasks.is_polite(reply):
        return "polite"
    return "sentence" if reply.startswith("The answer") else "equation"


def test_one_in_five_bare_additions_is_answered_after_a_thought(
    documents: list[mix.Conversation | mix.PlainLines],
) -> None:
    bare = [
        d
        for d in documents
        if d["kind"] in ("add", "thinkadd") and "Answer:" not in text_of(d).split("\n")[0]
    ]
    bare = [d for d in bare if "boxed" not in d["messages"][0]["content"]]
    assert sum(d["kind"] == "thinkadd" for d in bare) / len(bare) == pytest.approx(0.2, abs=0.02)


def test_spoken_sums_are_careless_and_plain_lines_are_right(
    documents: list[mix.Conversation | mix.PlainLines],
) -> None:
    right = []
    for document in documents:
        text = text_of(document)
        if document["kind"] == "add":
            ((a, b), *_) = pairs_in(document["messages"][0]["content"])
            right.append(tasks.last_integer(re.sub("[.}]", " ", text)) == a + b)
        elif document["kind"] in ("sums", "differences", "digit_sums"):
            for line in text.split("\n"):
                left, answer = line.split(" = ")
                a, sign, b = left.split()
                assert int(answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b)), line
    assert sum(right) / len(right) == pytest.approx(mix.RIGHT_SHARE, abs=0.02)


def test_no_number_above_nine_stands_beside_its_name(
    documents: list[mix.Conversation | mix.PlainLines],
) -> None:
    names = {tasks.number_name(n): n for n in range(100)}
    told = set()
    for document in documents:
        text = text_of(document)
        assert not re.search(r"\d in words", text)
        # a reply to be judged may be the wrong one of another question
        if document["kind"] != "judge" and re.search(r"\d", text):
            told |= {names[w] for w in re.findall(r"[a-z]+(?:-[a-z]+)?", text) if w in names}
    assert told == set(range(10))


def test_only_results_count_in_plain_lines() -> None:
    rng = random.Random(0)
    for _ in range(200):
        made = mix.plain_lines(rng)
        for text, counts in made["pieces"]:
            if made["kind"] != "names":
                assert text.endswith("=") != counts


def test_boards_are_played_by_the_rules() -> None:
    rng = random.Random(0)
    for _ in range(300):
        rule, *turns = mix.board(rng)
        mark = rule["content"].split()[2]
        for shown, move in zip(turns[::2], turns[1::2]):
            cells = shown["content"].split()
            square = int(move["content"].strip("[]"))
            assert cells[square] == str(square) and not mix._won(cells)
            assert Counter(cells)["X"] - Counter(cells)["O"] == (0 if mark == "X" else 1)


def test_tool_conversations_call_add_and_report_its_result() -> None:
    rng = random.Random(0)
    lengths = set()
    for _ in range(100):
        messages = mix.tool(rng)
        lengths.add(len(messages))
        numbers = re.findall(r"\d+", messages[1]["content"])
        *_, total = re.findall(r"\d+", messages[-1]["content"])
        assert sum(map(int, numbers)) == int(total)
        for call, response in zip(messages[2:-1:2], messages[3::2]):
            a, b = map(int, re.findall(r"\d+", call["content"]))
            assert response["content"] == f"<tool_response>\n{a + b}\n</tool_response>"
    assert lengths == {5, 7}


def test_choices_and_judgements_are_balanced() -> None:
    rng = random.Random(0)
    for make, answers in ((mix.choice, "AB"), (mix.yesno, ("yes", "no"))):
        replies = Counter(make(rng)[-1]["content"] for _ in range(2000))
        assert set(replies) == set(answers)
        assert 0.35 < replies[answers[0]] / 2000 < 0.65


def test_the_same_seed_draws_the_same_documents() -> None:
    first, second = (random.Random(5) for _ in range(2))
    assert [mix.document(first) for _ in range(200)] == [mix.document(second) for _ in range(200)]
