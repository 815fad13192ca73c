"""A frozen base model: loaded by hub name or path, its attention and linear layers replaced.

The model code is transformers'. What the engine cannot compute exactly is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError

from tinker_cookbook.engine import attention, lora
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.head import HeadLogprobs
from tinker_cookbook.exceptions import ConfigurationError

FAMILIES = ("llama", "qwen3")  # config.model_type
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with the longest sequence
SMALL = 50_000_000  # parameters; below, fp32 costs nothing worth saving


class BaseModel:
    """Hidden states, logprob head and tokenizer text of one frozen model."""

    def __init__(self, path: str, config: EngineConfig) -> None:
        self.path = path
        self.device = _device(config.device)
        self.config = _load_config(path)
        model = _load_model(path, self.config, config.dtype).to(self.device)
        model.requires_grad_(False)
        model.eval()
        self.dtype = model.get_input_embeddings().weight.dtype
        self.router = lora.Router()
        self.shapes = lora.install(model, self.router, config.packed_weights)
        head: torch.Tensor = model.get_output_embeddings().weight
        self.shapes[lora.UNEMBED] = (head.shape[0], head.shape[1])
        self.head = HeadLogprobs(head, config.head_chunk, config.packed_weights)
        self.decoder: torch.nn.Module = model.model
        self.vocab_size = head.shape[0]
        self.context_length: int = self.config.max_position_embeddings
        self.num_layers: int = self.config.num_hidden_layers
        self.eos_tokens = _eos_tokens(model)
        self._decode: Callable[[list[int]], str] | None = None

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        plan: attention.PackedPlan | attention.DecodePlan,
        adapters: lora.AdapterPlan,
    ) -> torch.Tensor:
        """Final hidden states [T, H] of tokens [T] at positions [T].

        A packed plan is one sequence of T rows, a decode plan T sequences of one row.
        """
        shape = (1, -1) if isinstance(plan, attention.PackedPlan) else (-1, 1)
        with self.router.use(adapters):
            out = self.decoder(
                input_ids=tokens.view(shape),
                position_ids=positions.view(shape),
                use_cache=False,
                plan=plan,
            )
        return out.last_hidden_state.reshape(tokens.shape[0], -1)

    def new_adapter(self, spec: lora.LoraSpec) -> lora.Adapter:
        return lora.Adapter.new(spec, self.shapes, self.device, self.dtype)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, for stop strings."""
        if self._decode is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.path)
            self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
        return self._decode(tokens)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"engine.device={name!r} is not a torch device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"engine.device={name!r}: torch sees no GPU here")
    return device


def _load_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    if config.model_type not in FAMILIES:
        raise ConfigurationError(
            f"model {path!r} is of family {config.model_type!r}, which the engine does not support;"
            f" supported: {', '.join(FAMILIES)}"
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ConfigurationError(f"model {path!r} uses sliding-window attention: not supported")
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ConfigurationError(
            f"model {path!r} uses rope_type={kind!r}; supported: {', '.join(ROPE_TYPES)}"
        )
    return config


def _load_model(path: str, config: Any, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(config).num_parameters()
    if dtype == "auto":
        dtype = "float32" if count < SMALL else "bfloat16"
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()  # what it would say of missing weights is an error below
    if count < SMALL:
        logging.disable_progress_bar()  # nothing to wait for
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attention.NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        model, info = loaded
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"the weights of model {path!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    absent = [*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])]
    if absent:  # transformers would put random numbers there
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ConfigurationError(
            f"the weights of model {path!r} lack {sorted(absent)[0]!r}{more}, or have it in another"
            " shape: the files do not fit its config.json"
        )
    return model


def _eos_tokens(model: Any) -> frozenset[int]:
    """Tokens that end a text when the caller names no stop."""
    eos = None
    if model.generation_config is not None:
        eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
