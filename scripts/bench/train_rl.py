"""RL training throughput: forward, backward (PPO's clipped ratio) and step of a GRPO group.

In nominal tokens per second: the prompt counts once per completion.

    ./scripts/bench/run train_rl                                # prompt 400, 16 times 100 to 200
    ./scripts/bench/run train_rl model=nano group=4 rounds=1    # quick check

Ours, ours without prefix sharing, transformers + peft with padding (logits of the completions
only), and the training step of TRL's GRPOTrainer on a group that was sampled before (extra
`bench`). All start from the same adapter and make the same optimizer steps. Their losses before and
after the first step must agree; a contestant whose loss differs gets no figure.
"""

from __future__ import annotations

from typing import Any

import basis
import chz
import harness
import numpy as np
from contestant import Contestant

from tinker_cookbook.cli_utils import cli


@chz.chz
class Config(harness.BenchConfig):
    prompt: int = chz.field(default=400, doc="tokens of the prompt")
    group: int = chz.field(default=16, doc="completions per prompt")
    shortest: int = chz.field(default=100, doc="tokens of the shortest completion")
    longest: int = chz.field(default=200, doc="tokens of the longest completion")


def main(config: Config) -> dict[str, Any]:
    with harness.run("train_rl", config) as run:
        facts = run.setup()
        batch, path = sampled_group(config, run, facts)
        common = {"facts": facts, "batch": path, "device": config.device}
        engine = {**common, "loss_fn": "ppo", "rank": config.rank, "store": run.store}
        ours = Contestant("ours", "engine_contestants:Training", engine)
        alone = Contestant(
            "ours, prompt not shared", "engine_contestants:Training", {**engine, "share": False}
        )
        peft = Contestant(
            "transformers + peft, padded",
            "transformers_contestants:PaddedTraining",
            {**common, "loss_fn": "ppo"},
        )
        trl = Contestant("TRL GRPOTrainer, training step", "trl_contestants:GrpoStep", common)
        chosen = run.start_chosen([ours, alone, peft, trl])
        yardstick = run.start_yardstick(facts["dtype"])
        run.rounds([*chosen, yardstick])
        apart = harness.check_losses(chosen, facts["dtype"])
        lengths = [len(sequence) for sequence in batch.sequences]
        plain = basis.training_flops(facts, lengths)
        shared = basis.training_flops(facts, lengths, prefix=config.prompt)
        rows = [
            harness.row(
                c,
                batch.tokens,
                peft,
                shared if c is ours else plain,
                yardstick,
                losses=harness.losses(c),
            )
            for c in chosen
        ]
        further = {}
        if ours.measured and alone.measured:
            further["ratio_to_not_shared"] = harness.ratio(
                alone.values("seconds"), ours.values("seconds")
            )
        return run.finish(
            rows,
            **harness.reference_facts(facts, yardstick),
            **further,
            tokens=batch.tokens,
            largest_loss_difference=apart,
        )


def sampled_group(
    config: Config, run: harness.Run, facts: dict[str, Any]
) -> tuple[basis.Batch, str]:
    """A random group that looks slightly off-policy.

    The sampling logprobs are those of the adapter plus noise of up to 0.05, so that the importance
    ratios are not all 1.
    """
    [prompt] = basis.random_sequences([config.prompt], facts["vocab_size"], seed=1)
    lengths = basis.evenly_spaced_lengths(config.shortest, config.longest, config.group)
    completions = basis.random_sequences(lengths, facts["vocab_size"], seed=2)
    batch = basis.Batch([prompt + each for each in completions], config.prompt)
    path = run.scratch / "batch.json"
    scored = run.prepare(
        "engine_contestants:ScoreBatch",
        facts=facts,
        batch=batch.write(path),
        device=config.device,
        store=run.store,
    )
    rng = np.random.default_rng(3)
    batch.logprobs = [
        (np.array(each) + rng.uniform(-0.05, 0.05, len(each))).tolist()
        for each in scored["logprobs"]
    ]
    rewards = rng.random(config.group)
    batch.advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()
    return batch, batch.write(path)


if __name__ == "__main__":
    cli(main, Config)
