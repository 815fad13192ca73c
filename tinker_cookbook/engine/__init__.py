"""One frozen base model, many LoRA adapters; training and sampling on the same weights.

Tokens and tensors in, logprobs and weights out: no messages, no HTTP, no SDK types. `EngineConfig`
is here for everybody; the engine itself is `engine.scheduler.Engine`, imported where it is started,
because it brings torch and transformers along.
"""

from tinker_cookbook.engine.config import EngineConfig

__all__ = ["EngineConfig"]
