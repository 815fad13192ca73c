"""The evaluation of held-out questions by greedy replies."""

from __future__ import annotations

from collections.abc import Sequence

from tinker_cookbook import models
from tinker_cookbook.distillation.demonstrations import DemonstrationDatasetBuilder
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.renderers import Message
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator, IsRight


def default_max_tokens(model_name: str) -> int:
    """Maximum tokens per completion of a model, to train on and to evaluate."""
    is_nano = models.is_nano(model_name)
    return (SDFT_DEFAULTS.nano if is_nano else SDFT_DEFAULTS.others).sizes.max_tokens


def greedy_evaluator(
    data: DemonstrationDatasetBuilder,
    conversations: Sequence[list[Message]],
    max_tokens: int | None,
    is_right: IsRight,
) -> ExactMatchEvaluator:
    """The evaluator `test/exact_match` of held-out conversations. max_tokens None: the default for
    the model, if no recipe has set it."""
    model = data.config.model_name_for_tokenizer
    limit = max_tokens or default_max_tokens(model)
    context = models.context_length(model)
    return ExactMatchEvaluator(conversations, data.renderer, "test", limit, is_right, context)
