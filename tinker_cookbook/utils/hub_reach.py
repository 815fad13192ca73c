"""Whether the hub can give a file, found out with one request.

huggingface_hub itself tries six times over 23 seconds, with two lines for each, file by file; and
transformers and datasets ask it for several.
"""

from __future__ import annotations

import time

from tinker_cookbook.utils.error_text import one_line

SECONDS = 10.0  # for the one request
REMEMBERED = 60.0  # seconds for which a hub that was out of reach is not asked again
_out_of_reach: tuple[float, str] | None = None  # when, and why


def problem(repository: str, file: str, repo_type: str = "model") -> str | None:
    """Why the hub cannot give a file, in half a line. None: it can, or the file is in the cache, or
    the repository is there and lacks it, which whoever wants it will say."""
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
        return "the hub has no such name, or it is private or gated"
    except HFValidationError:
        return "it is not a name that the hub takes"
    except HfHubHTTPError as error:
        return f"the hub answers with status {error.response.status_code}"
    except Exception as error:  # types of the HTTP library, which differs by version
        why = one_line(error, 100)
        reason = f"the hub at {constants.ENDPOINT} cannot be reached: {why}"
        _out_of_reach = (time.monotonic(), reason)
        return reason
    return None
