"""Sampling throughput with a LoRA adapter: several samples per prompt, in tokens per second.

    ./scripts/bench/run sample                              # 4 prompts of 400, 16 x 128 tokens each
    ./scripts/bench/run sample model=nano tokens=16 rounds=1    # quick check
    ./scripts/bench/run sample vllm_python=DIRECTORY/bin/python # with vLLM: see vllm_contestant.py

Ours (which always returns logprobs), `generate` and `generate_batch` of transformers + peft, and
vLLM if `vllm_python` is set. There are no stop tokens, so all sequences have the same length.
Prompts are new in each round. "again": the same prompts once more, which a prefix cache does not
need to compute.
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
    prompts: int = chz.field(default=4, doc="prompts, submitted at the same time")
    prompt_tokens: int = chz.field(default=400, doc="tokens per prompt")
    samples: int = chz.field(default=16, doc="samples per prompt")
    tokens: int = chz.field(default=128, doc="tokens per sample")
    vllm_python: str | None = chz.field(
        default=None,
        doc="Python executable with vLLM installed, e.g. of a separate venv (None: no vLLM)",
    )
    vllm_base: bool = chz.field(default=False, doc="also measure vLLM without the adapter")


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
        return run.finish(rows, **harness.reference_facts(facts, yardstick), tokens=total)


def vllm_contestants(config: Config, size: dict[str, Any]) -> list[Contestant]:
    words = {**size, "rank": config.rank}
    names = {"vLLM": True, **({"vLLM, without the adapter": False} if config.vllm_base else {})}
    made = [
        Contestant(name, "vllm_contestant:Vllm", {**words, "lora": lora}, python=config.vllm_python)
        for name, lora in names.items()
    ]
    for each in made:
        if not config.vllm_python:
            each.error = "vllm_python= is not set to a Python with vLLM"
        elif not config.isolate:
            each.error = "isolate=False: vLLM needs its own process"
    return made


if __name__ == "__main__":
    cli(main, Config)
