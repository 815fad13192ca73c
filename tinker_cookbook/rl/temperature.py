"""A policy at a temperature other than 1: which logprobs are whose.

The policy is softmax(logits / temperature): replies are drawn from it, and their logprobs are its.
Importance ratios, the KL to a reference and every figure that compares logprobs are about it, so
trainer and reference have to divide their logits as well, as TRL, verl and prime-rl do. The engine
in process does. Over the SDK neither can be asked for it. A KL, or clipping around a ratio of 1,
would then be of something else, and is refused. Plain importance sampling still is an estimate for
the policy at temperature 1, and the run says so.
"""

from __future__ import annotations

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.config import Config


def trainer_temperature(config: Config) -> float:
    """At which forward_backward gives logprobs of this run."""
    return config.temperature if config.base_url is None else 1.0


def loss_settings(config: Config) -> dict[str, float] | None:
    """The loss_fn_config to send, with the temperature where it is not 1."""
    temperature = trainer_temperature(config)
    if temperature == 1:
        return config.loss_fn_config
    return {**(config.loss_fn_config or {}), "temperature": temperature}


def check_temperature(config: Config) -> None:
    """Raises ConfigurationError for what would compare logprobs of two temperatures."""
    if "temperature" in (config.loss_fn_config or {}):
        raise ConfigurationError(
            "loss_fn_config.temperature: the loop trains at the temperature that it samples at;"
            " drop it, and set temperature="
        )
    for signal in config.signals:
        own = getattr(signal, "temperature", config.temperature)
        if own != config.temperature:
            raise ConfigurationError(
                f"signals: {type(signal).__name__} scores at temperature={own:g}, but replies are"
                f" sampled at temperature={config.temperature:g}: give it"
                f" temperature={config.temperature:g}"
            )
    if config.temperature == 1 or config.base_url is None:
        return
    at = f"temperature={config.temperature:g} with base_url"
    for key in ("kl_penalty_coef", "compute_post_kl"):
        if getattr(config, key):
            raise ConfigurationError(
                f"{at}: {key} compares with logprobs that the SDK's compute_logprobs gives at"
                f" temperature 1 only; set temperature=1, drop {key}, or train in process"
            )
    if config.loss_fn != "importance_sampling":
        raise ConfigurationError(
            f"{at}: {config.loss_fn} needs ratios around 1, but a service trains at temperature 1,"
            " where they are far from it; set temperature=1 or loss_fn=importance_sampling, or"
            " train in process"
        )


def about_temperature(config: Config) -> list[str]:
    """What a person should know of it before the run starts."""
    if config.temperature == 1:
        return []
    at = f"{config.temperature:g}"
    policy = f"temperature {at}: the policy is softmax(logits / {at})"
    if config.base_url is None:
        return [f"{policy}, in sampling, training and every comparison of logprobs"]
    return [
        f"{policy}, but the service trains it at temperature 1: importance ratios correct for the"
        " difference, at the price of variance, and optim/kl_sample_train_* and"
        " optim/logprob_gap_* contain it"
    ]
