"""One frozen base model, many LoRA adapters; training and sampling on the same weights.

Tokens and tensors in, logprobs and weights out: no messages, no HTTP, no SDK types.
"""

from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.scheduler import Engine

__all__ = ["Engine", "EngineConfig"]
