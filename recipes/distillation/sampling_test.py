from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recipes.distillation import sampling
from recipes.distillation.sampling import TeacherReplies
from tinker_cookbook.completers import TinkerMessageCompleter
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.renderers import Message, get_renderer
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.testing import ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training import run_directory


async def test_runs_at_the_same_time_share_the_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: "4<|im_end|>"))
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"), model_name="nano")

    async def completer_from(*_: str | None, **keys: object) -> TinkerMessageCompleter:
        return TinkerMessageCompleter(client, renderer, 8)

    monkeypatch.setattr(sampling, "completer_from", completer_from)
    monkeypatch.setattr(run_directory, "LOCK_POLL_SECONDS", 0.01)
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path / "runs"))
    replies = TeacherReplies(
        teacher=TeacherConfig(base_model="nano"),
        renderer_name="qwen3_instruct",
        prompts=[[Message(role="user", content=f"{n} + 2?")] for n in range(3)],
        num_samples=2,
        temperature=1.0,
        max_tokens=8,
        seed=0,
        base_url=None,
    )
    await asyncio.gather(*(replies.sample(EngineConfig()) for _ in range(2)))
    assert len(engine.samples) == 6
    out = capsys.readouterr().out
    assert out.count("waiting for another process that writes to it") == 1
    assert out.count("teacher samples: 6 replies to 3 prompts") == 2
