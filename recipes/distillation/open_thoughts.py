"""OpenThoughts3: 1.2 million questions on mathematics, code and science, with the reasoning and
replies of QwQ-32B (Guha et al. 2025, arXiv 2506.04178)."""

from __future__ import annotations

import chz

from tinker_cookbook.supervised.data import StreamedHubChats


@chz.chz
class OpenThoughts(StreamedHubChats):
    """Traces of OpenThoughts3, streamed. Rows: `conversations` of `from` (human, gpt) and `value`;
    the reasoning is in <think> tags in front of the reply."""

    path: str = chz.field(
        default="open-thoughts/OpenThoughts3-1.2M", doc="name on the hub, or path of a local copy"
    )
    length: int = chz.field(default=384_000, doc="rows per epoch")
    message_field: str = chz.field(default="conversations", doc="column with the list of messages")
