"""The reinforcement-learning loop: collect rollouts, compute advantages, train. Synchronous,
asynchronous and streaming modes are one loop.

    async with RolloutQueue(...) as queue:
        for step in range(journal.start_step, total_steps):
            queue.publish(sampling_client, step)   start the groups of this step (and max_lag more)
            run the evaluators that are due, on the weights before this step
            for each chunk of groups, as soon as its rollouts are finished:
                signals write advantages -> forward_backward
            optim_step, new sampling client, checkpoint if due -> one row of metrics.jsonl
        evaluators on the final weights, final checkpoint

max_lag=0 is synchronous. With max_lag=k, rollouts continue during training, with weights that are
at most k steps old. num_minibatches > 1 trains on a part of the batch while the rest is still being
collected. num_substeps > 1 takes several optimizer steps per batch. Metrics, evaluations and
checkpoints are the same in every mode.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from tinker_cookbook import checkpoint_utils, models
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.rl.config import (
    AsyncConfig,
    Config,
    KLReferenceConfig,
    StreamMinibatchConfig,
    check_batch,
    check_kl_reference,
    check_rl_keys,
    check_signals,
    startup_lines,
    with_alias_keys,
    with_located_kl_reference,
)
from tinker_cookbook.rl.defaults import RL_DEFAULTS, Groups
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator
from tinker_cookbook.rl.rollouts.group import set_rollout_executor
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.rollout_queue import RolloutQueue
from tinker_cookbook.rl.signals import GroupReward, ReferenceKL, Signal
from tinker_cookbook.rl.temperature import check_temperature, loss_settings, temperature_lines
from tinker_cookbook.rl.training_step import PolicyTrainer
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.service import check_loss, connect_run
from tinker_cookbook.service.api import ServiceClient
from tinker_cookbook.training.evaluations import Evaluations
from tinker_cookbook.training.evaluators import Evaluator
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.resolve import Resolved, resolve_defaults
from tinker_cookbook.utils.loop_watch import LoopWatch

MakeSignals = Callable[[ServiceClient], Awaitable[list[Signal]]]

__all__ = ["AsyncConfig", "Config", "KLReferenceConfig", "StreamMinibatchConfig", "main"]

HEADLINES = {
    "teacher_kl": "teacher KL",
    "env/all/reward/total": "reward",
    "env/all/by_group/frac_mixed": "mixed groups",
    "env/all/ac_tokens_per_turn": "reply tokens",
    "optim/entropy": "entropy",
    "test/env/all/reward/total": "test reward",
    "test/env/all/correct": "test correct",
    "test_greedy/env/all/correct": "test greedy",
}


async def main(
    config: Config, rollout_executor: Executor | None = None, recipe: str = "rl"
) -> None:
    """Train. `recipe` names the run's directory if log_path is not set."""
    set_rollout_executor(rollout_executor)
    check_kl_reference(config)  # before resolve_defaults looks for load_checkpoint_path
    await run(resolve_defaults(config, RL_DEFAULTS), recipe)


def check_config(config: Config) -> None:
    """Raise ConfigurationError for settings that contradict each other or have no effect."""
    config = with_alias_keys(config)
    check_signals(config)
    check_rl_keys(config)
    check_temperature(config)
    if config.base_url is None:  # a remote service may support other losses
        check_loss(config.loss_fn, loss_settings(config))


async def run(
    resolved: Resolved[Config, Groups], recipe: str, make_signals: MakeSignals | None = None
) -> Path:
    """Train with a config that a recipe has resolved (`problem_config.resolve_problem_config`);
    return the run's directory.

    make_signals: makes the signals of the objective; `config.signals` are added to them (None: the
    reward, and the KL penalty if the config has one).
    """
    asked = resolved.config
    config = with_located_kl_reference(with_alias_keys(asked))
    resolved = replace(resolved, config=config)
    if make_signals is None:
        check_kl_reference(config)
    check_config(config)
    # before the data is built, which may connect to load a judge
    service = connect_run(config.base_url, config.engine)
    train, test = await config.dataset_builder()
    total_steps = len(train) if config.max_steps is None else min(len(train), config.max_steps)
    if total_steps < 1:
        raise DataValidationError("the training data set has no batches")
    num_groups = len(train.get_batch(0))
    check_batch(config, num_groups, asked)
    progress = RolloutProgress()
    with (
        Journal(
            config,
            recipe=recipe,
            total_steps=total_steps,
            progress="rl",
            headlines=HEADLINES,
            rest_client=service.create_rest_client(),
        ) as journal,
        LoopWatch(progress.summary, journal.log_line),
    ):
        if chosen := resolved.line():
            journal.log_line(chosen)
        client = await checkpoint_utils.start_training_client(
            service, config, journal.resume, {"recipe": recipe}, log_line=journal.log_line
        )
        # after the policy's client, whose model decides the number of CPU threads
        make_signals = make_signals or functools.partial(_reward_signals, resolved)
        signals = [*await make_signals(service), *config.signals]
        lines = startup_lines(resolved, total_steps, num_groups, signals)
        for line in [*lines, *temperature_lines(config)]:
            journal.log_line(line)
        evaluators = [build() for build in config.evaluator_builders]
        if test is not None:
            evaluators = [*_test_evaluators(resolved, test, progress), *evaluators]
        infrequent = [build() for build in config.infrequent_evaluator_builders]
        evaluations = Evaluations(
            [(config.eval_every, evaluators), (config.infrequent_eval_every, infrequent)], journal
        )
        trainer = PolicyTrainer(resolved, client, signals, journal, total_steps, progress)
        sampling_client = await client.save_weights_and_get_sampling_client()
        queue = RolloutQueue(
            train.get_batch,
            trainer.run_group,
            steps=range(journal.start_step, total_steps),
            max_lag=config.max_lag,
            workers=config.groups_at_a_time,
            on_wait=trainer.log_waiting,
        )
        async with trainer, queue:
            for step in range(journal.start_step, total_steps):
                # before the evaluations, so that the step's rollouts run at the same time
                queue.publish(sampling_client, step)
                with journal.step(step) as row:
                    row.update(await trainer.evaluate(evaluations, sampling_client, step))
                    trained = await trainer.step(queue, step, sampling_client)
                    sampling_client = trained.sampling_client
                    await trainer.log_step(trained, step, row)
                # after the step's row is written, which then shows the mismatch
                trainer.check_logprob_gap(trained.stats.same_weights_gap, step)
                await journal.finish(trained.save)
        final = await trainer.evaluate(evaluations, sampling_client, None)
        if final:
            with journal.step(total_steps) as row:
                row.update(final)
        await trainer.finish_transcript()
        save = journal.submit_save(client, total_steps, final=True)
        await journal.finish(save)
    return journal.log_path


async def _reward_signals(
    resolved: Resolved[Config, Groups], service: ServiceClient
) -> list[Signal]:
    config = resolved.config
    signals: list[Signal] = [GroupReward(config.advantage, resolved.sizes.max_tokens)]
    if config.kl_penalty_coef:
        reference = config.kl_reference_config or KLReferenceConfig(base_model=config.model_name)
        client = await service.create_sampling_client(
            model_path=reference.load_checkpoint_path, base_model=reference.base_model
        )
        signals.append(
            ReferenceKL(
                client,
                config.kl_penalty_coef,
                config.kl_discount_factor,
                temperature=config.temperature,
            )
        )
    return signals


def _test_evaluators(
    resolved: Resolved[Config, Groups], test: RLDataset, progress: RolloutProgress
) -> list[Evaluator]:
    """Evaluators of the held-out problems: at the training temperature and, if eval_greedy is set,
    with greedy decoding."""
    config = resolved.config
    temperatures = {"test": config.temperature} | (
        {"test_greedy": 0.0} if config.eval_greedy else {}
    )
    return [
        RLTestSetEvaluator(
            test,
            resolved.sizes.max_tokens,
            name=name,
            temperature=temperature,
            context_window=models.context_length(config.model_name),
            limits=config.limits,
            strategy=config.rollout_strategy,
            groups_at_a_time=config.groups_at_a_time,
            progress=progress,
        )
        for name, temperature in temperatures.items()
    ]
