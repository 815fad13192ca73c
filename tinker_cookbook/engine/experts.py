"""LoRA on mixture-of-experts layers: one A and one B per expert and projection (gate, up, down).

transformers keeps the experts of a layer in two parameters, gate and up fused:

    gate_up_proj [E, 2I, H], down_proj [E, H, I]    Qwen3-MoE, DeepSeek-V3: gate, then up
    gate_up_proj [E, H, 2I], down_proj [E, I, H]    gpt-oss: gate and up in turn, with biases

Adapters name each expert's layers, `<path>.{e}.gate_proj`, as PEFT files for vLLM do. The router is
the model's own and is not trained. Only experts that a token chose are computed.

Legend of shapes: T rows of the pass, K experts per row, E experts, H hidden size, I expert size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from tinker_cookbook.engine.lora import AdapterPlan, AdapterSpan, PerTokenAdapters, Router, add_lora
from tinker_cookbook.exceptions import ConfigurationError


@runtime_checkable
class StackedExperts(Protocol):
    """As transformers writes it."""

    gate_up_proj: Tensor
    down_proj: Tensor
    is_transposed: bool
    is_concatenated: bool
    has_bias: bool


@runtime_checkable
class Activated(Protocol):
    act_fn: Callable[[Tensor], Tensor]


@runtime_checkable
class ClampedSwish(Protocol):
    limit: float | None
    alpha: float


class LoraExperts(torch.nn.Module):
    """The frozen experts of one layer plus the adapters of the rows that pass through them."""

    def __init__(self, base: StackedExperts, path: str, router: Router) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.router = router
        self.gated = _product_of(base, path)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """path -> (out, in) of every expert's layers."""
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
        experts, order = chosen.reshape(-1).sort(stable=True)  # by expert, then by row
        rows = order // chosen.shape[1]
        visits = list(_visits(self.router.plan, experts, rows, self.base.down_proj.shape[0]))
        # one split, not a slice for each: the backward of a slice fills a tensor of the whole size
        parts = hidden.index_select(0, rows).split([visit.count for visit in visits])
        compute = self._of_fixed_size if self.router.apart else self._expert
        out = torch.cat([compute(visit, x) for visit, x in zip(visits, parts)])
        out = out * weights.reshape(-1)[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out.index_select(0, back).view(*chosen.shape, -1).sum(dim=1).to(hidden.dtype)

    def _of_fixed_size(self, visit: _Visit, x: Tensor) -> Tensor:
        """As many rows for every expert as the pass has, so that it does not matter who came."""
        whole, plan = self.router.plan, visit.plan  # of one adapter: no stack
        assert not isinstance(whole, PerTokenAdapters) and not isinstance(plan, PerTokenAdapters)
        total = whole[-1].stop
        padded = F.pad(x, (0, 0, 0, total - visit.count))
        plan = [AdapterSpan(part.adapter, 0, total) for part in plan]
        return self._expert(visit._replace(plan=plan), padded)[: visit.count]

    def _expert(self, visit: _Visit, x: Tensor) -> Tensor:
        expert, plan, path = visit.expert, visit.plan, f"{self.path}.{visit.expert}"
        both = self._product("gate_up_proj", expert, x)
        if self.base.is_concatenated:
            gate, up = both.chunk(2, dim=-1)
        else:
            gate, up = both.unflatten(-1, (-1, 2)).unbind(-1)
        gate = add_lora(gate, x, f"{path}.gate_proj", plan)
        up = add_lora(up, x, f"{path}.up_proj", plan)
        inner = self.gated(gate, up)
        return add_lora(self._product("down_proj", expert, inner), inner, f"{path}.down_proj", plan)

    def _product(self, name: str, expert: int, x: Tensor) -> Tensor:
        weight = getattr(self.base, name)[expert]
        bias = getattr(self.base, f"{name}_bias")[expert] if self.base.has_bias else None
        return F.linear(x, weight.t() if self.base.is_transposed else weight, bias)


def _product_of(base: StackedExperts, path: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The product of gate and up, both [T, I]."""
    if isinstance(base, ClampedSwish) and base.limit is not None:
        return partial(_clamped_swish, base.limit, base.alpha)
    if isinstance(base, Activated):
        return partial(_activated, base.act_fn)
    raise ConfigurationError(_strange(base, path))


def _activated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


def _clamped_swish(limit: float, slope: float, gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss: both are clamped, swish has a slope of its own, and up is counted from -1."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * slope) * (up + 1)


def _strange(module: StackedExperts | torch.nn.Module, path: str) -> str:
    return f"{type(module).__name__} at {path!r} holds experts that the engine does not compute"


def install(model: torch.nn.Module, router: Router) -> dict[str, tuple[int, int]]:
    """Replace the model's expert layers; return path -> (out, in) of every expert's projections."""
    shapes = {}
    for path, module in list(model.named_modules()):
        if isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
            if not isinstance(module, StackedExperts):
                raise ConfigurationError(_strange(module, path))
            parent, name = path.rsplit(".", 1)
            experts = LoraExperts(module, path, router)
            setattr(model.get_submodule(parent), name, experts)
            shapes.update(experts.shapes)
    return shapes


class _Visit(NamedTuple):
    """The rows that chose one expert, as many as `count`; the plan counts them from 0."""

    expert: int
    count: int
    plan: AdapterPlan


def _visits(plan: AdapterPlan, experts: Tensor, rows: Tensor, count: int) -> Iterator[_Visit]:
    """The visits to each expert that is chosen. One device synchronisation for the layer.

    `experts` and `rows` (of the pass) of all visits, sorted by both: the rows of an adapter lie
    together within an expert.
    """
    if isinstance(plan, PerTokenAdapters):
        start = 0
        for expert, total in enumerate(torch.bincount(experts, minlength=count).tolist()):
            if total:
                owners = plan.owners[rows[start : start + total]]
                yield _Visit(expert, total, PerTokenAdapters(plan.stack, owners))
                start += total
        return
    keys = experts
    if len(plan) > 1:
        stops = torch.tensor([part.stop for part in plan], device=rows.device)
        keys = experts * len(plan) + torch.searchsorted(stops, rows, right=True)
    table = torch.bincount(keys, minlength=count * len(plan)).view(count, len(plan)).tolist()
    for expert, counts in enumerate(table):
        stops = [0, *accumulate(counts)]
        if stops[-1]:
            parts = [
                AdapterSpan(part.adapter, start, stop)
                for part, start, stop in zip(plan, stops, stops[1:])
                if start < stop
            ]
            yield _Visit(expert, stops[-1], parts)
