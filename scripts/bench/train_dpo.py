"""DPO throughput: forward, backward and optimizer step of a batch of pairs, in tokens per second.

    ./scripts/bench/run train_dpo                                 # 150 M parameters, 4 random pairs
    ./scripts/bench/run train_dpo model=DIRECTORY dataset=FILE    # real pairs, the model's template
    ./scripts/bench/run train_dpo model=nano pairs=2 rounds=1     # quick check
    ./scripts/bench/run train_dpo against=main                    # with the code of main beside

Ours as the recipe makes a step, and TRL's DPOTrainer with peft (extra `bench`), each in two ways:
with the reference logprobs of the pairs known before, whose pass is not counted, and with that pass
in the step. Every pair needs it once per run. The ratio is to TRL in the same way, with the whole
batch padded as one; "one pair at a time" accumulates gradients instead, with less padding.

All start from the same adapter, with the base model as the reference, and make the same optimizer
steps. Their losses before and after the first step must agree; a contestant whose loss differs gets
no figure. Tokens are nominal: a prompt counts once per reply.
"""

from __future__ import annotations

from typing import Any, Literal

import basis
import chz
import harness
import pairs
from contestant import Contestant

from tinker_cookbook.cli_utils import cli

OURS, TRL = "engine_contestants:PairTraining", "trl_contestants:DpoStep"


@chz.chz
class Config(harness.BenchConfig, harness.AgainstConfig):
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="float32",
        doc="dtype of the base model; sums over replies in bfloat16 differ by more than rounding"
        " of the loss",
    )
    pairs: int = chz.field(default=4, doc="pairs per batch")
    dataset: str | None = chz.field(
        default=None,
        doc="file or hub data set of comparisons, for a model with a tokenizer (None: random"
        " tokens of the lengths below)",
    )
    max_length: int = chz.field(default=1024, doc="maximum tokens of a prompt with a reply")
    shortest_prompt: int = chz.field(default=20, doc="tokens of the shortest random prompt")
    longest_prompt: int = chz.field(default=100, doc="tokens of the longest random prompt")
    shortest: int = chz.field(default=20, doc="tokens of the shortest random reply")
    longest: int = chz.field(default=200, doc="tokens of the longest random reply")
    beta: float = chz.field(default=0.1, doc="beta of the loss")


def main(config: Config) -> dict[str, Any]:
    with harness.run("train_dpo", config) as run:
        facts = run.setup()
        batch = make_pairs(config, facts)
        given = {
            "facts": facts,
            "pairs": batch.write(run.scratch / "pairs.json"),
            "device": config.device,
            "beta": config.beta,
        }
        engine = {**given, "store": run.store}
        ours, *at_revision = run.start_versions(
            Contestant("ours, reference stored", OURS, {**engine, "count_reference": False})
        )
        ours_counted = Contestant(
            "ours, reference in the step", OURS, {**engine, "count_reference": True}
        )
        trl = Contestant(
            "TRL DPOTrainer, reference precomputed", TRL, {**given, "precompute": True}
        )
        trl_by_one = Contestant(
            "TRL DPOTrainer, precomputed, one pair at a time",
            TRL,
            {**given, "precompute": True, "pairs_per_pass": 1},
        )
        trl_counted = Contestant(
            "TRL DPOTrainer, reference in the step", TRL, {**given, "precompute": False}
        )
        chosen = run.start_chosen([ours_counted, trl, trl_by_one, trl_counted])
        chosen = [ours, *at_revision, *chosen]
        yardstick = run.start_yardstick(facts["dtype"])
        run.rounds([*chosen, yardstick])
        apart = harness.check_losses(chosen, facts["dtype"])
        rows = []
        for each in chosen:
            counted = each in (ours_counted, trl_counted)
            flops = batch.flops(facts, shared=each.target == OURS, reference=counted)
            reference = trl_counted if counted else trl
            losses = harness.losses(each)
            rows.append(
                harness.row(
                    each, batch.tokens, reference, flops, yardstick,
                    losses=losses, first_loss=losses[0] if losses else None,
                )
            )  # fmt: skip
        for each in at_revision:
            if each.error is None and ours.error is None:
                rows[0]["times_as_fast"] = harness.ratio(
                    each.values("seconds"), ours.values("seconds")
                )
        return run.finish(
            rows,
            **harness.reference_facts(facts, yardstick),
            tokens=batch.tokens,
            lengths=batch.lengths,
            largest_loss_difference=apart,
        )


def make_pairs(config: Config, facts: dict[str, Any]) -> pairs.Pairs:
    """Real pairs if the config names a data set, otherwise random ones."""
    if config.dataset is not None:
        return pairs.rendered_pairs(config.dataset, facts["path"], config.pairs, config.max_length)
    prompts = basis.evenly_spaced_lengths(
        config.shortest_prompt, config.longest_prompt, config.pairs
    )
    replies = basis.evenly_spaced_lengths(config.shortest, config.longest, 2 * config.pairs)
    return pairs.random_pairs(prompts, replies, facts["vocab_size"])


if __name__ == "__main__":
    cli(main, Config)
