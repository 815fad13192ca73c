"""Sampling temperatures other than 1: which logprobs refer to which distribution.

The policy is softmax(logits / temperature): replies are sampled from it, and sampled logprobs are
those of this distribution. Importance ratios, the KL to a reference and every metric that compares
logprobs refer to it, so trainer and reference must divide their logits by the temperature, too, as
in TRL, verl and prime-rl. The engine in process does. The SDK's protocol has no such parameter: a
KL penalty, or clipping around a ratio of 1, would compare different distributions and is an error.
Plain importance sampling remains valid as an off-policy estimate for the policy at temperature 1,
and the run logs that it is one.
"""

from __future__ import annotations

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.config import Config


def trainer_temperature(config: Config) -> float:
    """The temperature of the logprobs that forward_backward returns in this run."""
    return config.temperature if config.base_url is None else 1.0


def loss_settings(config: Config) -> dict[str, float] | None:
    """The loss_fn_config to send, including the temperature unless it is 1."""
    temperature = trainer_temperature(config)
    if temperature == 1:
        return config.loss_fn_config
    return {**(config.loss_fn_config or {}), "temperature": temperature}


def check_temperature(config: Config) -> None:
    """Raise ConfigurationError if the run would compare logprobs of different temperatures."""
    if "temperature" in (config.loss_fn_config or {}):
        raise ConfigurationError(
            "loss_fn_config.temperature: the loop trains at its sampling temperature; drop this key"
            " and set temperature="
        )
    for signal in config.signals:
        own = getattr(signal, "temperature", config.temperature)
        if own != config.temperature:
            raise ConfigurationError(
                f"signals: {type(signal).__name__} scores at temperature={own:g}, but replies are"
                f" sampled at temperature={config.temperature:g}: give the signal"
                f" temperature={config.temperature:g}"
            )
    if config.temperature == 1 or config.base_url is None:
        return
    at = f"temperature={config.temperature:g} with base_url"
    for key in ("kl_penalty_coef", "compute_post_kl"):
        if getattr(config, key):
            raise ConfigurationError(
                f"{at}: {key} compares sampled logprobs with those of the SDK's compute_logprobs,"
                f" which supports temperature 1 only; set temperature=1, drop {key}, or train in"
                " process"
            )
    if config.loss_fn != "importance_sampling":
        raise ConfigurationError(
            f"{at}: {config.loss_fn} needs importance ratios near 1, but a service trains at"
            " temperature 1, where they are not; set temperature=1 or"
            " loss_fn=importance_sampling, or train in process"
        )


def temperature_lines(config: Config) -> list[str]:
    """Lines about the temperature to log before training starts."""
    if config.temperature == 1:
        return []
    at = f"{config.temperature:g}"
    policy = f"temperature {at}: the policy is softmax(logits / {at})"
    if config.base_url is None:
        return [f"{policy} in sampling, training and every comparison of logprobs"]
    return [
        f"{policy}, but the service trains at temperature 1: importance ratios correct for the"
        " difference at the cost of variance, and optim/kl_sample_train_* and optim/logprob_gap_*"
        " include it"
    ]
