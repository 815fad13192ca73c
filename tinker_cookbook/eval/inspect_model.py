"""Our models as Inspect models: `inspect eval task.py --model tinker-cookbook/nano`.

    --model tinker-cookbook/Qwen/Qwen3-8B        a hub name, a local path, or nano
    -M model_path=RUN_DIRECTORY                  a checkpoint, also as a tinker:// path
    -M renderer_name=qwen3_disable_thinking      None: the checkpoint's, else the model's default
    -M dtype=float32                             any key of the in-process engine
    --model-base-url http://127.0.0.1:8000       a server with Tinker's API

Requests run concurrently and the engine batches them. Stop sequences are cut from replies, tools go
through the renderer, and logprobs are those of the sampler. Settings that are not supported, images
and audio are refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import chz
import tinker
from inspect_ai._util.error import PrerequisiteError  # the command line prints it without traceback
from inspect_ai.log._samples import _active_model_event  # tells whether a reply will be cached
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    modelapi,
    set_model_info,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from rich.markup import escape

from tinker_cookbook import models
from tinker_cookbook.completers import StopCondition, TinkerMessageCompleter, completer_from
from tinker_cookbook.eval.inspect_config import CACHE_REASON, check_config
from tinker_cookbook.eval.inspect_messages import (
    check_tool_choice,
    conversation,
    to_assistant_message,
    to_logprobs,
)
from tinker_cookbook.eval.inspect_seeds import RequestSeeds
from tinker_cookbook.exceptions import ConfigurationError, EvalError, TinkerCookbookError
from tinker_cookbook.renderers import Message, Renderer, ThinkingPart, get_renderer
from tinker_cookbook.sequences import model_input_tokens
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

NAME = "tinker-cookbook"
MAX_CONNECTIONS = 512
"""Requests in flight at once. The engine batches them, so many are faster than few."""


class ModelRefused(PrerequisiteError, EvalError):
    """A model that cannot be used as asked; Inspect's command line and ours print it as a line."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.message = escape(message)


class TinkerSamplingAPI(ModelAPI):
    """An Inspect `ModelAPI` over a sampling client; `InspectAPIFromTinkerSampling` registers it.

    sampling_client, renderer: those to use. Without a client the model is loaded, see
    `completers.completer_from`. engine: keys of the in-process engine. Raises ModelRefused.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        model_path: str | None = None,
        renderer_name: str | None = None,
        sampling_client: SamplingClient | None = None,
        renderer: Renderer | None = None,
        api_key_vars: Sequence[str] = (),
        **engine: Any,
    ) -> None:
        config = config or GenerateConfig()
        super().__init__(model_name, base_url, api_key, list(api_key_vars), config)
        try:
            check_config(config)
            if sampling_client is None:
                loaded = _load(model_name, model_path, renderer_name, base_url, engine)
                sampling_client, renderer = loaded.sampling_client, renderer or loaded.renderer
            elif renderer is None:
                name = renderer_name or models.recommended_renderer(model_name)
                renderer = get_renderer(name, get_tokenizer(model_name), model_name=model_name)
        except TinkerCookbookError as error:
            raise ModelRefused(str(error)) from error
        self.client, self.renderer = sampling_client, renderer
        self.context_window = models.context_length(model_name)
        self._pool = f"{model_name}:{model_path}:{base_url}:{id(sampling_client)}"
        self._seeds = RequestSeeds()
        # Inspect looks facts up by name while samples run; without this it would make the model
        # again for it, and load it a second time.
        set_model_info(f"{NAME}/{model_name}", ModelInfo(context_length=self.context_window))
        # Inspect would otherwise begin with 20 requests at once and, as no server here ever asks
        # for fewer, slowly raise that. The object belongs to the `Model` that is being made.
        if config.max_connections is None and config.adaptive_connections is None:
            config.max_connections = MAX_CONNECTIONS

    def max_connections(self) -> int:
        return MAX_CONNECTIONS

    def connection_key(self) -> str:
        return self._pool

    def max_tokens(self) -> int:
        return default_max_tokens(self.model_name)

    async def tokenize(self, text: str) -> list[int]:
        return self.renderer.tokenizer.encode(text, add_special_tokens=False)

    async def count_text_tokens(self, text: str) -> int:
        return len(await self.tokenize(text))

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        check_config(config)
        _refuse_cache()
        check_tool_choice(tool_choice)
        prompt = self.renderer.build_generation_prompt(conversation(input, tools, self.renderer))
        limit = config.max_tokens or self.max_tokens()
        room = limit if self.context_window is None else self.context_window - prompt.length
        if room < 1:
            return self._no_room(prompt.length)
        params = tinker.SamplingParams(
            max_tokens=min(limit, room),
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=-1 if config.top_k is None else config.top_k,
            stop=self._stop(config.stop_seqs or ()),
            seed=self._seeds.next(config.seed),
        )
        response = await self.client.sample(
            prompt, config.num_choices or 1, params, topk_sample_logprobs=config.top_logprobs or 0
        )
        choices = [
            self._choice(sequence, config, prompt, limited_by_context=room < limit)
            for sequence in response.sequences
        ]
        num_sampled = sum(len(sequence.tokens) for sequence in response.sequences)
        return ModelOutput(
            model=self.model_name,
            choices=choices,
            usage=ModelUsage(
                input_tokens=prompt.length,
                output_tokens=num_sampled,
                total_tokens=prompt.length + num_sampled,
            ),
        )

    def _stop(self, stop_seqs: Sequence[str]) -> StopCondition:
        """The renderer's stop sequences and the task's. A request has either ids or strings."""
        own = self.renderer.get_stop_sequences()
        if not stop_seqs:
            return own
        tokenizer = self.renderer.tokenizer
        texts = [stop if isinstance(stop, str) else tokenizer.decode([stop]) for stop in own]
        return [*texts, *stop_seqs]

    def _choice(
        self,
        sequence: tinker.SampledSequence,
        config: GenerateConfig,
        prompt: tinker.ModelInput,
        limited_by_context: bool,
    ) -> ChatCompletionChoice:
        tokens = self._until_stop_token(sequence.tokens)
        parsed = self.renderer.parse_response(tokens).message
        if sequence.stop_reason == "length" and self._is_reasoning(prompt, tokens):
            text = str(self.renderer.tokenizer.decode(tokens))
            parsed = Message(
                role="assistant", content=[ThinkingPart(type="thinking", thinking=text)]
            )
        message = to_assistant_message(parsed, self.model_name, config.stop_seqs or ())
        choice = ChatCompletionChoice(message=message, stop_reason="stop")
        if sequence.stop_reason == "length":
            choice.stop_reason = "model_length" if limited_by_context else "max_tokens"
        elif message.tool_calls:
            choice.stop_reason = "tool_calls"
        if config.logprobs:
            top = bool(config.top_logprobs)
            choice.logprobs = to_logprobs(sequence, len(tokens), self.renderer.tokenizer, top)
        return choice

    def _is_reasoning(self, prompt: tinker.ModelInput, tokens: Sequence[int]) -> bool:
        """Whether the prompt opens the reasoning and the tokens do not close it: renderers do not
        see the prompt, and take a reply without a closing tag for an answer."""
        decode = self.renderer.tokenizer.decode
        end = str(decode(model_input_tokens(prompt)[-8:])).rstrip()
        return end.endswith("<think>") and "</think>" not in str(decode(list(tokens)))

    def _until_stop_token(self, tokens: Sequence[int]) -> list[int]:
        """Without what a service samples after a stop token that it was given as a string."""
        stops = {stop for stop in self.renderer.get_stop_sequences() if isinstance(stop, int)}
        end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        return [int(token) for token in tokens[: end + 1]]

    def _no_room(self, prompt_length: int) -> ModelOutput:
        """What Inspect expects of a prompt that fills the context: no reply, and no exception."""
        message = ChatMessageAssistant(content="", model=self.model_name, source="generate")
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason="model_length")],
            usage=ModelUsage(input_tokens=prompt_length, total_tokens=prompt_length),
            error=f"a prompt of {prompt_length} tokens leaves no room for a reply in a context of"
            f" {self.context_window} tokens",
        )


# A function for Inspect's registry, but users call it like the class.
InspectAPIFromTinkerSampling = cast(type[TinkerSamplingAPI], modelapi(name=NAME)(TinkerSamplingAPI))


def model_for(
    sampling_client: SamplingClient,
    renderer: Renderer,
    model_name: str,
    config: GenerateConfig | None = None,
) -> Model:
    """An Inspect model that samples from the client, e.g. from the weights in training."""
    config = config or GenerateConfig()
    api = InspectAPIFromTinkerSampling(
        model_name=model_name, config=config, sampling_client=sampling_client, renderer=renderer
    )
    model = Model(api, config)
    api.qualified_model_name = str(model)
    return model


def default_max_tokens(model_name: str) -> int:
    """The default limit of a reply in tokens."""
    return 256 if models.is_nano(model_name) else 8192


def _refuse_cache() -> None:
    """Raise ConfigurationError in a `generate(cache=True)`, which does not reach `check_config`.

    As no reply is ever stored, none is found either.
    """
    event = _active_model_event.get()
    if event is not None and event.cache is not None:
        raise ConfigurationError(f"cache=true is not supported by {NAME} ({CACHE_REASON})")


def _load(
    model_name: str,
    model_path: str | None,
    renderer_name: str | None,
    base_url: str | None,
    engine: dict[str, Any],
) -> TinkerMessageCompleter:
    """Inspect makes models in synchronous code, which may run inside an event loop."""
    unknown = [key for key in engine if key not in chz.chz_fields(EngineConfig)]
    if unknown:
        known = ["model_path", "renderer_name", *chz.chz_fields(EngineConfig)]
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigurationError(
            f"model argument {unknown[0]}={engine[unknown[0]]!r} is unknown{meant}; known are"
            f" {', '.join(known)}"
        )
    coroutine = completer_from(
        model_name,
        model_path,
        renderer_name=renderer_name,
        base_url=base_url,
        engine=EngineConfig(**engine) if engine else None,
    )
    run = contextvars.copy_context().run  # `connect` depends on the run that is active
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run, asyncio.run, coroutine).result()
