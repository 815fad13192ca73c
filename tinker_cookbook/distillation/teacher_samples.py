"""Replies of a teacher as text: sampled to a JSONL file that resumes, and trained on from there.

Text is a hard target: it needs no tokenizer or chat template in common with the student. The file
keeps each reply with its reasoning, so that a student with the teacher's chat format is trained on
the tokens that the teacher sampled. Replies that would be changed on the way are marked instead.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import chz
import numpy as np

from tinker_cookbook.completers import ContextOverflow, TinkerMessageCompleter, derive_seed
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError, RendererError
from tinker_cookbook.renderers import Message, Renderer, TrainOnWhat, get_text_content
from tinker_cookbook.renderers.chats import Chat, SampleProblem, parse_row
from tinker_cookbook.supervised.data import Datasets, render_chats
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.training.fields import NON_NEGATIVE, SEED
from tinker_cookbook.training.run_directory import wait_for_lock
from tinker_cookbook.training.sample_file import Row, SampleFile, SavedRow, plain_messages
from tinker_cookbook.utils.data_identity import file_identity
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # a decoder's sign for bytes that are no UTF-8


@dataclass(frozen=True)
class SampledReply:
    """A sampled reply, its tokens, and why it is not to be trained on (None: it may be)."""

    message: Message
    tokens: Sequence[int]
    problem: SampleProblem | None

    @property
    def text(self) -> str:
        """The text without reasoning and surrounding white space."""
        return get_text_content(self.message).strip()


TOO_LONG = SampledReply(Message(role="assistant", content=""), (), "too long")


async def sample_reply(
    model: TinkerMessageCompleter, conversation: Sequence[Message], *seeds: int
) -> SampledReply:
    """Sample a reply with a seed derived from `seeds`; its problem is "truncated", "empty" or None.

    Raises ContextOverflow if the conversation leaves no room for a reply.
    """
    renderer = model.renderer
    prompt, stop = renderer.build_generation_prompt(conversation), renderer.get_stop_sequences()
    sampled = await model.tokens.seeded(derive_seed(*seeds))(prompt, stop)
    reply = SampledReply(renderer.parse_response(sampled.tokens).message, sampled.tokens, None)
    if sampled.stop_reason == "length":
        return replace(reply, problem="truncated")
    return reply if reply.text else replace(reply, problem="empty")


async def sample_replies(
    path: Path,
    teacher: TinkerMessageCompleter,
    prompts: Sequence[Sequence[Message]],
    *,
    seed: int,
    settings: Mapping[str, Plain],
    num_samples: int = 1,
    teacher_prompt: Callable[[Sequence[Message]], list[Message]] = list,
) -> None:
    """Sample `num_samples` replies to each prompt, or those that the file does not hold yet.

    A row is {"index": prompt * num_samples + sample, "messages": [*prompt, reply], "problem": why
    the reply is not to be trained on (null: it may be), "num_tokens": number of sampled tokens}.
    Problems: "truncated", "empty", "too long" (no room for a reply), "tool call", and "malformed"
    (its message would not be rendered to the sampled text). The reply in a row with a problem is
    the sampled text, special tokens included.

    teacher_prompt: student's prompt -> what the teacher replies to. settings: what else decides
    about the replies, i.e. the teacher's weights and whatever `teacher_prompt` depends on. Raises
    ConfigurationError if the rows in the file were made with other settings or prompts.
    """

    async def make_row(index: int, prompt: Sequence[Message]) -> Row:
        reply = await _sample_row(teacher, teacher_prompt(prompt), seed, index)
        return {
            "messages": plain_messages([*prompt, reply.message]),
            "problem": reply.problem,
            "num_tokens": len(reply.tokens),
        }

    sampling: dict[str, Plain] = {
        "seed": seed,
        "num_samples": num_samples,
        "max_tokens": teacher.max_tokens,
        "temperature": teacher.temperature,
    }
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    lock = await wait_for_lock(path)
    try:
        await samples_file(path).complete({**settings, **sampling}, repeated, make_row)
    finally:
        if lock is not None:
            lock.close()


async def _sample_row(
    teacher: TinkerMessageCompleter, conversation: list[Message], seed: int, index: int
) -> SampledReply:
    try:
        reply = await sample_reply(teacher, conversation, seed, index)
    except ContextOverflow:
        return TOO_LONG
    problem = _training_problem(teacher.renderer, conversation, reply)
    if problem is None:
        return reply
    text = _decode(teacher.renderer, reply.tokens)
    return SampledReply(Message(role="assistant", content=text), reply.tokens, problem)


def samples_file(path: Path) -> SampleFile:
    return SampleFile(path, lambda row: row["messages"][:-1])


def _training_problem(
    renderer: Renderer, conversation: Sequence[Message], reply: SampledReply
) -> SampleProblem | None:
    """Why training on the message would not train the sampled tokens; None if it would.

    Another split of the same text into tokens is accepted: text is what the student learns from.
    """
    message = reply.message
    if reply.problem == "truncated":
        return "truncated"
    if message.get("tool_calls") or message.get("unparsed_tool_calls"):
        return "tool call"
    if reply.problem is not None:
        return reply.problem
    try:
        rendered, weights = renderer.build_supervised_example(
            [*conversation, message], TrainOnWhat.LAST_ASSISTANT_MESSAGE
        )
    except RendererError:
        return "malformed"
    trained = [token for token, weight in zip(rendered.to_ints(), weights.tolist()) if weight]
    if trained == [*reply.tokens]:
        return None
    sampled = _text_and_tags(renderer, reply.tokens)
    # bytes that are no UTF-8 are lost in text, although both texts show the same sign for them
    same = sampled == _text_and_tags(renderer, trained) and _REPLACEMENT not in sampled[0]
    return None if same else "malformed"


def _text_and_tags(renderer: Renderer, tokens: Sequence[int]) -> tuple[str, list[int]]:
    """The text, and the added tokens in it: the characters of a tag may also be ordinary text."""
    added = {*renderer.tokenizer.get_added_vocab().values()}
    return _decode(renderer, tokens), [token for token in tokens if token in added]


def _decode(renderer: Renderer, tokens: Sequence[int]) -> str:
    return renderer.tokenizer.decode(
        [*tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


@chz.chz
class TeacherSamples(ChatDatasetBuilder):
    """The conversations of a file of `sample_replies`.

    Rows with a problem are left out and counted, as in any data set of conversations. All samples
    of a prompt are either trained on or held out.
    """

    path: str = chz.field(doc="JSONL file of a teacher's replies")
    test_size: int = chz.field(
        default=0,
        doc="prompts held out for evaluation, chosen by shuffle_seed",
        metadata=NON_NEGATIVE,
    )
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def identity(self) -> Mapping[str, Plain]:
        """The contents of the file; its path does not matter."""
        return {"path": file_identity(self.path)}

    def __call__(self) -> Datasets:
        rows = samples_file(existing_file(self.path, "path")).rows()
        chats = [
            parse_row({"messages": row.get("messages")}, f"{self.path}:{index + 1}")
            for index, row in enumerate(rows)
            if row.get("problem") is None
        ]
        problems = count_problems(rows)
        if not chats:
            found = ", ".join(f"{count} {problem}" for problem, count in problems.items())
            raise DataValidationError(
                f"{self.path}: no reply can be trained on ({found or 'no rows'}); raise max_tokens"
                " or use another teacher"
            )
        held_out = self._held_out_prompts(chats)
        train = render_chats(
            self, [c for c in chats if _prompt_of(c) not in held_out], self.path, self.shuffle_seed
        )
        train.report.rows.add({("excluded", f"{key} sample"): n for key, n in problems.items()})
        if not held_out:
            return train, None
        test = [chat for chat in chats if _prompt_of(chat) in held_out]
        return train, render_chats(self, test, f"{self.path} (test)", None)

    def _held_out_prompts(self, chats: Sequence[Chat]) -> set[str]:
        prompts = [*dict.fromkeys(map(_prompt_of, chats))]
        if self.test_size >= len(prompts):
            raise ConfigurationError(
                f"test_size={self.test_size}: {self.path} has {len(prompts)} prompts with usable"
                f" replies; expected 0 to {len(prompts) - 1}"
            )
        order = np.random.default_rng(self.shuffle_seed).permutation(len(prompts)).tolist()
        return {prompts[index] for index in order[: self.test_size]}


def _prompt_of(chat: Chat) -> str:
    return json.dumps(chat.messages[:-1])


def count_problems(rows: Sequence[SavedRow]) -> Counter[str]:
    """The number of rows with each problem."""
    return Counter(row["problem"] for row in rows if row.get("problem") is not None)


def describe_usable(rows: Sequence[SavedRow], unit: str) -> str:
    """How many rows can be trained on, and why not the others: "4 samples, 3 usable, 1 empty"."""
    problems = count_problems(rows)
    dropped = "".join(f", {count} {problem}" for problem, count in problems.items())
    return f"{counted(len(rows), unit)}, {len(rows) - problems.total()} usable{dropped}"
