"""When each evaluator of a run is due, and what they measure then."""

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

    All are before the first step and after the last one.
    """

    def __init__(self, due: Sequence[tuple[int, Sequence[Evaluator]]], journal: Journal) -> None:
        """due: (steps between evaluations, 0 for none in between; the evaluators it holds for)."""
        for evaluator in (each for _, evaluators in due for each in evaluators):
            if not callable(evaluator):
                raise ConfigurationError(
                    f"evaluator_builders make {type(evaluator).__name__}, which is no evaluator:"
                    " expected a SamplingClientEvaluator or a TrainingClientEvaluator"
                )
        self._due = due
        # a finished run that goes on has lost the results of its final weights: N was its last row
        self._always = {0, journal.start_step} if journal.continued else {0}
        self._journal = journal
        self._seconds: dict[tuple[int, ...], float] = {}  # what those due together took last

    def due(self, step: int | None) -> list[Evaluator]:
        """The evaluators due before `step`. None: after the last step, all are."""
        return [each for index in self._groups_due(step) for each in self._due[index][1]]

    def _groups_due(self, step: int | None) -> tuple[int, ...]:
        return tuple(
            index
            for index, (every, evaluators) in enumerate(self._due)
            if evaluators
            and (step is None or step in self._always or (every and step % every == 0))
        )

    @cached_property
    def _steps(self) -> dict[tuple[int, ...], list[int]]:
        """The steps of the run before which the same evaluators are due, the end included."""
        steps: dict[tuple[int, ...], list[int]] = defaultdict(list)
        total = self._journal.total_steps
        if total is not None:
            for step in range(total):
                steps[self._groups_due(step)].append(step)
            steps[self._groups_due(None)].append(total)
        return steps

    def _seconds_after(self, step: int) -> float:
        """Of the evaluations after `step`; those that have not been done yet cost as the others."""
        known = self._seconds
        guess = sum(known.values()) / len(known) if known else 0.0
        return sum(
            known.get(groups, guess) * (len(steps) - bisect_right(steps, step))
            for groups, steps in self._steps.items()
            if groups
        )

    async def run(
        self,
        client: TrainingClient,
        step: int | None,
        sampling_client: SamplingClient | None = None,
    ) -> dict[str, float]:
        """Metrics of the evaluators due before `step`, with the seconds it took as `time/evals`;
        {} where none is. The clients: see `run_evals`. A stop cancels it."""
        due = self.due(step)
        if not due:
            return {}
        # not the journal's own clock: its present row may belong to an earlier step
        seconds: dict[str, float] = {}
        with self._journal.evaluating(step, self._seconds_after), timed("evals", seconds):
            metrics = await run_evals(due, client, sampling_client)
        self._seconds[self._groups_due(step)] = seconds["time/evals"]
        for evaluator in due:
            for line in evaluator.lines():
                self._journal.log_line(line)
        return {**metrics, **seconds}


async def run_evals(
    evaluators: Sequence[Evaluator],
    client: TrainingClient,
    sampling_client: SamplingClient | None = None,
) -> dict[str, float]:
    """All metrics of the evaluators on the client's weights as they are after the calls so far.

    sampling_client: a snapshot of these weights. None: one is made where an evaluator asks for it,
    and serves all of them.
    """
    metrics: dict[str, float] = {}
    for evaluator in evaluators:
        if isinstance(evaluator, SamplingClientEvaluator):
            snapshot = sampling_client or await client.save_weights_and_get_sampling_client()
            sampling_client = snapshot
            metrics.update(await evaluator(snapshot))
        else:
            metrics.update(await evaluator(client))
    return metrics
