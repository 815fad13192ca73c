"""Helpers for tests of the engine: calls on its thread, trainers and batches, and reference models
in transformers and peft."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from tinker_cookbook.engine.attention import PackedPlan
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.checkpoints import write_state
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import Adapter, AdapterSpan, LoraSpec
from tinker_cookbook.engine.losses import LOSSES
from tinker_cookbook.engine.packing import consecutive_segments, token_positions
from tinker_cookbook.engine.requests import (
    BaseWeights,
    Request,
    Sample,
    SampleRequest,
    SampleResult,
    TrainSequence,
)
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.families import FAMILIES

T = TypeVar("T")
_numbers = itertools.count()


@dataclass(frozen=True)
class Call(Request[T]):
    function: Callable[[], T]
    place: str

    @property
    def lane(self) -> str:
        return self.place


def call(engine: Engine, function: Callable[[], T], lane: str | None = None) -> Future[T]:
    """Call a function on the engine's thread; `lane`: after the requests of that one."""
    engine.worker.handlers[Call] = lambda request: request.function()
    return engine.submit(Call(function, lane or f"call {next(_numbers)}"))


def sampled(engine: Engine, path: str, request: SampleRequest) -> Future[SampleResult]:
    """Samples from a base model alone."""
    return engine.submit(Sample(BaseWeights(path, f"base {next(_numbers)}"), request))


TOLERANCE = 1e-5


VOCAB = 307


def make_rows(seed: int = 0, lengths: tuple[int, ...] = (7, 40, 1, 23, 23)) -> list[TrainSequence]:
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        tokens = rng.integers(0, VOCAB, length + 1)
        weights = rng.normal(size=length).astype(np.float32) / 50  # any sign
        weights[: length // 3] = 0
        rows.append(TrainSequence(tokens[:-1], tokens[1:], {"weights": weights}))
    return rows


def make_trainer(path: str, spec: LoraSpec, device: str = "cpu", **keys: Any) -> AdapterTrainer:
    config = EngineConfig(device=device, dtype="float32", **keys)
    trainer = AdapterTrainer(BaseModel(path, config), spec)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # B is zero at birth; then A would have no gradient
        for name, tensor in trainer.adapter.master.items():
            if name.endswith("lora_B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    trainer.adapter.refresh()
    return trainer


def on_cpu(tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Gradients or masters, to be compared with what a reference computed there."""
    assert tensors is not None
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


class PeftReference:
    """The same adapter in transformers + peft, one unpadded sequence at a time."""

    def __init__(self, trainer: AdapterTrainer, directory: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        write_state(trainer, trainer.base.path, directory)
        model = AutoModelForCausalLM.from_pretrained(
            trainer.base.path, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = PeftModel.from_pretrained(model, str(directory), is_trainable=True)
        self.parameters = {
            name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def logprobs(self, row: TrainSequence) -> torch.Tensor:
        logits = self.model(torch.from_numpy(row.tokens)[None]).logits[0]
        targets = torch.from_numpy(row.targets)
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def loss(self, rows: list[TrainSequence]) -> tuple[list[np.ndarray], torch.Tensor]:
        logprobs = [self.logprobs(row) for row in rows]
        weights = [torch.from_numpy(row.inputs["weights"]) for row in rows]
        total = torch.stack([-(w * lp).sum() for w, lp in zip(weights, logprobs)]).sum()
        return [lp.detach().numpy() for lp in logprobs], total


def with_inputs(rows: list[TrainSequence], name: str) -> list[TrainSequence]:
    """The rows with the inputs of a loss; ratios on both sides of every bound."""
    rng = np.random.default_rng(8)
    out = []
    for row in rows:
        inputs = {}
        for key in LOSSES[name].inputs:
            values = {
                "logprobs": -rng.exponential(5.0, row.length),
                "advantages": rng.normal(size=row.length) / 50,
                "sequence_ratio_mask": rng.random(row.length) < 0.7,
                "weights": rng.normal(size=row.length) / 50,
            }
            inputs[key] = values[key].astype(np.float32)
        out.append(dataclasses.replace(row, inputs=inputs))
    return out


def sample_all(
    sampler: TorchSampler, requests: list[SampleRequest], adapter: Adapter | None = None
) -> list[SampleResult]:
    results: list[SampleResult | Exception | None] = [None] * len(requests)
    for index, request in enumerate(requests):
        sampler.take(request, adapter, lambda out, i=index: results.__setitem__(i, out))
    while sampler.busy:
        sampler.step()
        assert sampler.admission.tokens <= sampler.limits.kv_tokens
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results  # type: ignore[return-value]


def trainer_logprobs(trainer: AdapterTrainer, prompt: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Logprobs of the sampled tokens by the training forward."""
    text = np.concatenate([prompt, tokens]).astype(np.int64)
    row = TrainSequence(text[:-1], text[1:], {"weights": np.ones(len(text) - 1, np.float32)})
    return trainer.forward([row], "cross_entropy", None).logprobs[0][len(prompt) - 1 :]


# Models of conftest.py and the family that each stands for: a new family has its line here. The
# plain ones are held against peft in trainer_test.py and others.
PLAIN = {"tiny_qwen3": "qwen3", "tiny_llama": "llama3"}


TINY = {
    "tiny_qwen3_sliding": "qwen3",
    "tiny_qwen3_moe": "qwen3_moe",
    "tiny_deepseek": "deepseek_v3",
    "tiny_gpt_oss": "gpt_oss",
}


MOE = [tiny for tiny, family in TINY.items() if FAMILIES[family].experts]


def transformers_model(path: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )


class MergedReference:
    """transformers' model with the adapter of a trainer added to its weights, one row at a time."""

    def __init__(self, trainer: AdapterTrainer, dtype: torch.dtype = torch.float32) -> None:
        self.model = transformers_model(trainer.base.path).to(dtype)
        self.scale = trainer.adapter.spec.scale
        self.parameters = {
            name: tensor.to(dtype, copy=True).requires_grad_()
            for name, tensor in on_cpu(trainer.adapter.master).items()
        }

    def merged(self) -> dict[str, torch.Tensor]:
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        deltas = {
            name.removesuffix(".lora_A"): self.scale
            * (self.parameters[name.replace("lora_A", "lora_B")] @ a)
            for name, a in self.parameters.items()
            if name.endswith("lora_A")
        }
        for path, delta in deltas.items():
            if ".experts." not in path:
                weights[f"{path}.weight"] = weights[f"{path}.weight"] + delta
        for path in {path.split(".experts.")[0] + ".experts" for path in deltas if ".exp" in path}:
            up, down = f"{path}.gate_up_proj", f"{path}.down_proj"
            fused, outs = [], []
            for expert in range(len(weights[down])):
                gate_delta, up_delta, down_delta = (
                    deltas[f"{path}.{expert}.{name}"]
                    for name in ("gate_proj", "up_proj", "down_proj")
                )
                if f"{up}_bias" in weights:  # gpt-oss: [in, out], gate and up in turn
                    fused.append(torch.stack([gate_delta, up_delta], dim=1).flatten(0, 1).t())
                    outs.append(down_delta.t())
                else:
                    fused.append(torch.cat([gate_delta, up_delta]))
                    outs.append(down_delta)
            weights[up] = weights[up] + torch.stack(fused)
            weights[down] = weights[down] + torch.stack(outs)
        return weights

    def logprobs(self, row: TrainSequence) -> torch.Tensor:
        tokens = torch.from_numpy(row.tokens)[None]
        out = torch.func.functional_call(self.model, self.merged(), (tokens,))
        return out.logits[0].log_softmax(-1).gather(1, torch.from_numpy(row.targets)[:, None])[:, 0]


def plain_logprobs(base: BaseModel, rows: list[TrainSequence]) -> list[torch.Tensor]:
    """All rows in one pass through the base model alone; the result is on the CPU."""
    tokens = torch.from_numpy(np.concatenate([row.tokens for row in rows])).to(base.device)
    segments = consecutive_segments([row.length for row in rows])
    positions = torch.from_numpy(token_positions(segments)).to(base.device)
    adapters = [AdapterSpan(None, 0, len(tokens))]
    hidden = base.hidden(tokens, positions, PackedPlan(segments), adapters)
    targets = torch.from_numpy(np.concatenate([row.targets for row in rows])).to(base.device)
    logprobs = base.head.logprobs(hidden, targets, None).cpu()
    return list(logprobs.split([row.length for row in rows]))


def largest(gaps: dict[str, torch.Tensor], scale: dict[str, torch.Tensor]) -> float:
    """The largest difference in units of the largest gradient."""
    top = max(grad.abs().max().item() for grad in scale.values())
    return max(gap.abs().max().item() for gap in gaps.values()) / top


def row_of(tokens: np.ndarray) -> TrainSequence:
    return TrainSequence(tokens[:-1], tokens[1:], {"weights": np.arange(len(tokens) - 1.0)})


def group(
    rng: np.random.Generator, prompt: np.ndarray, lengths: tuple[int, ...]
) -> list[TrainSequence]:
    return [row_of(np.concatenate([prompt, rng.integers(0, VOCAB, n)])) for n in lengths]


def batch_with_everything() -> list[TrainSequence]:
    """Two groups, a conversation in growing steps with two endings, duplicates, loners."""
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, VOCAB, 40), rng.integers(0, VOCAB, 25)
    rows = group(rng, one, (9, 3, 14, 3)) + group(rng, two, (20, 20, 5))
    talk = rng.integers(0, VOCAB, 90)
    rows += [row_of(talk[:n]) for n in (30, 55, 90)]
    rows += group(rng, talk[:60], (10, 12))
    rows += [rows[0], row_of(rng.integers(0, VOCAB, 33)), row_of(rng.integers(0, VOCAB, 2))]
    return [rows[i] for i in rng.permutation(len(rows))]


def gradients(trainer: AdapterTrainer) -> dict[str, torch.Tensor]:
    grads, trainer.grads = trainer.grads, None
    return on_cpu(grads)
