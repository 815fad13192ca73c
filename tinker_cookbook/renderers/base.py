"""`Renderer`: chat messages to tokens and loss weights, and sampled tokens back to a message.

A chat format defines how ONE message is rendered (`render_message`): a header that the framework
writes, and an output that the message's author writes, including the end-of-turn token. The base
class assembles messages into prompts and training examples. All sequences are unshifted: weight i
belongs to token i.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.conversation_checks import (
    check_reasoning_comes_first,
    check_results_have_calls,
    results_in_call_order,
)
from tinker_cookbook.renderers.encoding import TextEncoder
from tinker_cookbook.renderers.messages import (
    Message,
    Role,
    ToolSpec,
    content_parts,
    ensure_text,
    has_tool_calls,
    normalise_message,
    to_openai_message,
)
from tinker_cookbook.renderers.parsing import (
    ContentParser,
    MessageDelta,
    ParsedResponse,
    ResponseParser,
    TagParser,
)
from tinker_cookbook.renderers.tool_declarations import openai_tools
from tinker_cookbook.renderers.training_modes import (
    LAST_MODES,
    REPLY_MODES,
    TrainOnWhat,
    last_user_index,
    trained_messages,
)
from tinker_cookbook.utils.json_types import JsonObject

if TYPE_CHECKING:
    import tinker
    import torch

    from tinker_cookbook.tokenizer_utils import Tokenizer


ensure_list = content_parts  # the Tinker cookbook's name for it


@dataclass(frozen=True)
class RenderContext:
    """The position of a message in its conversation.

    last_user_index: -1 if there is no user message. in_last_assistant_turn: whether the message
    follows the last user message. messages: the whole conversation, for formats that depend on more
    than the neighbouring messages. last_answer_index: the last assistant message without tool
    calls, not counting the final message; -1 if there is none.
    """

    idx: int
    is_last: bool
    prev_message: Message | None = None
    next_message: Message | None = None
    last_user_index: int = -1
    in_last_assistant_turn: bool = False
    messages: Sequence[Message] = field(default=(), kw_only=True)
    last_answer_index: int = field(default=-1, kw_only=True)


@dataclass(frozen=True)
class RenderedMessage:
    """The tokens of one message. `output` is what a model in this role would sample.

    stop_overlap: for a stop sequence that is text, the part of it that is also the header of the
    next message. The model samples it before sampling stops.
    """

    output: list[tinker.ModelInputChunk]
    header: tinker.ModelInputChunk | None = None
    stop_overlap: tinker.ModelInputChunk | None = None


class SupervisedExample(NamedTuple):
    """N tokens and their loss weights, float32 [N], unshifted."""

    model_input: tinker.ModelInput
    weights: torch.Tensor


def text_chunk(tokens: list[int]) -> tinker.EncodedTextChunk:
    import tinker

    return tinker.EncodedTextChunk(tokens=tokens)


def require_text(message: Message, ctx: RenderContext) -> str:
    """The text of a message without other content. Raises RendererError that cites the message."""
    if any(part["type"] == "thinking" for part in content_parts(message["content"])):
        raise RendererError(
            f"message {ctx.idx}: it contains reasoning, which this format does not support; "
            "remove it, or use a model that reasons"
        )
    try:
        return ensure_text(message["content"])
    except RendererError as error:
        raise RendererError(f"message {ctx.idx}: {error}") from None


class Renderer(ABC):
    """One chat format for one tokenizer. `get_renderer` creates it and makes it picklable."""

    roles: ClassVar[tuple[Role, ...]] = ("system", "user", "assistant", "tool")
    markup: ClassVar[tuple[str, ...]] = ()
    """Tags inside content that become special tokens if the model or the developer writes them."""
    end_of_text: ClassVar[tuple[str, ...]] = ()
    """Tags that end a text, besides the tokenizer's EOS token and the stop tokens."""
    call_tag: ClassVar[str | None] = None
    """The tag that opens a tool call in the text of a reply. If there is one, a tool result must
    follow an assistant message that calls a tool, in `tool_calls` or in its text."""
    results_in_order: ClassVar[bool] = True
    """Whether the format shows which call a tool result belongs to by its position alone."""
    reasoning_in_strings: ClassVar[bool] = False
    """Whether string content that contains `</think>` is split into reasoning and text."""
    tools_in_messages: ClassVar[bool] = False
    """Whether a system message at the start may carry tool declarations under the key `tools`."""
    supports_images: ClassVar[bool] = False
    target_must_follow_prompt: ClassVar[bool] = False
    """Whether to reject LAST_ASSISTANT_* targets that do not follow their own generation prompt."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer: Any = tokenizer  # its annotations in transformers are too wide to help
        self.encoder = TextEncoder(tokenizer)
        self.origin: Origin | None = None
        # Set by `get_renderer`, which this module cannot import: how unpickling makes it again.
        self.remake: Callable[[Origin], Renderer] | None = None

    # Defined by each format

    @abstractmethod
    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        """Render one message at its position in the conversation."""

    @abstractmethod
    def get_stop_sequences(self) -> list[str] | list[int]:
        """The stop sequences of sampling, as token ids or strings."""

    def content_parser(self) -> ContentParser:
        """A new parser for the text of one response. By default all of it is text."""
        return TagParser(None, None)

    @property
    def bos_tokens(self) -> list[int]:
        return []

    @property
    def has_extension_property(self) -> bool:
        """Whether each generation prompt of a growing conversation is a prefix of the next one.

        If so, one example can train every turn, and the turns of a rollout merge into one sequence.
        """
        return False

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """The messages that declare `tools`, at least one, in the format of chat templates."""
        raise RendererError(
            f"{type(self).__name__} has no format for tools; use the renderer of a chat model"
        )

    # Shared by all formats

    def create_conversation_prefix_with_tools(
        self, tools: Sequence[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        """The messages that declare `tools`, to be prepended to a conversation.

        Without tools: the system prompt alone, if any. Raises RendererError if the format cannot
        declare tools.
        """
        if tools:
            return self.declare_tools(openai_tools(tools), system_prompt)
        return [Message(role="system", content=system_prompt)] if system_prompt else []

    def to_openai_message(self, message: Message) -> JsonObject:
        return to_openai_message(message)

    def build_generation_prompt(
        self, messages: Sequence[Message], role: Role = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        """The tokens after which a message of `role` is sampled; `prefill` is how it begins."""
        chunks = self._prompt_chunks(self.validate_messages(messages), role)
        if prefill:
            chunks.append(text_chunk(self.encoder.encode(prefill, self.markup)))
        return to_model_input(chunks)

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> SupervisedExample:
        """The tokens of the whole conversation, with loss weights according to `train_on_what`.

        In the LAST_ASSISTANT_* modes the generation prompt of the target has weight 0. All weights
        are 0 if no message is trained; the caller decides whether that is an error. A header that
        is also the stop sequence of the last trained message has weight 1 (role_colon).
        """
        import torch

        mode = TrainOnWhat.from_value(train_on_what)
        messages = self.validate_messages(messages)
        trained = trained_messages(messages, mode)
        header_weight = 1.0 if mode is TrainOnWhat.ALL_TOKENS else 0.0
        chunks: list[tinker.ModelInputChunk] = []
        weights: list[float] = []

        last_trained = max((i for i, is_trained in enumerate(trained) if is_trained), default=-1)
        overlap: tinker.ModelInputChunk | None = None  # of the last trained message

        def add(chunk: tinker.ModelInputChunk | None, weight: float) -> None:
            if chunk is not None and chunk.length:
                chunks.append(chunk)
                weights.extend([weight] * chunk.length)

        add(text_chunk(self.bos_tokens), 0.0)
        for message, context, is_trained in zip(messages, _render_contexts(messages), trained):
            rendered = self.render_message(message, context)
            stops = overlap is not None and rendered.header == overlap
            add(rendered.header, 1.0 if stops else header_weight)
            overlap = rendered.stop_overlap if context.idx == last_trained else None
            for chunk in rendered.output:
                add(chunk, float(is_trained))
            if context.is_last:
                add(rendered.stop_overlap, float(is_trained))

        model_input = to_model_input(chunks)
        # What the generation prompt contains is never sampled, so it is not trained, even if the
        # format renders it as part of the reply's output.
        if mode in LAST_MODES and any(trained):
            first = trained.index(True)
            prompt = to_model_input(self._prompt_chunks(messages[:first], messages[first]["role"]))
            if _starts_with(model_input, prompt):
                weights[: prompt.length] = [0.0] * prompt.length
            elif self.target_must_follow_prompt:
                raise RendererError(
                    f"message {first}: in this conversation it does not follow its own generation "
                    "prompt, so training would not match sampling; "
                    "use build_supervised_examples, which makes one example per reply"
                )
        return SupervisedExample(model_input, torch.tensor(weights, dtype=torch.float32))

    def build_supervised_examples(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_TURN,
    ) -> list[SupervisedExample]:
        """Examples in which each trained reply follows the prompt that it is sampled from.

        One example if the format has the extension property. If not, history is rendered unlike the
        latest reply, so there is one example per trained assistant message, which ends with it.
        Raises NotImplementedError for modes that train other messages.
        """
        mode = TrainOnWhat.from_value(train_on_what)
        if self.has_extension_property:
            return [self.build_supervised_example(messages, mode)]
        if mode not in REPLY_MODES:
            raise NotImplementedError(
                f"train_on_what={mode} cannot be split into one example per reply; "
                f"use one of {', '.join(sorted(REPLY_MODES))}"
            )
        messages = self.validate_messages(messages)
        trained = trained_messages(messages, mode)
        return [
            self.build_supervised_example(messages[: i + 1], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
            for i, is_trained in enumerate(trained)
            if is_trained
        ]

    def validate_messages(self, messages: Sequence[Message]) -> list[Message]:
        """Validate the messages and return normalised copies for `render_message`.

        Raises RendererError that cites the first message that this format does not support.
        """
        if not messages:
            raise RendererError("an empty conversation: there is no message 0")
        checked = [normalise_message(m, i, self.roles) for i, m in enumerate(messages)]
        for i, message in enumerate(checked):
            if message.get("tools") and not self.tools_in_messages:
                raise RendererError(
                    f"message {i}: 'tools' inside a message is not supported; put them beside "
                    "'messages' in the row, or use create_conversation_prefix_with_tools"
                )
        if self.reasoning_in_strings:
            check_reasoning_comes_first(checked)
        if self.call_tag is not None:
            check_results_have_calls(checked, self.call_tag)
            if self.results_in_order:
                checked = results_in_call_order(checked)
        if not self.supports_images:
            for i, message in enumerate(checked):
                if any(part["type"] == "image" for part in content_parts(message["content"])):
                    raise RendererError(
                        f"message {i}: this format does not support images; remove the image "
                        "(all built-in formats are for text)"
                    )
        return checked

    def parse_response(self, tokens: Sequence[int]) -> ParsedResponse:
        """Parse a sampled response into a message, and classify how it ended."""
        return self._response_parser().parse(tokens)

    def parse_response_streaming(
        self, tokens: Iterable[int]
    ) -> Iterator[MessageDelta | ParsedResponse]:
        """Yield a header, then deltas as soon as later tokens can no longer change them, and last
        the result of `parse_response` for all tokens. `tokens` may be a generator that is still
        sampling."""
        return self._response_parser().stream(tokens)

    def __reduce__(self) -> tuple[Callable[[Origin], Renderer], tuple[Origin]]:
        if self.origin is None or self.remake is None:
            raise pickle.PicklingError(
                f"{type(self).__name__} can be pickled only if it was created by get_renderer("
                "name, tokenizer, model_name=...): a pickle holds only these two names"
            )
        return self.remake, (self.origin,)

    def _prompt_chunks(
        self, messages: Sequence[Message], role: Role
    ) -> list[tinker.ModelInputChunk]:
        """BOS, the messages, and the header of a new message of `role`."""
        everything = [*messages, Message(role=role, content="")]
        normalise_message(everything[-1], len(messages), self.roles)  # raises for an unknown role
        chunks: list[tinker.ModelInputChunk] = [text_chunk(self.bos_tokens)]
        for message, context in zip(everything, _render_contexts(everything)):
            rendered = self.render_message(message, context)
            if rendered.header is not None:
                chunks.append(rendered.header)
            if not context.is_last:
                chunks += rendered.output
        return chunks

    def _response_parser(self) -> ResponseParser:
        stop_tokens = frozenset(s for s in self.get_stop_sequences() if isinstance(s, int))
        eos_tokens = {self.encoder.id(tag) for tag in self.end_of_text if self.encoder.has(tag)}
        if self.tokenizer.eos_token_id is not None:
            eos_tokens.add(self.tokenizer.eos_token_id)
        return ResponseParser(
            self._decode,
            self.content_parser(),
            stop_tokens,
            frozenset(eos_tokens) - stop_tokens,
            "</think>" if self.reasoning_in_strings else None,
        )

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


class Origin(NamedTuple):
    """The names from which a renderer is made again in another process."""

    renderer_name: str
    model_name: str


def _render_contexts(messages: Sequence[Message]) -> list[RenderContext]:
    last = len(messages) - 1
    last_user = last_user_index(messages)
    last_answer_index = max(
        (
            i
            for i, m in enumerate(messages[:-1])
            if m["role"] == "assistant" and not has_tool_calls(m)
        ),
        default=-1,
    )
    return [
        RenderContext(
            idx=i,
            is_last=i == last,
            prev_message=messages[i - 1] if i else None,
            next_message=messages[i + 1] if i < last else None,
            last_user_index=last_user,
            in_last_assistant_turn=0 <= last_user < i,
            messages=messages,
            last_answer_index=last_answer_index,
        )
        for i in range(len(messages))
    ]


def to_model_input(chunks: Iterable[tinker.ModelInputChunk]) -> tinker.ModelInput:
    """Merge adjacent text chunks, so that equal tokens give equal inputs."""
    import tinker

    merged: list[tinker.ModelInputChunk] = []
    run: list[int] = []
    for chunk in chunks:
        if isinstance(chunk, tinker.EncodedTextChunk):
            run.extend(chunk.tokens)
            continue
        if run:
            merged.append(text_chunk(run))
            run = []
        merged.append(chunk)
    if run:
        merged.append(text_chunk(run))
    return tinker.ModelInput(chunks=merged)


def _starts_with(whole: tinker.ModelInput, prefix: tinker.ModelInput) -> bool:
    """Whether `whole` begins with `prefix`, whose last text chunk may end inside one of `whole`."""
    if not prefix.chunks:
        return True
    count = len(prefix.chunks)
    if len(whole.chunks) < count or whole.chunks[: count - 1] != prefix.chunks[:-1]:
        return False
    last, counterpart = prefix.chunks[-1], whole.chunks[count - 1]
    if last.type == "encoded_text" and counterpart.type == "encoded_text":
        return list(counterpart.tokens[: len(last.tokens)]) == list(last.tokens)
    return last == counterpart


class TokensAndWeights(NamedTuple):
    tokens: torch.Tensor
    weights: torch.Tensor


def tokens_weights_from_strings_weights(
    strings_weights: Sequence[tuple[str, float]], tokenizer: Tokenizer
) -> TokensAndWeights:
    """Encode strings, each with one weight, to int64 tokens [N] and float32 weights [N].

    The strings are trusted: special tokens in them become special tokens. The first string gets the
    tokenizer's BOS, if it has one.
    """
    import torch

    tokens: list[int] = []
    weights: list[float] = []
    for i, (string, weight) in enumerate(strings_weights):
        ids = tokenizer.encode(string, add_special_tokens=i == 0)
        tokens += ids
        weights += [weight] * len(ids)
    return TokensAndWeights(
        torch.tensor(tokens, dtype=torch.int64), torch.tensor(weights, dtype=torch.float32)
    )
