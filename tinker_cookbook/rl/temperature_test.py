"""Runs at temperatures other than 1: what is compared with what, and what the SDK cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl import train
from tinker_cookbook.rl.metrics import compute_post_kl, incorporate_kl_penalty
from tinker_cookbook.rl.signals import ReferenceKL, sequence_logprobs
from tinker_cookbook.rl.testing import (
    FormulaModel,
    SomeAdditions,
    make_group,
    rows_of,
    train_config,
)
from tinker_cookbook.service import connect

ONLY_ONE = "FormulaModel.compute_logprobs supports temperature 1 only"


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
async def test_a_policy_that_is_its_reference(
    tmp_path: Path, temperature: float, loss_fn: str
) -> None:
    """Before the first step there is no KL, and sampler and trainer agree, as at temperature 1; the
    reference must not add to the advantages."""
    data = SomeAdditions(batches=1)
    keys = {"temperature": temperature, "loss_fn": loss_fn, "compute_post_kl": True}
    for coef in (0.1, 0.0):
        run = tmp_path / str(coef)
        await train.main(train_config(run, data, kl_penalty_coef=coef, learning_rate=0.0, **keys))
    with_kl, without = (rows_of(tmp_path / str(coef))[0] for coef in (0.1, 0.0))
    assert abs(with_kl["kl_policy_base"]) < 1e-5
    assert with_kl["optim/logprob_gap_mean"] < 1e-5
    assert with_kl["optim/same_weights_logprob_gap_mean"] < 1e-5
    assert abs(with_kl["kl_pre_post_v1"]) < 1e-5  # learning_rate is 0
    assert with_kl["grad_norm"] == pytest.approx(without["grad_norm"], rel=1e-3)
    assert f"softmax(logits / {temperature:g})" in (tmp_path / "0.1" / "logs.log").read_text()


async def test_scores_of_the_clients_in_process(tiny_qwen3: str, tmp_path: Path) -> None:
    client = connect(store_dir=tmp_path).create_sampling_client(base_model=tiny_qwen3).result()
    tokens = [list(range(5, 25)), [7, 8]]
    scored = {t: await sequence_logprobs(client, tokens, t) for t in (0.5, 1.0, 2.0)}
    for each, plain in zip(scored[1.0], await sequence_logprobs(client, tokens)):
        assert np.array_equal(each[1:], plain[1:])
    assert all(np.abs(a[1:] - b[1:]).max() > 0.1 for a, b in zip(scored[0.5], scored[2.0]))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"temperature=.* of prompt logprobs: expected"):
            await sequence_logprobs(client, tokens, wrong)


async def test_clients_that_score_at_temperature_one_only() -> None:
    """The SDK's compute_logprobs has no temperature: refused, and not called."""
    model, group = FormulaModel(), make_group()
    with pytest.raises(ConfigurationError, match=f"temperature=0.5: {ONLY_ONE}.*set temperature=1"):
        ReferenceKL(model, 0.1, temperature=0.5)
    for call in (
        sequence_logprobs(model, [[1, 2]], 0.5),
        compute_post_kl(group.datums(), model, 0.5),
        incorporate_kl_penalty(group.datums(), model, 0.1, 0.0, 0.5),
    ):
        with pytest.raises(ConfigurationError, match=ONLY_ONE):
            await call
    assert model.asked == []
    await ReferenceKL(model, 0.1).prepare(group)  # at 1 nothing of it is needed
    assert len(model.asked) == 3


class Anywhere(ReferenceKL):
    """Another model for each group, known only when it is played."""

    def client_for(self, group: Any) -> Any:
        return FormulaModel()


async def test_a_model_that_is_chosen_by_group_is_asked_for_its_temperature() -> None:
    class Tempered(FormulaModel):
        def compute_logprobs(self, prompt: Any, temperature: float = 1.0) -> Any:
            return super().compute_logprobs(prompt)

    with pytest.raises(ConfigurationError, match=ONLY_ONE):
        await Anywhere(Tempered(), 0.1, temperature=0.5).prepare(make_group())


def test_identity_of_signals_from_before_stays() -> None:
    assert ReferenceKL(None, 0.5).identity() == {"coef": 0.5, "discount": 0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_url": "http://127.0.0.1:1", "kl_penalty_coef": 0.1},
            "temperature=0.5 with base_url: kl_penalty_coef compares .* temperature 1 only; set",
        ),
        (
            {"base_url": "http://127.0.0.1:1", "compute_post_kl": True},
            "temperature=0.5 with base_url: compute_post_kl",
        ),
        (
            {"base_url": "http://127.0.0.1:1", "loss_fn": "ppo"},
            "temperature=0.5 with base_url: ppo needs importance ratios near 1",
        ),
        ({"loss_fn_config": {"temperature": 0.5}}, "loss_fn_config.temperature: the loop trains"),
        (
            {"signals": [ReferenceKL(FormulaModel(), 0.1)]},
            "signals: ReferenceKL scores at temperature=1, but replies are sampled at"
            " temperature=0.5: give the signal temperature=0.5",
        ),
    ],
)
async def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        await train.main(train_config(tmp_path / "run", temperature=0.5, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


async def test_over_the_sdk_the_difference_is_said_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios correct for it; whether sampler and trainer agree is seen on sequences scored anew."""
    sent: list[Any] = []

    class Remote:
        """A training client that, as a service may, refuses a temperature."""

        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        def forward_backward(self, data: Any, loss_fn: str, loss_fn_config: Any) -> Any:
            sent.append(loss_fn_config)
            return self._client.forward_backward(data, loss_fn, loss_fn_config)

    async def start(*args: Any, **kwargs: Any) -> Any:
        return Remote(await original(*args, **kwargs))

    original = train.checkpoint_utils.start_training_client
    monkeypatch.setattr(train.checkpoint_utils, "start_training_client", start)
    monkeypatch.setattr(
        train, "connect_run", lambda url, engine: connect(store_dir=tmp_path / "store")
    )
    run = tmp_path / "run"
    data = SomeAdditions(batches=1)
    await train.main(train_config(run, data, temperature=0.7, base_url="http://127.0.0.1:1"))
    (row,) = rows_of(run)
    assert sent == [None]
    assert row["optim/logprob_gap_mean"] > 1e-2
    assert row["optim/same_weights_logprob_gap_mean"] < 1e-5
    assert "the service trains at temperature 1" in (run / "logs.log").read_text()


async def test_each_temperature_is_another_run(tmp_path: Path) -> None:
    data = SomeAdditions(batches=1)
    await train.main(train_config(tmp_path / "run", data, temperature=0.5, max_steps=1))
    with pytest.raises(ConfigurationError, match="temperature"):
        await train.main(train_config(tmp_path / "run", data, temperature=1.0, max_steps=1))
