from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from tinker_cookbook.exceptions import DataError
from tinker_cookbook.utils import data_files, hub_reach


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As with a network, and empty caches."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(hub_reach, "_out_of_reach", None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests made of a hub that is out of reach."""
    urls: list[str] = []

    def fail(url: str, **_: object) -> None:
        urls.append(url)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    return urls


def test_a_hub_out_of_reach_is_asked_once(asked: list[str]) -> None:
    for model in ("me/one", "me/two"):
        reason = hub_reach.problem(model, "config.json")
        assert reason is not None and reason.endswith("cannot be reached: no route to host")
    assert len(asked) == 1 and "me/one" in asked[0]


def test_names_that_the_hub_does_not_take(asked: list[str]) -> None:
    assert hub_reach.problem("a b/c", "config.json") == "it is not a valid name on the hub"
    assert asked == []


def test_what_is_in_the_cache_needs_no_hub(asked: list[str], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--me--one"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").write_text("{}")
    assert hub_reach.problem("me/one", "config.json") is None
    assert asked == []


def test_a_data_set_out_of_reach_is_told_at_once(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DataError, match=r"me/Some_Chats could not be downloaded: the hub .* no route to host"
    ):
        data_files.open_rows("me/Some_Chats")
    assert len(asked) == 1
    (tmp_path / "datasets" / "me___some_chats").mkdir(parents=True)  # `datasets` has a copy
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *_: SimpleNamespace(config="of a copy")
    )
    table = datasets.Dataset.from_list([{"a": 1}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    assert list(data_files.open_rows("me/Some_Chats")) == [{"a": 1}]
