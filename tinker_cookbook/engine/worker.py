"""Carries out requests, one at a time, on the thread that calls: base models, runs and samplers.

What it does depends on the requests and their order alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from tinker_cookbook.engine import adapter_files, checkpoints, passes
from tinker_cookbook.engine.base_model import BaseModel
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
COMPUTE: dict[type[Train], Callable[[Sequence[Work]], list[TrainResult]]] = {
    Forward: passes.forward,
    ForwardBackward: passes.forward_backward,
}


class Worker:
    """Base models by path, each loaded once; runs by id; a sampler for each base model."""

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
            ForwardBackwardCustom: lambda request: self._run(request).forward_backward_custom(
                request.sequences, request.function
            ),
            OptimStep: lambda request: self._run(request).optim_step(request.adam),
            Save: self._save,
            Load: lambda request: self._fill(
                self._run(request), request.weights, request.optimizer
            ),
            Snapshot: lambda request: self.sampled.keep(
                request.weights, self._run(request).adapter
            ),
            LoadWeights: lambda request: self._sampler(request.weights.model).load(request.weights),
            DropWeights: lambda request: self.sampled.drop(request.id),
        }

    def perform(self, request: Request[R]) -> R:
        """Any request but `Sample`, which is answered later (`sample`), and those of training, of
        which several share passes (`work`, `compute`)."""
        return self.handlers[type(request)](request)

    def compute(self, kind: type[Train], works: Sequence[Work]) -> list[TrainResult]:
        """Works of different runs, all of one kind and on one base model, in shared passes."""
        return COMPUTE[kind](works)

    def work(self, request: Train) -> Work:
        """What a request's passes compute, checked."""
        return self._run(request).prepare_work(
            request.sequences, request.loss_fn, request.loss_config
        )

    def sample(
        self,
        request: Sample,
        on_done: OnDone,
        cancelled: Cancelled,
        on_token: OnToken | None = None,
    ) -> None:
        """Have a sampler take the request; see `samplers.Sampler.add`."""
        self._sampler(request.weights.model).add(request, on_done, cancelled, on_token)

    def base_model(self, path: str) -> BaseModel:
        """The base model, loaded on first use."""
        if path not in self._bases:
            base = self._bases[path] = BaseModel(path, self.config)
            if base.device.type == "cpu":
                self.thread_count.settle(base.num_parameters)
        return self._bases[path]

    @property
    def tokens_per_pass(self) -> int | None:
        """The least of the models that are loaded; None before there is one. On any thread."""
        bases = list(self._bases.values())  # at once, for the engine's thread may add one
        return min((base.tokens_per_pass for base in bases), default=None)

    def make_room(self) -> None:
        """Park the runs that are idle for longest where adapters hold more than they may."""
        for base in self._bases.values():
            try:
                base.offloader.make_room()
            except Exception as error:  # a full disk, say: they stay where they are
                logger.warning("idle adapters cannot be offloaded: %s", error)

    def explain(self, error: BaseException) -> BaseException:
        """An out-of-memory error names the keys to lower; anything else stays as it is."""
        text = str(error)
        starved = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in text
        )
        if not starved or isinstance(error, OutOfMemoryError):
            return error
        for sampler in self.samplers.values():
            sampler.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        detail = first_line(text) if text.strip() else ""
        bases = list(self._bases.values())
        limits = [base.limits for base in bases]
        if not limits:
            return OutOfMemoryError(
                f"out of memory while the model was loaded on {self.config.device}: take a smaller"
                f" one or engine.dtype=bfloat16; {detail}"
            )
        tokens = min(each.tokens_per_pass for each in limits)
        keys = min(each.kv_tokens for each in limits)
        return OutOfMemoryError(
            f"out of memory on {bases[0].device}: set engine.tokens_per_pass={tokens // 2} (now"
            f" {tokens}) or train on shorter rows, engine.kv_tokens={keys // 2} (now"
            f" {keys}) for sampling; {detail}"
        )

    # -- one for each kind of request that takes more than a line

    def _run(self, request: RunRequest[R]) -> AdapterTrainer:
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
            raise TrainingError(f"run {request.run} exists; give another id")
        base = self.base_model(request.model)
        spec = request.spec
        if request.weights is not None:
            spec = adapter_files.open_files(request.weights).spec
        if spec is None:
            raise TrainingError(f"run {request.run}: neither a spec nor weights were given")
        trainer = AdapterTrainer(base, spec)
        if request.weights is not None:
            self._fill(trainer, request.weights, request.optimizer)
        self.runs[request.run] = trainer
        threads = self.thread_count.threads
        return RunFacts(base.facts, spec, None if threads is None else threads.line())

    def _fill(self, trainer: AdapterTrainer, weights: CheckpointWeights, optimizer: bool) -> None:
        """optimizer: everything is as when it was saved, the last bits of what follows included."""
        files = adapter_files.open_files(weights)
        files.read(trainer.adapter, trainer.base)
        if not optimizer:
            trainer.reset()
            return
        files.read_optimizer(trainer)
        if files.num_threads is not None and trainer.base.device.type == "cpu":
            self.thread_count.keep(files.num_threads)

    def _drop(self, request: DropRun) -> None:
        self.runs.pop(request.run, None)

    def _save(self, request: Save) -> None:
        trainer, directory = self._run(request), Path(request.directory)
        if request.optimizer:
            checkpoints.write_state(trainer, request.base_model, directory)
        else:
            checkpoints.write_adapter(trainer.adapter, request.base_model, directory)
