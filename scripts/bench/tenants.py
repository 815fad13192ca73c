"""Several tenants with small batches, compared with one tenant that has all of their data.

    ./scripts/bench/run tenants                             # 8 tenants, 2 sequences each
    ./scripts/bench/run tenants model=nano tenants=3 rounds=1   # quick check
    ./scripts/bench/run tenants against=main                # alternating with the code of main

A tenant is a training client with its own adapter and optimizer; a step is one forward_backward and
one optim_step per tenant. "together": all tenants submit, then all wait, like independent users.
"one after the other": each tenant waits for its results before the next submits. "one tenant with
all the data": one forward_backward and one optim_step; the other times are reported as multiples of
this one. All three process the same tokens, and their mean losses at the first step must agree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import basis
import chz
import harness
from contestant import Contestant

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import TrainingError

ONE, TOGETHER, IN_TURN = "one tenant with all the data", "together", "one after the other"


@chz.chz
class Config(harness.BenchConfig, harness.AgainstConfig):
    tenants: int = chz.field(default=8, doc="number of tenants, each with its own adapter")
    sequences: int = chz.field(default=2, doc="sequences per tenant")
    shortest: int = chz.field(default=51, doc="tokens of the shortest sequence")
    longest: int = chz.field(default=300, doc="tokens of the longest sequence")


class Tenants:
    """The three ways of processing the same batches, on one base model."""

    def __init__(
        self,
        path: str,
        dtype: str,
        device: str,
        rank: int,
        store: str,
        batches: list[list[list[int]]],
    ) -> None:
        from engine_contestants import adam, connected, datums

        service = connected(dtype, device, store)
        self.adam = adam()
        self.data = [datums(basis.Batch(sequences)) for sequences in batches]
        self.all = datums(basis.Batch([each for sequences in batches for each in sequences]))
        self.tenants = [
            service.create_lora_training_client(path, rank=rank, seed=seed)
            for seed in range(len(batches))
        ]
        self.one = service.create_lora_training_client(path, rank=rank, seed=len(batches))
        # Each loss is the mean over its own batch, so weight it by the batch's share of all tokens.
        tokens = [basis.Batch(sequences).loss_tokens for sequences in batches]
        shares = [count / sum(tokens) for count in tokens]
        first = {way: self._step(way) for way in (ONE, TOGETHER)}
        together = sum(loss * share for loss, share in zip(first[TOGETHER], shares))
        self.facts = {"loss": first[ONE][0], "loss_together": together}

    def measure(self, way: str) -> dict[str, Any]:
        started = time.perf_counter()
        self._step(way)
        return {"seconds": time.perf_counter() - started, "way": way}

    def _step(self, way: str) -> list[float]:
        """Run one step of all tenants and return their losses in order."""
        if way == ONE:
            return self._wait([self._submit(self.one, self.all)])
        pairs = zip(self.tenants, self.data)
        if way == IN_TURN:
            return [loss for each in pairs for loss in self._wait([self._submit(*each)])]
        return self._wait([self._submit(*each) for each in pairs])

    def _submit(self, client: Any, data: list[Any]) -> tuple[Any, Any]:
        return client.forward_backward(data, "cross_entropy"), client.optim_step(self.adam)

    def _wait(self, futures: list[tuple[Any, Any]]) -> list[float]:
        out = []
        for backward, step in futures:
            out.append(backward.result().metrics["loss:sum"])
            step.result()
        return out


def main(config: Config) -> dict[str, Any]:
    with harness.run("tenants", config) as run:
        facts = run.setup()
        count = config.tenants * config.sequences
        lengths = basis.evenly_spaced_lengths(config.shortest, config.longest, count)
        sequences = basis.random_sequences(lengths, facts["vocab_size"], seed=1)
        # every tenant gets short and long sequences, and no two get the same
        batches = [sequences[number :: config.tenants] for number in range(config.tenants)]
        words = {
            "path": facts["path"],
            "dtype": facts["dtype"],
            "device": config.device,
            "rank": config.rank,
            "store": run.store,
            "batches": batches,
        }
        versions = run.start_versions(Contestant("ours", "tenants:Tenants", words))
        yardstick = run.start_yardstick(facts["dtype"])
        run.turns(versions, {way: {} for way in (ONE, TOGETHER, IN_TURN)}, yardstick)
        for each in versions:
            check_loss(each, facts["dtype"])
        tokens = sum(lengths)
        return run.finish(
            [
                row
                for each in versions
                for row in version_rows(each, tokens, config.tenants, versions)
            ],
            **harness.reference_facts(facts, yardstick),
            tokens=tokens,
            losses=(versions[0].facts["loss"], versions[0].facts["loss_together"]),
        )


def check_loss(version: Contestant, dtype: str) -> None:
    alone, together = version.facts["loss"], version.facts["loss_together"]
    if abs(alone - together) > harness.LOSS_TOLERANCE[dtype] * (1 + alone):
        raise TrainingError(
            f"{version.name}: mean loss {together:.6g} together, {alone:.6g} for one tenant:"
            " they did not do the same work"
        )


def version_rows(
    version: Contestant, tokens: int, tenants: int, versions: Sequence[Contestant]
) -> list[dict[str, Any]]:
    seconds = {
        way: [each["seconds"] for each in version.measured if each["way"] == way]
        for way in (ONE, TOGETHER, IN_TURN)
    }
    rows = {
        way: {
            "name": way if way == ONE else f"{tenants} tenants {way}",
            "tokens_per_s": tokens / median(seconds[way]),
            "median_seconds": median(seconds[way]),
            "times_one": harness.ratio(seconds[way], seconds[ONE]),
            "seconds": seconds[way],
            **version.memory,
        }
        for way in seconds
    }
    return [harness.label_version(row, version, versions, way) for way, row in rows.items()]


if __name__ == "__main__":
    cli(main, Config)
