"""A nano-sized Inspect task and scripted models, for tests of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

from tinker_cookbook.eval.inspect_model import model_for
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.testing import Asked, ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer


@task
def sums(count: int = 6) -> Task:
    """Sums of two neighbours; the reply must contain the right number."""
    samples = [
        Sample(id=f"sum-{i}", input=f"How much is {i} + {i + 1}?", target=str(2 * i + 1))
        for i in range(count)
    ]
    return Task(dataset=samples, solver=generate(), scorer=includes())


def scripted_model(
    directory: Path,
    reply: Callable[[Asked], str],
    config: GenerateConfig | None = None,
    renderer_name: str = "qwen3_instruct",
) -> tuple[Model, ScriptedEngine]:
    """A model with nano's renderer whose replies a function writes, and its engine."""
    engine = ScriptedEngine(reply=scripted_text("nano", reply))
    client = scripted_service(engine, directory).create_sampling_client(base_model="nano").result()
    renderer = get_renderer(renderer_name, get_tokenizer("nano"), model_name="nano")
    return model_for(client, renderer, "nano", config), engine
