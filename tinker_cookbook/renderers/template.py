"""`template`: a renderer for any other chat model, driven by its tokenizer's own chat template.

The template's behaviour is measured with probes (chat_template.py). The end-of-turn token is the
one that follows the reply in a small conversation. A trained reply is what the conversation that
ends with it has beyond its generation prompt: that difference is the loss mask. If the conversation
does not begin with its prompt, there is no such difference, and the renderer raises an error: it
never guesses a mask.

Tokens equal those of `apply_chat_template`, with these intentional differences:

1. Nothing follows the end-of-turn token of the last reply (in ChatML, the template writes a
   newline): no model samples it.
2. Special tokens in content are text. In user and tool messages, which are untrusted, that holds
   for all added tokens. In system prompts, tool declarations and replies it holds for those marked
   special, except `<think>` and `</think>`; the others are the developer's or the model's own tags.
3. The last reply of an example is encoded separately from its generation prompt if the tokenizer
   would merge the two (white space at the start of the reply): sampling separates them as well.

A template that writes today's date gives different tokens tomorrow, and so does this renderer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    SupervisedExample,
    text_chunk,
    to_model_input,
)
from tinker_cookbook.renderers.chat_template import QUESTION, ChatTemplate
from tinker_cookbook.renderers.messages import Message, Role, ToolSpec
from tinker_cookbook.renderers.parsing import TagParser, ToolTags, read_json_tool_call
from tinker_cookbook.renderers.template_conversation import Conversation
from tinker_cookbook.renderers.tool_declarations import undeclared_tool
from tinker_cookbook.renderers.tool_sections import KIMI_SECTION, SectionParser
from tinker_cookbook.renderers.training_modes import REPLY_MODES, TrainOnWhat, trained_messages
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.json_types import JsonObject

if TYPE_CHECKING:
    import tinker

_SPLIT_ADVICE = "use build_supervised_examples, which makes one example per reply"


class _UnstableHistory(RendererError):
    """A reply, or the tokens before it, changes once more messages follow it."""


class TemplateRenderer(Renderer):
    """Renders with the tokenizer's chat template.

    `arguments` are passed to every call of the template (`enable_thinking=False`), for custom
    renderers: register_renderer("mine", lambda tokenizer, _: TemplateRenderer(tokenizer, ...)).

    A reply is parsed up to the end-of-turn token; its reasoning stays in the text as the model
    wrote it. Tool calls are parsed if the template writes them as JSON between `<tool_call>` tags,
    or in a section as Kimi K2 does. Templates that format the arguments themselves receive them as
    objects, so the white space inside them is lost, as is the id of a call if the template numbers
    calls itself.

    Tool calls in any other format (Qwen3-Coder's tags, the bare JSON of Llama 3) stay in the text
    of a parsed reply, where no environment would find them, so environments cannot declare tools
    there. Such calls can still be trained: a conversation with calls is rendered in whatever format
    the template has, with the tools that its row declares (`declare_tools`).

    Only the modes that train replies or all tokens are supported, because a template does not show
    where the text of a user message begins and ends. A second system message, and a conversation
    that begins with an assistant message, are left to the template.

    Extension property: depends on the template, see `has_extension_property`.
    """

    tools_in_messages = True

    def __init__(self, tokenizer: Tokenizer, **arguments: Any):
        super().__init__(tokenizer)
        self.template = ChatTemplate(tokenizer, arguments)

    def get_stop_sequences(self) -> list[int]:
        return [self.encoder.id(self.template.end_of_turn)]

    def content_parser(self) -> TagParser:
        tools = ToolTags("<tool_call>", "</tool_call>", read_json_tool_call)
        template = self.template
        if template.writes_kimi_calls:
            parser = SectionParser(None, KIMI_SECTION)
        else:
            parser = TagParser(None, tools if template.writes_json_calls else None)
        parser._buffer = template.reply_prefix  # in the prompt, so not sampled again
        return parser

    @property
    def has_extension_property(self) -> bool:
        """Whether the template keeps every reply as it was sampled (`ChatTemplate.is_stable`)."""
        return self.template.is_stable

    def create_conversation_prefix_with_tools(
        self, tools: Sequence[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        """As `declare_tools`; also raises RendererError if sampled calls could not be parsed."""
        prefix = super().create_conversation_prefix_with_tools(tools, system_prompt)
        if tools and not (self.template.writes_json_calls or self.template.writes_kimi_calls):
            raise RendererError(
                "tool calls in the format of this tokenizer's chat template cannot be parsed, so "
                "no tool would ever run; write a renderer for this model and use register_renderer"
            )
        return prefix

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """A system message with the key `tools`, which the template receives as its `tools`.

        Raises RendererError if the template leaves one of them out.
        """

        def prefix(tools: list[JsonObject]) -> Message:
            return cast(Message, {"role": "system", "content": system_prompt, "tools": tools})

        def render(tools: list[JsonObject]) -> str:
            question = Message(role="user", content=QUESTION)
            return Conversation(self.template, [prefix(tools), question]).prompt(2)

        # First with the tools unchanged: an error that the template raises about them is for the
        # user to see, and must not be about the probes that `undeclared_tool` puts in their place.
        render(tools)
        if missing := undeclared_tool(render, tools):
            raise RendererError(
                f"this tokenizer's chat template does not declare tools, or leaves out {missing}; "
                "write a renderer for this model and use register_renderer"
            )
        return [prefix(tools)]

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        raise RendererError(
            f"message {ctx.idx}: a chat template renders whole conversations, not single messages; "
            "use build_generation_prompt or build_supervised_example"
        )

    def build_generation_prompt(
        self, messages: Sequence[Message], role: Role = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        messages = self.validate_messages(messages)
        if role != "assistant":
            raise RendererError(
                f"role={role!r}: a chat template has a generation prompt for the assistant only"
            )
        conversation = Conversation(self.template, messages)
        text = conversation.prompt(len(messages))
        conversation.check_nothing_omitted([], prompt=True)
        tokens = conversation.encode(text)
        if prefill:
            tokens += self.encoder.encode(prefill, self.template.own_tags)
        return to_model_input([text_chunk(tokens)])

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> SupervisedExample:
        """The tokens and loss weights of the whole conversation.

        Each trained reply, with its end-of-turn token, follows exactly its own generation prompt.
        Raises RendererError if that is impossible.
        """
        import torch

        mode = TrainOnWhat.from_value(train_on_what)
        messages = self.validate_messages(messages)
        trained = self._trained(messages, mode)
        conversation = Conversation(self.template, messages)
        last = len(messages) - 1
        if trained and trained[-1] == last:
            prompt, tokens = conversation.encode_reply(last)
            weights = [0.0] * len(prompt) + [1.0] * (len(tokens) - len(prompt))
        else:
            tokens = conversation.encode(conversation.complete(len(messages)))
            weights = [0.0] * len(tokens)
        for i in trained:
            if i == last:
                continue  # encoded above
            prompt, through = conversation.encode_reply(i)
            # An earlier reply may be trained inside this example only if the whole conversation
            # begins with the very tokens that the reply was sampled after and consists of.
            if tokens[: len(through)] != through:
                raise _UnstableHistory(
                    f"message {i}: the chat template or the tokenizer writes this reply "
                    f"differently once more messages follow it; {_SPLIT_ADVICE}"
                )
            weights[len(prompt) : len(through)] = [1.0] * (len(through) - len(prompt))
        conversation.check_nothing_omitted(trained)
        if mode is TrainOnWhat.ALL_TOKENS:
            weights = [float(token != self.tokenizer.bos_token_id) for token in tokens[:1]]
            weights += [1.0] * (len(tokens) - 1)
        return SupervisedExample(
            to_model_input([text_chunk(tokens)]), torch.tensor(weights, dtype=torch.float32)
        )

    def build_supervised_examples(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_TURN,
    ) -> list[SupervisedExample]:
        """As in the base class; also one example per trained reply if the template has the
        extension property but this conversation turns out to be unstable."""
        try:
            return super().build_supervised_examples(messages, train_on_what)
        except _UnstableHistory:
            if train_on_what not in REPLY_MODES:
                raise
        checked = self.validate_messages(messages)
        return [
            self.build_supervised_example(checked[: i + 1], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
            for i in self._trained(checked, TrainOnWhat.from_value(train_on_what))
        ]

    def _trained(self, messages: Sequence[Message], mode: TrainOnWhat) -> list[int]:
        """Indices of the trained replies; [] for ALL_TOKENS, which needs no reply spans."""
        if mode is TrainOnWhat.ALL_TOKENS:
            trained_messages(messages, mode)  # for its check of the key `trainable`
            return []
        trained = [i for i, is_trained in enumerate(trained_messages(messages, mode)) if is_trained]
        for i in trained:
            if messages[i]["role"] != "assistant":
                raise RendererError(
                    f"message {i}: train_on_what={mode} trains a {messages[i]['role']} message, "
                    "and a chat template does not show where its text begins and ends; train "
                    "assistant messages, or write a renderer for this model"
                )
        return trained

    def validate_messages(self, messages: Sequence[Message]) -> list[Message]:
        checked = super().validate_messages(messages)
        for i, message in enumerate(checked):
            if message.get("tools") and (i or message["role"] != "system"):
                raise RendererError(
                    f"message {i}: only a system message at the start can have 'tools'"
                )
        return checked
