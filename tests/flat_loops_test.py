"""The flat files and the library's loops compute the same losses and rewards, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
from safetensors.numpy import load_file

from recipes import rl_basic, rl_loop, sl_basic, sl_loop
from recipes.math_rl import arithmetic
from tinker_cookbook.completers import derive_seed
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.nano import tasks
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.utils.ml_log import read_metrics

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)
STEPS, GROUPS, GROUP_SIZE = 5, 4, 4
WEIGHTS = "adapter_model.safetensors"


def keys(log_path: Path) -> dict[str, Any]:
    """What both of a pair are given."""
    return {
        "log_path": str(log_path),
        "max_steps": STEPS,
        "lora_rank": 4,
        "save_every": 0,
        "display": "none",
        "engine": EngineConfig(deterministic=True),
    }


def column(log_path: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(log_path) if row["step"] < STEPS]


def assert_equal_weights(one: Path, other: Path) -> None:
    """Of the final checkpoints."""
    first, second = (load_file(each / "weights/final" / WEIGHTS) for each in (one, other))
    assert first.keys() == second.keys() and len(first) > 10
    for name, tensor in first.items():
        assert tensor.tobytes() == second[name].tobytes(), name


async def test_supervised(tmp_path: Path) -> None:
    flat, library = tmp_path / "flat", tmp_path / "library"
    await sl_loop.main(sl_loop.Config(**keys(flat)))
    await sl_basic.main(sl_basic.CLI(**keys(library), eval_every=0, sample_replies=0))
    losses = column(flat, "train_mean_nll")
    assert losses == column(library, "train_mean_nll")
    assert column(flat, "learning_rate") == column(library, "learning_rate")
    assert len(losses) == STEPS and losses[-1] < losses[0] / 2
    assert_equal_weights(flat, library)


class EachWithASeed:
    """A sampling client that asks for each reply of a group by itself, with the seed that the
    library gives it."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def sample(
        self, prompt: tinker.ModelInput, num_samples: int, params: tinker.SamplingParams
    ) -> SimpleNamespace:
        futures = []
        for member in range(num_samples):
            seed = derive_seed(derive_seed(params.seed or 0, member), 0)
            single = params.model_copy(update={"seed": seed})
            futures.append(self.client.sample(prompt, 1, single))
        responses = [await future for future in futures]
        return SimpleNamespace(sequences=[r.sequences[0] for r in responses])


def sums_of_the_library(seed: int) -> Iterator[list[tuple[str, str]]]:
    """The problems of each step, as `recipes.math_rl.arithmetic` draws them."""
    for step in range(STEPS):
        rng = random.Random(f"sums train {seed} {step}")
        sums = [arithmetic.draw_numbers(rng, "train", 99) for _ in range(GROUPS)]
        yield [(tasks.ADD_PHRASINGS[0].format(a=a, b=b), str(a + b)) for a, b in sums]


async def test_reinforcement_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By design they draw other sums and other seeds, and the flat loop neither trains on groups
    whose rewards are all equal nor takes anything off for the form: set to the same here."""
    flat, library = tmp_path / "flat", tmp_path / "library"
    batches, start = sums_of_the_library(0), rl_loop.start_training_client
    monkeypatch.setattr(rl_loop.Sums, "draw", lambda self, rng, count: next(batches))

    async def started(*args: Any, **more: Any) -> Any:
        client = await start(*args, **more)
        make = client.save_weights_and_get_sampling_client

        async def snapshot() -> EachWithASeed:
            return EachWithASeed(await make())

        client.save_weights_and_get_sampling_client = snapshot
        return client

    monkeypatch.setattr(rl_loop, "start_training_client", started)
    sizes = {"groups_per_batch": GROUPS, "group_size": GROUP_SIZE}
    await rl_loop.main(rl_loop.Config(**keys(flat), **sizes))
    await rl_basic.main(
        rl_basic.CLI(
            **keys(library),
            **sizes,
            dataset_builder=arithmetic.Arithmetic(num_batches=STEPS, test_size=0, format_coef=0.0),
            remove_constant_reward_groups=True,
            eval_every=0,
            transcripts_every=0,
        )
    )
    rewards = column(flat, "reward/total")
    assert rewards == column(library, "env/all/reward/total")
    losses = column(flat, "loss:sum")
    assert losses == column(library, "loss:sum")
    assert len(losses) == STEPS and min(rewards) > 0
    assert_equal_weights(flat, library)
