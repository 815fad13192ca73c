"""Renderers: chat messages to tokens and loss weights, and back. Start at `get_renderer`.

Chat formats: qwen3.py, llama3.py, deepseek_v3.py, kimi_k2.py, gpt_oss.py, role_colon.py, and
template.py for any other chat model. Types: messages.py. Assembling conversations: base.py. Which
messages are trained: training_modes.py. Parsing responses: decoding.py and parsing.py. Reading data
sets: chats.py, row_formats.py and known_keys.py. Viewing tokens and loss mask: show.py.
"""

from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    SupervisedExample,
    tokens_weights_from_strings_weights,
)
from tinker_cookbook.renderers.decoding import Utf8TokenDecoder
from tinker_cookbook.renderers.messages import (
    Content,
    ContentPart,
    FunctionBody,
    ImagePart,
    Message,
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    ensure_text,
    format_content_as_string,
    get_text_content,
    parse_content_blocks,
)
from tinker_cookbook.renderers.parsing import (
    MessageDelta,
    ParsedResponse,
    ParseFailureKind,
    ParseTermination,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    classify_parse_failure,
)
from tinker_cookbook.renderers.parsing import MessageHeader as StreamingMessageHeader
from tinker_cookbook.renderers.parsing import TextDelta as StreamingTextDelta
from tinker_cookbook.renderers.parsing import ThinkingDelta as StreamingThinkingDelta
from tinker_cookbook.renderers.registry import (
    RendererFactory,
    get_registered_renderer_names,
    get_renderer,
    is_renderer_registered,
    register_renderer,
    unregister_renderer,
)
from tinker_cookbook.renderers.training_modes import TrainOnWhat
from tinker_cookbook.tokenizer_utils import Tokenizer

__all__ = [
    "Content",
    "ContentPart",
    "FunctionBody",
    "ImagePart",
    "Message",
    "MessageDelta",
    "ParseFailureKind",
    "ParseTermination",
    "ParsedResponse",
    "RenderContext",
    "RenderedMessage",
    "Renderer",
    "RendererFactory",
    "Role",
    "StreamingMessageHeader",
    "StreamingTextDelta",
    "StreamingThinkingDelta",
    "SupervisedExample",
    "TextDelta",
    "TextPart",
    "ThinkingDelta",
    "ThinkingPart",
    "Tokenizer",
    "ToolCall",
    "ToolCallDelta",
    "ToolSpec",
    "TrainOnWhat",
    "UnparsedToolCall",
    "Utf8TokenDecoder",
    "classify_parse_failure",
    "ensure_text",
    "format_content_as_string",
    "get_registered_renderer_names",
    "get_renderer",
    "get_text_content",
    "is_renderer_registered",
    "parse_content_blocks",
    "register_renderer",
    "tokens_weights_from_strings_weights",
    "unregister_renderer",
]
