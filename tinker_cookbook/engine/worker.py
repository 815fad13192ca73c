"""The worker executes requests one at a time; it owns the base models, runs and samplers.

It runs on the calling thread and starts none. Results depend only on the requests and their order,
so a recorded sequence of requests can be replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from tinker_cookbook.engine import adapter_files, checkpoints, passes
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.checkpoints import ComputedWith
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.passes import Work
from tinker_cookbook.engine.requests import (
    Cancelled,
    CheckpointWeights,
    CreateRun,
    DropRun,
    DropWeights,
    Forward,
    ForwardBackward,
    ForwardBackwardCustom,
    Load,
    LoadWeights,
    OnDone,
    OnToken,
    OptimStep,
    Request,
    RunFacts,
    RunRequest,
    Sample,
    Save,
    Snapshot,
    Train,
    TrainResult,
)
from tinker_cookbook.engine.sampled_weights import SampledWeights
from tinker_cookbook.engine.samplers import SAMPLERS, Sampler
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.exceptions import OutOfMemoryError, TrainingError
from tinker_cookbook.utils.cpu_threads import ThreadCount
from tinker_cookbook.utils.error_text import first_line

R = TypeVar("R")
logger = logging.getLogger(__name__)
PASSES: dict[type[Train], Callable[[Sequence[Work]], list[TrainResult]]] = {
    Forward: passes.forward,
    ForwardBackward: passes.forward_backward,
}


class Worker:
    """Base models by path, each loaded once; runs by id; one sampler per base model.

    `handlers` holds the requests that are answered at once. `Train` requests are not among them,
    as several of them share a pass, nor is `Sample`, which is answered later.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.thread_count = ThreadCount(config.num_threads, fixed=config.deterministic)
        self.runs: dict[str, AdapterTrainer] = {}
        self.samplers: dict[str, Sampler] = {}
        self.sampled = SampledWeights(self.base_model)
        self._bases: dict[str, BaseModel] = {}
        self.handlers = {
            CreateRun: self._create,
            DropRun: self._drop,
            ForwardBackwardCustom: lambda request: self._trainer(request).forward_backward_custom(
                request.sequences, request.function
            ),
            OptimStep: lambda request: self._trainer(request).optim_step(request.adam),
            Save: self._save,
            Load: lambda request: self._load(
                self._trainer(request), request.weights, request.optimizer
            ),
            Snapshot: lambda request: self.sampled.add_snapshot(
                request.weights, self._trainer(request).adapter
            ),
            LoadWeights: lambda request: self._sampler(request.weights.model).load(request.weights),
            DropWeights: lambda request: self.sampled.drop(request.id),
        }

    def perform(self, request: Request[R]) -> R:
        """Execute a request that `handlers` lists."""
        return self.handlers[type(request)](request)

    def compute(self, kind: type[Train], works: Sequence[Work]) -> list[TrainResult]:
        """Compute requests of different runs, all of one kind and base model, in shared passes."""
        return PASSES[kind](works)

    def prepare(self, request: Train) -> Work:
        """Check a training request; raises if it can never be computed."""
        return self._trainer(request).prepare_work(
            request.sequences, request.loss_fn, request.loss_config
        )

    def sample(
        self,
        request: Sample,
        on_done: OnDone,
        cancelled: Cancelled,
        on_token: OnToken | None = None,
    ) -> None:
        """Queue the request with its model's sampler; see `samplers.Sampler.add`."""
        self._sampler(request.weights.model).add(request, on_done, cancelled, on_token)

    def base_model(self, path: str) -> BaseModel:
        """Return the base model with this name or path, loading it on first use."""
        if path not in self._bases:
            base = self._bases[path] = BaseModel(path, self.config)
            if base.device.type == "cpu":
                # The number of threads decides the last bits of sums, so it is settled once, by the
                # first model.
                self.thread_count.settle(base.num_parameters)
        return self._bases[path]

    @property
    def tokens_per_pass(self) -> int | None:
        """The smallest budget of the loaded models; None without any. Called on any thread."""
        bases = list(self._bases.values())  # a copy, as the engine thread may be adding one
        return min((base.tokens_per_pass for base in bases), default=None)

    def offload_idle_runs(self) -> None:
        """Offload the least recently used runs if adapters exceed their share of the memory."""
        for base in self._bases.values():
            try:
                base.offloader.make_room()
            except Exception as error:  # e.g. a full disk: they stay in memory, and all goes on
                logger.warning("idle adapters could not be offloaded: %s", error)

    def explain_out_of_memory(self, error: BaseException) -> BaseException:
        """Make an out-of-memory error name the keys to lower; return any other error as it is."""
        text = str(error)
        # The CPU allocator of torch raises a plain RuntimeError.
        out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in text
        )
        if not out_of_memory or isinstance(error, OutOfMemoryError):
            return error
        # Whatever comes next should not fail for the same reason.
        for sampler in self.samplers.values():
            sampler.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        detail = first_line(text) if text.strip() else ""
        bases = list(self._bases.values())
        limits = [base.limits for base in bases]
        if not limits:
            return OutOfMemoryError(
                f"out of memory while loading the model on {self.config.device}: use a smaller"
                f" model or engine.dtype=bfloat16; {detail}"
            )
        tokens = min(limit.tokens_per_pass for limit in limits)
        kv_tokens = min(limit.kv_tokens for limit in limits)
        return OutOfMemoryError(
            f"out of memory on {bases[0].device}: set engine.tokens_per_pass={tokens // 2} (now"
            f" {tokens}) or train on shorter sequences; for sampling, set engine.kv_tokens="
            f"{kv_tokens // 2} (now {kv_tokens}); {detail}"
        )

    # -- handlers that take more than a line

    def _trainer(self, request: RunRequest[R]) -> AdapterTrainer:
        if request.run not in self.runs:
            raise TrainingError(f"run {request.run} does not exist")
        return self.runs[request.run]

    def _sampler(self, model: str) -> Sampler:
        if model not in self.samplers:
            factory = SAMPLERS[self.config.sampler]
            self.samplers[model] = factory(model, self.config, self.sampled)
        return self.samplers[model]

    def _create(self, request: CreateRun) -> RunFacts:
        if request.run in self.runs:
            raise TrainingError(f"run {request.run} exists already; use another id")
        base = self.base_model(request.model)
        spec = request.spec
        if request.weights is not None:
            spec = adapter_files.open_files(request.weights).spec
        if spec is None:
            raise TrainingError(f"run {request.run}: neither a spec nor weights were given")
        trainer = AdapterTrainer(base, spec)
        if request.weights is not None:
            self._load(trainer, request.weights, request.optimizer)
        self.runs[request.run] = trainer
        threads = self.thread_count.threads
        lines = [f"{_precision(base)}, passes of up to {base.tokens_per_pass:,} tokens"]
        if threads is not None:
            lines.insert(0, threads.line())
        return RunFacts(base.facts, spec, lines)

    def _load(self, trainer: AdapterTrainer, weights: CheckpointWeights, optimizer: bool) -> None:
        """Load a checkpoint's weights; optimizer: its training state as well, to resume exactly."""
        files = adapter_files.open_files(weights)
        files.read(trainer.adapter, trainer.base)
        if not optimizer:
            trainer.reset()
            return
        files.read_optimizer(trainer)
        computed = files.computed_with
        # Sums split among another number of threads differ in the last bits.
        if computed.num_threads is not None and trainer.base.device.type == "cpu":
            self.thread_count.keep(computed.num_threads)
        _warn_of_changes(computed, checkpoints.computed_with(trainer.base))

    def _drop(self, request: DropRun) -> None:
        self.runs.pop(request.run, None)

    def _save(self, request: Save) -> None:
        trainer, directory = self._trainer(request), Path(request.directory)
        if request.optimizer:
            checkpoints.write_state(trainer, request.base_model, directory)
        else:
            checkpoints.write_adapter(trainer.adapter, request.base_model, directory)


def _precision(base: BaseModel) -> str:
    settings = checkpoints.computed_with(base)
    wider: list[str] = []
    if base.dtype != torch.float32:
        wider += ["residual stream"] if settings.float32_residual else []
        wider += [f"logits of {settings.exact_logits} tokens"] if settings.exact_logits else []
    return f"base model in {settings.dtype}" + (f" (float32: {', '.join(wider)})" if wider else "")


def _warn_of_changes(saved: ComputedWith, now: ComputedWith) -> None:
    """Log the settings that make a resumed run's numbers differ from those before."""
    for key in ("dtype", "float32_residual", "exact_logits"):
        before, after = getattr(saved, key), getattr(now, key)
        if before not in (None, after):
            logger.warning(
                "this run was saved with engine.%s=%s and resumes with %s, which changes its"
                " numbers: set engine.%s=%s to resume as before",
                *(key, before, after, key, before),
            )
            return  # the others follow from the dtype
