"""For tests: data of which each token can be told by eye."""

from __future__ import annotations

from typing import Any

import tinker
import torch

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.base import SupervisedExample
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import SupervisedDataset


class ByteTokenizer:
    """Tokens below 256 are bytes; 300 is special."""

    all_special_ids: tuple[int, ...] = (300,)

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


class LetterRenderer:
    """`u:hi|a:yo|`, one token per letter; history shows replies in upper case where it has no
    extension property."""

    def __init__(self, has_extension_property: bool = True) -> None:
        self.has_extension_property = has_extension_property

    def build_supervised_example(
        self, messages: list[dict[str, Any]], train_on_what: TrainOnWhat
    ) -> SupervisedExample:
        tokens, weights = [], []
        for number, message in enumerate(messages):
            if message["role"] not in ("user", "assistant"):
                raise RendererError(f"message {number}: role {message['role']!r}")
            is_last = number == len(messages) - 1
            is_reply = message["role"] == "assistant"
            text = message["content"]
            if is_reply and not is_last and not self.has_extension_property:
                text = text.upper()
            trained = is_reply and (is_last or train_on_what is TrainOnWhat.ALL_ASSISTANT_MESSAGES)
            header, output = f"{message['role'][0]}:", f"{text}|"
            tokens += [ord(letter) for letter in header + output]
            weights += [0.0] * len(header) + [float(trained)] * len(output)
        return tinker.ModelInput.from_ints(tokens), torch.tensor(weights)

    def build_supervised_examples(
        self, messages: list[dict[str, Any]], train_on_what: TrainOnWhat
    ) -> list[SupervisedExample]:
        if self.has_extension_property:
            return [self.build_supervised_example(messages, train_on_what)]
        return [
            self.build_supervised_example(
                messages[: number + 1], TrainOnWhat.LAST_ASSISTANT_MESSAGE
            )
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]


def talk(*texts: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


def shown(datum: tinker.Datum) -> tuple[str, str]:
    """(all text, trained text) of a datum."""
    sequence = from_datum(datum)
    text = "".join(map(chr, sequence.tokens.tolist()))
    return text, "".join(c for c, w in zip(text, sequence.weights.tolist()) if w)


def texts(batch: list[tinker.Datum]) -> list[str]:
    return [shown(datum)[0] for datum in batch]


def epoch(data: SupervisedDataset, seed: int) -> list[str]:
    data.set_epoch(seed)
    return [text for index in range(len(data)) for text in texts(data.get_batch(index))]
