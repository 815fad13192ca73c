"""SFT throughput: forward, backward and optimizer step of one batch, in tokens per second.

    ./scripts/bench/run train_sft                       # 150 M parameters, 8 sequences of 51 to 690
    ./scripts/bench/run train_sft model=nano rounds=1   # quick check

Ours, ours with the unembedding trained too, transformers + peft with padding, and TRL's SFTTrainer
with packing (extra `bench`). All but the second start from the same adapter and make the same
optimizer steps. Their losses before and after the first step must agree; a contestant whose loss
differs gets no figure. Padding does not count as tokens.
"""

from __future__ import annotations

from typing import Any

import basis
import chz
import harness
from contestant import Contestant

from tinker_cookbook.cli_utils import cli


@chz.chz
class Config(harness.BenchConfig):
    sequences: int = chz.field(default=8, doc="sequences per batch")
    shortest: int = chz.field(default=51, doc="tokens of the shortest sequence")
    longest: int = chz.field(default=690, doc="tokens of the longest sequence")


def main(config: Config) -> dict[str, Any]:
    with harness.run("train_sft", config) as run:
        facts = run.setup()
        lengths = basis.evenly_spaced_lengths(config.shortest, config.longest, config.sequences)
        batch = basis.Batch(basis.random_sequences(lengths, facts["vocab_size"], seed=1))
        path = batch.write(run.scratch / "batch.json")
        common = {"facts": facts, "batch": path, "device": config.device}
        loss = {"loss_fn": "cross_entropy"}
        engine = {**common, **loss, "rank": config.rank, "store": run.store}
        ours = Contestant("ours", "engine_contestants:Training", engine)
        peft = Contestant(
            "transformers + peft, padded",
            "transformers_contestants:PaddedTraining",
            {**common, **loss},
        )
        trl = Contestant("TRL SFTTrainer, packing", "trl_contestants:PackedSft", common)
        unembed = Contestant(
            "ours, unembedding too", "engine_contestants:Training", {**engine, "unembed": True}
        )
        chosen = run.start_chosen([ours, unembed, peft, trl])
        yardstick = run.start_yardstick(facts["dtype"])
        run.rounds([*chosen, yardstick])
        apart = harness.check_losses([c for c in chosen if c is not unembed], facts["dtype"])
        flops = basis.training_flops(facts, lengths)
        rows = [
            harness.row(c, batch.tokens, peft, flops, yardstick, losses=harness.losses(c))
            for c in chosen
        ]
        return run.finish(
            rows,
            **harness.reference_facts(facts, yardstick),
            tokens=batch.tokens,
            largest_loss_difference=apart,
        )


if __name__ == "__main__":
    cli(main, Config)
