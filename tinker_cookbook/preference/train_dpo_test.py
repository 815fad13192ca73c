"""DPO on nano: the reference, its store, whole pairs per call, and resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.losses import KTOSettings, PairLossSettings
from tinker_cookbook.preference.objective import (
    KTOObjective,
    PairObjective,
    mismatched_replies,
)
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.preference.reference import FILE_NAME, ReferenceLogprobs
from tinker_cookbook.preference.unpaired_datasets import (
    KTODatasetBuilderFromComparisons,
    add_label,
    remove_label,
)
from tinker_cookbook.sequences import Sequence, from_datum, to_datum
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.supervised.chat_config import resolve_chat_config
from tinker_cookbook.supervised.data import JsonlChats
from tinker_cookbook.supervised.types import SupervisedDatasetBuilder
from tinker_cookbook.utils import jsonl

PAIRS = [
    {
        "prompt": f"What is {a} + {b}?",
        "chosen": f"That is a good question! The answer is {a + b}.",
        "rejected": f"{a + b}",
    }
    for a in range(3)
    for b in range(4)
]


@pytest.fixture
def data(tmp_path: Path) -> DPODatasetBuilderFromComparisons:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:8]))
    test.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[8:]))
    comparisons = ComparisonBuilderFromJsonl(train_path=str(train), test_path=str(test))
    return DPODatasetBuilderFromComparisons(comparison_builder=comparisons)


async def run(data: SupervisedDatasetBuilder, log_path: Path, **keys: Any) -> list[dict]:
    """Two epochs of two steps; returns the rows of metrics.jsonl without times."""
    config = train_dpo.Config(
        **{
            "dataset_builder": data,
            "log_path": str(log_path),
            "display": "plain",
            "lora_rank": 4,
            "batch_size": 4,
            "num_epochs": 2,
            "learning_rate": 3e-3,
            "lr_schedule": "constant",
            "eval_every": 2,
            "sample_replies": 0,
            **keys,
        }
    )
    await train_dpo.run(resolve_chat_config(config, DPO_DEFAULTS, data), "dpo")
    rows = [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "progress"))}
        for row in rows
    ]


async def test_at_step_0_the_policy_is_the_reference_and_training_raises_the_margin(
    data: DPODatasetBuilderFromComparisons, tmp_path: Path
) -> None:
    rows = await run(data, tmp_path / "run")
    for prefix in ("", "test/"):
        assert rows[0][f"{prefix}dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert rows[0][f"{prefix}margin"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["num_pairs"] == 4 and rows[0]["num_sequences"] == 8
    assert rows[4]["test/margin"] > 0.2 and rows[4]["test/accuracy"] == 1
    last = rows[4]
    assert last["test/margin"] == pytest.approx(
        last["test/chosen_reward"] - last["test/rejected_reward"]
    )
    # the rewards are those of the log p that is reported, under the reference of step 0
    for name in ("chosen", "rejected"):
        change = last[f"test/{name}_logprob"] - rows[0][f"test/{name}_logprob"]
        assert last[f"test/{name}_reward"] == pytest.approx(0.1 * change, abs=1e-5)


async def test_resuming_keeps_the_reference_and_its_logprobs(
    data: DPODatasetBuilderFromComparisons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await run(data, tmp_path / "whole")
    await run(data, tmp_path / "parts", max_steps=2)
    stored = (tmp_path / "parts" / FILE_NAME).read_text()

    async def refuse(self: ReferenceLogprobs) -> tinker.TrainingClient:
        raise AssertionError("every pair was scored before")

    monkeypatch.setattr(ReferenceLogprobs, "_reference_client", refuse)
    parts = await run(data, tmp_path / "parts")
    assert parts == whole
    assert (tmp_path / "parts" / FILE_NAME).read_text() == stored


async def test_rows_that_a_resumed_run_meets_first_are_scored_by_the_weights_of_step_0(
    data: DPODatasetBuilderFromComparisons, tmp_path: Path
) -> None:
    await run(data, tmp_path / "first")
    keys = {"load_checkpoint_path": str(tmp_path / "first"), "learning_rate": 1e-2}
    whole = await run(data, tmp_path / "whole", **keys)
    assert whole[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    parts = tmp_path / "parts"
    await run(data, parts, max_steps=2, **keys)
    (parts / FILE_NAME).unlink()
    assert await run(data, parts, **keys) == whole


async def test_losses_without_a_reference_need_one_forward_for_any_batch(
    data: DPODatasetBuilderFromComparisons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch of 8 sequences is larger than a pass, but is sent in calls that are not."""
    calls: list[int] = []
    monkeypatch.setattr(
        "tinker_cookbook.engine.passes.forward", lambda works: calls.append(len(works))
    )
    engine = EngineConfig(tokens_per_pass=128)
    keys = {"loss": "simpo", "eval_every": 0, "max_steps": 1, "engine": engine}
    comparisons = ComparisonBuilderFromJsonl(train_path=str(tmp_path / "train.jsonl"))
    without_test = DPODatasetBuilderFromComparisons(comparison_builder=comparisons)
    (row,) = await run(without_test, tmp_path / "run", **keys)  # evaluations would be forwards
    assert row["num_tokens"] > 128 and calls == []
    assert not (tmp_path / "run" / FILE_NAME).exists()


def datum(length: int, trained: int) -> tinker.Datum:
    return to_datum(Sequence(range(length + 1), [0] * (length + 1 - trained) + [1] * trained))


def test_parts_of_a_batch_add_up_to_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = [datum(length, trained) for length, trained in ((5, 2), (7, 3), (4, 1), (6, 6))]
    logprobs = [-torch.rand(d.model_input.length, generator=generator) for d in batch]
    objective = PairObjective(PairLossSettings("simpo", 2.0, simpo_gamma=0.5), None)

    def gradients(parts: list[slice]) -> list[np.ndarray]:
        leaves = [values.clone().requires_grad_() for values in logprobs]
        for part in parts:
            loss, _ = objective._mean_loss(batch[part], leaves[part], num_pairs=2)
            loss.backward()
        return [leaf.grad.numpy() for leaf in leaves if leaf.grad is not None]

    whole, halves = gradients([slice(0, 4)]), gradients([slice(0, 2), slice(2, 4)])
    assert len(whole) == len(halves) == 4
    for one, other in zip(whole, halves):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    # by hand: the derivative by a trained token's logprob is the same for all of a reply
    means = [values[-t:].double().mean().item() for values, t in zip(logprobs, (2, 3, 1, 6))]
    for chosen, tokens in ((0, 2), (2, 1)):
        h = 2.0 * (means[chosen] - means[chosen + 1]) - 0.5
        slope = -2.0 / (1 + math.exp(h)) / tokens / 2
        assert whole[chosen][-1] == pytest.approx(slope, rel=1e-5)
        assert (whole[chosen][:-tokens] == 0).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 has no effect with loss=sigmoid"),
        ({"loss": "ipo", "simpo_gamma": 1.0}, "simpo_gamma=1.0 has no effect with loss=ipo"),
        ({"loss": "robust"}, "label_smoothing=0.0: loss=robust needs"),
        ({"dpo_beta": -1.0}, "dpo_beta=-1.0: expected above 0"),
        ({"desirable_weight": 2.0}, "desirable_weight=2.0 has no effect with loss=sigmoid"),
        ({"loss": "kto", "batch_size": 1}, "batch_size=1: loss=kto compares"),
    ],
)
def test_keys_without_an_effect_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        train_dpo.Config(**keys)


def test_main_needs_data() -> None:
    with pytest.raises(ConfigurationError, match="needs dataset_builder"):
        train_dpo.main(train_dpo.Config())


async def test_a_directory_that_is_used_again_has_the_reference_of_its_new_run(
    data: DPODatasetBuilderFromComparisons, tmp_path: Path
) -> None:
    await run(data, tmp_path / "first", learning_rate=1e-2)
    keys = {"load_checkpoint_path": str(tmp_path / "first"), "max_steps": 1}
    again = {"behavior_if_log_dir_exists": "delete"}
    await run(data, tmp_path / "again", max_steps=1)
    (row, *_) = await run(data, tmp_path / "again", **keys, **again)
    assert row["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_values_of_another_model_are_not_kept(tmp_path: Path) -> None:
    base = train_dpo.Config()
    service: Any = None  # not called
    ReferenceLogprobs(service, base, tmp_path)
    jsonl.append_line(tmp_path / FILE_NAME, {"digest": -1.0})
    assert ReferenceLogprobs(service, base, tmp_path)._values == {"digest": -1.0}
    other = train_dpo.Config(load_checkpoint_path="tinker://run/weights/final")
    assert ReferenceLogprobs(service, other, tmp_path)._values == {}
    assert ReferenceLogprobs(service, base, tmp_path)._values == {}


async def test_data_that_is_not_of_pairs_is_refused(tmp_path: Path) -> None:
    chats = [{"prompt": f"{n}?", "completion": "yes"} for n in range(8)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    builder = JsonlChats(path=str(tmp_path / "chats.jsonl"))
    with pytest.raises(DataValidationError, match="not of pairs"):
        await run(builder, tmp_path / "run")


@pytest.fixture
def labelled(data: DPODatasetBuilderFromComparisons) -> KTODatasetBuilderFromComparisons:
    return KTODatasetBuilderFromComparisons(comparison_builder=data.comparison_builder)


async def test_kto_trains_and_resumes(
    labelled: KTODatasetBuilderFromComparisons, tmp_path: Path
) -> None:
    whole = await run(labelled, tmp_path / "whole", loss="kto")
    assert whole[0]["kto_loss"] == whole[0]["test/kto_loss"] == pytest.approx(0.5)
    for kl in ("kl", "test/kl"):
        assert whole[0][kl] == pytest.approx(0, abs=1e-5)
    assert whole[-1]["test/good_reward"] > whole[-1]["test/bad_reward"] + 0.1
    await run(labelled, tmp_path / "parts", loss="kto", max_steps=4)
    assert await run(labelled, tmp_path / "parts", loss="kto") == whole


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
async def test_losses_and_data_that_do_not_fit_are_refused(
    data: DPODatasetBuilderFromComparisons,
    labelled: KTODatasetBuilderFromComparisons,
    tmp_path: Path,
    loss: str,
) -> None:
    builder, message = (
        (labelled, "an example has a label; use data=DPO")
        if loss == "sigmoid"
        else (data, "loss=kto needs replies labelled good or bad")
    )
    with pytest.raises(DataValidationError, match=message):
        await run(builder, tmp_path / "run", loss=loss)


async def test_kto_with_a_renderer_that_is_checked(
    labelled: KTODatasetBuilderFromComparisons, tmp_path: Path
) -> None:
    """The check compares with the recommended renderer, by cross-entropy without labels."""
    keys = {"loss": "kto", "renderer_name": "role_colon", "max_steps": 1}
    assert (await run(labelled, tmp_path / "run", **keys))[0]["kto_loss"] == pytest.approx(0.5)


def completion(prompt: list[int], reply: list[int], is_good: bool = True) -> tinker.Datum:
    weights = [0] * len(prompt) + [1] * len(reply)
    return add_label(to_datum(Sequence([*prompt, *reply], weights)), is_good)


def test_mismatched_replies_are_those_to_other_prompts() -> None:
    first, second = [1, 2, 3], [4, 5]
    batch = [
        completion(first, [10, 11]),
        completion(first, [12]),
        completion(second, [13, 14, 15, 16]),
    ]
    found = [from_datum(datum) for datum in mismatched_replies(batch)]
    assert [sequence.tokens.tolist() for sequence in found] == [
        [1, 2, 3, 13, 14, 15],  # truncated to the longest
        [1, 2, 3, 13, 14, 15],
        [4, 5, 10, 11],
    ]
    assert [sequence.num_loss_tokens for sequence in found] == [3, 3, 2]
    assert mismatched_replies(batch[:2]) == []


def test_the_gradient_of_kto_by_hand() -> None:
    batch = [completion([1, 2], [3, 4]), completion([5], [6, 7, 8], is_good=False)]

    class Reference:
        def values(self, data: list[tinker.Datum]) -> np.ndarray:
            return np.array([-1.0 if from_datum(datum).tokens[0] == 1 else -2.0 for datum in data])

    objective = KTOObjective(KTOSettings(0.5, 1.0, 2.0), Reference())  # type: ignore[arg-type]
    logprobs = [
        torch.tensor([-9.0, -0.25, -0.5], requires_grad=True),
        torch.tensor([-1.0, -1.5, -0.75], requires_grad=True),
    ]
    data = [remove_label(datum) for datum in batch]
    loss, metrics = objective._mean_loss(batch, data, logprobs, num_replies=2, kl=0.2)
    loss.backward()
    good, bad = 0.5 * (-0.75 + 1.0 - 0.2), 0.5 * (-3.25 + 2.0 - 0.2)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = ((1 - sigmoid(good)) + 2 * (1 - sigmoid(-bad))) / 2
    assert loss.item() == pytest.approx(expected) and metrics == {"kl": 0.2}
    slope = -sigmoid(good) * (1 - sigmoid(good)) * 0.5 / 2
    assert logprobs[0].grad is not None and logprobs[1].grad is not None
    np.testing.assert_allclose(logprobs[0].grad.numpy(), [0, slope, slope], rtol=1e-6)
    slope = 2 * sigmoid(bad) * (1 - sigmoid(bad)) * 0.5 / 2
    np.testing.assert_allclose(logprobs[1].grad.numpy(), [slope] * 3, rtol=1e-6)
