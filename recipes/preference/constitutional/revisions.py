"""Stage 1: the model replies, criticizes its reply under a principle, and revises it.

    reply -> (critique -> revision) x num_revisions

Each round has a principle of its own, drawn at random. Bai et al. 2022, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import chz

from recipes.preference.constitutional.principles import draw_principle
from recipes.preference.constitutional.wording import (
    ModelKind,
    critique_conversation,
    reply_conversation,
    revision_conversation,
)
from tinker_cookbook.completers import ContextOverflow, TinkerMessageCompleter
from tinker_cookbook.distillation.teacher_samples import (
    SampledReply,
    describe_usable,
    sample_reply,
)
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import Chat, parse_row
from tinker_cookbook.supervised.data import Datasets, render_and_hold_out
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.training.sample_file import (
    Row,
    SampleFile,
    SavedRow,
    plain_messages,
)
from tinker_cookbook.utils.data_identity import file_identity
from tinker_cookbook.utils.json_types import Plain

_STAGE = 1  # in the seeds, so that the samples of the stages are independent
MAX_TEST_ROWS = 1024


@dataclass(frozen=True)
class Reviser:
    """Makes the rows of revisions.jsonl, see `__call__`."""

    model: TinkerMessageCompleter
    kind: ModelKind
    principles: Sequence[str]
    num_revisions: int
    seed: int

    async def __call__(self, index: int, prompt: Sequence[Message]) -> Row:
        """`prompt_conversation`, `first_reply`, `rounds` of `principle`, `critique` and `revision`,
        the last revision as `reply`, and `problem`: why `reply` is not trained on ("truncated",
        "empty", "too long"), or null."""
        rounds: list[dict[str, str]] = []
        texts: list[str] = []
        try:
            last = await self._sample(reply_conversation(self.kind, prompt), index, 0)
            texts.append(last.text)
            for number in range(self.num_revisions):
                principle = draw_principle(self.principles, self.seed, _STAGE, index, number)
                conversation = critique_conversation(self.kind, prompt, last.text, principle)
                critique = (await self._sample(conversation, index, 2 * number + 1)).text
                conversation = revision_conversation(
                    self.kind, prompt, last.text, principle, critique
                )
                last = await self._sample(conversation, index, 2 * number + 2)
                rounds.append({"principle": principle, "critique": critique, "revision": last.text})
                texts.append(last.text)
            problem = last.problem
        except ContextOverflow:
            problem = "too long"
        first, last_text = (texts[0], texts[-1]) if texts else ("", "")
        return {
            "prompt_conversation": plain_messages(prompt),
            "first_reply": first,
            "rounds": rounds,
            "reply": last_text,
            "problem": problem,
        }

    async def _sample(self, conversation: list[Message], index: int, number: int) -> SampledReply:
        return await sample_reply(self.model, conversation, self.seed, _STAGE, index, number)


def revisions_file(path: Path) -> SampleFile:
    return SampleFile(path, lambda row: row["prompt_conversation"])


def summary_lines(rows: Sequence[SavedRow]) -> list[str]:
    """What the stage did: how many rows are usable, lengths before and after, one transcript."""
    usable = [row for row in rows if row["problem"] is None]
    lines = [f"revisions: {describe_usable(rows, 'prompt')}"]
    if not usable:
        return lines
    first, last = (
        mean(len(row[key].split()) for row in usable) for key in ("first_reply", "reply")
    )
    unchanged = sum(row["first_reply"] == row["reply"] for row in usable)
    lines.append(f"words per reply: {first:.1f} first, {last:.1f} revised; {unchanged} unchanged")
    return [*lines, *transcript_lines(usable[0])]


def transcript_lines(row: SavedRow) -> list[str]:
    """The conversation of a row, one line per message."""
    lines = [f"  {m['role']}: {m['content']!r}" for m in row["prompt_conversation"]]
    lines.append(f"  first reply: {row['first_reply']!r}")
    for each in row["rounds"]:
        lines += [f"  {key}: {each[key]!r}" for key in ("principle", "critique", "revision")]
    return lines


@chz.chz
class RevisedReplies(ChatDatasetBuilder):
    """The prompts of revisions.jsonl with their last revisions, a tenth of them held out.

    Rows with a problem are left out.
    """

    path: str = chz.field(doc="revisions.jsonl of a run")
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def identity(self) -> Mapping[str, Plain]:
        """The contents of the file; its path does not matter."""
        return {"path": file_identity(self.path)}

    def __call__(self) -> Datasets:
        chats = self._chats()
        if not chats:
            raise DataValidationError(
                f"{self.path}: no prompt has a usable revision (see `problem` in its rows); raise"
                " max_tokens, or use another model"
            )
        test_size = min(MAX_TEST_ROWS, len(chats) // 10)
        return render_and_hold_out(self, chats, self.path, test_size, self.shuffle_seed)

    def _chats(self) -> list[Chat]:
        rows = revisions_file(Path(self.path)).rows()
        return [
            parse_row({"messages": _trained_conversation(row)}, f"{self.path}:{index + 1}")
            for index, row in enumerate(rows)
            if row["problem"] is None
        ]


def _trained_conversation(row: SavedRow) -> list[Plain]:
    return [*row["prompt_conversation"], {"role": "assistant", "content": row["reply"]}]
