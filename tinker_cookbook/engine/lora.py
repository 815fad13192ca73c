"""LoRA: what an adapter covers, its parameters, and the linear layer that applies adapters.

y = x W^T + (alpha / rank) * (x A^T) B^T with A [rank, in] uniform in +-1/sqrt(in) and B [out, rank]
zero (Hu et al. 2021, https://arxiv.org/abs/2106.09685). Alpha is 32 at any rank.

The optimizer updates fp32 masters; the products use copies in the base model's dtype, which follow
only when `Adapter.refresh` is called. Files of adapters: `checkpoints.py` and `peft_adapters.py`.

Shapes: T tokens of a pass, r rank, R the ranks of all stacked adapters, added up.
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
    """Which layers an adapter covers, and its size. Defaults as in the SDK: rank 32, all layers."""

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
        if (
            not is_whole(self.seed) or not -(2**63) <= self.seed < 2**64
        ):  # what torch's generators take
            raise ConfigurationError(
                f"LoRA seed={self.seed!r}: expected a whole number from -2**63 to 2**64 - 1"
            )
        for key in ("train_attn", "train_mlp", "train_unembed"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigurationError(f"{key}={getattr(self, key)!r}: expected True or False")
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ConfigurationError(
                "train_attn, train_mlp and train_unembed are all False: nothing would be"
                " trained; set at least one to True"
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

    def count_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Count the parameters of an adapter on these layers (path -> (out, in))."""
        return sum(self.rank * sum(shape) for path, shape in shapes.items() if self.covers(path))

    def to_dict(self) -> dict[str, int | float | bool]:
        return asdict(self)


class WeightsVersion:
    """Identity of an adapter's weights at one point in time.

    What was computed with them (cached keys and values, stacked copies) is valid as long as the
    adapter has the same version object. The prefix cache holds it weakly, so the keys and values of
    an outdated version are freed with it.
    """


class Adapter:
    """The parameters of one LoRA adapter: fp32 masters, and the copies that products use.

    `master["<path>.lora_A"]` is [rank, in], `master["<path>.lora_B"]` is [out, rank]; `copies` has
    the same keys, in the base model's dtype. If the base model is fp32, a copy shares the memory of
    its master. Autograd's gradients are those of the copies; `passes` sums them in fp32.
    """

    def __init__(self, spec: LoraSpec, master: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
        self.spec = spec
        self.master = master
        self.copies: dict[str, torch.Tensor] = {}
        self.make_copies(dtype)
        self.version = WeightsVersion()

    @classmethod
    def new(
        cls,
        spec: LoraSpec,
        shapes: Mapping[str, tuple[int, int]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Adapter:
        """Initialise an adapter on those of the layers (path -> (out, in)) that the spec covers.

        Random numbers are drawn on the CPU, so a seed gives the same adapter on every device.
        Raises ConfigurationError if the rank exceeds the full rank of every layer.
        """
        full_rank = max(
            (min(shape) for path, shape in shapes.items() if spec.covers(path)), default=1
        )
        if spec.rank > full_rank:
            raise ConfigurationError(
                f"LoRA rank={spec.rank} exceeds the full rank of every layer it covers;"
                f" use at most {full_rank} with this model"
            )
        generator = torch.Generator().manual_seed(spec.seed)
        master = {}
        for path, (fan_out, fan_in) in shapes.items():
            if not spec.covers(path):
                continue
            bound = 1.0 / math.sqrt(fan_in)
            a = (
                torch.rand(spec.rank, fan_in, generator=generator, dtype=torch.float32) * 2 - 1
            ) * bound
            master[f"{path}.lora_A"] = a.to(device)
            master[f"{path}.lora_B"] = torch.zeros(
                fan_out, spec.rank, dtype=torch.float32, device=device
            )
        return cls(spec, master, dtype)

    def make_copies(self, dtype: torch.dtype) -> None:
        """Replace the copies, e.g. after the masters' storage was replaced."""
        # for an fp32 model, `to` copies nothing: the optimizer then updates the copy in place
        self.copies = {
            name: tensor.detach().to(dtype).requires_grad_() for name, tensor in self.master.items()
        }

    def refresh(self) -> None:
        """Bring the copies up to date with the masters, after an optimizer step or a load.

        The copies keep their storage. Sampling uses a `snapshot`, which does not change.
        """
        self.version = WeightsVersion()  # what caches hold is outdated now
        with torch.no_grad():
            for name, tensor in self.master.items():
                if self.copies[name].data_ptr() != tensor.data_ptr():  # else it is its master
                    self.copies[name].copy_(tensor)

    def snapshot(self) -> Adapter:
        """Clone the current copies into an independent adapter, for sampling.

        Later steps do not change it. It takes the memory of the copies alone: its masters share
        their storage and have their dtype, so it cannot be trained.
        """
        dtype = next(iter(self.copies.values())).dtype
        return Adapter(self.spec, {k: v.detach().clone() for k, v in self.copies.items()}, dtype)

    def pair(self, path: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The copies (A, B) of one layer; None if this adapter does not cover it."""
        a = self.copies.get(f"{path}.lora_A")
        return None if a is None else (a, self.copies[f"{path}.lora_B"])


@dataclass(frozen=True)
class AdapterSpan:
    """Tokens [start, stop) of a pass go through this adapter (None: the base model alone)."""

    adapter: Adapter | None
    start: int
    stop: int


class AdapterStack:
    """Several adapters stacked, for tokens in any order.

    Decoding needs this: a sequence keeps its slot, so the tokens of a batch cannot be sorted by
    adapter. The As are stacked to [R, in] and the Bs to [out, R]; a mask keeps, for each token, the
    columns of its own adapter, times the adapter's scale. This computes every adapter for every
    token, but in two GEMMs, which beats a gather or a loop over adapters.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = list(adapters)
        self.versions = [adapter.version for adapter in adapters]
        self._pairs: dict[str, _StackedPair | None] = {}  # by layer, built on first use

    def pair(self, path: str) -> _StackedPair | None:
        """The stacked (A, B) of one layer; None if no adapter covers it."""
        if path not in self._pairs:
            owners, downs, ups, scales = [], [], [], []
            for index, adapter in enumerate(self.adapters):
                pair, spec = adapter.pair(path), adapter.spec
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
    owners: torch.Tensor  # int64 [R]: index of the adapter that each column belongs to
    scales: torch.Tensor  # [R]


@dataclass(frozen=True)
class PerTokenAdapters:
    """Token i of a pass goes through adapter `owners[i]` of the stack (-1: the base model)."""

    stack: AdapterStack
    owners: torch.Tensor  # int64 [T]


AdapterPlan = Sequence[AdapterSpan] | PerTokenAdapters


class AdapterRouting:
    """Tells every LoRA layer of a base model which adapter each token of the current pass uses.

    Shared state, not an argument: the layers are called by transformers' modules, whose forward
    does not pass an argument of ours to their linear layers.
    """

    def __init__(self) -> None:
        self.plan: AdapterPlan = ()
        self.batch_invariant = False  # whether a token's result may not depend on the others

    @contextmanager
    def use(self, plan: AdapterPlan, batch_invariant: bool = False) -> Iterator[None]:
        before = self.plan, self.batch_invariant
        self.plan, self.batch_invariant = plan, batch_invariant
        try:
            yield
        finally:  # a checkpointed layer runs again while another plan is in use
            self.plan, self.batch_invariant = before


class LoraLinear(torch.nn.Module):
    """A frozen linear layer plus the adapters of the tokens that pass through it."""

    def __init__(
        self, base: torch.nn.Linear, path: str, routing: AdapterRouting, prepack: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.product = FrozenLinear(base.weight, base.bias, prepack)
        self.path = path
        self.routing = routing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, plan = x.reshape(-1, x.shape[-1]), self.routing.plan
        if isinstance(plan, PerTokenAdapters) or not torch.is_grad_enabled():
            out = add_lora(self.product(tokens), tokens, self.path, plan)
        else:
            parts, pairs = [], []
            for part in plan:
                if part.adapter is not None and (pair := part.adapter.pair(self.path)):
                    parts.append((part.start, part.stop, part.adapter.spec.scale))
                    pairs += pair
            out = _LoraFunction.apply(tokens, self.base.weight, self.base.bias, parts, *pairs)
        return out.view(*x.shape[:-1], -1)


class _LoraContext(Context):
    parts: Sequence[tuple[int, int, float]]  # start, stop, scale


class _LoraFunction(torch.autograd.Function):
    """x W^T + bias, plus scale (x A^T) B^T on the tokens [start, stop) of each part.

    One function adds all parts in place. With autograd's own slices, the backward of each part
    would fill a gradient of the size of the whole.
    """

    @staticmethod
    def forward(
        ctx: _LoraContext,
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
    def backward(ctx: _LoraContext, *grads: torch.Tensor) -> Gradients:
        (dy,) = grads
        x, weight, *rest = ctx.saved_tensors
        count = len(ctx.parts)
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        d_pairs = []
        for index, (start, stop, scale) in enumerate(ctx.parts):
            a, b, low = rest[2 * index], rest[2 * index + 1], rest[2 * count + index]
            d_part = dy[start:stop]
            d_low = (d_part @ b).mul_(scale)  # the gradient of x A^T
            if dx is not None:
                dx[start:stop].addmm_(d_low, a)
            d_pairs += [d_low.t() @ x[start:stop], (d_part.t() @ low).mul_(scale)]
        return dx, None, None, None, *d_pairs


def add_lora(y: torch.Tensor, x: torch.Tensor, path: str, plan: AdapterPlan) -> torch.Tensor:
    """Add each adapter's product on its tokens of x [T, in] to y [T, out], differentiably."""
    if isinstance(plan, PerTokenAdapters):
        stacked = plan.stack.pair(path)
        if stacked is None:
            return y
        mask = plan.owners[:, None] == stacked.owners[None, :]  # [T, R]
        return torch.addmm(y, F.linear(x, stacked.down) * (mask * stacked.scales), stacked.up.t())
    parts = []
    # one split instead of slices, because the backward of a slice fills a tensor of the whole size
    counts = [part.stop - part.start for part in plan]
    for part, tokens, base in zip(plan, x.split(counts), y.split(counts), strict=True):
        pair = part.adapter.pair(path) if part.adapter is not None else None
        if pair is None or part.adapter is None:
            parts.append(base)
            continue
        a, b = pair
        parts.append(torch.addmm(base, F.linear(tokens, a), b.t(), alpha=part.adapter.spec.scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def install(
    model: torch.nn.Module, routing: AdapterRouting, prepack: bool = False
) -> dict[str, tuple[int, int]]:
    """Replace the attention and MLP linear layers of a model; return path -> (out, in) of each."""
    shapes = {}
    for path, module in list(model.named_modules()):
        name = path.rsplit(".", 1)[-1]
        if isinstance(module, torch.nn.Linear) and name in ATTENTION_LAYERS + MLP_LAYERS:
            parent = model.get_submodule(path.rsplit(".", 1)[0])
            setattr(parent, name, LoraLinear(module, path, routing, prepack))
            shapes[path] = (module.out_features, module.in_features)
    return shapes
