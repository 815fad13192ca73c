from pathlib import Path

import pytest

from tinker_cookbook.service import default_store_dir
from tinker_cookbook.utils.misc_utils import runs_path


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_COOKBOOK_STORE_DIR", raising=False)
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", "~/elsewhere")
    assert default_store_dir() == runs_path("store") == Path.home() / "elsewhere" / "store"
    monkeypatch.setenv("TINKER_COOKBOOK_STORE_DIR", str(tmp_path))
    assert default_store_dir() == tmp_path
