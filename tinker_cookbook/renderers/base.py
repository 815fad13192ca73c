"""`Renderer`: chat messages to tokens and loss weights, and sampled tokens back to a message.

A renderer says how ONE message looks (`render_message`: a header that the framework writes, an
output that its author writes, end-of-turn token included). This class assembles messages into
prompts and training examples. All sequences here are unshifted: weight i belongs to token i.
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
    calls_tools,
    content_parts,
    ensure_text,
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


ensure_list = content_parts  # under the Tinker cookbook's name


@dataclass(frozen=True)
class RenderContext:
    """Where a message stands in its conversation. `last_user_index` is -1 where nobody asked.

    `in_last_assistant_turn`: it comes after the last user message, and there is one.
    `messages`: the whole conversation, for formats that look further than to the neighbours.
    `last_answer_index`: the last assistant message that calls no tool, the final message left out;
    -1 if there is none.
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
    """One message in tokens. `output` is what a model in this role would have to produce.

    `stop_overlap`: what the model also writes before a text stop sequence ends its turn, and which
    is the next message's header when there is one.
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


def message_text(message: Message, ctx: RenderContext) -> str:
    """The content of a message that must be text alone; RendererError that names the message."""
    if any(part["type"] == "thinking" for part in content_parts(message["content"])):
        raise RendererError(
            f"message {ctx.idx}: it holds reasoning, for which this format has no place; "
            "remove it, or use a model that reasons"
        )
    try:
        return ensure_text(message["content"])
    except RendererError as error:
        raise RendererError(f"message {ctx.idx}: {error}") from None


class Renderer(ABC):
    """One chat format over one tokenizer. Made by `get_renderer`; picklable if made there."""

    roles: ClassVar[tuple[Role, ...]] = ("system", "user", "assistant", "tool")
    markup: ClassVar[tuple[str, ...]] = ()
    """Tags inside content that are tokens when the model or the developer writes them."""
    end_of_text: ClassVar[tuple[str, ...]] = ()
    """Tokens that end a text, besides the tokenizer's eos token and the stop tokens."""
    call_tag: ClassVar[str | None] = None
    """What opens a tool call in the text of a reply. Where there is one, a tool result is refused
    unless the assistant's message before it calls a tool, in `tool_calls` or in its text."""
    results_in_order: ClassVar[bool] = True
    """Whether the format tells which call a result answers by its place alone."""
    reasoning_in_strings: ClassVar[bool] = False
    """Whether content that is one string with `</think>` in it is split into reasoning and text."""
    tools_in_messages: ClassVar[bool] = False
    """Whether a first system message can hold the tools themselves, under the key `tools`."""
    supports_images: ClassVar[bool] = False
    target_must_follow_prompt: ClassVar[bool] = False
    """Refuse LAST_ASSISTANT_* targets that do not stand behind their own generation prompt."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer: Any = tokenizer  # its annotations in transformers are too wide to help
        self.encoder = TextEncoder(tokenizer)
        self.origin: Origin | None = None
        # Whoever makes it by name says how to make it again; pickling needs nothing else.
        self.remade_by: Callable[[Origin], Renderer] | None = None

    # What a format defines

    @abstractmethod
    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        """One message in tokens, given where it stands."""

    @abstractmethod
    def get_stop_sequences(self) -> list[str] | list[int]:
        """What ends a sampled response: token ids, or strings."""

    def content_parser(self) -> ContentParser:
        """A fresh parser for the text of one response."""
        return TagParser(None, None)

    @property
    def bos_tokens(self) -> list[int]:
        return []

    @property
    def has_extension_property(self) -> bool:
        """Whether each generation prompt of a growing conversation is a prefix of the next.

        Then one example trains every turn, and the turns of a rollout merge into one sequence.
        """
        return False

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """The messages that declare at least one tool, each in the form chat templates read."""
        raise RendererError(
            f"{type(self).__name__} has no format for tools; use the renderer of a chat model"
        )

    # What every format shares

    def create_conversation_prefix_with_tools(
        self, tools: Sequence[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        """The messages that declare `tools`, to be put in front of a conversation.

        RendererError where the format has none. Without tools, the system prompt alone, if any.
        """
        if tools:
            return self.declare_tools(openai_tools(tools), system_prompt)
        return [Message(role="system", content=system_prompt)] if system_prompt else []

    def to_openai_message(self, message: Message) -> JsonObject:
        return to_openai_message(message)

    def build_generation_prompt(
        self, messages: Sequence[Message], role: Role = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        """The tokens after which a message of `role` is sampled, the first part of it given."""
        chunks = self._prompt_chunks(self.checked(messages), role)
        if prefill:
            chunks.append(text_chunk(self.encoder.encode(prefill, self.markup)))
        return model_input_of(chunks)

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> SupervisedExample:
        """The whole conversation in tokens, with loss weights by `train_on_what`.

        For the LAST_ASSISTANT_* modes no weight falls on the generation prompt that precedes the
        target. All weights are 0 where there is no such message; it is for the caller to refuse.
        A header that is what the last trained message stops at has weight 1, too (role_colon's).
        """
        import torch

        mode = TrainOnWhat.of(train_on_what)
        messages = self.checked(messages)
        trained = trained_messages(messages, mode)
        header_weight = 1.0 if mode is TrainOnWhat.ALL_TOKENS else 0.0
        chunks: list[tinker.ModelInputChunk] = []
        weights: list[float] = []

        last_trained = max((i for i, is_it in enumerate(trained) if is_it), default=-1)
        overlap: tinker.ModelInputChunk | None = None  # of the message before, if that is the last

        def add(chunk: tinker.ModelInputChunk | None, weight: float) -> None:
            if chunk is not None and chunk.length:
                chunks.append(chunk)
                weights.extend([weight] * chunk.length)

        add(text_chunk(self.bos_tokens), 0.0)
        for message, context, is_trained in zip(messages, _contexts(messages), trained):
            rendered = self.render_message(message, context)
            stops = overlap is not None and rendered.header == overlap
            add(rendered.header, 1.0 if stops else header_weight)
            overlap = rendered.stop_overlap if context.idx == last_trained else None
            for chunk in rendered.output:
                add(chunk, float(is_trained))
            if context.is_last:
                add(rendered.stop_overlap, float(is_trained))

        model_input = model_input_of(chunks)
        if mode in LAST_MODES and any(trained):
            first = trained.index(True)
            prompt = model_input_of(self._prompt_chunks(messages[:first], messages[first]["role"]))
            if _starts_with(model_input, prompt):
                weights[: prompt.length] = [0.0] * prompt.length
            elif self.target_must_follow_prompt:
                raise RendererError(
                    f"message {first}: in this conversation it does not follow its own generation "
                    "prompt, so training on it would not match sampling; "
                    "use build_supervised_examples, which ends one example at each reply"
                )
        return SupervisedExample(model_input, torch.tensor(weights, dtype=torch.float32))

    def build_supervised_examples(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_TURN,
    ) -> list[SupervisedExample]:
        """Examples in which every trained reply stands behind exactly what it was sampled after.

        One where the format has the extension property; otherwise one for each trained assistant
        message, ending at it, for history is written differently from the latest reply.
        NotImplementedError for modes that train on anything else.
        """
        mode = TrainOnWhat.of(train_on_what)
        if self.has_extension_property:
            return [self.build_supervised_example(messages, mode)]
        if mode not in REPLY_MODES:
            raise NotImplementedError(
                f"train_on_what={mode} cannot be split into one example for each reply; "
                f"use one of {', '.join(sorted(REPLY_MODES))}"
            )
        messages = self.checked(messages)
        trained = trained_messages(messages, mode)
        return [
            self.build_supervised_example(messages[: i + 1], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
            for i, is_trained in enumerate(trained)
            if is_trained
        ]

    def checked(self, messages: Sequence[Message]) -> list[Message]:
        """Copies in the form that `render_message` reads. RendererError that names the first
        message which this format cannot take, whatever stands around it."""
        if not messages:
            raise RendererError("an empty conversation: there is no message 0")
        checked = [normalise_message(m, i, self.roles) for i, m in enumerate(messages)]
        for i, message in enumerate(checked):
            if message.get("tools") and not self.tools_in_messages:
                raise RendererError(
                    f"message {i}: 'tools' inside a message is not read; put them beside the "
                    "messages, or use create_conversation_prefix_with_tools"
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
                        f"message {i}: an image, which this format cannot render; remove it "
                        "(the built-in formats are for text)"
                    )
        return checked

    def parse_response(self, tokens: Sequence[int]) -> ParsedResponse:
        """The message in a sampled response, and how the response ended."""
        return self._response_parser().parse(tokens)

    def parse_response_streaming(
        self, tokens: Iterable[int]
    ) -> Iterator[MessageDelta | ParsedResponse]:
        """A header first, deltas as soon as nothing that follows can change them, and as the last
        item what `parse_response` gives for all the tokens. `tokens` may be a generator that is
        still sampling."""
        return self._response_parser().stream(tokens)

    def __reduce__(self) -> tuple[Callable[[Origin], Renderer], tuple[Origin]]:
        if self.origin is None or self.remade_by is None:
            raise pickle.PicklingError(
                f"{type(self).__name__} can be pickled only if it comes from get_renderer(name, "
                "tokenizer, model_name=...): it travels as these two names"
            )
        return self.remade_by, (self.origin,)

    def _prompt_chunks(
        self, messages: Sequence[Message], role: Role
    ) -> list[tinker.ModelInputChunk]:
        """BOS, the messages, and the header of an empty message of `role`."""
        everything = [*messages, Message(role=role, content="")]
        normalise_message(everything[-1], len(messages), self.roles)
        chunks: list[tinker.ModelInputChunk] = [text_chunk(self.bos_tokens)]
        for message, context in zip(everything, _contexts(everything)):
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
    """The names by which a renderer is made anew in another process."""

    renderer_name: str
    model_name: str


def _contexts(messages: Sequence[Message]) -> list[RenderContext]:
    last = len(messages) - 1
    last_user = last_user_index(messages)
    last_answer_index = max(
        (i for i, m in enumerate(messages[:-1]) if m["role"] == "assistant" and not calls_tools(m)),
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


def model_input_of(chunks: Iterable[tinker.ModelInputChunk]) -> tinker.ModelInput:
    """Neighbouring text chunks become one, so that equal tokens are equal inputs."""
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
    """Whether `prefix` is how `whole` begins; its last text chunk may end inside one of `whole`."""
    if not prefix.chunks:
        return True
    count = len(prefix.chunks)
    if len(whole.chunks) < count or whole.chunks[: count - 1] != prefix.chunks[:-1]:
        return False
    mine, theirs = prefix.chunks[-1], whole.chunks[count - 1]
    if mine.type == "encoded_text" and theirs.type == "encoded_text":
        return list(theirs.tokens[: len(mine.tokens)]) == list(mine.tokens)
    return mine == theirs


class TokensAndWeights(NamedTuple):
    tokens: torch.Tensor
    weights: torch.Tensor


def tokens_weights_from_strings_weights(
    strings_weights: Sequence[tuple[str, float]], tokenizer: Tokenizer
) -> TokensAndWeights:
    """Strings, each with one weight, as int64 tokens [N] and float32 weights [N].

    The strings are the developer's: special tokens in them are special tokens. The first is encoded
    as the tokenizer begins a text (with its BOS, if it has one).
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
