"""The engine: many LoRA adapters on one frozen base model; it trains and samples the same weights.

Tokens and tensors in, logprobs and weights out: no chat messages, no HTTP, no SDK types.
`EngineConfig` is exported here. The engine itself, `engine.scheduler.Engine`, must be imported from
its module, because it imports torch and transformers, which takes seconds.
"""

from tinker_cookbook.engine.config import EngineConfig

__all__ = ["EngineConfig"]
