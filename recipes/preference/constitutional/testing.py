"""Helper of this recipe's tests."""

from pathlib import Path

from tinker_cookbook.completers import TinkerMessageCompleter
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.testing import ScriptedEngine, scripted_service
from tinker_cookbook.tokenizer_utils import get_tokenizer


async def completer(
    engine: ScriptedEngine, store: Path, max_tokens: int = 20, window: int | None = None
) -> TinkerMessageCompleter:
    """nano's renderer with scripted replies."""
    client = await scripted_service(engine, store).create_sampling_client(base_model="nano")
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"), model_name="nano")
    return TinkerMessageCompleter(client, renderer, max_tokens, context_window=window)
