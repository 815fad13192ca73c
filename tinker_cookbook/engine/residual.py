"""The residual stream of a bf16 model in fp32.

In bf16, the stream is rounded after every block, relative to its own size, which is larger than
what the block adds to it. Here the embeddings are converted to fp32, and so all sums `stream +
block` are fp32, as is the final norm, which the head reads. The blocks compute in bf16 as before:
the norm in front of a block normalises fp32 numbers and its result is rounded once. The gradient of
the stream is summed in fp32 as well.

Inside a block everything is bf16, so routers, experts, attention and the KV cache do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tinker_cookbook.engine.module_parts import has_parts

# the children of a decoder layer of every supported family; the norms stand in front of the blocks
NORMS = ("input_layernorm", "post_attention_layernorm")
BLOCKS = ("self_attn", "mlp")


class Decoder(Protocol):
    """The decoder of a transformers model, from the embeddings to the final norm."""

    embed_tokens: torch.nn.Module
    rotary_emb: torch.nn.Module
    layers: torch.nn.ModuleList
    norm: torch.nn.Module


def install(decoder: torch.nn.Module, dtype: torch.dtype) -> str | None:
    """Make the stream fp32, and the inputs of all blocks `dtype`.

    If the decoder is not built for that, changes nothing and returns the reason.
    """
    if not has_parts(decoder, Decoder):
        return f"{type(decoder).__name__} is not built like the known decoders"
    for layer in decoder.layers:
        names = {name for name, _ in layer.named_children()}
        if unknown := names ^ {*NORMS, *BLOCKS}:
            # such as a norm behind a block, whose output is added to the stream
            return f"{type(layer).__name__} has or lacks the module {min(unknown)!r}"
    decoder.embed_tokens.forward = partial(_convert, decoder.embed_tokens.forward, torch.float32)
    # its results have the dtype of the stream, but they multiply queries and keys
    decoder.rotary_emb.forward = partial(_convert_pair, decoder.rotary_emb.forward, dtype)
    for layer in decoder.layers:
        for norm in map(layer.get_submodule, NORMS):
            norm.forward = partial(_convert, norm.forward, dtype)
    return None


def _convert(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
    return forward(x).to(dtype)


def _convert_pair(
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    x: Tensor,
    position_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    cos, sin = forward(x, position_ids)
    return cos.to(dtype), sin.to(dtype)
