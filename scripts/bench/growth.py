"""Scaling of time and memory of a training step with tokens, sequence length, vocabulary, LoRA rank
and number of adapters.

    ./scripts/bench/run growth                      # about four minutes on two cores
    ./scripts/bench/run growth tiny=true rounds=1   # quick check

A random Qwen3 with 34 M parameters in bf16; each sweep varies one quantity. Adapters cover all
linear layers including the unembedding. Memory is the peak of a step minus the memory before it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import basis
import chz
import harness
import worker
from contestant import Contestant

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import ConfigurationError

MODEL = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SWEEPS = {
    "tokens": ("tokens in the batch (sequences of 256)", (512, 1024, 2048, 4096, 8192, 16384)),
    "length": ("tokens per sequence (8,192 in all)", (128, 512, 2048, 4096, 8192)),
    "vocabulary": ("tokens in the vocabulary (2,048 in the batch)", (8000, 32000, 64000, 128000)),
    "rank": ("LoRA rank (2,048 tokens)", (4, 16, 64, 256)),
    "adapters": ("adapters in a pass (4,096 tokens in all)", (1, 2, 4, 8, 16)),
}
TINY = 16  # `tiny` divides numbers of tokens by this


@chz.chz
class Config(harness.RunConfig):
    rounds: int = chz.field(default=2, doc="measurements of a step after a warm-up")
    sweeps: str = chz.field(default=",".join(SWEEPS), doc="sweeps to run, e.g. rank,adapters")
    tiny: bool = chz.field(
        default=False, doc="quick check: a 16th of the tokens, two values per sweep"
    )

    @chz.validate
    def _known(self) -> None:
        for sweep in self.sweeps.split(","):
            if sweep not in SWEEPS:
                raise ConfigurationError(f"sweeps={sweep}: expected some of {', '.join(SWEEPS)}")


class Sweep:
    """Measures a training step at each value of one sweep."""

    def __init__(self, sweep: str, device: str, store: str, divisor: int) -> None:
        from engine_contestants import connected

        self.sweep = sweep
        self.divisor = divisor
        self.device = device
        self.scratch = Path(store).parent
        self.service = connected("bfloat16", device, store)

    def measure(self, value: int, rounds: int) -> dict[str, Any]:
        total, length, rank, adapters, model = self._point(value)
        path = self.scratch / f"{self.sweep}-{model['vocab_size']}"
        if not path.exists():
            basis.make_model(model, path)
        clients = [
            self.service.create_lora_training_client(str(path), rank=rank, seed=seed)
            for seed in range(adapters)
        ]
        sequences = basis.random_sequences(
            [length] * (total // length), model["vocab_size"], seed=1
        )
        self._step(clients, sequences)
        before = self._resident()
        seconds = [self._step(clients, sequences) for _ in range(rounds)]
        return {
            "step_seconds": median(seconds),
            "tokens": total,
            "memory_gib": self._peak() - before,
        }

    def _point(self, value: int) -> tuple[int, int, int, int, dict[str, Any]]:
        """(tokens, tokens per sequence, rank, adapters, model)."""
        point = {"tokens": 2048, "length": 256, "rank": 32, "adapters": 1}
        point |= {"length": {"tokens": 8192}, "adapters": {"tokens": 4096}}.get(self.sweep, {})
        model = {**MODEL, **({"vocab_size": value} if self.sweep == "vocabulary" else {})}
        if self.sweep in point:
            point[self.sweep] = value
        length = max(point["length"] // self.divisor, 2)
        total = max(point["tokens"] // self.divisor, length * point["adapters"])
        return total, length, point["rank"], point["adapters"], model

    def _step(self, clients: Sequence[Any], sequences: list[list[int]]) -> float:
        from engine_contestants import adam, datums

        batches = [
            datums(basis.Batch(sequences[number :: len(clients)])) for number in range(len(clients))
        ]
        started = time.perf_counter()
        futures = [
            future
            for client, data in zip(clients, batches)
            for future in (
                client.forward_backward(data, "cross_entropy"),
                client.optim_step(adam()),
            )
        ]
        for future in futures:
            future.result()
        return time.perf_counter() - started

    def _resident(self) -> float:
        """GiB in use; resets the peak."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**30
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system: it is not in use
        worker.reset_peak_rss()
        return worker.peak_memory()["peak_rss_gib"]

    def _peak(self) -> float:
        peaks = worker.peak_memory()
        return peaks["peak_gpu_gib" if self.device.startswith("cuda") else "peak_rss_gib"]


def main(config: Config) -> dict[str, Any]:
    with harness.run("growth", config) as run:
        rows = []
        for sweep in config.sweeps.split(","):
            title, values = SWEEPS[sweep]
            divisor = TINY if config.tiny else 1
            contestant = run.start(
                Contestant(
                    sweep,
                    "growth:Sweep",
                    {
                        "sweep": sweep,
                        "device": config.device,
                        "store": str(run.scratch / sweep / "store"),
                        "divisor": divisor,
                    },
                )
            )
            for value in values[: 2 if config.tiny else None]:
                answer = run.measure(contestant, value=value, rounds=config.rounds)
                if answer is None:
                    rows.append({"name": title, "value": value, "not_run": contestant.error})
                    break
                rows.append(
                    {
                        "name": title,
                        "value": value,
                        "sweep": sweep,
                        "median_seconds": answer["step_seconds"],
                        "tokens_per_s": answer["tokens"] / answer["step_seconds"],
                        "memory_gib": answer["memory_gib"],
                    }
                )
                harness.log_line(f"{title}: {value}: {answer['step_seconds']:.3f} s")
            contestant.stop()
        return run.finish(rows, model=MODEL)


if __name__ == "__main__":
    cli(main, Config)
