"""Settings of the engine: not what is computed, but where, how precisely, how much at once."""

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
        doc='torch device, e.g. "cpu", "cuda" or "cuda:0"; "auto" takes the GPU if there is one',
    )
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="auto",
        doc='precision of the base model; "auto": float32 below 50 M parameters, else bfloat16',
    )
    tokens_per_pass: int | None = chz.field(
        default=None,
        doc="tokens that pass through the model at once (training, prefill); memory grows with it;"
        " rows that share a beginning stay together up to twice as many; None: 2048 on a CPU,"
        " 16384 on a GPU, less where memory is short",
    )
    checkpointing: Literal["auto", "always", "never"] = chz.field(
        default="auto",
        doc="activation checkpointing: a third more time, much less memory; auto: pass by pass,"
        " where memory would not suffice",
    )
    head_chunk: int = chz.field(
        default=256, doc="tokens whose logits over the vocabulary exist at once"
    )
    kv_tokens: int | None = chz.field(
        default=None,
        doc="tokens of keys and values that sampling may hold at once; None: 65536 on a CPU,"
        " 524288 on a GPU, less where memory is short",
    )
    prefix_tokens: int | None = chz.field(
        default=None,
        doc="of kv_tokens, those that may stay with prompts and samples that are finished, for"
        " requests that begin with the same tokens; None: a quarter; 0: none",
    )
    adapter_gib: float | None = chz.field(
        default=None,
        doc="GiB for adapters in training with their gradients and optimizers; beyond it idle ones"
        " are offloaded, a GPU's in CPU memory, a CPU's on disk; as many for adapters being sampled"
        " from, which are not offloaded but refused; None: a quarter of what is free",
    )
    sampler: Literal["torch"] = chz.field(
        default="torch",
        doc="what samples; torch: on the weights that are trained",
    )
    max_rows: int = chz.field(default=256, doc="sequences that are decoded at once")
    num_threads: int | None = chz.field(
        default=None,
        doc="CPU threads that compute (None: by the model's size and the cores that are free; a run"
        " that goes on keeps its number, since sums of another number end in other bits)",
    )
    deterministic: bool = chz.field(
        default=False,
        doc="a sampling request with a seed gets the same bits whatever runs beside it (slower);"
        " num_threads then ignores how busy the machine is",
    )

    @chz.validate
    def _check(self) -> None:
        """Types too: made in Python, chz leaves them unchecked."""
        for key, (low, none) in _WHOLE.items():
            value = getattr(self, key)
            if not ((none and value is None) or (is_whole(value) and value >= low)):
                _refuse(key, value, f"a whole number of at least {low}{' or None' * none}")
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                _refuse(key, getattr(self, key), f"one of {', '.join(map(repr, allowed))}")
        if not isinstance(self.deterministic, bool):
            _refuse("deterministic", self.deterministic, "True or False")
        gib = self.adapter_gib
        if gib is not None and not (isinstance(gib, (int, float)) and 0 < gib < math.inf):
            _refuse("adapter_gib", gib, "a finite number above 0 or None")
        _check_device(self.device)


_WHOLE = {  # key -> least value, whether None is allowed
    "tokens_per_pass": (1, True),
    "head_chunk": (1, False),
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


def _refuse(key: str, value: object, expected: str) -> NoReturn:
    raise ConfigurationError(f"engine.{key}={value!r}: expected {expected}")


def _check_device(device: str) -> None:
    """Before anything is begun: a run whose device is not there would leave a directory behind."""
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        _refuse("device", device, "'auto', 'cpu', 'cuda' or 'cuda:0' and so on")
    if not device.startswith("cuda"):
        return
    import torch  # takes a second

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        found = {0: "no GPU", 1: "one GPU, cuda:0"}.get(count, f"cuda:0 to cuda:{count - 1}")
        raise ConfigurationError(f"engine.device={device!r}: torch sees {found} here")
