"""Stage 3: two replies to each prompt, and which of them the principles prefer.

One principle, drawn at random, is the criterion of a pair; the judge is a prompted language model
(`preference/prompted_judge.py`). Bai et al. 2022, section 4.1. The rows of comparisons.jsonl are in
the `comparison`, `label` format of `preference/comparison_rows.py`, so the file is a data set of
comparisons for every program that reads one, e.g. the RLHF pipeline.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import chz

from recipes.preference.constitutional.principles import draw_principle
from recipes.preference.constitutional.revisions import MAX_TEST_ROWS
from recipes.preference.constitutional.wording import ModelKind, reply_conversation
from tinker_cookbook.completers import ContextOverflow, TinkerMessageCompleter
from tinker_cookbook.distillation.teacher_samples import TOO_LONG, SampledReply, sample_reply
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder, ComparisonRows
from tinker_cookbook.preference.prompted_judge import PromptedPreferenceModel
from tinker_cookbook.preference.types import Comparison
from tinker_cookbook.renderers import Message
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.training.sample_file import (
    Row,
    SampleFile,
    SavedRow,
    plain_messages,
)
from tinker_cookbook.utils.data_identity import file_identity
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted

_STAGE = 3  # in the seeds, so that the samples of the stages are independent


@dataclass(frozen=True)
class PairJudge:
    """Makes the rows of comparisons.jsonl, see `__call__`.

    kind: how the policy is asked to reply; "instruct" for one that was trained on conversations.
    judges: by principle. min_preference: pairs with a smaller |preference| are ties.
    """

    policy: TinkerMessageCompleter
    kind: ModelKind
    judges: Mapping[str, PromptedPreferenceModel]
    min_preference: float
    seed: int

    async def __call__(self, index: int, prompt: Sequence[Message]) -> Row:
        """`comparison`, `label`, `preference` (0 if the pair was not judged), `principle` and
        `tie`: why the label is "Tie" ("truncated", "empty", "too long", "identical", "near tie"),
        or null."""
        try:
            replies = [await self._sample(prompt, index, number) for number in range(2)]
        except ContextOverflow:
            replies = [TOO_LONG] * 2
        comparison = Comparison([*prompt], *(_completion(each.text) for each in replies))
        principle = draw_principle([*self.judges], self.seed, _STAGE, index, 2)
        tie = _find_problem(replies)
        preference = 0.0 if tie else await self.judges[principle](comparison)
        if tie is None and (preference == 0 or abs(preference) < self.min_preference):
            tie = "near tie"
        return {
            "comparison": {
                "prompt_conversation": plain_messages(prompt),
                "completion_A": plain_messages(comparison.completion_A),
                "completion_B": plain_messages(comparison.completion_B),
            },
            "label": "Tie" if tie else "B" if preference > 0 else "A",
            "preference": preference,
            "principle": principle,
            "tie": tie,
        }

    async def _sample(self, prompt: Sequence[Message], index: int, number: int) -> SampledReply:
        conversation = reply_conversation(self.kind, prompt)
        return await sample_reply(self.policy, conversation, self.seed, _STAGE, index, number)


def _completion(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def _find_problem(replies: Sequence[SampledReply]) -> str | None:
    """Why a pair of replies is of no use to train on; None if it is."""
    problem = next((each.problem for each in replies if each.problem), None)
    return problem or ("identical" if replies[0].text == replies[1].text else None)


def comparisons_file(path: Path) -> SampleFile:
    return SampleFile(path, lambda row: row["comparison"]["prompt_conversation"])


def summary_lines(rows: Sequence[SavedRow]) -> list[str]:
    """What the stage did: how many pairs have a preference, and why the others have none."""
    pairs = [row for row in rows if row["tie"] is None]
    ties = Counter(row["tie"] for row in rows if row["tie"] is not None)
    dropped = "".join(f", {count} {tie}" for tie, count in ties.items())
    lines = [f"comparisons: {counted(len(rows), 'prompt')}, {counted(len(pairs), 'pair')}{dropped}"]
    if not pairs:
        return lines
    strength = mean(abs(row["preference"]) for row in pairs)
    first = sum(row["label"] == "A" for row in pairs)
    return [*lines, f"mean |preference| of the pairs: {strength:.2f}; A preferred in {first}"]


@chz.chz
class JudgedPairs(ComparisonDatasetBuilder):
    """The pairs of comparisons.jsonl that are no ties, a tenth of them held out."""

    path: str = chz.field(doc="comparisons.jsonl of a run")
    shuffle_seed: int = chz.field(default=0, doc="seed of the train/test split", metadata=SEED)

    def identity(self) -> Mapping[str, Plain]:
        """The contents of the file; its path does not matter."""
        return {"path": file_identity(self.path)}

    def data_name(self) -> str:
        return self.path

    def renders_up_front(self) -> bool:
        return True

    def get_train_and_test_datasets(self) -> ComparisonRows:
        """Raises DataValidationError if all pairs are ties."""
        rows = comparisons_file(Path(self.path)).rows()
        pairs = [
            {"comparison": row["comparison"], "label": row["label"]}
            for row in rows
            if row["tie"] is None
        ]
        if not pairs:
            raise DataValidationError(
                f"{self.path}: all {counted(len(rows), 'pair')} are ties (see `tie` in the rows);"
                " lower min_preference, raise temperature or max_tokens, or use more prompts"
            )
        random.Random(self.shuffle_seed).shuffle(pairs)
        test_size = min(MAX_TEST_ROWS, len(pairs) // 10)
        return pairs[test_size:], pairs[:test_size] or None
