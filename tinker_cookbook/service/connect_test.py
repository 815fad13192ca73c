import asyncio
import sys
from pathlib import Path

import pytest

from tinker_cookbook.service import EngineConfig, connect, connect_run, default_store_dir
from tinker_cookbook.utils.misc_utils import runs_path


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_COOKBOOK_STORE_DIR", raising=False)
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", "~/elsewhere")
    assert default_store_dir() == runs_path("store") == Path.home() / "elsewhere" / "store"
    monkeypatch.setenv("TINKER_COOKBOOK_STORE_DIR", str(tmp_path))
    assert default_store_dir() == tmp_path


def test_models_beside_a_run_are_where_the_models_of_the_run_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Judges and baselines use the run's engine or server; other tasks are not affected."""
    engines: list[EngineConfig] = []
    # sys.modules: the package's `connect` is the function
    monkeypatch.setattr(sys.modules["tinker_cookbook.service.connect"], "_engine", engines.append)
    settings = EngineConfig(num_threads=1)

    async def run_with_a_judge() -> None:
        connect_run(None, settings)
        connect()
        connect(engine=EngineConfig())

    asyncio.run(run_with_a_judge())
    connect()
    assert engines == [settings, settings, EngineConfig(), EngineConfig()]
