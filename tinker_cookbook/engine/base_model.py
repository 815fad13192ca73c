"""A frozen base model: load it by hub name or path, and replace its attention and linear layers.

The model code is that of transformers. A model that the engine cannot compute exactly is refused at
load, with the name of the feature.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint

from tinker_cookbook.engine import attention, elementwise, experts, lora, memory, residual
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.frozen_linear import can_prepack, has_bf16_products
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

DEQUANTIZABLE = ("mxfp4", "fp8")  # values of quant_method that transformers can dequantize at load
SMALL_MODEL = 50_000_000  # parameters; a smaller model runs in fp32, which costs it little
# Free memory, in copies of the weights, from which a CPU that emulates bf16 gets an fp32 model. The
# rest is for adapters, keys and values, and passes.
FLOAT32_ROOM = 4


logger = logging.getLogger(__name__)


class QuantizationConfig(TypedDict):
    """The keys of config.json's `quantization_config` that are read here."""

    quant_method: str
    weight_block_size: list[int] | None


class BaseModel:
    """One frozen model: its hidden states, logprob head, decoded text and memory limits."""

    def __init__(self, path: str, config: EngineConfig) -> None:
        self.path = path
        default_device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(default_device if config.device == "auto" else config.device)
        self.config = _load_config(path)
        model = _load_model(path, self.config, config.dtype, self.device).to(self.device)
        model.requires_grad_(False)
        model.eval()
        self.num_parameters: int = model.num_parameters()
        self.dtype = model.get_input_embeddings().weight.dtype
        self.routing = lora.AdapterRouting()
        weights = sum(tensor.nbytes for tensor in model.parameters())
        # sampling keeps a second, prepacked copy of the weights, if there is plenty of memory
        prepack = memory.free_bytes(self.device) > 3 * weights
        linear = lora.install(model, self.routing, prepack)
        self.shapes = linear | experts.install(model, self.routing)
        elementwise.install(model)
        self.residual_dtype = self._install_residual(model.model, config.float32_residual)
        head: torch.Tensor = model.get_output_embeddings().weight
        self.shapes[lora.UNEMBED] = (head.shape[0], head.shape[1])
        self.head = HeadLogprobs(head, config.head_chunk, prepack, config.exact_logits)
        # bytes of that copy: made later, but not free now
        prepacked = head.numel() + sum(rows * columns for rows, columns in linear.values())
        prepacked *= head.itemsize if prepack and can_prepack(head) else 0
        self.decoder: Any = model.model
        self.parameters = [*model.parameters(), *model.buffers()]
        self.facts = model_facts(path, self.config)
        self.vocab_size = self.facts.vocab_size
        self.context_length = self.facts.context_length
        self.num_layers = self.facts.num_layers
        self.hidden_size: int = self.config.hidden_size
        self.sliding_window: int = getattr(self.config, "sliding_window", None) or 0
        self._decode: Callable[[list[int]], str] | None = None
        self._recompute = False  # whether the current pass is checkpointed
        self.memory: memory.MemoryEstimate | None = None  # until measured, with `hidden`
        for layer in self.decoder.layers:
            layer.forward = partial(self._run_layer, layer.forward)
        self.checkpointing = config.checkpointing
        self.memory = memory.measure(self, prepacked + self.head.chunk_bytes)
        limit = self.memory.free * memory.ADAPTER_SHARE
        if config.adapter_gib is not None:
            limit = config.adapter_gib * memory.GIB
        self.offloader = AdapterOffloader(self.device, int(limit))
        self.limits = self.memory.sampling_limits(config, self.device)
        self.tokens_per_pass = self.limits.tokens_per_pass

    def _install_residual(self, decoder: torch.nn.Module, wanted: bool | None) -> torch.dtype:
        """Make the residual stream fp32 if wanted and possible; returns its dtype."""
        if self.dtype == torch.float32 or wanted is False:
            return self.dtype
        obstacle = residual.install(decoder, self.dtype)
        if obstacle is None:
            return torch.float32
        if wanted:
            raise ConfigurationError(
                f"engine.float32_residual=True: not possible with model {self.path!r}, because"
                f" {obstacle}; leave the key out"
            )
        logger.warning("the residual stream of %s stays in bfloat16: %s", self.path, obstacle)
        return self.dtype

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        plan: attention.PackedPlan | attention.DecodePlan,
        adapters: lora.AdapterPlan,
    ) -> torch.Tensor:
        """Final hidden states [T, H] of tokens [T] at positions [T].

        A packed plan is one sequence of T tokens for transformers, a decode plan T sequences of one
        token. With gradients, layers are checkpointed if the pass would need too much memory.
        Raises OutOfMemoryError if it does not fit even so.
        """
        if torch.is_grad_enabled() and self.memory is not None:
            needed = self.memory.needs_checkpointing(len(tokens), self.device)
            self._recompute = {"auto": needed, "always": True, "never": False}[self.checkpointing]
        shape = (1, -1) if isinstance(plan, attention.PackedPlan) else (-1, 1)
        batch_invariant = isinstance(plan, attention.DecodePlan) and plan.batch_invariant
        with self.routing.use(adapters, batch_invariant):
            out = self.decoder(
                input_ids=tokens.view(shape),
                position_ids=positions.view(shape),
                use_cache=False,
                plan=plan,
            )
        return out.last_hidden_state.reshape(tokens.shape[0], -1)

    def _run_layer(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a decoder layer, and again in the backward if the pass is checkpointed."""
        if not (self._recompute and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # By the time of the backward, the pass is over and the routing has another plan: the second
        # run must use the plan of the first.
        plan = self.routing.plan

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.routing.use(plan):
                return forward(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def new_adapter(self, spec: lora.LoraSpec) -> lora.Adapter:
        return lora.Adapter.new(spec, self.shapes, self.device, self.dtype)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, for stop strings. Loads the tokenizer on first use."""
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
    _request_dequantization(path, config)
    return config


def _request_dequantization(path: str, config: PretrainedConfig) -> None:
    """Make transformers dequantize weights at load, by changing `config` in memory.

    Tested on small files made for it; never run on the real models.
    """
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return
    method = quantized.get("quant_method")
    if method not in DEQUANTIZABLE:
        raise ConfigurationError(
            f"model {path!r} has weights quantized with {method!r}, which is not"
            f" supported;"
            f" use {' or '.join(DEQUANTIZABLE)}, or a copy in bfloat16"
        )
    config.quantization_config = {**quantized, "dequantize": True}


def _check_whole_blocks(path: str, quantized: QuantizationConfig, model: torch.nn.Module) -> None:
    """Raise ConfigurationError unless the blocks of fp8 weights divide their shapes.

    transformers infers the block size of a weight from the number of its scales, which is wrong if
    the last block is incomplete, as in the real DeepSeek-V3: [576, 7168] in blocks of 128.
    """
    blocks = quantized.get("weight_block_size")
    if quantized["quant_method"] != "fp8" or blocks is None:
        return
    for name, weight in model.named_parameters():
        if "_proj" not in name or weight.ndim < 2:
            continue
        rows, columns = weight.shape[-2:]
        if "gate_up_proj" in name:  # two weights in the files, each with its own blocks
            rows //= 2
        if any(size > block and size % block for size, block in zip((rows, columns), blocks)):
            raise ConfigurationError(
                f"model {path!r} has fp8 weights in blocks of {blocks}, which do not divide"
                f" {name!r} of {[rows, columns]}: transformers cannot dequantize it; use a copy in"
                " bfloat16"
            )


def _choose_dtype(count: int, device: torch.device) -> str:
    """float32 for a small model, and for any that fits on a CPU without bfloat16 products.

    Such a CPU multiplies bfloat16 matrices about eight times more slowly than float32 ones.
    """
    if count < SMALL_MODEL:
        return "float32"
    emulated = device.type == "cpu" and not has_bf16_products()
    if emulated and memory.free_bytes(device) > FLOAT32_ROOM * 4 * count:
        return "float32"
    return "bfloat16"


def _load_model(path: str, config: PretrainedConfig, dtype: str, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    quantized = getattr(config, "quantization_config", None)
    with torch.device("meta"):  # shapes without memory, to choose the dtype before loading
        empty = AutoModelForCausalLM.from_config(config)
    count = empty.num_parameters()
    if quantized is not None:
        _check_whole_blocks(path, quantized, empty)
    if dtype == "auto":
        dtype = _choose_dtype(count, device)
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings about missing weights are errors below
    if count < SMALL_MODEL:
        logging.disable_progress_bar()  # it loads at once
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention.NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the name of the weight
        )
        model, info = loaded
    except (OSError, SafetensorError, ImportError) as error:
        raise ConfigurationError(
            f"the weights of model {path!r} cannot be loaded: {first_line(error)}"
        ) from error
    except RuntimeError as error:  # its useful part is in the warnings silenced above
        raise ConfigurationError(
            f"the weights of model {path!r} cannot be merged, most likely because some of its"
            " experts are missing: the files do not match its config.json"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    missing = [*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])]
    if missing:  # transformers would initialise them at random
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigurationError(
            f"the weights of model {path!r} lack {sorted(missing)[0]!r}{more}, or have it in"
            " another shape: the files do not match its config.json"
        )
    if quantized is not None:  # transformers dequantizes to bfloat16, whatever dtype says
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    check_logits(path, model)
    return model
