"""Every loss and its gradient against a float64 reference written from the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tinker_cookbook.engine.losses import LOSSES, SEQUENCE_INDEX, get_loss
from tinker_cookbook.exceptions import ConfigurationError

TOKENS = 60
ROWS = (7, 1, 30, 22)


def make_inputs(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logprobs and inputs whose ratios lie on both sides of every bound."""
    rng = np.random.default_rng(seed)
    lp = -rng.exponential(2.0, TOKENS)
    q = lp - rng.normal(0, 0.4, TOKENS)
    advantages = rng.normal(size=TOKENS)
    advantages[rng.random(TOKENS) < 0.2] = 0
    inputs = {
        "logprobs": q,
        "advantages": advantages,
        "weights": rng.normal(size=TOKENS),
        "sequence_ratio_mask": (rng.random(TOKENS) < 0.7).astype(float),
    }
    return lp, inputs


def by_hand(
    name: str, lp: np.ndarray, x: dict[str, np.ndarray], **config: float
) -> tuple[float, np.ndarray]:
    """Loss and d loss / d lp, token by token in Python floats."""
    loss, grad = 0.0, np.zeros(TOKENS)
    starts = np.cumsum((0, *ROWS))
    for row, start in enumerate(starts[:-1]):
        span = range(start, starts[row + 1])
        masked = [t for t in span if x["sequence_ratio_mask"][t] != 0]
        mean = sum(lp[t] - x["logprobs"][t] for t in masked) / max(len(masked), 1)
        for t in span:
            a, w, q = x["advantages"][t], x["weights"][t], x["logprobs"][t]
            ratio = math.exp(lp[t] - q)
            if name == "cross_entropy":
                loss, grad[t] = loss - w * lp[t], -w
                continue
            if name == "importance_sampling":
                loss, grad[t] = loss - ratio * a, -ratio * a
                continue
            if name == "dro":
                loss -= lp[t] * a - 0.5 * config["beta"] * (lp[t] - q) ** 2
                grad[t] = -(a - config["beta"] * (lp[t] - q))
                continue
            low, high = config["clip_low_threshold"], config["clip_high_threshold"]
            if name == "cispo":
                weight = min(max(ratio, low), high)
                loss, grad[t] = loss - weight * lp[t] * a, -weight * a
                continue
            if name == "gspo":
                ratio = math.exp(mean)
            clipped = min(max(ratio, low), high)
            loss -= min(ratio * a, clipped * a)
            # if the clipped term is the smaller one, it is constant
            grad[t] = -ratio * a if ratio * a <= clipped * a else 0.0
    return loss, grad


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name: str, seed: int, device: str) -> None:
    lp, inputs = make_inputs(seed)
    loss = get_loss(name, None)
    expected, slope = by_hand(name, lp, inputs, **loss.config)
    row = torch.from_numpy(np.repeat(np.arange(len(ROWS)), ROWS)).to(device)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tensors = {k: torch.from_numpy(inputs[k]).to(device, dtype) for k in loss.inputs}
        logprobs = torch.from_numpy(lp).to(device, dtype)
        value, grad = loss.value_and_grad(logprobs, {**tensors, SEQUENCE_INDEX: row})
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=tolerance)
        assert np.abs(grad.double().cpu().numpy() - slope).max() <= tolerance


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "dro"])
def test_zero_weight_or_advantage_masks(name: str) -> None:
    lp, inputs = make_inputs(0)
    key = "weights" if name == "cross_entropy" else "advantages"
    inputs[key][::2] = 0
    loss = get_loss(name, None)
    tensors = {k: torch.from_numpy(inputs[k]) for k in loss.inputs}
    row = torch.from_numpy(np.repeat(np.arange(len(ROWS)), ROWS))
    _, grad = loss.value_and_grad(torch.from_numpy(lp), {**tensors, SEQUENCE_INDEX: row})
    assert (grad[::2] == 0).all() and (grad[1::2] != 0).any()


@pytest.mark.parametrize("name", ["ppo", "cispo", "gspo"])
def test_bounds_per_token_replace_the_configuration(name: str) -> None:
    lp, inputs = make_inputs(1)
    bounds = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}
    row = torch.from_numpy(np.repeat(np.arange(len(ROWS)), ROWS))
    tensors = {k: torch.from_numpy(inputs[k]) for k in LOSSES[name].inputs} | {SEQUENCE_INDEX: row}
    given = get_loss(name, bounds).value_and_grad(torch.from_numpy(lp), tensors)
    spread = {k: torch.full((TOKENS,), v, dtype=torch.float64) for k, v in bounds.items()}
    each = get_loss(name, None).value_and_grad(torch.from_numpy(lp), {**tensors, **spread})
    default = get_loss(name, None).value_and_grad(torch.from_numpy(lp), tensors)
    assert torch.allclose(given[0], each[0]) and torch.equal(given[1], each[1])
    assert not torch.allclose(given[0], default[0])


def test_dro_with_a_mask_pulls_only_what_was_sampled() -> None:
    """As the reference on tokens with a mask of 1; elsewhere only lp * A is left."""
    lp, inputs = make_inputs(3)
    mask = inputs["sequence_ratio_mask"] * 3  # any value but 0 counts as 1
    loss = get_loss("dro", {"beta": 0.2})
    tensors = {k: torch.from_numpy(inputs[k]) for k in loss.inputs}
    row = torch.zeros(TOKENS, dtype=torch.int64)
    value, grad = loss.value_and_grad(
        torch.from_numpy(lp), {**tensors, "mask": torch.from_numpy(mask), SEQUENCE_INDEX: row}
    )
    expected = 0.0
    for t in range(TOKENS):
        a, drift = inputs["advantages"][t], lp[t] - inputs["logprobs"][t]
        pull = 0.2 if mask[t] else 0.0
        expected -= lp[t] * a - 0.5 * pull * drift**2
        assert grad[t].item() == pytest.approx(-(a - pull * drift), abs=1e-12)
    assert value.item() == pytest.approx(expected, abs=1e-12)

    ones = {"mask": torch.ones(TOKENS, dtype=torch.float64)}
    whole = loss.value_and_grad(torch.from_numpy(lp), {**tensors, **ones, SEQUENCE_INDEX: row})
    plain = loss.value_and_grad(torch.from_numpy(lp), {**tensors, SEQUENCE_INDEX: row})
    assert torch.equal(whole[0], plain[0]) and torch.equal(whole[1], plain[1])
    assert not torch.allclose(grad, plain[1])


def test_on_policy_all_ratios_are_one() -> None:
    """On-policy (lp = q), every policy loss has the gradient -A, so their first steps are equal."""
    lp, inputs = make_inputs(2)
    inputs["logprobs"] = lp.copy()
    row = torch.from_numpy(np.repeat(np.arange(len(ROWS)), ROWS))
    for name in ("importance_sampling", "ppo", "cispo", "dro", "gspo"):
        tensors = {k: torch.from_numpy(inputs[k]) for k in LOSSES[name].inputs} | {
            SEQUENCE_INDEX: row
        }
        _, grad = get_loss(name, None).value_and_grad(torch.from_numpy(lp), tensors)
        assert torch.allclose(grad, -tensors["advantages"]), name


def test_refusals() -> None:
    with pytest.raises(ConfigurationError, match="unknown loss_fn 'grpo'; known: cispo, cross_"):
        get_loss("grpo", None)
    with pytest.raises(ConfigurationError, match="key 'clip_low': ppo takes clip_low_threshold"):
        get_loss("ppo", {"clip_low": 0.5})
    with pytest.raises(ConfigurationError, match="cross_entropy takes temperature"):
        get_loss("cross_entropy", {"beta": 0.5})
    for low in (0.0, -1.0, 1e-9):
        with pytest.raises(ConfigurationError, match=f"temperature={low:g}: expected at least"):
            get_loss("ppo", {"temperature": low})
    with pytest.raises(ConfigurationError, match="beta='big' must be a finite number"):
        get_loss("dro", {"beta": "big"})
    with pytest.raises(ConfigurationError, match="they bound the ratio; set 0 <= low <= high"):
        get_loss("ppo", {"clip_low_threshold": 1.5})
