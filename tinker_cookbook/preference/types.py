"""Comparisons of two completions of a prompt, and models that judge them.

The generative preference model is a language model that reads a prompt and both completions and
writes "A" or "B". Its format is a chat:

    prompt, system: "==== Completion A ====", completion A, system: "==== Completion B ====",
    completion B, system: "==== Preference ====", assistant: "A" or "B"

of which only the first token of the label is trained and sampled.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import chz
import tinker
import torch

from tinker_cookbook import models
from tinker_cookbook.checkpoint_utils import resolve_renderer_name_from_checkpoint_or_default
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.context_window import fits_context
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.service import connect, locate_checkpoint
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import CheckedConfig

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer

logger = logging.getLogger(__name__)

Label = Literal["A", "B", "Tie"]

_SWAPPED: dict[Label, Label] = {"A": "B", "B": "A", "Tie": "Tie"}


@dataclass(frozen=True)
class Comparison:
    """A prompt and two completions of it, each a list of messages."""

    prompt_conversation: list[Message]
    completion_A: list[Message]
    completion_B: list[Message]

    def swap(self) -> Comparison:
        """The comparison with A and B exchanged."""
        return Comparison(self.prompt_conversation, self.completion_B, self.completion_A)


@dataclass(frozen=True)
class LabeledComparison:
    """A comparison and the completion that is preferred."""

    comparison: Comparison
    label: Label

    def swap(self) -> LabeledComparison:
        """The same preference with A and B exchanged."""
        return LabeledComparison(self.comparison.swap(), _SWAPPED[self.label])

    @property
    def chosen(self) -> list[Message] | None:
        """The preferred completion; None for a tie."""
        return self._completion(self.label)

    @property
    def rejected(self) -> list[Message] | None:
        """The other completion; None for a tie."""
        return self._completion(_SWAPPED[self.label])

    def _completion(self, label: Label) -> list[Message] | None:
        comparison = self.comparison
        return {"A": comparison.completion_A, "B": comparison.completion_B}.get(label)


class PreferenceModel(ABC):
    """A judge of two completions."""

    @abstractmethod
    async def __call__(self, comparison: Comparison) -> float:
        """The preference in [-1, 1]: -1 if A is better, 1 if B is, 0 if neither."""


@chz.chz
class PreferenceModelBuilder(CheckedConfig):
    """Config that builds a preference model."""

    # Not an abstract method, so that a command line without a class ends in one clear line.
    def __call__(self) -> PreferenceModel:
        raise ConfigurationError(
            f"{type(self).__name__} is an abstract base class; choose a preference model"
        )


class ComparisonRenderer(ABC):
    """Writes comparisons as prompts of a generative preference model."""

    @abstractmethod
    def build_generation_prompt(self, comparison: Comparison) -> tinker.ModelInput:
        """The prompt whose next token is the label."""

    @abstractmethod
    def to_model_input_weights(
        self, labeled_comparison: LabeledComparison
    ) -> tuple[tinker.ModelInput, torch.Tensor]:
        """Tokens [N] and weights [N]: the label's first token is the last one and has weight 1."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer: ...


class ComparisonRendererFromChatRenderer(ComparisonRenderer):
    """The chat format above, with the renderer of a chat model.

    Raises ConfigurationError for a renderer whose first trained token of the last message is not
    the label: qwen3 begins with `<think>`, which would be all that the model learns to write.
    """

    def __init__(self, convo_renderer: Renderer) -> None:
        self.convo_renderer = convo_renderer
        for label in ("A", "B"):
            question = Comparison([Message(role="user", content="?")], *_replies("yes", "no"))
            tokens = self._tokens_and_label(LabeledComparison(question, label))[0]
            written = str(self.tokenizer.decode(tokens[-1:])).strip()
            if written != label:
                raise ConfigurationError(
                    f"renderer {type(convo_renderer).__name__} begins a reply with {written!r}, not"
                    f" with the label {label!r} of a preference model: choose one without thinking,"
                    " e.g. qwen3_instruct, qwen3_disable_thinking or role_colon"
                )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.convo_renderer.tokenizer

    def build_generation_prompt(self, comparison: Comparison) -> tinker.ModelInput:
        return self.convo_renderer.build_generation_prompt(_conversation(comparison))

    def to_model_input_weights(
        self, labeled_comparison: LabeledComparison
    ) -> tuple[tinker.ModelInput, torch.Tensor]:
        tokens, label = self._tokens_and_label(labeled_comparison)
        weights = torch.zeros(label + 1, dtype=torch.float32)
        weights[label] = 1.0
        return tinker.ModelInput.from_ints(tokens), weights

    def _tokens_and_label(self, labeled: LabeledComparison) -> tuple[list[int], int]:
        """The tokens up to the first one of the label, and its index."""
        reply = Message(role="assistant", content=labeled.label)
        conversation = [*_conversation(labeled.comparison), reply]
        model_input, weights = self.convo_renderer.build_supervised_example(conversation)
        label = int(torch.nonzero(weights)[0])
        return model_input.to_ints()[: label + 1], label


def _replies(*texts: str) -> list[list[Message]]:
    return [[Message(role="assistant", content=text)] for text in texts]


def _conversation(comparison: Comparison) -> list[Message]:
    """The chat that a preference model reads, without its reply."""
    return [
        *comparison.prompt_conversation,
        Message(role="system", content="==== Completion A ===="),
        *comparison.completion_A,
        Message(role="system", content="==== Completion B ===="),
        *comparison.completion_B,
        Message(role="system", content="==== Preference ===="),
    ]


class PreferenceModelFromChatRenderer(PreferenceModel):
    """The generative preference model: -1 if its most likely next token is A, 1 for B, else 0.

    context_window: see `fits_context`.
    """

    def __init__(
        self,
        convo_renderer: Renderer,
        sampling_client: SamplingClient,
        context_window: int | None = None,
    ) -> None:
        self.comparison_renderer = ComparisonRendererFromChatRenderer(convo_renderer)
        self.sampling_client, self.context_window = sampling_client, context_window
        self._warned = False

    async def __call__(self, comparison: Comparison) -> float:
        prompt = self.comparison_renderer.build_generation_prompt(comparison)
        if not fits_context(prompt.length + 1, self.context_window):
            return 0.0
        params = tinker.SamplingParams(max_tokens=1, temperature=0.0)
        sample = await self.sampling_client.sample(prompt, 1, params)
        text = str(self.comparison_renderer.tokenizer.decode(sample.sequences[0].tokens)).strip()
        if text not in _PREFERENCES and not self._warned:
            logger.warning(
                "the preference model wrote %r, not A or B: counted as a tie, like any other text"
                " from now on",
                text,
            )
            self._warned = True
        return _PREFERENCES.get(text, 0.0)


_PREFERENCES = {"A": -1.0, "B": 1.0, "Tie": 0.0}


@chz.chz
class CheckpointedPreferenceModelBuilder(PreferenceModelBuilder):
    """Base of the builders of preference models that were trained; they define `model_of`."""

    renderer_name: str | None = chz.field(
        default=None,
        doc="renderer of the preference model, without thinking (None: that of the checkpoint)",
    )
    model_name: str = chz.field(doc="base model of the preference model")
    rm_weights_path: str = chz.field(
        doc="weights of the preference model: tinker://.../sampler_weights/..., a run directory or"
        " a PEFT adapter directory"
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: where the run's policy is)"
    )

    def __call__(self) -> PreferenceModel:
        path = locate_checkpoint(
            self.rm_weights_path, "sampler_weights", "rm_weights_path", self.base_url
        )
        name = resolve_renderer_name_from_checkpoint_or_default(
            model_name=self.model_name,
            explicit_renderer_name=self.renderer_name,
            load_checkpoint_path=path,
            base_url=self.base_url,
        )
        renderer = get_renderer(name, get_tokenizer(self.model_name), model_name=self.model_name)
        client = connect(self.base_url).create_sampling_client(
            model_path=path, base_model=self.model_name
        )
        return self.model_of(renderer, client.result())

    def model_of(self, renderer: Renderer, client: SamplingClient) -> PreferenceModel:
        """The preference model with the weights of a client."""
        raise ConfigurationError(f"{type(self).__name__} is an abstract base class")


@chz.chz
class PreferenceModelBuilderFromChatRenderer(CheckpointedPreferenceModelBuilder):
    """A generative preference model from a checkpoint."""

    def model_of(self, renderer: Renderer, client: SamplingClient) -> PreferenceModel:
        window = models.context_length(self.model_name)
        return PreferenceModelFromChatRenderer(renderer, client, window)
