"""What makes local data another: content, names and sizes; and what does not: place and caches."""

import json
import os
from pathlib import Path

import chz
import pytest

from tinker_cookbook.supervised.data import (
    FromConversationFileBuilder,
    HFDatasetSource,
    HubChats,
    InterleavedChatDatasetBuilder,
    JsonlChats,
    StreamedHubChats,
)
from tinker_cookbook.utils import data_identity
from tinker_cookbook.utils.data_identity import data_set_identity, file_identity
from tinker_cookbook.utils.plain_data import plain


def test_a_file_is_its_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text("one\n")
    b.write_text("one\n")
    assert file_identity(a) == file_identity(b) != {}
    b.write_text("two\n")  # of the same size
    assert file_identity(a) != file_identity(b)
    assert file_identity(tmp_path / "no.jsonl") == {}


@pytest.mark.parametrize("key", ["path", "test_path"])
def test_jsonl_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """The same relative path in two directories."""
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chats.jsonl").write_text(text)
    fixed = tmp_path / "fixed.jsonl"
    fixed.write_text("0")
    builder = JsonlChats(**{"path": str(fixed), "test_path": str(fixed), key: "chats.jsonl"})
    found = {}
    for name in "abc":
        monkeypatch.chdir(tmp_path / name)
        found[name] = plain(builder)["identity"]
    assert set(found["a"]) == {"path", "test_path"}
    assert found["a"] == found["c"] and found["a"] != found["b"]


def test_the_other_builder_of_files(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text("one")
    builder = FromConversationFileBuilder(file_path=str(file))
    before = plain(builder)["identity"]
    assert before == {"file_path": file_identity(file)}
    file.write_text("one more")
    assert plain(builder)["identity"] != before


def test_a_directory_is_names_sizes_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_identity, "ENDS", 4)
    root = tmp_path / ".cache" / "set"  # below a hidden directory, as downloads are
    root.mkdir(parents=True)
    (root / "train.jsonl").write_text("0123456789")
    (root / "test.jsonl").write_text("x")
    first = data_set_identity(str(root))
    assert (first["files"], first["bytes"]) == (2, 11)
    for content in ("0123456780", "1123456789", "01234567890"):
        (root / "train.jsonl").write_text(content)
        assert data_set_identity(str(root)) != first, content
    (root / "train.jsonl").write_text("0123456789")
    assert data_set_identity(str(root)) == first
    os.rename(root, tmp_path / "moved")
    assert data_set_identity(str(tmp_path / "moved")) == first
    os.rename(tmp_path / "moved" / "test.jsonl", tmp_path / "moved" / "valid.jsonl")
    assert data_set_identity(str(tmp_path / "moved")) != first
    assert data_set_identity("org/name") == {}


def test_what_datasets_writes_beside_a_saved_data_set_is_no_part_of_it(tmp_path: Path) -> None:
    import datasets

    saved = tmp_path / "saved"
    datasets.Dataset.from_list([{"n": n} for n in range(50)]).save_to_disk(str(saved))
    before = data_set_identity(str(saved))
    datasets.load_from_disk(str(saved)).shuffle(seed=1)
    assert list(saved.glob("cache-*")), "shuffling has written its order there"
    (saved / ".hidden").mkdir()
    (saved / ".hidden" / "x").write_text("x")
    assert data_set_identity(str(saved)) == before != {}


def test_builders_of_hub_data_tell_only_of_local_copies(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": []}))
    local = str(tmp_path)
    expected = {"path": data_set_identity(local)}
    source = HFDatasetSource(path=local)
    for builder in (HubChats(path=local), StreamedHubChats(path=local, length=1), source):
        assert plain(builder)["identity"] == expected
        assert "identity" not in plain(chz.replace(builder, path="org/name"))
    mixture = plain(InterleavedChatDatasetBuilder(sources=[source]))
    assert mixture["sources"][0]["identity"] == expected
