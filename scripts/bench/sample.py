"""Sampling with a LoRA adapter: some prompts, several samples of each, in tokens per second.

    ./scripts/bench/run sample                              # 4 prompts of 400, 16 x 128 tokens each
    ./scripts/bench/run sample model=nano tokens=16 rounds=1    # a try
    ./scripts/bench/run sample vllm_python=DIRECTORY/bin/python # with vLLM: see vllm_contestant.py

Ours (with the logprobs of what it draws, as always), `generate` of transformers + peft, its
`generate_batch`, and vLLM where `vllm_python` has it. No token ends a sequence, so all sequences
have the same length; prompts differ from round to round. "again": the prompts of the measurement
before once more, which whoever keeps prompts need not compute.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import basis
import chz
import harness
from contestant import Contestant

from tinker_cookbook.cli_utils import cli


@chz.chz
class Config(harness.BenchConfig):
    prompts: int = chz.field(default=4, doc="prompts, all sampled from at once")
    prompt_tokens: int = chz.field(default=400, doc="tokens of each prompt")
    samples: int = chz.field(default=16, doc="samples of each prompt")
    tokens: int = chz.field(default=128, doc="tokens of each sample")
    vllm_python: str | None = chz.field(
        default=None, doc="Python that has vLLM, e.g. of a venv of its own; None: without vLLM"
    )
    vllm_base: bool = chz.field(default=False, doc="vLLM without the adapter, too")


def main(config: Config) -> dict[str, Any]:
    with harness.run("sample", config) as run:
        facts = run.setup()
        size = {
            "facts": facts,
            "prompts": config.prompts,
            "prompt_tokens": config.prompt_tokens,
            "samples": config.samples,
            "tokens": config.tokens,
        }
        here = {**size, "device": config.device}
        ours = Contestant("ours", "engine_contestants:Sampling", {**here, "store": run.store})
        generate = Contestant(
            "transformers generate + peft", "transformers_contestants:Generate", here
        )
        batched = Contestant(
            "transformers generate_batch + peft", "transformers_contestants:GenerateBatch", here
        )
        vllm = vllm_contestants(config, size)
        chosen = run.start_chosen([ours, generate, batched, *vllm])
        yardstick = run.start_yardstick(facts["dtype"])
        run.rounds([*chosen, yardstick], seeded=chosen)
        lengths = [config.prompt_tokens] * config.prompts
        flops = basis.sampling_flops(facts, lengths, config.samples, config.tokens)
        total = config.prompts * config.samples * config.tokens
        rows = []
        for each in chosen:
            row = harness.row(each, total, generate, flops, yardstick)
            if again := each.values("seconds_again"):
                row["tokens_per_s_again"] = total / median(again)
            rows.append(row)
        return run.finish(rows, **harness.basis_of(facts, yardstick), tokens=total)


def vllm_contestants(config: Config, size: dict[str, Any]) -> list[Contestant]:
    words = {**size, "rank": config.rank}
    names = {"vLLM": True, **({"vLLM, without the adapter": False} if config.vllm_base else {})}
    made = [
        Contestant(name, "vllm_contestant:Vllm", {**words, "lora": lora}, python=config.vllm_python)
        for name, lora in names.items()
    ]
    for each in made:
        if not config.vllm_python:
            each.error = "vllm_python= names no Python that has vLLM"
        elif not config.isolate:
            each.error = "isolate=False: it needs a process of its own"
    return made


if __name__ == "__main__":
    cli(main, Config)
