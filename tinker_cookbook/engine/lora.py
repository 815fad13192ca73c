"""LoRA: the adapter's parameters, the linear layer that applies them, and the PEFT layout on disk.

y = x W^T + (alpha / rank) * (x A^T) B^T with A [rank, in] uniform in +-1/sqrt(in), B [out, rank]
zero (Hu et al. 2021, https://arxiv.org/abs/2106.09685). Alpha is 32 at any rank. Masters are fp32;
the products use copies in the base model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.autograd import Context, Gradients
from tinker_cookbook.engine.frozen_linear import FrozenLinear
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import ATTENTION_LAYERS, MLP_LAYERS
from tinker_cookbook.utils.misc_utils import is_whole

UNEMBED = "lm_head"


@dataclass(frozen=True)
class LoraSpec:
    """What an adapter covers. The SDK's own defaults: rank 32, everything trained."""

    rank: int = 32
    alpha: float = 32.0
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def __post_init__(self) -> None:
        if not is_whole(self.rank) or self.rank < 1:
            raise ConfigurationError(
                f"LoRA rank={self.rank!r}: expected a whole number of at least 1"
            )
        if not is_whole(self.seed) or not -(2**63) <= self.seed < 2**64:  # torch's range
            raise ConfigurationError(
                f"LoRA seed={self.seed!r}: expected a whole number from -2**63 to 2**64 - 1"
            )
        for key in ("train_attn", "train_mlp", "train_unembed"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigurationError(f"{key}={getattr(self, key)!r}: expected True or False")
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ConfigurationError(
                "train_attn, train_mlp and train_unembed are all False: nothing would be trained"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def covers(self, path: str) -> bool:
        """Whether the linear layer at this module path gets an adapter."""
        name = path.rsplit(".", 1)[-1]
        return (
            (self.train_attn and name in ATTENTION_LAYERS)
            or (self.train_mlp and name in MLP_LAYERS)
            or (self.train_unembed and path == UNEMBED)
        )

    def parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Numbers that an adapter on these layers (path -> (out, in)) holds."""
        return sum(self.rank * sum(shape) for path, shape in shapes.items() if self.covers(path))

    def to_dict(self) -> dict[str, int | float | bool]:
        return asdict(self)


class Weights:
    """Stands for what an adapter's weights are at a time: what was computed with them holds as
    long as the adapter has the same object."""


class Adapter:
    """The parameters of one LoRA: fp32 masters and the copies that the products use.

    `master["<path>.lora_A"]` [rank, in] and `master["<path>.lora_B"]` [out, rank]. Where the base
    model is fp32 on the same device, a copy shares its master's memory.
    """

    def __init__(self, spec: LoraSpec, master: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
        self.spec = spec
        self.master = master
        self.copies: dict[str, torch.Tensor] = {}
        self.make_copies(dtype)
        self.weights = Weights()

    @classmethod
    def new(
        cls,
        spec: LoraSpec,
        shapes: Mapping[str, tuple[int, int]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Adapter:
        """A fresh adapter on the layers (path -> (out, in)) that the spec covers.

        The random numbers are drawn on the CPU, so a seed means the same adapter on every device.
        """
        full = max((min(shape) for path, shape in shapes.items() if spec.covers(path)), default=1)
        if spec.rank > full:
            raise ConfigurationError(
                f"LoRA rank={spec.rank} is more than the full rank of every layer it covers;"
                f" at most {full} makes sense for this model"
            )
        generator = torch.Generator().manual_seed(spec.seed)
        master = {}
        for path, (fan_out, fan_in) in shapes.items():
            if not spec.covers(path):
                continue
            bound = 1.0 / math.sqrt(fan_in)
            a = (torch.rand(spec.rank, fan_in, generator=generator) * 2 - 1) * bound
            master[f"{path}.lora_A"] = a.to(device)
            master[f"{path}.lora_B"] = torch.zeros(fan_out, spec.rank, device=device)
        return cls(spec, master, dtype)

    def make_copies(self, dtype: torch.dtype) -> None:
        """Make the copies anew."""
        self.copies = {
            name: tensor.detach().to(dtype).requires_grad_() for name, tensor in self.master.items()
        }

    def refresh(self) -> None:
        """Bring the copies up to date with the masters (after an optimizer step or a load)."""
        self.weights = Weights()
        with torch.no_grad():
            for name, tensor in self.master.items():
                if self.copies[name].data_ptr() != tensor.data_ptr():
                    self.copies[name].copy_(tensor)

    def snapshot(self) -> Adapter:
        """An independent adapter with today's copies, for sampling: it has no fp32 masters."""
        dtype = next(iter(self.copies.values())).dtype
        return Adapter(self.spec, {k: v.detach().clone() for k, v in self.copies.items()}, dtype)

    def pair(self, path: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The copies (A, B) for one layer, or None where this adapter does not cover it."""
        a = self.copies.get(f"{path}.lora_A")
        return None if a is None else (a, self.copies[f"{path}.lora_B"])


@dataclass(frozen=True)
class AdapterSpan:
    """Rows [start, stop) of a pass go through this adapter (None: the base model alone)."""

    adapter: Adapter | None
    start: int
    stop: int


class AdapterStack:
    """Several adapters side by side, for rows in any order: decoding, where slots do not move.

    The A of all adapters are stacked to [R, in] and the B to [out, R]; each row keeps only the
    columns of its own adapter, times its scale. More products than needed, but two GEMMs in all.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = list(adapters)
        self.weights = [adapter.weights for adapter in adapters]
        self._pairs: dict[str, _StackedPair | None] = {}

    def pair(self, path: str) -> _StackedPair | None:
        if path not in self._pairs:
            found = [(i, a.pair(path), a.spec) for i, a in enumerate(self.adapters)]
            owners, downs, ups, scales = [], [], [], []
            for index, pair, spec in found:
                if pair is not None:
                    owners += [index] * spec.rank
                    scales += [spec.scale] * spec.rank
                    downs.append(pair[0].detach())
                    ups.append(pair[1].detach())
            self._pairs[path] = (
                _StackedPair(
                    torch.cat(downs),
                    torch.cat(ups, dim=1),
                    torch.tensor(owners, device=downs[0].device),
                    torch.tensor(scales, device=downs[0].device, dtype=downs[0].dtype),
                )
                if downs
                else None
            )
        return self._pairs[path]


@dataclass(frozen=True)
class _StackedPair:
    down: torch.Tensor  # [R, in]
    up: torch.Tensor  # [out, R]
    owners: torch.Tensor  # int64 [R]
    scales: torch.Tensor  # [R]


@dataclass(frozen=True)
class PerTokenAdapters:
    """Row i of a pass goes through adapter `owners[i]` of the stack (-1: the base model alone)."""

    stack: AdapterStack
    owners: torch.Tensor  # int64 [T]


AdapterPlan = Sequence[AdapterSpan] | PerTokenAdapters


class Router:
    """Tells every LoRA layer of a base model which rows of the current pass use which adapter."""

    def __init__(self) -> None:
        self.plan: AdapterPlan = ()
        self.apart = False  # whether no row's result may depend on the others

    @contextmanager
    def use(self, plan: AdapterPlan, apart: bool = False) -> Iterator[None]:
        before, self.plan, self.apart = (self.plan, self.apart), plan, apart
        try:
            yield
        finally:
            self.plan, self.apart = before


class LoraLinear(torch.nn.Module):
    """A frozen linear layer plus the adapters of the rows that pass through it."""

    def __init__(
        self, base: torch.nn.Linear, path: str, router: Router, pack: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.product = FrozenLinear(base.weight, base.bias, pack)
        self.path = path
        self.router = router

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, plan = x.reshape(-1, x.shape[-1]), self.router.plan
        if isinstance(plan, PerTokenAdapters) or not torch.is_grad_enabled():
            out = add_lora(self.product(rows), rows, self.path, plan)
        else:
            parts, pairs = [], []
            for part in plan:
                if part.adapter is not None and (pair := part.adapter.pair(self.path)):
                    parts.append((part.start, part.stop, part.adapter.spec.scale))
                    pairs += pair
            out = _LoraLinear.apply(rows, self.base.weight, self.base.bias, parts, *pairs)
        return out.view(*x.shape[:-1], -1)


class _Parts(Context):
    parts: Sequence[tuple[int, int, float]]


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias, and on the rows [start, stop) of each part + scale (x A^T) B^T.

    One function for all parts: as slices of autograd's, each part would cost a copy of the whole.
    """

    @staticmethod
    def forward(
        ctx: _Parts,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        parts: Sequence[tuple[int, int, float]],
        *pairs: torch.Tensor,
    ) -> torch.Tensor:
        y = F.linear(x, weight, bias)
        lows = []
        for (start, stop, scale), a, b in zip(parts, pairs[::2], pairs[1::2]):
            lows.append(F.linear(x[start:stop], a))
            y[start:stop].addmm_(lows[-1], b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, *pairs, *lows)
        ctx.parts = parts
        return y

    @staticmethod
    def backward(ctx: _Parts, *grads: torch.Tensor) -> Gradients:
        (dy,) = grads
        x, weight, *rest = ctx.saved_tensors
        count = len(ctx.parts)
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        d_pairs = []
        for index, (start, stop, scale) in enumerate(ctx.parts):
            a, b, low = rest[2 * index], rest[2 * index + 1], rest[2 * count + index]
            own = dy[start:stop]
            d_low = (own @ b).mul_(scale)
            if dx is not None:
                dx[start:stop].addmm_(d_low, a)
            d_pairs += [d_low.t() @ x[start:stop], (own.t() @ low).mul_(scale)]
        return dx, None, None, None, *d_pairs


def add_lora(y: torch.Tensor, x: torch.Tensor, path: str, plan: AdapterPlan) -> torch.Tensor:
    """y [T, out] plus each adapter's product on its own rows of x [T, in], by autograd's means."""
    if isinstance(plan, PerTokenAdapters):
        stacked = plan.stack.pair(path)
        if stacked is None:
            return y
        own = plan.owners[:, None] == stacked.owners[None, :]
        return torch.addmm(y, F.linear(x, stacked.down) * (own * stacked.scales), stacked.up.t())
    parts = []
    # a split, not slices: the backward of a slice fills a tensor of the whole size
    counts = [part.stop - part.start for part in plan]
    for part, own, base in zip(plan, x.split(counts), y.split(counts), strict=True):
        pair = part.adapter.pair(path) if part.adapter is not None else None
        if pair is None or part.adapter is None:
            parts.append(base)
            continue
        a, b = pair
        parts.append(torch.addmm(base, F.linear(own, a), b.t(), alpha=part.adapter.spec.scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def install(
    model: torch.nn.Module, router: Router, pack: bool = False
) -> dict[str, tuple[int, int]]:
    """Replace the model's attention and MLP linear layers; return path -> (out, in) of each."""
    shapes = {}
    for path, module in list(model.named_modules()):
        name = path.rsplit(".", 1)[-1]
        if isinstance(module, torch.nn.Linear) and name in ATTENTION_LAYERS + MLP_LAYERS:
            parent = model.get_submodule(path.rsplit(".", 1)[0])
            setattr(parent, name, LoraLinear(module, path, router, pack))
            shapes[path] = (module.out_features, module.in_features)
    return shapes
