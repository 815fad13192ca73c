"""The Bradley-Terry objective: its loss, gradient and metrics, and a trained reward model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.nano import tasks
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.objective import PreferenceObjective, check_pairs
from tinker_cookbook.preference.preference_datasets import (
    ChatDatasetBuilderFromComparisons,
    ComparisonBuilderFromJsonl,
)
from tinker_cookbook.preference.reward_model import (
    RewardDatasetBuilderFromComparisons,
    RewardModel,
    RewardModelBuilder,
    RewardRenderer,
)
from tinker_cookbook.preference.reward_objective import (
    BradleyTerryObjective,
    make_reward_objective,
    reward_metrics,
)
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.service import connect
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.nll_evaluator import all_datums, forward_logprobs
from tinker_cookbook.supervised.passes import split_into_passes
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

LABELS = RewardRenderer(get_renderer("qwen3_instruct", get_tokenizer("nano"))).labels.tokens
COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3_instruct", batch_size=8, max_length=128
)


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> ComparisonBuilderFromJsonl:
    """Eight polite and terse replies; the test split is the same as the training split."""
    rng = random.Random(0)
    rows = [json.dumps(tasks.preference_pair(rng, "polite")) for _ in range(8)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(rows))
    return ComparisonBuilderFromJsonl(train_path=str(path), test_path=str(path))


@pytest.fixture(scope="module")
def batch(comparisons: ComparisonBuilderFromJsonl) -> list[tinker.Datum]:
    data = RewardDatasetBuilderFromComparisons(comparison_builder=comparisons, common_config=COMMON)
    return all_datums(data()[0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_loss_and_gradient_by_hand() -> None:
    """-log sigmoid(r_c - r_r), averaged over two pairs; only the last position has a gradient."""
    rewards = [1.25, -0.5, 0.75, 3.0]
    leaves = [
        torch.tensor([[-1.0, -1.0], [reward - 4.0, -4.0]], requires_grad=True) for reward in rewards
    ]
    objective = BradleyTerryObjective(LABELS)
    halves = [objective._mean_loss([], leaves[start : start + 2], num_pairs=2) for start in (0, 2)]
    loss = sum(half[0] for half in halves)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    margins = [1.75, -2.25]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for index, leaf in enumerate(leaves):
        # d loss / d r_chosen = -sigmoid(r_r - r_c) / pairs, and its negative for r_rejected
        slope = (-1, 1)[index % 2] * sigmoid(-margins[index // 2]) / 2
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), [[0, 0], [slope, -slope]], rtol=1e-6)


def test_metrics_by_hand() -> None:
    """Margins 2, -1 and 0, which counts as half a success."""
    rewards = (1.0, -1.0, 0.0, 1.0, 0.5, 0.5)
    metrics = reward_metrics([np.array([[np.nan] * 2, [reward, 0.0]]) for reward in rewards])
    losses = [math.log1p(math.exp(-margin)) for margin in (2, -1, 0)]
    assert metrics == pytest.approx(
        {
            "rm_loss": sum(losses) / 3,
            "accuracy": 0.5,
            "margin": 1 / 3,
            "chosen_reward": 0.5,
            "rejected_reward": 0.5 / 3,
        }
    )


async def rewards_in_training(
    client: tinker.TrainingClient, data: Sequence[tinker.Datum]
) -> list[float]:
    logprobs = await forward_logprobs(client, BradleyTerryObjective(LABELS).inputs(data))
    return [float(values[-1, 0] - values[-1, 1]) for values in logprobs]


async def test_passes_add_up_to_the_gradient_of_the_batch(batch: list[tinker.Datum]) -> None:
    """And the rewards before the step are those of nano in float64."""
    from transformers import AutoModelForCausalLM

    from tinker_cookbook import models

    service = connect()
    # Adam with a large epsilon is plain gradient descent: no sign of a tiny gradient is amplified
    params = tinker.AdamParams(learning_rate=1.0, eps=100.0)
    norms, rewards, num_calls = [], [], []
    for tokens_per_pass in (None, 150):
        client = await service.create_lora_training_client("nano", rank=4, seed=0)
        if tokens_per_pass is None:
            before = await rewards_in_training(client, batch)
        futures = await BradleyTerryObjective(LABELS, tokens_per_pass).submit(client, batch)
        num_calls.append(len(futures))
        metrics = (await client.optim_step(params)).metrics
        assert metrics is not None
        norms.append(metrics["grad_norm"])
        rewards.append(await rewards_in_training(client, batch))
    assert num_calls[0] == 1 and num_calls[1] >= 3
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    np.testing.assert_allclose(rewards[1], rewards[0], atol=1e-5)
    assert np.abs(np.array(rewards[0]) - before).max() > 1e-2  # the step did change them

    model = AutoModelForCausalLM.from_pretrained(models.load_path("nano"), dtype=torch.float64)
    expected = []
    for datum in batch[:6]:
        logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0, -1].detach()
        expected.append(float(logits[LABELS[0]] - logits[LABELS[1]]))
    np.testing.assert_allclose(before[:6], expected, atol=2e-5)


async def test_a_reward_model_is_trained_and_loaded(
    comparisons: ComparisonBuilderFromJsonl, batch: list[tinker.Datum], tmp_path: Path
) -> None:
    builder = RewardDatasetBuilderFromComparisons(comparison_builder=comparisons)
    config = ChatConfig(
        log_path=str(tmp_path / "rm"),
        display="plain",
        renderer_name="qwen3_instruct",
        lora_rank=4,
        batch_size=8,
        num_epochs=6,
        learning_rate=3e-3,
        eval_every=0,
    )
    resolved = resolve_chat_config(config, DPO_DEFAULTS, builder)
    data = resolved.config.dataset_builder
    assert isinstance(data, RewardDatasetBuilderFromComparisons)
    await train.run(resolved, "rm", partial(make_reward_objective, data))
    lines = (tmp_path / "rm" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    first, last = rows[0], rows[-1]
    assert (first["num_pairs"], first["num_sequences"]) == (8, 16)
    for name in ("rm_loss", "accuracy", "margin", "chosen_reward", "rejected_reward"):
        assert first[f"test/{name}"] == pytest.approx(first[name], abs=1e-5), name
    assert last["test/rm_loss"] < 0.5 * first["test/rm_loss"]
    assert last["test/accuracy"] == last["test/preference_accuracy"] == 1
    assert last["test/order_consistency"] == 1

    model = RewardModelBuilder(model_name="nano", rm_weights_path=str(tmp_path / "rm"))()
    assert isinstance(model, RewardModel)
    train_split = comparisons.open_splits()[0]
    rewards = []
    for index in range(len(train_split.rows)):
        parsed = train_split.read(train_split.rows[index], "row")
        assert parsed is not None and parsed.labeled.chosen and parsed.labeled.rejected
        prompt = parsed.labeled.comparison.prompt_conversation
        for completion in (parsed.labeled.chosen, parsed.labeled.rejected):
            rewards.append(await model.reward(prompt, completion))
    assert np.mean(rewards[::2]) == pytest.approx(last["test/chosen_reward"], abs=1e-4)
    assert np.mean(rewards[1::2]) == pytest.approx(last["test/rejected_reward"], abs=1e-4)


@pytest.mark.parametrize(
    ("builder", "problem"),
    [
        (DPODatasetBuilderFromComparisons, "does not train its last token alone"),
        (ChatDatasetBuilderFromComparisons, "does not end with 'Yes'"),
    ],
)
def test_other_data_is_refused(
    comparisons: ComparisonBuilderFromJsonl,
    builder: type[DPODatasetBuilderFromComparisons | ChatDatasetBuilderFromComparisons],
    problem: str,
) -> None:
    data = builder(comparison_builder=comparisons, common_config=COMMON)()[0].get_batch(0)
    with pytest.raises(DataValidationError) as caught:
        BradleyTerryObjective(LABELS).inputs(data)
    assert str(caught.value) == (
        f"the data is not of pairs for a reward model: an example {problem}; use"
        " data=RewardDatasetBuilderFromComparisons"
    )


def test_half_a_pair_is_refused(batch: list[tinker.Datum]) -> None:
    with pytest.raises(DataValidationError, match="a batch has 3 examples; use"):
        BradleyTerryObjective(LABELS).inputs(batch[:3])


def test_dpo_refuses_the_data_of_a_reward_model(batch: list[tinker.Datum]) -> None:
    with pytest.raises(DataValidationError, match="should be a pair have different prompts"):
        check_pairs(batch)


def test_inputs_have_both_labels_as_last_targets(batch: list[tinker.Datum]) -> None:
    objective: PreferenceObjective = BradleyTerryObjective(LABELS)
    for datum, scored in zip(batch, objective.inputs(batch), strict=True):
        targets = scored.loss_fn_inputs["target_tokens"].to_numpy()
        assert targets[-1].tolist() == LABELS
        assert targets[:-1, 0].tolist() == targets[:-1, 1].tolist()
        assert targets[:-1, 0].tolist() == from_datum(datum).tokens[1:-1].tolist()
    parts = list(split_into_passes(objective.inputs(batch), 1, unit=2))
    assert [len(part) for part in parts] == [2] * 8
