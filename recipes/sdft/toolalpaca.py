"""ToolAlpaca (Tang et al. 2023, arXiv 2306.05301): requests to documented functions; the
demonstration is the calls that answer the request.

Each reply is a single turn: the calls are written one per line and not executed. The file is
`data/train_data.json` of github.com/tangqiaoyu/ToolAlpaca; it is written from the repository's
description of it (a list of tools with `NLDocumentation`, `Function_Projection` and `Instances`,
whose `intermediate_steps` hold action and action input). The file itself was not available for a
test, nor could a copy on the hub be verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import chz
import numpy as np

from recipes.sdft.evaluation import greedy_evaluator
from tinker_cookbook.distillation.demonstrations import DemonstrationDatasetBuilder
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import Chat
from tinker_cookbook.supervised.data import Datasets
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE
from tinker_cookbook.utils.data_files import Row, open_rows
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Json, Plain

# Demonstrations begin with it as well, because a completion's first tokens are not trained.
FIRST_LINE = "These calls answer the request:"
INSTRUCTION = (
    f'Reply with a line "{FIRST_LINE}" and then the calls in order, one per line: the name of the'
    " function, a space, and its arguments as a JSON object."
)
HINT = "\nHint: "  # begins what the generation of the data added to a request


class Instance(NamedTuple):
    """A request to a tool."""

    tool: Row
    index: int  # in the tool's Instances

    @property
    def location(self) -> str:
        return f"tool {self.tool.get('Name')}, instance {self.index}"


@chz.chz
class ToolAlpaca(DemonstrationDatasetBuilder):
    """ToolAlpaca, 3,900 requests to 400 tools."""

    path: str | None = chz.field(
        default=None, doc="local copy of data/train_data.json of github.com/tangqiaoyu/ToolAlpaca"
    )
    test_size: int = chz.field(
        default=20,
        doc="tools to evaluate on, by loss and by the calls of greedy replies: held out by"
        " shuffle_seed with all their requests",
        metadata=NON_NEGATIVE,
    )
    eval_max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per reply in the evaluation (None: the recipe's max_tokens)",
        metadata=COUNT,
    )

    def identity(self) -> Mapping[str, Plain]:
        """Size and digest of the file."""
        return {} if self.path is None else path_identity(self.path)

    def __call__(self) -> Datasets:
        train, test = self.open_splits()
        return (
            self.build_split(train, read_request, "ToolAlpaca"),
            self.build_split(test, read_request, "ToolAlpaca", is_test=True) if test else None,
        )

    def open_splits(self) -> tuple[list[Instance], list[Instance]]:
        """The requests to train on and those to the held-out tools."""
        if self.path is None:
            raise ConfigurationError(
                "data.path=None: download data/train_data.json from"
                " github.com/tangqiaoyu/ToolAlpaca and set data=ToolAlpaca data.path=FILE"
            )
        tools = [row for row in open_rows(self.path) if row.get("Instances")]
        if self.test_size >= len(tools):
            raise ConfigurationError(
                f"data.test_size={self.test_size}: {self.path} has {len(tools)} tools with requests"
            )
        order = np.random.default_rng(self.shuffle_seed).permutation(len(tools)).tolist()
        held_out = set(order[: self.test_size])
        splits: tuple[list[Instance], list[Instance]] = [], []
        for number, tool in enumerate(tools):
            requests = [Instance(tool, index) for index in range(len(tool["Instances"]))]
            splits[number in held_out].extend(requests)
        return splits

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return [SameCalls(data=self)] if self.test_size else []


def read_request(instance: Instance) -> Chat:
    """The conversation of a request. Raises DataFormatError if its calls are not all calls of the
    tool's functions with a JSON object."""
    tool, location = instance.tool, instance.location
    row = tool["Instances"][instance.index]
    documentation, request = tool.get("NLDocumentation"), row.get("input")
    if not isinstance(documentation, str) or not isinstance(request, str):
        raise DataFormatError(f"{location}: 'NLDocumentation' or 'input' is not a text")
    functions = tool.get("Function_Projection") or {}
    calls: list[str] = []
    for step in row.get("intermediate_steps") or []:
        name, arguments = step[0][:2]
        if name not in functions:
            raise DataFormatError(f"{location}: {name} is not a function of the tool")
        call = parse_call(f"{name} {arguments}")
        if call is None:
            raise DataFormatError(f"{location}: the arguments of {name} are not a JSON object")
        calls.append(f"{name} {json.dumps(call[1], ensure_ascii=False)}")
    if not calls:
        raise DataFormatError(f"{location}: no calls")
    question = f"{documentation.strip()}\n\nRequest: {request.partition(HINT)[0]}\n\n{INSTRUCTION}"
    messages = [
        Message(role="user", content=question),
        Message(role="assistant", content="\n".join([FIRST_LINE, *calls])),
    ]
    return Chat(messages, location)


def parse_call(line: str) -> tuple[str, dict[str, Json]] | None:
    """Name and arguments of a call; None if the line is not one."""
    name, _, text = line.strip().partition(" ")
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError:
        return None
    return (name, arguments) if isinstance(arguments, dict) else None


def is_same_calls(reply: str, expected: str) -> bool:
    """Whether a reply has the same calls in the same order, however it writes their JSON."""
    calls, right = (
        [call for line in text.splitlines() if (call := parse_call(line)) is not None]
        for text in (reply, expected)
    )
    return calls == right


@chz.chz
class SameCalls:
    """Builder of the evaluator of requests to held-out tools, `test/exact_match`."""

    data: ToolAlpaca = chz.field(doc="data whose held-out tools are evaluated")

    def __call__(self) -> ExactMatchEvaluator:
        _, requests = self.data.open_splits()
        chats: list[list[Message]] = []
        for request in requests:
            try:
                chats.append(read_request(request).messages)
            except DataFormatError:  # the report of the data names it
                continue
        if not chats:
            raise ConfigurationError("no held-out request can be used: set data.test_size=0")
        return greedy_evaluator(self.data, chats, self.data.eval_max_tokens, is_same_calls)
