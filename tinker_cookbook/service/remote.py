"""The SDK's client for a server, with an immediate connection check and support for directories."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import tinker
from tinker import types

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.service.checkpoint_dirs import SCHEME, Use, locate

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.backcompat_sampling_client_future import (
        BackcompatSamplingClientFuture,
    )
    from tinker.lib.public_interfaces.backcompat_training_client_future import (
        BackcompatTrainingClientFuture,
    )
    from tinker.lib.retry_handler import RetryConfig

REACH_SECONDS = 10.0  # for the first connection to a server


class RemoteServiceClient(tinker.ServiceClient):
    """`tinker.ServiceClient` for a URL, which also accepts run directories as checkpoint paths.

    Without a key in the environment or the credentials file, it sends a placeholder, because the
    SDK insists on a key, even for a server without authentication.
    """

    def __init__(self, base_url: str, user_metadata: dict[str, str] | None = None) -> None:
        _check_reachable(base_url)
        key_variables = ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD")
        credentials = Path("~/.tinker/credentials.json").expanduser()
        has_key = any(map(os.environ.get, key_variables)) or credentials.exists()
        self._key = None if has_key else "tml-local"
        self._url = base_url
        super().__init__(user_metadata=user_metadata, base_url=base_url, api_key=self._key)

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> BackcompatSamplingClientFuture:
        path = None if model_path is None else remote_path(model_path, "sampler_weights")
        return super().create_sampling_client(path, base_model, retry_config, record_stability_info)

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> BackcompatTrainingClientFuture:
        return super().create_training_client_from_state(
            remote_path(path, "weights"), base_model, user_metadata, weights_access_token, optimizer
        )

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> BackcompatTrainingClientFuture:
        return super().create_training_client_from_state_with_optimizer(
            remote_path(path, "weights"), base_model, user_metadata, weights_access_token
        )

    def create_rest_client(self) -> tinker.RestClient:
        return tinker.RestClient(base_url=self._url, api_key=self._key)


def remote_path(path: str, use: Use, key: str = "model_path") -> str:
    """Resolve a path to a tinker:// path. CheckpointError for an adapter on this machine, because
    the protocol has no way to upload it."""
    located = locate(path, use, key)
    if not located.startswith(SCHEME):
        raise CheckpointError(
            f"{key}={path} is an adapter on this machine, which the server at base_url cannot"
            " read: drop base_url, or set a tinker:// path of that server"
        )
    return located


def _check_reachable(base_url: str) -> None:
    """Try one connection, because the SDK itself would silently retry for minutes."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"base_url={base_url!r} is not an http:// or https:// URL")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ConfigurationError(
            f"base_url={base_url} is not reachable ({error}); is the server running?"
        ) from error
