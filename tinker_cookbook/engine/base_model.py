"""A frozen base model: loaded by hub name or path, its attention and linear layers replaced.

The model code is transformers'. What the engine cannot compute exactly is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint

from tinker_cookbook.engine import attention, elementwise, experts, lora, memory
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.frozen_linear import packs
from tinker_cookbook.engine.head import HeadLogprobs
from tinker_cookbook.engine.model_checks import check_config, check_logits, family_of
from tinker_cookbook.engine.model_facts import model_facts
from tinker_cookbook.engine.offload import AdapterOffloader
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.model_directory import transformers_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

QUANTISED = ("mxfp4", "fp8")  # quant_method of files that transformers can turn into plain weights
SMALL = 50_000_000  # parameters; below, fp32 costs nothing worth saving


class Quantisation(TypedDict):
    """`quantization_config` of config.json, what is read of it."""

    quant_method: str
    weight_block_size: list[int] | None


class BaseModel:
    """Hidden states, logprob head and tokenizer text of one frozen model."""

    def __init__(self, path: str, config: EngineConfig) -> None:
        self.path = path
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(found if config.device == "auto" else config.device)
        self.config = _load_config(path)
        model = _load_model(path, self.config, config.dtype).to(self.device)
        model.requires_grad_(False)
        model.eval()
        self.num_parameters: int = model.num_parameters()
        self.dtype = model.get_input_embeddings().weight.dtype
        self.router = lora.Router()
        weights = sum(tensor.nbytes for tensor in model.parameters())
        pack = memory.free_bytes(self.device) > 3 * weights  # a second copy of them, for sampling
        linear = lora.install(model, self.router, pack)
        self.shapes = linear | experts.install(model, self.router)
        elementwise.install(model)
        head: torch.Tensor = model.get_output_embeddings().weight
        self.shapes[lora.UNEMBED] = (head.shape[0], head.shape[1])
        self.head = HeadLogprobs(head, config.head_chunk, pack)
        packed = head.numel() + sum(rows * columns for rows, columns in linear.values())
        packed *= head.itemsize if pack and packs(head) else 0
        self.decoder: Any = model.model
        self.parameters = [*model.parameters(), *model.buffers()]
        self.facts = model_facts(path, self.config)
        self.vocab_size = self.facts.vocab_size
        self.context_length = self.facts.context_length
        self.num_layers = self.facts.num_layers
        self.hidden_size: int = self.config.hidden_size
        self.sliding_window: int = getattr(self.config, "sliding_window", None) or 0
        self._decode: Callable[[list[int]], str] | None = None
        self._recompute = False
        self.memory: memory.Memory | None = None
        for layer in self.decoder.layers:
            layer.forward = partial(self._layer, layer.forward)
        self.checkpointing = config.checkpointing
        self.memory = memory.measure(self, packed)
        limit = self.memory.free * memory.ADAPTERS
        if config.adapter_gib is not None:
            limit = config.adapter_gib * memory.GIB
        self.offloader = AdapterOffloader(self.device, int(limit))
        self.limits = self.memory.sampling_limits(config, self.device)
        self.tokens_per_pass = self.limits.tokens_per_pass

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        plan: attention.PackedPlan | attention.DecodePlan,
        adapters: lora.AdapterPlan,
    ) -> torch.Tensor:
        """Final hidden states [T, H] of tokens [T] at positions [T].

        A packed plan is one sequence of T rows, a decode plan T sequences of one row. Where a
        gradient is wanted and the memory asks for it, layers are checkpointed.
        """
        if torch.is_grad_enabled() and self.memory is not None:
            asked = self.memory.needs_checkpointing(len(tokens), self.device)
            self._recompute = {"auto": asked, "always": True, "never": False}[self.checkpointing]
        shape = (1, -1) if isinstance(plan, attention.PackedPlan) else (-1, 1)
        apart = isinstance(plan, attention.DecodePlan) and plan.apart
        with self.router.use(adapters, apart):
            out = self.decoder(
                input_ids=tokens.view(shape),
                position_ids=positions.view(shape),
                use_cache=False,
                plan=plan,
            )
        return out.last_hidden_state.reshape(tokens.shape[0], -1)

    def _layer(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One decoder layer, to be run again in the backward if the pass is checkpointed."""
        if not (self._recompute and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        plan = self.router.plan  # which is another one when the backward comes

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.router.use(plan):
                return forward(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def new_adapter(self, spec: lora.LoraSpec) -> lora.Adapter:
        return lora.Adapter.new(spec, self.shapes, self.device, self.dtype)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, for stop strings."""
        if self._decode is None:
            tokenizer: Any = get_tokenizer(self.path)
            self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
        return self._decode(tokens)


def _load_config(path: str) -> PretrainedConfig:
    from transformers import PretrainedConfig

    try:
        raw, _ = PretrainedConfig.get_config_dict(path)
        family = family_of(path, raw.get("model_type"))
        config = transformers_config(path)
    except ConfigurationError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {path!r} cannot be loaded: {first_line(error)}") from error
    check_config(path, config, family)
    _ask_for_plain_weights(path, config)
    return config


def _ask_for_plain_weights(path: str, config: PretrainedConfig) -> None:
    """Have transformers expand quantised weights while it reads them.

    It works on the configuration in memory. Tested on small files made for it; never run on the
    real ones.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return
    method = quantised.get("quant_method")
    if method not in QUANTISED:
        raise ConfigurationError(
            f"model {path!r} has weights quantised by {method!r}, which the engine cannot read;"
            f" supported: {', '.join(QUANTISED)}; or use a copy in bfloat16"
        )
    config.quantization_config = {**quantised, "dequantize": True}


def _check_whole_blocks(path: str, quantised: Quantisation, model: torch.nn.Module) -> None:
    """transformers tells the blocks of an fp8 weight from the number of its scales, which goes
    wrong where the last block is cut off, as in the real DeepSeek-V3: [576, 7168] by 128."""
    blocks = quantised.get("weight_block_size")
    if quantised["quant_method"] != "fp8" or blocks is None:
        return
    for name, weight in model.named_parameters():
        if "_proj" not in name or weight.ndim < 2:
            continue
        rows, columns = weight.shape[-2:]
        if "gate_up_proj" in name:  # two in the files
            rows //= 2
        if any(size > block and size % block for size, block in zip((rows, columns), blocks)):
            raise ConfigurationError(
                f"model {path!r} has fp8 weights in blocks of {blocks}, which do not divide"
                f" {name!r} of {[rows, columns]}: transformers cannot expand it; use a copy in"
                " bfloat16"
            )


def _load_model(path: str, config: PretrainedConfig, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    quantised = getattr(config, "quantization_config", None)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    count = empty.num_parameters()
    if quantised is not None:
        _check_whole_blocks(path, quantised, empty)
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
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention.NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        model, info = loaded
    except (OSError, SafetensorError, ImportError) as error:
        raise ConfigurationError(
            f"the weights of model {path!r} cannot be loaded: {first_line(error)}"
        ) from error
    except RuntimeError as error:  # the useful part of it is in the report silenced above
        raise ConfigurationError(
            f"the weights of model {path!r} cannot be put together, most likely because a part of"
            " its experts is absent: the files do not fit its config.json"
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
    if quantised is not None:  # what was expanded is bfloat16, whatever was asked for
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    check_logits(path, model)
    return model
