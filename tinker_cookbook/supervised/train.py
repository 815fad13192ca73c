"""The supervised loop: batches in order, one step ahead, evaluated, saved and resumable.

    with Journal(...) as journal:
        for step in range(journal.start_step, total_steps):
            evaluators that are due, on the weights before this step
            forward_backward + optim_step (+ a save that is due), submitted
            the step before it, awaited -> one row of metrics.jsonl
        evaluators on the final weights, the final checkpoint

Everything is submitted in program order and the service keeps that order, so a checkpoint of N
steps holds exactly N steps although the loop runs ahead of what it awaits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import chz
import tinker

from tinker_cookbook import checkpoint_utils, models
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.journal import Journal
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.supervised import keys
from tinker_cookbook.supervised.common import compute_bpb, compute_mean_nll
from tinker_cookbook.supervised.datasets import epoch_seed
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator
from tinker_cookbook.supervised.types import (
    DataReport,
    Evaluator,
    EvaluatorBuilder,
    SamplingClientEvaluator,
    SupervisedDataset,
    SupervisedDatasetBuilder,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.lr_scheduling import LRSchedule, compute_schedule_lr_multiplier
from tinker_cookbook.utils.misc_utils import timed
from tinker_cookbook.utils.run_directory import LogDirBehavior

if TYPE_CHECKING:
    from tinker_cookbook.checkpoint_utils import PendingSave
    from tinker_cookbook.service.api import TrainingClient

# it changes how a run is computed, not what: a run may go on with another
FREE_KEYS = ("submit_ahead",)


@chz.chz
class Config:
    """Keys of the supervised loop. None: the value that suits the model, see `models.defaults`."""

    model_name: str = chz.field(
        default="nano", doc="base model: nano (bundled), a hub name, or a directory"
    )
    dataset_builder: SupervisedDatasetBuilder = chz.field(doc="what to train on")
    renderer_name: str | None = chz.field(
        default=None, doc="how messages become tokens (None: what suits model or checkpoint)"
    )
    load_checkpoint_path: str | None = chz.field(
        default=None, doc="tinker://... to start from its weights, with a fresh optimizer"
    )

    learning_rate: float | None = chz.field(default=None, doc="peak rate (None: by the model)")
    lr_schedule: LRSchedule = chz.field(default="linear", doc="how the rate falls, without warm-up")
    num_epochs: int = chz.field(default=1, doc="passes over the data")
    max_steps: int | None = chz.field(
        default=None, doc="optimizer steps at most (None: all epochs); the schedule ends with them"
    )
    lora_rank: int = chz.field(default=32, doc="rank of the adapter")
    train_attn: bool = chz.field(default=True, doc="adapter on the attention layers")
    train_mlp: bool = chz.field(default=True, doc="adapter on the MLP layers")
    train_unembed: bool = chz.field(default=True, doc="adapter on the unembedding")
    seed: int = chz.field(default=0, doc="seed of the adapter's start and of the data's order")
    adam_beta1: float = chz.field(default=0.9, doc="Adam: decay of the gradient's mean")
    adam_beta2: float = chz.field(default=0.95, doc="Adam: decay of its square")
    adam_eps: float = chz.field(default=1e-8, doc="Adam: added to the denominator")
    weight_decay: float = chz.field(default=0.0, doc="AdamW: decoupled decay")
    grad_clip_norm: float = chz.field(default=0.0, doc="bound on the gradient's norm (0: none)")

    evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list, doc="evaluations every eval_every steps"
    )
    infrequent_evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list, doc="evaluations every infrequent_eval_every steps"
    )
    eval_every: int = chz.field(default=10, doc="steps (0: only before and after training)")
    infrequent_eval_every: int = chz.field(default=100, doc="steps (0: as above)")
    save_every: int = chz.field(default=20, doc="steps between checkpoints (0: only the final one)")
    rolling_save_every: int = chz.field(
        default=0, doc="steps between checkpoints that replace each other (0: none)"
    )
    ttl_seconds: int | None = chz.field(
        default=604_800, doc="seconds that periodic checkpoints are kept (None: for good)"
    )
    submit_ahead: int = chz.field(default=1, doc="steps submitted ahead of the one awaited")

    log_path: str | None = chz.field(
        default=None, doc="directory of the run (None: one in the runs directory)"
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None, doc="for a directory that holds a run (None: resume it if it is this run)"
    )
    base_url: str | None = chz.field(default=None, doc="server to train on (None: in process)")
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig, doc="settings of the engine in process"
    )
    display: DisplayMode = chz.field(
        default="auto", doc="what is shown of each step (auto: live on a terminal, else plain)"
    )
    wandb_project: str | None = chz.field(default=None, doc="log to this wandb project")
    wandb_name: str | None = chz.field(default=None, doc="name of the wandb run")


@dataclass(frozen=True)
class _Submitted:
    """A step on its way."""

    step: int
    epoch: int
    batch: list[tinker.Datum]
    learning_rate: float
    evals: dict[str, float]
    forward_backward: Any
    optim_step: Any
    save: PendingSave | None


async def main(
    config: Config, recipe: str = "supervised", filled: Mapping[str, Any] | None = None
) -> None:
    """Train. `recipe` names the run's directory where log_path does not.

    filled: the keys that a recipe has filled in, checking the config, to be shown to the user
    (`chat_config.resolve`); None: both is done here.
    """
    if filled is None:
        config, filled = keys.fill(config, "sl")
        keys.check(config)
    train, test = config.dataset_builder()
    total_steps = len(train) * config.num_epochs
    if config.max_steps is not None:
        total_steps = min(total_steps, config.max_steps)
    if total_steps < 1:
        raise DataValidationError("the training data has no batch")
    service = connect(config.base_url, config.engine)
    with Journal(
        config,
        recipe=recipe,
        total_steps=total_steps,
        also_free=FREE_KEYS,
        rest_client=service.create_rest_client(),
    ) as journal:
        if filled:
            journal.say(models.filled_line(config.model_name, filled))
        journal.say(
            f"{total_steps} steps (batches per epoch: {len(train)}), learning_rate"
            f" {config.learning_rate:g} {config.lr_schedule}, LoRA rank {config.lora_rank}"
        )
        reports = [data.report for data in (train, test) if data is not None and data.report]
        _say(reports, journal)
        open_reports = [report for report in reports if not report.complete]
        client = await checkpoint_utils.start_training_client(
            service, config, journal.resume, {"recipe": recipe}
        )
        evaluations = _Evaluations(config, test, journal)
        schedule = _Steps(config, train, total_steps)
        ahead: deque[_Submitted] = deque()
        for step in range(journal.start_step, total_steps):
            evals = await evaluations.run(client, step)
            epoch, batch = schedule.batch(step)
            learning_rate = schedule.learning_rate(step)
            ahead.append(
                _Submitted(
                    step,
                    epoch,
                    batch,
                    learning_rate,
                    evals,
                    client.forward_backward(batch, "cross_entropy"),
                    client.optim_step(_adam(config, learning_rate)),
                    journal.submit_save(client, step + 1, epoch=epoch),
                )
            )
            while len(ahead) > config.submit_ahead:
                await _finish(ahead.popleft(), journal, config)
        while ahead:
            await _finish(ahead.popleft(), journal, config)
        final = await evaluations.run(client, None)
        if final:
            with journal.step(total_steps) as row:
                row.update(final)
        save = journal.submit_save(client, total_steps, final=True, epoch=config.num_epochs)
        await journal.finish(save)
        _say(open_reports, journal)


async def _finish(done: _Submitted, journal: Journal, config: Config) -> None:
    """Await a step and write its row; then record the checkpoint that was saved behind it."""
    with journal.step(done.step) as row:
        output = await done.forward_backward
        row.update(
            epoch=done.epoch,
            learning_rate=done.learning_rate,
            num_sequences=len(done.batch),
            num_tokens=sum(datum.model_input.length for datum in done.batch),
            **_nll_metrics(done.batch, output, config.model_name),
        )
        row.update((await done.optim_step).metrics or {})
        row.update(done.evals)
    await journal.finish(done.save)


def _nll_metrics(
    batch: Sequence[tinker.Datum], output: tinker.ForwardBackwardOutput, model_name: str
) -> dict[str, float]:
    """Of the weights before the step, from the logprobs that training itself computed.

    `train_mean_nll` is weighted as training is: with weights that sum to 1 per example, the mean
    over examples. `num_loss_tokens` counts trained tokens, whatever their weight.
    """
    logprobs = [each["logprobs"] for each in output.loss_fn_outputs]
    weights = [datum.loss_fn_inputs["weights"] for datum in batch]
    targets = [datum.loss_fn_inputs["target_tokens"] for datum in batch]
    return {
        "num_loss_tokens": sum(int((each.to_numpy() != 0).sum()) for each in weights),
        "train_mean_nll": compute_mean_nll(logprobs, weights),
        "train_mean_bpb": compute_bpb(logprobs, weights, targets, get_tokenizer(model_name)),
    }


def _adam(config: Config, learning_rate: float) -> tinker.AdamParams:
    return tinker.AdamParams(
        learning_rate=learning_rate,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm,
    )


class _Steps:
    """Batch and learning rate of each step, from the step's number alone."""

    def __init__(self, config: Config, train: SupervisedDataset, total_steps: int) -> None:
        self._config, self._train, self._total_steps = config, train, total_steps
        self._epoch: int | None = None

    def batch(self, step: int) -> tuple[int, list[tinker.Datum]]:
        epoch, index = divmod(step, len(self._train))
        if epoch != self._epoch:
            self._train.set_epoch(epoch_seed(self._config.seed, epoch))
            self._epoch = epoch
        return epoch, self._train.get_batch(index)

    def learning_rate(self, step: int) -> float:
        assert self._config.learning_rate is not None, "keys.fill has filled it"
        return self._config.learning_rate * compute_schedule_lr_multiplier(
            self._config.lr_schedule, step, self._total_steps
        )


class _Evaluations:
    """The evaluators of a run and when each is due. A test set is evaluated without being asked."""

    def __init__(self, config: Config, test: SupervisedDataset | None, journal: Journal) -> None:
        frequent = [build() for build in config.evaluator_builders]
        if test is not None:
            tokenizer = get_tokenizer(config.model_name)
            frequent.insert(0, NLLEvaluator.from_dataset(test, tokenizer=tokenizer))
        infrequent = [build() for build in config.infrequent_evaluator_builders]
        self._due = ((config.eval_every, frequent), (config.infrequent_eval_every, infrequent))
        # a finished run that goes on has lost the results of its final weights: N was its last row
        self._always = {0, journal.start_step} if journal.continued else {0}
        self._journal = journal

    async def run(self, client: TrainingClient, step: int | None) -> dict[str, float]:
        """Metrics of the evaluators due before `step`, with the seconds it took as `time/evals`;
        {} where none is. None: after the last step, all are."""
        due = [
            evaluator
            for every, evaluators in self._due
            for evaluator in evaluators
            if step is None or step in self._always or (every and step % every == 0)
        ]
        if not due:
            return {}
        # not the journal's own clock: its present row may belong to an earlier step
        seconds: dict[str, float] = {}
        with timed("evals", seconds):
            metrics = await run_evals(due, client)
        for evaluator in due:
            for line in evaluator.lines():
                self._journal.say(line)
        return {**metrics, **seconds}


async def run_evals(evaluators: Sequence[Evaluator], client: Any) -> dict[str, float]:
    """All metrics of the evaluators on the client's weights as they are after the calls so far.

    One snapshot serves all sampling evaluators, and is made only for them.
    """
    metrics: dict[str, float] = {}
    sampling_client = None
    for evaluator in evaluators:
        if isinstance(evaluator, SamplingClientEvaluator):
            if sampling_client is None:
                sampling_client = await client.save_weights_and_get_sampling_client()
            metrics.update(await evaluator(sampling_client))
        else:
            metrics.update(await evaluator(client))
    return metrics


def _say(reports: Sequence[DataReport], journal: Journal) -> None:
    """The accounts of data: at the start, and at the end of that which is rendered on demand."""
    for report in reports:
        for line in report.lines():
            journal.say(line)
