"""Which files are the user's own code, what of them counts, and what does not."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.utils.code_identity import edited, user_code, without_modules
from tinker_cookbook.utils.plain_data import plain

FILES = {
    "a_game": "import os\nimport a_helper\nfrom a_package import part\nimport tinker_cookbook",
    "a_helper": "def later():\n    import a_lazy",
    "a_lazy": "",
    "a_stranger": "",
    "a_package/__init__": "",
    "a_package/part": "from . import other\nfrom .deep import leaf\nfrom .. import beyond",
    "a_package/other": "",
    "a_package/deep/__init__": "from ..other import nothing",
    "a_package/deep/leaf": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in FILES.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    (tmp_path / "tinker_cookbook.py").write_text("")  # not what the import means
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "a_game", type(sys)("a_game"))
    sys.modules["a_game"].__file__ = str(tmp_path / "a_game.py")
    return tmp_path


def test_the_file_of_a_module_and_what_it_imports_beside_it(folder: Path) -> None:
    code = user_code({"data": [{"class": "a_game:Guess", "n": 1}]})
    assert list(code) == ["a_game"]
    assert set(code["a_game"]) == {f"{name}.py" for name in FILES} - {"a_stranger.py"}
    assert user_code({"renderer_name": "a_game:Renderer.make"}) == code
    before = code["a_game"]
    for name in ("a_lazy", "a_package/deep/leaf"):
        (folder / f"{name}.py").write_text("x = 1")
    found = edited(code, user_code("a_game:Guess"))
    assert found == ["a_lazy.py", "a_package/deep/leaf.py"]
    assert edited({}, code) == [] and edited({"a_game": before}, code) == []
    (folder / "a_helper.py").unlink()
    assert "a_helper.py" in edited(code, user_code("a_game:Guess"))


def test_a_file_that_does_not_parse_counts_all_the_same(folder: Path) -> None:
    (folder / "a_game.py").write_text("def")
    assert list(user_code("a_game:Guess")["a_game"]) == ["a_game.py"]


@pytest.mark.parametrize(
    "value",
    [
        "recipes.math_rl.gsm8k:Gsm8k",
        "tinker_cookbook.supervised.data:JsonlChats",
        "json:loads",
        "builtins:len",
        "not_loaded:Thing",
        "chats: of a_game:Guess",
        "tinker://a/weights/b",
        "C:x",
        7,
    ],
)
def test_what_is_not_the_users_own(value: Any) -> None:
    assert user_code({"key": value}) == {}


def test_of_an_installed_package_the_version_counts() -> None:
    version = importlib.metadata.version("PyYAML")
    importlib.import_module("yaml.loader")
    code = user_code({"loader": "yaml.loader:Loader"})
    assert code == {"yaml.loader": {"version": version}}
    older = {"yaml.loader": {"version": "1.0"}}
    assert edited(older, code) == [f"yaml.loader (1.0 -> {version})"]


def test_a_program_is_a_module_as_well(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(
        "import json\n"
        "from tinker_cookbook.utils.code_identity import user_code\n"
        "from tinker_cookbook.utils.plain_data import plain\n"
        "def f(): pass\n"
        "if __name__ == '__main__': print(json.dumps([plain(f), user_code([plain(f)])]))\n"
    )
    root = Path(__file__).parents[2]
    for words in (["-m", "prog"], ["prog.py"]):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        name, code = json.loads(done.stdout)
        module = "prog" if words[0] == "-m" else "__main__"
        assert name == f"{module}:f" and list(code[module]) == ["prog.py"]


class Opaque:
    pass


def test_the_form_of_earlier_versions() -> None:
    config = {"data": {"class": "a.b:Chats", "of": [{"class": "m:X"}]}, "f": "m:f", "o": Opaque()}
    assert without_modules(plain(config)) == {
        "data": {"class": "Chats", "of": [{"class": "X"}]},
        "f": "m:f",
        "o": "Opaque",
    }
