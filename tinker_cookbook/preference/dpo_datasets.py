"""Data sets of pairs for DPO and its kin: batches of [chosen, rejected, chosen, rejected, ...]."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import chz
import numpy as np

from tinker_cookbook.preference.comparison_datasets import (
    DatasetBuilderFromComparisons,
    RenderComparison,
    excluded,
)
from tinker_cookbook.preference.types import LabeledComparison
from tinker_cookbook.renderers import Message, Renderer, TrainOnWhat
from tinker_cookbook.renderers.examples import Example, conversation_examples
from tinker_cookbook.sequences import from_datum, to_datum
from tinker_cookbook.supervised.datasets import Rendered


@chz.chz
class DPODatasetBuilderFromComparisons(DatasetBuilderFromComparisons):
    """Pairs of a preferred and a rejected completion; `batch_size` counts pairs.

    A batch holds 2 * batch_size datums; each rejected completion follows its chosen one. Batches of
    lazily rendered data are smaller if some of their rows are skipped.
    """

    def make_render(self) -> RenderComparison:
        return partial(
            render_comparable_pair, renderer=self.renderer, max_length=self.config.max_length
        )

    def unit(self) -> str:
        return "pair"


def render_comparable_pair(
    labeled: LabeledComparison, renderer: Renderer, max_length: int | None
) -> Rendered:
    """As `render_pair`, without pairs that have different messages before the trained ones: the
    log probabilities of the two would be conditioned on different tokens."""
    rendered = render_pair(labeled, renderer, max_length)
    contexts = [
        sequence.tokens[: np.flatnonzero(sequence.loss_mask)[0]]
        for sequence in map(from_datum, rendered.datums)
    ]
    if all(np.array_equal(contexts[0], context) for context in contexts):
        return rendered
    reason = "chosen and rejected have different messages before their last one"
    return replace(rendered, datums=[], skipped=[reason])


def render_pair(labeled: LabeledComparison, renderer: Renderer, max_length: int | None) -> Rendered:
    """Render a comparison to the datums of the chosen and of the rejected completion.

    Each is truncated on the right to `max_length` tokens. No datums if the comparison is a tie, if
    either completion has no trained token left, or if both have the same tokens left.
    """
    if labeled.chosen is None or labeled.rejected is None:
        return excluded("tie")
    prompt = labeled.comparison.prompt_conversation
    prompt_tokens = renderer.build_generation_prompt(prompt).to_ints()
    examples: list[Example] = []
    problem: str | None = None
    for name, completion in (("chosen", labeled.chosen), ("rejected", labeled.rejected)):
        example = render_completion(prompt, completion, renderer, max_length)
        examples.append(example)
        reason = example.problem or find_prompt_problem(example, prompt_tokens)
        problem = problem or (reason and f"{name}: {reason}")
    chosen, rejected = examples
    if not problem and np.array_equal(chosen.truncated.tokens, rejected.truncated.tokens):
        problem = "chosen and rejected have the same tokens" + (
            f" up to max_length={max_length}" if chosen.is_truncated else ""
        )
    return Rendered(
        [] if problem else [to_datum(example.truncated) for example in examples],
        truncated=any(example.is_truncated for example in examples),
        num_lost=sum(count_lost_tokens(example) for example in examples),
        skipped=[problem] if problem else [],
    )


def render_completion(
    prompt: list[Message], completion: list[Message], renderer: Renderer, max_length: int | None
) -> Example:
    """Render prompt and completion; only the completion's last message is trained."""
    (example,) = conversation_examples(
        [*prompt, *completion], renderer, max_length, TrainOnWhat.LAST_ASSISTANT_MESSAGE
    )
    return example


def find_prompt_problem(example: Example, prompt_tokens: list[int]) -> str | None:
    """Why an example is no continuation of its prompt; None if it is one.

    The difference of two log probabilities of completions has a meaning only if both are
    conditioned on the very same tokens.
    """
    length, sequence = len(prompt_tokens), example.full
    if not np.array_equal(sequence.tokens[:length], prompt_tokens):
        return "this renderer does not render it as a continuation of the prompt"
    if sequence.weights[:length].any():
        return "this renderer trains tokens of the prompt"
    return None


def count_lost_tokens(example: Example) -> int:
    """Trained tokens lost to truncation."""
    return example.full.num_loss_tokens - example.truncated.num_loss_tokens
