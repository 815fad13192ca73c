"""Samples in a JSONL file that resumes: one row per prompt, in the order of the prompts. A prompt
with several samples is given several times.

A row is appended when it and all rows before it are complete, so the file of a program that was
killed is the beginning of the file that it would have written, and the next one resumes after it.
Rows are functions of the settings, the prompt and its index: resumed or not, the file is the same.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message
from tinker_cookbook.training.run_identity import differences
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.files import replace_file
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.plain_data import plain

Row = Mapping[str, Plain]
SavedRow = dict[str, Any]  # a parsed row
MakeRow = Callable[[int, Sequence[Message]], Awaitable[Row]]

CONCURRENT_PROMPTS = 64


def plain_messages(messages: Sequence[Message]) -> list[Plain]:
    """The messages as they are written to a row."""
    return plain([*messages])


class SampleFile:
    """Sampled rows, and the settings that they were made with in a file beside them.

    prompt_of: the prompt in a row, a list of messages.
    """

    def __init__(self, path: Path, prompt_of: Callable[[SavedRow], list[Message]]) -> None:
        self.path, self._prompt_of = path, prompt_of
        self.settings_path = path.with_name(f"{path.stem}_settings.json")

    def rows(self) -> list[SavedRow]:
        """The complete rows. Raises DataFormatError if they are not in the order of the prompts."""
        rows = [line.value for line in jsonl.read_lines(self.path)]
        for index, row in enumerate(rows):
            if row.get("index") != index:
                raise DataFormatError(
                    f"{self.path}:{index + 1} has index {row.get('index')}, expected {index};"
                    " delete the file to make it again"
                )
        return rows

    async def complete(
        self, settings: Row, prompts: Sequence[Sequence[Message]], make_row: MakeRow
    ) -> int:
        """Append the missing rows, {"index": index, **make_row(index, prompt)}; returns how many
        there were before.

        Raises ConfigurationError if the rows were made with other settings or prompts.
        """
        rows = self.rows()
        self._check_settings(settings, has_rows=bool(rows))
        self._check_prompts(rows, prompts)
        if rows:
            print(
                f"{self.path.name}: resuming at {len(rows)} of {len(prompts)} samples", flush=True
            )

        async def make(index: int) -> Row:
            return {"index": index, **await make_row(index, prompts[index])}

        window: deque[asyncio.Future[Row]] = deque()
        try:
            for index in range(len(rows), len(prompts)):
                if len(window) == CONCURRENT_PROMPTS:
                    jsonl.append_line(self.path, await window.popleft())
                    done = index + 1 - CONCURRENT_PROMPTS
                    if done % CONCURRENT_PROMPTS == 0:
                        print(f"{self.path.name}: {done} of {len(prompts)} samples", flush=True)
                window.append(asyncio.ensure_future(make(index)))
            while window:
                jsonl.append_line(self.path, await window.popleft())
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)
        return len(rows)

    def _check_settings(self, settings: Row, has_rows: bool) -> None:
        current = json.loads(jsonl.encode(settings))
        if has_rows:
            if not self.settings_path.exists():
                raise ConfigurationError(
                    f"{self.path} has rows, but {self.settings_path.name} is missing: restore it,"
                    " or delete the file to make it again"
                )
            saved = json.loads(self.settings_path.read_bytes())
            if found := differences(saved, current):
                raise ConfigurationError(
                    f"{self.path} was made with other settings: {'; '.join(found)}; write to"
                    " another file, or delete this one to make it again"
                )
        replace_file(self.settings_path, jsonl.encode(settings, indent=2) + "\n")

    def _check_prompts(
        self, rows: Sequence[SavedRow], prompts: Sequence[Sequence[Message]]
    ) -> None:
        if len(rows) > len(prompts):
            raise ConfigurationError(
                f"{self.path} holds {len(rows)} samples, more than the {len(prompts)} of this run;"
                " use at least as many, or write to another file"
            )
        for line, (row, prompt) in enumerate(zip(rows, prompts), start=1):
            if self._prompt_of(row) != json.loads(jsonl.encode(plain_messages(prompt))):
                raise ConfigurationError(
                    f"{self.path}:{line} was made with another prompt: set the prompts and"
                    " the seed as before, or write to another file"
                )
