"""Settings of the engine: device, precision, memory and speed, but not what is computed."""

from __future__ import annotations

import math
import re
from typing import Literal, NoReturn

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.misc_utils import is_whole


@chz.chz
class EngineConfig:
    device: str = chz.field(
        default="auto",
        doc='torch device, e.g. "cpu", "cuda" or "cuda:0"; "auto": the GPU if there is one',
    )
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="auto",
        doc='precision of the base model; "auto": float32 below 50 M parameters, and on a CPU'
        " without bfloat16 instructions if it fits, else bfloat16",
    )
    tokens_per_pass: int | None = chz.field(
        default=None,
        doc="maximum tokens per forward pass (training micro-batch or prefill); more need more"
        " memory; sequences with a common prefix may make a pass up to twice as large; None:"
        " 2048 on a CPU (1024 if those would take more than 2 GiB), 16384 on a GPU, fewer if"
        " memory is short",
    )
    checkpointing: Literal["auto", "always", "never"] = chz.field(
        default="auto",
        doc="activation checkpointing: about a third slower, far less memory; auto: only for passes"
        " that would not fit otherwise",
    )
    head_chunk: int = chz.field(
        default=256, doc="number of tokens whose vocabulary logits are in memory at once"
    )
    exact_logits: int | None = chz.field(
        default=None,
        doc="number of most likely tokens per position whose logits are recomputed in float32,"
        " beside the target's; None: 32 if the base model is bfloat16; 0: off. A float32 base model"
        " needs none",
    )
    float32_residual: bool | None = chz.field(
        default=None,
        doc="keep the residual stream of a bfloat16 base model, between its layers, in float32, so"
        " that sampling and training logprobs differ less; takes about an eighth more memory in"
        " training, with activation checkpointing up to twice as much; None: on. A float32 base"
        " model needs none",
    )
    kv_tokens: int | None = chz.field(
        default=None,
        doc="KV cache size in tokens, for sampling; None: 65536 on a CPU, 524288 on a GPU, fewer if"
        " memory is short",
    )
    prefix_tokens: int | None = chz.field(
        default=None,
        doc="part of kv_tokens that may hold finished prompts and samples, so that later requests"
        " with the same prefix reuse them; None: a quarter; 0: off",
    )
    adapter_gib: float | None = chz.field(
        default=None,
        doc="GiB for adapters in training, with gradients and optimizer states; beyond that, idle"
        " ones are offloaded from a GPU to CPU memory, or from a CPU to disk. The same amount again"
        " is for adapters to sample from; one that does not fit is an error. None: a quarter of the"
        " free memory",
    )
    sampler: Literal["torch"] = chz.field(
        default="torch",
        doc="sampler back end; torch: built in, samples from the weights in training",
    )
    max_rows: int = chz.field(default=256, doc="maximum number of sequences decoded at once")
    num_threads: int | None = chz.field(
        default=None,
        doc="CPU threads for computation; None: chosen from model size and idle cores, or the same"
        " as before for a run that resumes (another number changes the last bits of results)",
    )
    deterministic: bool = chz.field(
        default=False,
        doc="make the result of a sampling request with a seed independent of what else is running,"
        " to the last bit (slower); num_threads then ignores how busy the machine is",
    )

    @chz.validate
    def _check(self) -> None:
        # Types as well: chz does not check them for configs built in Python.
        for key, (low, optional) in _WHOLE_NUMBERS.items():
            value = getattr(self, key)
            if not ((optional and value is None) or (is_whole(value) and value >= low)):
                _raise_invalid(
                    key, value, f"a whole number of at least {low}{' or None' * optional}"
                )
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                _raise_invalid(key, getattr(self, key), f"one of {', '.join(map(repr, allowed))}")
        if not (self.float32_residual is None or isinstance(self.float32_residual, bool)):
            _raise_invalid("float32_residual", self.float32_residual, "True, False or None")
        if not isinstance(self.deterministic, bool):
            _raise_invalid("deterministic", self.deterministic, "True or False")
        gib = self.adapter_gib
        if gib is not None and not (isinstance(gib, (int, float)) and 0 < gib < math.inf):
            _raise_invalid("adapter_gib", gib, "a finite number above 0 or None")
        _check_device(self.device)


_WHOLE_NUMBERS = {  # key -> minimum, whether None is allowed
    "tokens_per_pass": (1, True),
    "head_chunk": (1, False),
    "exact_logits": (0, True),
    "kv_tokens": (1, True),
    "prefix_tokens": (0, True),
    "max_rows": (1, False),
    "num_threads": (1, True),
}
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "checkpointing": ("auto", "always", "never"),
    "sampler": ("torch",),
}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _raise_invalid(key: str, value: object, expected: str) -> NoReturn:
    raise ConfigurationError(f"engine.{key}={value!r}: expected {expected}")


def _check_device(device: str) -> None:
    """Check that the device exists, before a run creates its directory."""
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        _raise_invalid("device", device, "'auto', 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ...")
    if not device.startswith("cuda"):
        return
    import torch  # here, because it takes a second that --help need not wait for

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        available = {0: "no GPU", 1: "one GPU, cuda:0"}.get(count, f"cuda:0 to cuda:{count - 1}")
        raise ConfigurationError(f"engine.device={device!r}: torch sees {available} here")
