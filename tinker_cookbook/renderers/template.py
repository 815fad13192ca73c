"""`template`: any other chat model, in the words of its tokenizer's own chat template.

What a chat template does is found by asking it. The end of a turn is the token behind the reply in
a small conversation. A trained reply is what a conversation that ends in it has beyond its
generation prompt. Where that difference is not one, this renderer refuses: it never guesses a mask.

Tokens equal those of `apply_chat_template`, with these differences, all meant:

1. Nothing stands behind the end-of-turn token of a last reply (ChatML's newline): no model writes
   it.
2. Special tokens in content are text. In user and tool messages, which come from outside: all added
   tokens. In system prompts, tool declarations and replies: those that are marked special, but for
   `<think>` and `</think>`; the others are the developer's or the model's own tags.
3. The last reply of an example is encoded apart from its generation prompt where the tokenizer
   would join the two (white space at its start), as it is sampled.

Templates that print today's date make other tokens tomorrow; so does this renderer.
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
    model_input_of,
    text_chunk,
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

_SPLITTABLE = "use build_supervised_examples, which ends one example at each reply"


class _UnstableHistory(RendererError):
    """A reply that does not look the same, or stand behind the same tokens, once it is history."""


class TemplateRenderer(Renderer):
    """`arguments` go to every call of the template (`enable_thinking=False`), for renderers of
    one's own: register_renderer("mine", lambda tokenizer, _: TemplateRenderer(tokenizer, ...)).

    A reply is parsed up to the end-of-turn token, its reasoning left in the text as the model wrote
    it. Calls are parsed where the template writes them as JSON between `<tool_call>` tags, or in a
    section as Kimi K2 does. Templates that format the arguments themselves get them as objects, so
    the white space that a model wrote in them is not kept; nor is an id that the template counts.

    Calls of any other form (Qwen3-Coder's tags, the bare JSON of Llama 3) stay in the text of a
    parsed reply, where no environment would find them, so tools are not declared there. They can
    be trained: conversations that hold calls are rendered in any form that the template has, with
    the tools that stand beside their messages (`declare_tools`).

    Of the modes, only those that train replies or every token are known: where a user's words
    begin and end, a template does not tell. A second system message, or a
    conversation that an assistant begins, is as the template will have it.

    Extension property: asked of the template, see `has_extension_property`.
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
        parser._buffer = template.opened  # the prompt has written it, the reply begins with it
        return parser

    @property
    def has_extension_property(self) -> bool:
        """Whether the template keeps replies as they are in conversations with and without system
        prompt, reasoning and tools, as far as it knows these."""
        return self.template.is_stable

    def create_conversation_prefix_with_tools(
        self, tools: Sequence[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        """As `declare_tools`; RendererError too where calls could not be read back."""
        prefix = super().create_conversation_prefix_with_tools(tools, system_prompt)
        if tools and not (self.template.writes_json_calls or self.template.writes_kimi_calls):
            raise RendererError(
                "calls in the format of this tokenizer's chat template cannot be read back, so no "
                "tool would ever run; write a renderer for this model and use register_renderer"
            )
        return prefix

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """A system message with the key `tools`, which are handed to the template as such.

        RendererError where the template leaves one out.
        """

        def prefix(tools: list[JsonObject]) -> Message:
            return cast(Message, {"role": "system", "content": system_prompt, "tools": tools})

        def ask(tools: list[JsonObject]) -> str:
            question = Message(role="user", content=QUESTION)
            return Conversation(self.template, [prefix(tools), question]).prompt(2)

        ask(tools)  # as they are: what the template says against them is the user's to know
        if missing := undeclared_tool(ask, tools):
            raise RendererError(
                f"this tokenizer's chat template does not declare tools, or not {missing}; "
                "write a renderer for this model and use register_renderer"
            )
        return [prefix(tools)]

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        raise RendererError(
            f"message {ctx.idx}: a chat template renders whole conversations, not one message; "
            "use build_generation_prompt or build_supervised_example"
        )

    def build_generation_prompt(
        self, messages: Sequence[Message], role: Role = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        messages = self.checked(messages)
        if role != "assistant":
            raise RendererError(f"role={role!r}: a chat template prompts for an assistant only")
        conversation = Conversation(self.template, messages)
        text = conversation.prompt(len(messages))
        conversation.check_nothing_omitted([], prompt=True)
        tokens = conversation.encode(text)
        if prefill:
            tokens += self.encoder.encode(prefill, self.template.own_tags)
        return model_input_of([text_chunk(tokens)])

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> SupervisedExample:
        """The whole conversation in tokens. Each trained reply, end-of-turn token included, stands
        behind exactly its generation prompt; RendererError where it cannot."""
        import torch

        mode = TrainOnWhat.of(train_on_what)
        messages = self.checked(messages)
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
                continue  # done
            prompt, through = conversation.encode_reply(i)
            if tokens[: len(through)] != through:
                raise _UnstableHistory(
                    f"message {i}: the chat template, or the tokenizer, writes this reply "
                    f"otherwise once more messages follow it; {_SPLITTABLE}"
                )
            weights[len(prompt) : len(through)] = [1.0] * (len(through) - len(prompt))
        conversation.check_nothing_omitted(trained)
        if mode is TrainOnWhat.ALL_TOKENS:
            weights = [float(token != self.tokenizer.bos_token_id) for token in tokens[:1]]
            weights += [1.0] * (len(tokens) - 1)
        return SupervisedExample(
            model_input_of([text_chunk(tokens)]), torch.tensor(weights, dtype=torch.float32)
        )

    def build_supervised_examples(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_TURN,
    ) -> list[SupervisedExample]:
        """One for each trained reply, also where the template has the extension property and this
        one conversation has not."""
        try:
            return super().build_supervised_examples(messages, train_on_what)
        except _UnstableHistory:
            if train_on_what not in REPLY_MODES:
                raise
        checked = self.checked(messages)
        return [
            self.build_supervised_example(checked[: i + 1], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
            for i in self._trained(checked, TrainOnWhat.of(train_on_what))
        ]

    def _trained(self, messages: Sequence[Message], mode: TrainOnWhat) -> list[int]:
        """Indices of the trained replies; none for ALL_TOKENS, which needs no spans."""
        if mode is TrainOnWhat.ALL_TOKENS:
            trained_messages(messages, mode)
            return []
        trained = [i for i, is_it in enumerate(trained_messages(messages, mode)) if is_it]
        for i in trained:
            if messages[i]["role"] != "assistant":
                raise RendererError(
                    f"message {i}: train_on_what={mode} trains a {messages[i]['role']} message, "
                    "and a chat template does not tell where its text begins and ends; train "
                    "assistant messages, or write a renderer for this model"
                )
        return trained

    def checked(self, messages: Sequence[Message]) -> list[Message]:
        checked = super().checked(messages)
        for i, message in enumerate(checked):
            if message.get("tools") and (i or message["role"] != "system"):
                raise RendererError(
                    f"message {i}: only a system message that comes first can hold tools"
                )
        return checked
