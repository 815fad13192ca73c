"""What no conversation should hold: every built-in renderer says so, or does what it documents."""

from __future__ import annotations

from typing import Any

import pytest

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import get_registered_renderer_names, get_renderer
from tinker_cookbook.renderers.base import Renderer
from tinker_cookbook.renderers.testing import assistant, load, system, tool, user

TOKENIZERS = {
    "deepseek": "deepseek-v3.1",
    "gpt_oss": "gpt-oss",
    "kimi": "kimi-k2",
    "llama3": "llama-3.1-instruct",
    "qwen3": "qwen3",
    "role_colon": "gpt2",
    "template": "qwen3",
}
IMAGE = {"role": "user", "content": [{"type": "image", "image": "x.png"}]}
CALL = assistant("", calls=[("f", "{}")])


@pytest.fixture(params=get_registered_renderer_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def renderer(name: str) -> Renderer:
    start = next(start for start in TOKENIZERS if name.startswith(start))
    return get_renderer(name, load(TOKENIZERS[start]))


def problem_of(renderer: Renderer, messages: list[dict[str, Any]]) -> str:
    """The one line with which prompts and examples are both refused; "" if neither is."""
    problems = []
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        try:
            build(messages)
            problems.append("")
        except RendererError as error:
            problems.append(str(error))
    assert problems[0] == problems[1] and "\n" not in problems[0]
    return problems[0]


@pytest.mark.parametrize(
    "messages, problem",
    [
        ([], "an empty conversation"),
        ([user("q"), {"role": "assistant"}], "message 1: this assistant message has no content"),
        ([user("q"), {"role": "critic", "content": "x"}], "message 1: unknown role 'critic';"),
        ([{"role": "human", "content": "q"}], "message 0: unknown role 'human' (write 'user')"),
        ([{"role": "User", "content": "q"}], "message 0: unknown role 'User' (write 'user')"),
        ([user("q"), assistant("r"), IMAGE, assistant("s")], "message 2: this format does not sup"),
        ([user("q"), "r"], "message 1: expected a dict with role and content"),
        (
            [user("q"), assistant("r", weight=0)],
            "message 1: 'weight': 0 is not supported; give each",
        ),
        ([user("q"), assistant("", function_call={"name": "f"})], "message 1: 'function_call'"),
        ([user("q"), assistant("r", tool_call=[1])], "message 1: unknown key 'tool_call'; did you"),
        ([user("q"), assistant("r", reasoning_contents="x")], "message 1: unknown key 'reasoning_"),
        ([user("q"), assistant("r", tool_calls=5)], "message 1: tool_calls must be a list"),
        ([user("q"), assistant("r", name=5)], "message 1: name must be a string, found 5"),
        ([user("q"), assistant("r", tool_call_id=["x"])], "message 1: tool_call_id must be a str"),
        ([user("q"), assistant("r", trainable="false")], "message 1: 'trainable' must be true or"),
        ([user("q\ud800")], "message 0: an unpaired surrogate"),
        (
            [{**user("q"), "unparsed_tool_calls": [{"raw_text": "", "error": ""}]}],
            "message 0: a user message cannot have unparsed_tool_calls",
        ),
        ([{**user("q"), "reasoning_content": "x"}], "message 0: a user message cannot have rea"),
        ([user("q"), assistant("r", train_on_turn=False)], "message 1: 'train_on_turn': False is"),
        ([user("q"), assistant("", function_calls="f(x=1)")], "message 1: 'function_calls' is not"),
        (
            [user("q"), assistant("r", thought="Hm")],
            "message 1: 'thought' is not supported; use 'reas",
        ),
        ([user("q"), assistant("r", name="\ud800")], "message 1: an unpaired surrogate"),
        (None, "an empty conversation"),
        ([user("q"), assistant("r", reasoning=[1])], "message 1: its reasoning must be a str"),
        ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "message 0: a part of type"),
    ],
)
def test_refused_by_every_renderer(
    renderer: Renderer, messages: list[dict[str, Any]], problem: str
) -> None:
    assert problem_of(renderer, messages).startswith(problem)


def test_text_in_front_of_reasoning_is_not_lost(name: str, renderer: Renderer) -> None:
    """The templates of these drop it; the others write a string as it is, or as parts."""
    chat = [user("q"), assistant("Sure. <think>Hm</think>Yes"), user("r"), assistant("Yes")]
    problem = problem_of(renderer, chat)
    if name.startswith(("deepseekv3", "kimi", "qwen3")) and name != "qwen3_instruct":
        assert problem.startswith("message 1: the text 'Sure.' before <think> would be lost")
    elif name != "template":
        assert problem == ""


def test_keys_that_say_nothing_of_tokens_are_not_read(renderer: Renderer) -> None:
    """As replies of servers and tables of conversations have them."""
    more = {"id": "a1", "timestamp": 3, "refusal": None, "annotations": [], "function_call": None}
    messages = [{**user("q"), **more}, assistant("r", **more)]
    plain = renderer.build_supervised_example([user("q"), assistant("r")])
    assert renderer.build_supervised_example(messages).model_input == plain.model_input


@pytest.mark.parametrize(
    "messages, index",
    [
        ([tool("1"), assistant("r")], 0),
        ([user("q"), tool("1"), assistant("r")], 1),
        ([user("q"), assistant("r"), tool("1"), assistant("s")], 2),
        ([user("q"), CALL, tool("1"), assistant("r"), tool("1"), assistant("s")], 4),
        ([user("q"), CALL, tool("1"), tool("2"), assistant("r")], 3),
    ],
)
def test_a_result_without_a_call(
    name: str, renderer: Renderer, messages: list[dict[str, Any]], index: int
) -> None:
    problem = problem_of(renderer, messages)
    if name == "template":
        assert problem == ""  # as the template will have it
    elif name == "role_colon":
        first_tool = next(i for i, m in enumerate(messages) if m["role"] == "tool")
        assert problem.startswith(f"message {first_tool}: unknown role 'tool'")
    elif name == "llama3":
        assert "llama3 does not support tools" in problem
    else:
        assert problem.startswith(f"message {index}: a tool result with")


def test_two_system_messages(name: str, renderer: Renderer) -> None:
    """Written where they stand, but where the format has no place for the second."""
    problem = problem_of(renderer, [system("S"), user("q"), system("T"), assistant("r")])
    if name.startswith("deepseekv3"):
        assert problem.startswith("message 2: DeepSeek supports a system message only at the start")
        return
    assert problem == ""
    prompt = renderer.build_generation_prompt([system("One"), system("Two"), user("Three")])
    text = renderer.tokenizer.decode(prompt.to_ints())
    assert text.index("One") < text.index("Two") < text.index("Three")


def test_an_assistant_begins(name: str, renderer: Renderer) -> None:
    """Written where it stands; trained only where a prompt for it is known."""
    messages = [assistant("First"), user("Then"), assistant("r")]
    assert problem_of(renderer, messages) == ""
    example = renderer.build_supervised_example(messages)
    text = renderer.tokenizer.decode(example.model_input.to_ints())
    assert text.index("First") < text.index("Then")
    if name == "template":
        with pytest.raises(RendererError, match="message 0: no message comes before this reply"):
            renderer.build_supervised_example(messages, "all_assistant_messages")
