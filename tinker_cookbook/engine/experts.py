"""LoRA on mixture-of-experts layers: one A and one B per expert and projection (gate, up, down).

transformers stores the experts of a layer in two parameters, with gate and up fused:

    gate_up_proj [E, 2I, H], down_proj [E, H, I]    Qwen3-MoE, DeepSeek-V3: gate, then up
    gate_up_proj [E, H, 2I], down_proj [E, I, H]    gpt-oss: gate and up interleaved, with biases

Adapters name the layers of each expert, `<path>.{e}.gate_proj`, as in the PEFT files that vLLM
loads. The model's own gate, which chooses the experts, is frozen. Only chosen experts are computed.

Shapes: T tokens of the pass, K experts per token, E experts, H hidden size, I expert size. A visit
is a token at one of its experts: T * K of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tinker_cookbook.engine.lora import (
    AdapterPlan,
    AdapterRouting,
    AdapterSpan,
    PerTokenAdapters,
    add_lora,
)
from tinker_cookbook.engine.module_parts import has_parts
from tinker_cookbook.exceptions import ConfigurationError


class StackedExperts(Protocol):
    """An expert layer of transformers."""

    gate_up_proj: Tensor
    down_proj: Tensor
    is_transposed: bool
    is_concatenated: bool
    has_bias: bool


class HasActivation(Protocol):
    act_fn: Callable[[Tensor], Tensor]


class ClampedSwish(Protocol):
    limit: float | None
    alpha: float


GateProduct = Callable[[Tensor, Tensor], Tensor]  # gate and up, both [T, I]


class LoraExperts(torch.nn.Module):
    """The frozen experts of one layer plus the adapters of the tokens that pass through them."""

    def __init__(
        self, base: StackedExperts, gate_product: GateProduct, path: str, routing: AdapterRouting
    ) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.routing = routing
        self.gate_product = gate_product

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """path -> (out, in) of every expert's projections."""
        count, hidden, inner = self.base.down_proj.shape
        if self.base.is_transposed:
            hidden, inner = inner, hidden
        sizes = {
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }
        return {f"{self.path}.{e}.{name}": sizes[name] for e in range(count) for name in sizes}

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden [T, H], the chosen experts and their weights [T, K] -> [T, H]."""
        # Sorted by expert, then (the sort is stable) by token: each expert gets one GEMM, and the
        # tokens of an adapter, contiguous in the pass, stay contiguous within the expert.
        experts, order = chosen.reshape(-1).sort(stable=True)
        tokens = order // chosen.shape[1]
        groups = list(
            _group_by_expert(self.routing.plan, experts, tokens, self.base.down_proj.shape[0])
        )
        # one split instead of slices, because the backward of a slice fills a tensor of full size
        parts = hidden.index_select(0, tokens).split([group.count for group in groups])
        compute = self._run_padded if self.routing.batch_invariant else self._run_expert
        out = torch.cat([compute(group, x) for group, x in zip(groups, parts)])
        out = out * weights.reshape(-1)[order, None]
        inverse = torch.empty_like(order)  # the inverse permutation: back to the order of tokens
        inverse[order] = torch.arange(len(order), device=order.device)
        return out.index_select(0, inverse).view(*chosen.shape, -1).sum(dim=1).to(hidden.dtype)

    def _run_padded(self, group: _ExpertGroup, x: Tensor) -> Tensor:
        """Pad every expert's input to the size of the pass.

        The bits of a row of a GEMM depend on its number of rows. Without padding, that is the
        number of tokens that chose the expert, which other sequences of the batch influence.
        """
        whole, plan = self.routing.plan, group.plan  # of one adapter, so never a stack
        assert not isinstance(whole, PerTokenAdapters) and not isinstance(plan, PerTokenAdapters)
        total = whole[-1].stop
        padded = F.pad(x, (0, 0, 0, total - group.count))
        plan = [AdapterSpan(part.adapter, 0, total) for part in plan]
        return self._run_expert(group._replace(plan=plan), padded)[: group.count]

    def _run_expert(self, group: _ExpertGroup, x: Tensor) -> Tensor:
        expert, plan, path = group.expert, group.plan, f"{self.path}.{group.expert}"
        gate_up = self._project("gate_up_proj", expert, x)
        if self.base.is_concatenated:
            gate, up = gate_up.chunk(2, dim=-1)
        else:
            gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1)
        gate = add_lora(gate, x, f"{path}.gate_proj", plan)
        up = add_lora(up, x, f"{path}.up_proj", plan)
        inner = self.gate_product(gate, up)
        down = self._project("down_proj", expert, inner)
        return add_lora(down, inner, f"{path}.down_proj", plan)

    def _project(self, name: str, expert: int, x: Tensor) -> Tensor:
        weight = getattr(self.base, name)[expert]
        bias = getattr(self.base, f"{name}_bias")[expert] if self.base.has_bias else None
        return F.linear(x, weight.t() if self.base.is_transposed else weight, bias)


def _gate_product(module: torch.nn.Module, path: str) -> GateProduct:
    """The function of the family that combines gate and up."""
    swish: torch.nn.Module = module
    if has_parts(swish, ClampedSwish) and swish.limit is not None:
        return partial(_clamped_swish, swish.limit, swish.alpha)
    if has_parts(module, HasActivation):
        return partial(_activate_gate, module.act_fn)
    raise ConfigurationError(_unsupported_error(type(module).__name__, path))


def _activate_gate(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


def _clamped_swish(limit: float, slope: float, gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss: gate and up are clamped, swish has a slope, and 1 is added to up."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * slope) * (up + 1)


def _unsupported_error(name: str, path: str) -> str:
    return f"{name} at {path!r} holds experts that the engine does not support"


def install(model: torch.nn.Module, routing: AdapterRouting) -> dict[str, tuple[int, int]]:
    """Replace the model's expert layers; return path -> (out, in) of every expert's projections."""
    shapes = {}
    for path, module in list(model.named_modules()):
        if isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
            gate_product = _gate_product(module, path)
            if not has_parts(module, StackedExperts):
                raise ConfigurationError(_unsupported_error(type(module).__name__, path))
            parent, name = path.rsplit(".", 1)
            experts = LoraExperts(module, gate_product, path, routing)
            setattr(model.get_submodule(parent), name, experts)
            shapes.update(experts.shapes)
    return shapes


class _ExpertGroup(NamedTuple):
    """The visits to one expert: `count` tokens. The plan's token indices start from 0."""

    expert: int
    count: int
    plan: AdapterPlan


def _group_by_expert(
    plan: AdapterPlan, experts: Tensor, tokens: Tensor, count: int
) -> Iterator[_ExpertGroup]:
    """Group the visits by expert, and restrict the plan to each group.

    `experts` and `tokens` [T * K] are those of all visits, sorted by expert, then by token. All
    counts come from one `bincount`, so a layer costs one device synchronisation.
    """
    if isinstance(plan, PerTokenAdapters):
        start = 0
        for expert, total in enumerate(torch.bincount(experts, minlength=count).tolist()):
            if total:
                owners = plan.owners[tokens[start : start + total]]
                yield _ExpertGroup(expert, total, PerTokenAdapters(plan.stack, owners))
                start += total
        return
    keys = experts  # the (expert, adapter) pair of each visit as one number
    if len(plan) > 1:
        stops = torch.tensor([part.stop for part in plan], device=tokens.device)
        keys = experts * len(plan) + torch.searchsorted(stops, tokens, right=True)
    table = torch.bincount(keys, minlength=count * len(plan)).view(count, len(plan)).tolist()
    for expert, counts in enumerate(table):
        stops = [0, *accumulate(counts)]
        if stops[-1]:
            parts = [
                AdapterSpan(part.adapter, start, stop)
                for part, start, stop in zip(plan, stops, stops[1:])
                if start < stop
            ]
            yield _ExpertGroup(expert, stops[-1], parts)
