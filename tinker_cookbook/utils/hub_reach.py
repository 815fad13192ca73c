"""Check with a single request whether the hub can serve a file.

huggingface_hub itself retries six times over 23 seconds, with two lines of output for each file,
and transformers and datasets ask it for several files.
"""

from __future__ import annotations

import time

from tinker_cookbook.utils.error_text import one_line

SECONDS = 10.0  # timeout of the request
REMEMBERED = 60.0  # seconds until a hub that was unreachable is asked again
_out_of_reach: tuple[float, str] | None = None  # time and reason of the last failure


def problem(repository: str, file: str, repo_type: str = "model") -> str | None:
    """Why the hub cannot serve a file, as half a line. None if it can, if the file is in the cache,
    or if the repository exists without it: then the caller's own error says more."""
    global _out_of_reach
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        cached = huggingface_hub.try_to_load_from_cache(repository, file, repo_type=repo_type)
        if isinstance(cached, str):
            return None
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set and it is not in the local cache"
        if _out_of_reach and time.monotonic() - _out_of_reach[0] < REMEMBERED:
            return _out_of_reach[1]
        url = huggingface_hub.hf_hub_url(repository, file, repo_type=repo_type)
        huggingface_hub.get_hf_file_metadata(url, timeout=SECONDS)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    except RepositoryNotFoundError:
        return "the hub has no such repository, or it is private or gated"
    except HFValidationError:
        return "it is not a valid name on the hub"
    except HfHubHTTPError as error:
        return f"the hub answered with status {error.response.status_code}"
    except Exception as error:  # the HTTP library, and so its exceptions, differ by version
        why = one_line(error, 100)
        reason = f"the hub at {constants.ENDPOINT} cannot be reached: {why}"
        _out_of_reach = (time.monotonic(), reason)
        return reason
    return None
