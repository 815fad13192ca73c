"""Evaluation schedule of a run: which evaluators are due before a step, and running them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.evaluators import Evaluator, SamplingClientEvaluator
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.utils.misc_utils import timed

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient, TrainingClient


class Evaluations:
    """The evaluators of a run and when each is due.

    Every evaluator is due before the first step and after the last one.
    """

    def __init__(self, due: Sequence[tuple[int, Sequence[Evaluator]]], journal: Journal) -> None:
        """due: pairs of an interval in steps (0: only before and after training) and the evaluators
        that run at this interval."""
        for evaluator in (evaluator for _, evaluators in due for evaluator in evaluators):
            if not callable(evaluator):
                raise ConfigurationError(
                    f"evaluator_builders: {type(evaluator).__name__} is not an evaluator;"
                    " expected a SamplingClientEvaluator or a TrainingClientEvaluator"
                )
        self._due = due
        # A finished run of N steps has the evaluation of its final weights in row N. Continuing it
        # drops that row, because row N then belongs to a training step: evaluate again at step N.
        self._always = {0, journal.start_step} if journal.continued else {0}
        self._journal = journal
        # duration of the last evaluation, by the groups of evaluators that ran
        self._seconds: dict[tuple[int, ...], float] = {}

    def due(self, step: int | None) -> list[Evaluator]:
        """The evaluators due before `step`. None: after the last step, all are."""
        return [evaluator for index in self._groups_due(step) for evaluator in self._due[index][1]]

    def _groups_due(self, step: int | None) -> tuple[int, ...]:
        return tuple(
            index
            for index, (every, evaluators) in enumerate(self._due)
            if evaluators
            and (step is None or step in self._always or (every and step % every == 0))
        )

    @cached_property
    def _steps(self) -> dict[tuple[int, ...], list[int]]:
        """The steps at which each combination of groups is due, including the end of the run."""
        steps: dict[tuple[int, ...], list[int]] = defaultdict(list)
        total = self._journal.total_steps
        if total is not None:
            for step in range(total):
                steps[self._groups_due(step)].append(step)
            steps[self._groups_due(None)].append(total)
        return steps

    def _seconds_after(self, step: int) -> float:
        """Estimated seconds of all evaluations after `step`, for the ETA.

        A combination of groups that has not run yet is estimated at the mean of those that have.
        """
        known = self._seconds
        mean = sum(known.values()) / len(known) if known else 0.0
        return sum(
            known.get(groups, mean) * (len(steps) - bisect_right(steps, step))
            for groups, steps in self._steps.items()
            if groups
        )

    async def run(
        self,
        client: TrainingClient,
        step: int | None,
        sampling_client: SamplingClient | None = None,
    ) -> dict[str, float]:
        """Metrics of the evaluators due before `step`, and `time/evals` in seconds; {} if none is.

        The clients: see `run_evals`. A request to stop the run cancels the evaluation.
        """
        due = self.due(step)
        if not due:
            return {}
        # not journal.timed: the row that it would add the seconds to may belong to an earlier step
        seconds: dict[str, float] = {}
        with self._journal.evaluating(step, self._seconds_after), timed("evals", seconds):
            metrics = await run_evals(due, client, sampling_client)
        self._seconds[self._groups_due(step)] = seconds["time/evals"]
        for evaluator in due:
            for line in evaluator.lines():
                self._journal.log_line(line)
            for name, rows in evaluator.samples().items():
                self._journal.log_samples(name, rows, step)
        return {**metrics, **seconds}


async def run_evals(
    evaluators: Sequence[Evaluator],
    client: TrainingClient,
    sampling_client: SamplingClient | None = None,
) -> dict[str, float]:
    """Metrics of all evaluators, on the client's weights after the calls submitted so far.

    sampling_client: a snapshot of these weights. None: the first evaluator that samples makes one,
    and the others share it.
    """
    metrics: dict[str, float] = {}
    for evaluator in evaluators:
        if isinstance(evaluator, SamplingClientEvaluator):
            snapshot = sampling_client or await client.save_weights_and_get_sampling_client()
            sampling_client = snapshot
            found = await evaluator(snapshot)
        else:
            found = await evaluator(client)
        if twice := sorted(metrics.keys() & found.keys()):
            raise ConfigurationError(
                f"evaluator_builders: two evaluators report {twice[0]!r}; give one of them another"
                " name, or leave it out"
            )
        metrics.update(found)
    return metrics
