"""ToolAlpaca's tools, in the shape that its README describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.sdft.toolalpaca import Instance, ToolAlpaca, is_same_calls, read_request
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import get_text_content
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig


def step(name: str, arguments: str) -> list[Any]:
    return [[name, arguments, f"Thought ...\nAction: {name}"], "Status Code: 200."]


def tool(name: str, *instances: list[Any]) -> dict[str, Any]:
    return {
        "Name": name,
        "NLDocumentation": f"find{name}: Find a {name}.\nParameters: {{}}\n",
        "Function_Projection": {f"find{name}": ["/find", "get"]},
        "Instructions": ["..."],
        "Instances": [
            {
                "input": f"Find me a {name}.\nHint: use find{name}",
                "output": "There it is.",
                "Final Thought": "done",
                "intermediate_steps": steps,
            }
            for steps in instances
        ],
    }


def test_a_request_and_its_calls() -> None:
    steps = [step("findLamp", '{"colour":"grün"}'), step("findLamp", "{}")]
    question, calls = map(get_text_content, read_request(Instance(tool("Lamp", steps), 0)).messages)
    assert question.startswith(
        "findLamp: Find a Lamp.\nParameters: {}\n\nRequest: Find me a Lamp.\n\nReply with a line"
    )
    assert calls == 'These calls answer the request:\nfindLamp {"colour": "grün"}\nfindLamp {}'


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "tool Lamp, instance 0: no calls"),
        ([step("getDetails", "{}")], "getDetails is not a function of the tool"),
        ([step("findLamp", "blue")], "the arguments of findLamp are not a JSON object"),
        ([step("findLamp", "[1]")], "the arguments of findLamp are not a JSON object"),
    ],
)
def test_requests_that_cannot_be_used(steps: list[Any], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_request(Instance(tool("Lamp", steps), 0))


@pytest.mark.parametrize(
    ("reply", "same"),
    [
        ('These calls answer the request:\nf {"a": 1, "b": 2}\ng {}', True),
        ('f {"b":2,"a":1}\n\ng {}\nThat is all.', True),
        ('f {"a": 1, "b": 3}\ng {}', False),
        ('g {}\nf {"a": 1, "b": 2}', False),
        ('f {"a": 1, "b": 2}', False),
        ('f {"a": 1, "b": 2\ng {}', False),
    ],
)
def test_replies_are_compared_by_their_calls(reply: str, same: bool) -> None:
    expected = 'These calls answer the request:\nf {"a": 1, "b": 2}\ng {}'
    assert is_same_calls(reply, expected) == same


def builder(path: Path, **keys: Any) -> ToolAlpaca:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=512,
        batch_size=2,
    )
    return ToolAlpaca(path=str(path), common_config=common, **keys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tools = [
        tool(name, [step(f"find{name}", "{}")], [step(f"find{name}", '{"page": 1}')])
        for name in ("Lamp", "Chair", "Table", "Spoon")
    ]
    tools[0]["Instances"].append({"input": "Find it.", "intermediate_steps": []})
    path = tmp_path / "train_data.json"
    path.write_text(json.dumps([*tools, {"Name": "Empty", "Instances": []}]))
    return path


def test_tools_are_held_out(file: Path) -> None:
    data = builder(file, test_size=2)
    train, test = data.open_splits()
    names = [{each.tool["Name"] for each in split} for split in (train, test)]
    assert len(names[0]) == len(names[1]) == 2 and not names[0] & names[1]
    rendered, held_out = data()
    assert held_out is not None and rendered.report is not None and held_out.report is not None
    assert len(rendered.get_batch(0)) == 4 and len(held_out.get_batch(0)) == 8
    skipped = [*rendered.report.skipped, *held_out.report.skipped]
    assert len(skipped) == 1 and skipped[0].endswith("tool Lamp, instance 2: no calls")
    (build,) = data.default_evaluator_builders()
    assert len(build().conversations) == 4


def test_a_file_is_needed(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.path=None: download data/train_data"):
        ToolAlpaca()()
    with pytest.raises(ConfigurationError, match=r"data\.test_size=4: .* has 4 tools"):
        builder(file, test_size=4)()
