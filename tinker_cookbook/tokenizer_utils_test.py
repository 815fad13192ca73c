from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import Programs
from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.tokenizer_utils import (
    TRUST,
    get_registered_tokenizer_names,
    get_tokenizer,
    is_tokenizer_registered,
    register_tokenizer,
    unregister_tokenizer,
)


def test_registered_tokenizers_are_made_once_and_can_be_replaced() -> None:
    made = []

    def factory() -> object:
        made.append(object())
        return made[-1]

    register_tokenizer("mine", factory)
    try:
        assert is_tokenizer_registered("mine") and get_registered_tokenizer_names() == ["mine"]
        assert get_tokenizer("mine") is get_tokenizer("mine") is made[0]
        register_tokenizer("mine", factory)
        assert get_tokenizer("mine") is made[1]
    finally:
        unregister_tokenizer("mine")
    assert not is_tokenizer_registered("mine")
    with pytest.raises(ConfigurationError, match="'mine'"):
        unregister_tokenizer("mine")


def test_nano_and_its_directory() -> None:
    directory = Path(models.load_path("nano"))
    if not (directory / "tokenizer.json").is_file():
        pytest.skip("nano is not built")
    tokenizer = get_tokenizer("nano")
    assert tokenizer is get_tokenizer("nano")
    assert tokenizer.decode(tokenizer.encode("What is 37 + 58?")) == "What is 37 + 58?"
    assert len(get_tokenizer(str(directory))) == len(tokenizer)


def test_missing_tokenizers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, hint in (
        (str(tmp_path / "absent"), "there is no directory"),
        ("Qwen/Qwen3-8b", "similar known names: Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3.2-1B", "HF_TOKEN"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            get_tokenizer(name)
        assert name in str(caught.value) and hint in str(caught.value)
        assert "\n" not in str(caught.value)


# transformers makes one of the first four from nothing, in silence, and refuses the others
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "bert", "t5", "llama", "none-of-ours"])
def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    for config in (None, '{"eos_token": "<end>", "chat_template": "x"}'):
        if config:
            (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(ConfigurationError) as caught:
            get_tokenizer(str(tmp_path))
        message = str(caught.value)
        assert f"model_name={str(tmp_path)!r}: there is no tokenizer" in message
        assert f"{tmp_path} has no tokenizer.json (nor tokenizer.model" in message
        assert "put the files of the model's tokenizer there" in message and "\n" not in message


def test_an_empty_vocabulary_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    Tokenizer(BPE()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ConfigurationError, match="its vocabulary file is empty; put"):
        get_tokenizer(str(tmp_path))


def test_show_refuses_a_model_without_a_tokenizer(programs: Programs, tmp_path: Path) -> None:
    """Also with renderer_name=, which renders nothing without one."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    for more in ([], ["renderer_name=role_colon"]):
        words = (*more, f"model_name={tmp_path}")
        shown = programs.run("tinker_cookbook.renderers.show", *words)
        assert shown.returncode != 0 and "Traceback" not in shown.stderr
        assert "there is no tokenizer" in shown.stderr and "files" in shown.stderr


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers copies a model's code before it runs it."""
    import transformers.dynamic_module_utils

    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )


def test_code_of_a_model_does_not_run_unasked(
    modules: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A tokenizer that is Python code in the model's directory is refused, and was not executed."""
    monkeypatch.delenv(TRUST, raising=False)
    mark = tmp_path / "executed"
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "none-of-ours"}')
    (directory / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization_t.T", null]}}'
    )
    (directory / "tokenization_t.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import PreTrainedTokenizer as P\n"
        "class T(P):\n"
        "    vocab_size = 2\n"
        "    def get_vocab(self): return {'a': 0, 'b': 1}\n"
    )
    for asked in (None, False):
        with pytest.raises(ConfigurationError) as caught:
            get_tokenizer(str(directory), asked)
        assert str(caught.value) == (
            f"model_name={str(directory)!r}: its tokenizer is Python code in the model's"
            " repository, which runs only if you trust it: set TINKER_COOKBOOK_TRUST_REMOTE_CODE=1"
            " in the environment, or register another one with tokenizer_utils.register_tokenizer"
        )
    assert not mark.exists()
    monkeypatch.setenv(TRUST, "1")
    with pytest.raises(ConfigurationError, match="Python code"):
        get_tokenizer(str(directory), trust_remote_code=False)  # an argument counts more
    assert not mark.exists()
    monkeypatch.setenv(TRUST, "yes")
    with pytest.raises(ConfigurationError, match=f"{TRUST}='yes': expected 1 or 0"):
        get_tokenizer(str(directory))
    monkeypatch.setenv(TRUST, "0")
    with pytest.raises(ConfigurationError, match="Python code"):
        get_tokenizer(str(directory))
    assert type(get_tokenizer(str(directory), trust_remote_code=True)).__name__ == "T"
    assert mark.exists()


@pytest.mark.parametrize("family", ["kimi_k2", "qwen3"])  # transformers has a tokenizer for one
def test_programs_run_with_code_of_a_model_that_is_trusted(
    programs: Programs, tmp_path: Path, family: str
) -> None:
    """As with Kimi: a class of the model's own, named in auto_map, and no key on the command line
    that says so."""
    nano = Path(models.load_path("nano"))
    if not (nano / "tokenizer.json").is_file():
        pytest.skip("nano is not built")
    directory = tmp_path / "model"
    shutil.copytree(nano, directory)
    (directory / "config.json").write_text(
        json.dumps({"model_type": family, "auto_map": {"AutoConfig": "configuration_t.C"}})
    )
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization_t.T", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").rename(directory / "own.json")
    (directory / "tokenization_t.py").write_text(
        "from transformers import PreTrainedTokenizerFast as P\n"
        "class T(P):\n"
        "    vocab_files_names = {'own_file': 'own.json'}\n"
        "    def __init__(self, own_file, **kwargs):\n"
        "        super().__init__(tokenizer_file=own_file, **kwargs)\n"
    )

    command = ["tinker_cookbook.renderers.show", "shown=1", f"model_name={directory}"]
    refused = programs.run(*command, env={**os.environ, TRUST: ""})
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}  # read when transformers is imported
    shown = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, **modules, TRUST: "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0 and f"set {TRUST}=1" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert shown.returncode == 0, shown.stderr
    assert "<|im_start|>assistant" in shown.stdout


def test_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nano = Path(models.load_path("nano"))
    if not (nano / "tokenizer.json").is_file():
        pytest.skip("nano is not built")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(nano, tmp_path / "mine")
    assert len(get_tokenizer("~/mine")) == len(get_tokenizer("nano"))
    with pytest.raises(ConfigurationError, match=f"there is no directory {tmp_path}/absent"):
        get_tokenizer("~/absent")
