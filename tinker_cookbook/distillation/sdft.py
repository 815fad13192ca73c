"""Self-distillation from demonstrations (SDFT).

Shenfeld et al. 2026, "Self-Distillation Enables Continual Learning", arXiv 2601.19897. The student
samples a reply to a question. The teacher is the same model, which also sees how the question was
answered in a demonstration; the student is trained towards the teacher's predictions of each token
of its own reply. Unlike in supervised fine-tuning, the demonstration itself is never trained.

The supervised loop with the objective of `sdft_objective.py`. Data: a
`DemonstrationDatasetBuilder`, e.g. `DemonstrationChats`. The formulas are in docs/algorithms.md.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import chz

from tinker_cookbook import models
from tinker_cookbook.distillation.sdft_batch import SamplingSettings
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.distillation.sdft_objective import DistillationSettings, SelfDistillation
from tinker_cookbook.distillation.sdft_teacher import SelfTeacher
from tinker_cookbook.distillation.soft_targets import check_topk
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.supervised.passes import tokens_per_pass_of
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, POSITIVE
from tinker_cookbook.training.resolve import Resolved

if TYPE_CHECKING:
    from pathlib import Path

    from tinker_cookbook.service.api import ServiceClient
    from tinker_cookbook.training.journal import Journal


@chz.chz
class Config(ChatConfig):
    """`ChatConfig` plus the keys of sampling and of the loss. Batch sizes count questions."""

    batch_size: int | None = chz.field(
        default=None,
        doc="questions per step (None: the default for the model)",
        metadata=COUNT,
    )
    lora_rank: int = chz.field(default=128, doc="LoRA rank", metadata=COUNT)
    group_size: int = chz.field(
        default=1, doc="completions sampled for each question", metadata=COUNT
    )
    max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per completion (None: the default for model and data)",
        metadata=COUNT,
    )
    temperature: float = chz.field(
        default=1.0,
        doc="temperature of the student's completions; the loss compares predictions at 1",
        metadata=POSITIVE,
    )
    topk: int = chz.field(
        default=20,
        doc="the teacher's most probable tokens that the student is compared on, at each position",
        metadata=COUNT,
    )
    skip_first_tokens: int | None = chz.field(
        default=None,
        doc="tokens at the beginning of a completion that are not trained (None: the default for"
        " the model)",
        metadata=NON_NEGATIVE,
    )
    reverse: bool = chz.field(
        default=False, doc="minimize KL(student || teacher) instead of KL(teacher || student)"
    )
    teacher_sync_every: int | None = chz.field(
        default=None,
        doc="steps after which the teacher takes the student's weights (None: it keeps the initial"
        " ones)",
        metadata=COUNT,
    )


def main(config: Config) -> None:
    """Train; for programs that are not asynchronous. Raises ConfigurationError without data."""
    if config.dataset_builder is None:
        raise ConfigurationError(
            "sdft.main needs dataset_builder, found None, e.g. DemonstrationChats(path=...)"
        )
    resolved = resolve_chat_config(config, SDFT_DEFAULTS, config.dataset_builder)
    asyncio.run(run(resolved, recipe="sdft"))


async def run(resolved: Resolved[Config, Batches], recipe: str) -> Path:
    """Train with a config that is already resolved, e.g. by `chat_config.resolve_chat_config`, and
    return the run's directory.

    Raises ConfigurationError if max_tokens leaves no room for a prompt.
    """
    config, context = resolved.config, _context(resolved.config)
    check_topk(config.topk, config.model_name)
    skipped = config.skip_first_tokens or 0
    if config.max_tokens is not None and skipped >= config.max_tokens:
        raise ConfigurationError(
            f"skip_first_tokens={skipped} leaves nothing to train of completions of at most"
            f" max_tokens={config.max_tokens} tokens; lower it"
        )
    if context is not None and config.max_tokens is not None and config.max_tokens >= context:
        raise ConfigurationError(
            f"max_tokens={config.max_tokens} leaves no room for a prompt in {context} tokens"
            " (max_length); lower it"
        )
    return await train.run(resolved, recipe, partial(make_objective, config))


def make_objective(config: Config, service: ServiceClient, journal: Journal) -> SelfDistillation:
    """The objective of a run with a resolved config."""
    assert config.max_tokens is not None and config.skip_first_tokens is not None
    assert config.renderer_name is not None
    tokenizer = get_tokenizer(config.model_name)
    renderer = get_renderer(config.renderer_name, tokenizer, model_name=config.model_name)
    return SelfDistillation(
        DistillationSettings(config.topk, config.skip_first_tokens, config.reverse),
        SamplingSettings(
            config.group_size,
            config.max_tokens,
            config.temperature,
            renderer.get_stop_sequences(),
            config.seed,
            _context(config),
        ),
        SelfTeacher(
            journal, service.create_rest_client(), config.teacher_sync_every, config.ttl_seconds
        ),
        tokenizer,
        start_step=journal.start_step,
        tokens_per_pass=tokens_per_pass_of(service),
    )


def _context(config: Config) -> int | None:
    """Maximum tokens of a prompt with its completion (None: unknown)."""
    return config.max_length or models.context_length(config.model_name)
