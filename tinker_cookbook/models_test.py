from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import FAMILIES
from tinker_cookbook.models import (
    load_path,
    lookup,
    recommended_renderer,
)

GPT_OSS = (
    "gpt_oss_no_sysprompt",
    "gpt_oss_low_reasoning",
    "gpt_oss_medium_reasoning",
    "gpt_oss_high_reasoning",
)
DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_rows() -> None:
    qwen = lookup("Qwen/Qwen3-30B-A3B-Instruct-2507")
    assert (qwen.family, qwen.size_str, qwen.is_moe, qwen.is_chat) == (
        "qwen3_moe",
        "30B-A3B",
        True,
        True,
    )
    assert qwen.renderers == ("qwen3_instruct",) and qwen.context_length == 262_144
    assert lookup("Qwen/Qwen3-8B").renderers[0] == "qwen3"
    base = lookup("Qwen/Qwen3-8B-Base")
    assert (base.is_chat, base.renderers, base.hidden_size) == (False, ("role_colon",), 4096)
    llama = lookup("meta-llama/Llama-3.3-70B-Instruct")
    assert (llama.gated, llama.renderers, llama.version_str) == (True, ("llama3",), "3.3")
    assert lookup("nano").renderers[0] == "qwen3_instruct"
    assert lookup("moonshotai/Kimi-K2-Thinking").renderers == ("kimi_k2",)
    assert lookup("moonshotai/Kimi-K2-Instruct").renderers == ("template",)


def test_the_table_holds_every_model_that_was_promised() -> None:
    dense = ("0.6B", "1.7B", "4B", "8B", "14B")
    expected = {
        "nano",
        *(f"Qwen/Qwen3-{size}{base}" for size in (*dense, "30B-A3B") for base in ("", "-Base")),
        "Qwen/Qwen3-32B",
        "Qwen/Qwen3-235B-A22B",
        *(
            f"Qwen/Qwen3-{size}-{kind}-2507"
            for size in ("4B", "30B-A3B", "235B-A22B")
            for kind in ("Instruct", "Thinking")
        ),
        *(
            f"meta-llama/Llama-{version}{instruct}"
            for version in ("3.1-8B", "3.1-70B", "3.1-405B", "3.2-1B", "3.2-3B")
            for instruct in ("", "-Instruct")
        ),
        "meta-llama/Llama-3.3-70B-Instruct",
        *(
            f"HuggingFaceTB/SmolLM2-{size}{instruct}"
            for size in ("135M", "360M", "1.7B")
            for instruct in ("", "-Instruct")
        ),
        *(f"deepseek-ai/DeepSeek-V3.1{base}" for base in ("", "-Base")),
        "openai/gpt-oss-20b",
        "openai/gpt-oss-120b",
        *(f"moonshotai/Kimi-K2-{kind}" for kind in ("Base", "Instruct", "Instruct-0905")),
        "moonshotai/Kimi-K2-Thinking",
    }
    assert set(models.TABLE) == expected
    for name, row in models.TABLE.items():
        assert row.is_moe == (row.family in ("qwen3_moe", "deepseek_v3", "gpt_oss", "kimi_k2"))
        assert row.gated == name.startswith("meta-llama/")
        assert (row.lr_exponent is None) == (name == "nano")


def test_the_sizes_are_those_of_the_published_models() -> None:
    """Hidden size, context, parameters, mixture of experts: copied by hand from the models'
    config.json and cards, row by row, not by rules."""
    assert {
        name: (row.hidden_size, row.context_length, row.size_str, row.is_moe)
        for name, row in models.TABLE.items()
    } == {
        "nano": (192, 2048, "2M", False),
        "Qwen/Qwen3-0.6B": (1024, 40960, "0.6B", False),
        "Qwen/Qwen3-1.7B": (2048, 40960, "1.7B", False),
        "Qwen/Qwen3-4B": (2560, 40960, "4B", False),
        "Qwen/Qwen3-8B": (4096, 40960, "8B", False),
        "Qwen/Qwen3-14B": (5120, 40960, "14B", False),
        "Qwen/Qwen3-32B": (5120, 40960, "32B", False),
        "Qwen/Qwen3-30B-A3B": (2048, 40960, "30B-A3B", True),
        "Qwen/Qwen3-235B-A22B": (4096, 40960, "235B-A22B", True),
        "Qwen/Qwen3-0.6B-Base": (1024, 32768, "0.6B", False),
        "Qwen/Qwen3-1.7B-Base": (2048, 32768, "1.7B", False),
        "Qwen/Qwen3-4B-Base": (2560, 32768, "4B", False),
        "Qwen/Qwen3-8B-Base": (4096, 32768, "8B", False),
        "Qwen/Qwen3-14B-Base": (5120, 32768, "14B", False),
        "Qwen/Qwen3-30B-A3B-Base": (2048, 32768, "30B-A3B", True),
        "Qwen/Qwen3-4B-Instruct-2507": (2560, 262144, "4B", False),
        "Qwen/Qwen3-30B-A3B-Instruct-2507": (2048, 262144, "30B-A3B", True),
        "Qwen/Qwen3-235B-A22B-Instruct-2507": (4096, 262144, "235B-A22B", True),
        "Qwen/Qwen3-4B-Thinking-2507": (2560, 262144, "4B", False),
        "Qwen/Qwen3-30B-A3B-Thinking-2507": (2048, 262144, "30B-A3B", True),
        "Qwen/Qwen3-235B-A22B-Thinking-2507": (4096, 262144, "235B-A22B", True),
        "meta-llama/Llama-3.1-8B": (4096, 131072, "8B", False),
        "meta-llama/Llama-3.1-8B-Instruct": (4096, 131072, "8B", False),
        "meta-llama/Llama-3.1-70B": (8192, 131072, "70B", False),
        "meta-llama/Llama-3.1-70B-Instruct": (8192, 131072, "70B", False),
        "meta-llama/Llama-3.1-405B": (16384, 131072, "405B", False),
        "meta-llama/Llama-3.1-405B-Instruct": (16384, 131072, "405B", False),
        "meta-llama/Llama-3.2-1B": (2048, 131072, "1B", False),
        "meta-llama/Llama-3.2-1B-Instruct": (2048, 131072, "1B", False),
        "meta-llama/Llama-3.2-3B": (3072, 131072, "3B", False),
        "meta-llama/Llama-3.2-3B-Instruct": (3072, 131072, "3B", False),
        "meta-llama/Llama-3.3-70B-Instruct": (8192, 131072, "70B", False),
        "HuggingFaceTB/SmolLM2-135M": (576, 8192, "135M", False),
        "HuggingFaceTB/SmolLM2-135M-Instruct": (576, 8192, "135M", False),
        "HuggingFaceTB/SmolLM2-360M": (960, 8192, "360M", False),
        "HuggingFaceTB/SmolLM2-360M-Instruct": (960, 8192, "360M", False),
        "HuggingFaceTB/SmolLM2-1.7B": (2048, 8192, "1.7B", False),
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": (2048, 8192, "1.7B", False),
        "deepseek-ai/DeepSeek-V3.1": (7168, 131072, "671B-A37B", True),
        "deepseek-ai/DeepSeek-V3.1-Base": (7168, 131072, "671B-A37B", True),
        "openai/gpt-oss-20b": (2880, 131072, "21B-A3.6B", True),
        "openai/gpt-oss-120b": (2880, 131072, "117B-A5.1B", True),
        "moonshotai/Kimi-K2-Base": (7168, 131072, "1T-A32B", True),
        "moonshotai/Kimi-K2-Instruct": (7168, 131072, "1T-A32B", True),
        "moonshotai/Kimi-K2-Instruct-0905": (7168, 262144, "1T-A32B", True),
        "moonshotai/Kimi-K2-Thinking": (7168, 262144, "1T-A32B", True),
    }


def test_every_row_is_named_by_its_key_and_has_a_renderer() -> None:
    assert len(models.TABLE) == sum(len(family.models) for family in FAMILIES.values())
    for name, row in models.TABLE.items():
        assert name == row.name and row.renderers and row.hidden_size
        assert row.is_chat == (row.renderers != ("role_colon",))
        assert name == "nano" or row.organization == name.split("/")[0]


@pytest.mark.parametrize(
    "typo, meant",
    [
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen3-8B", "Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("nanoo", "nano"),
        ("Nano", "nano"),
        ("kimi", "moonshotai/Kimi-K2-Instruct"),
        ("llama3", "meta-llama/Llama-3.1-8B"),
        ("gpt-oss", "openai/gpt-oss-20b"),
        ("DeepSeek-V3", "deepseek-ai/DeepSeek-V3.1"),
        ("qwen/qwen3-8b-instruct", "Qwen/Qwen3-4B-Instruct-2507"),
    ],
)
def test_a_typo_gets_the_nearest_names(typo: str, meant: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        lookup(typo)
    message = str(caught.value)
    assert repr(typo) in message and meant in message
    assert "renderer_name=" in message and "learning_rate=" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "given, first",
    [
        ("Qwen/Qwen3-30B", "Qwen/Qwen3-30B-A3B"),
        ("qwen3-235b", "Qwen/Qwen3-235B-A22B"),
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("openai/gpt", "openai/gpt-oss-20b"),
        ("meta-llama/Llama-3.3", "meta-llama/Llama-3.3-70B-Instruct"),
    ],
)
def test_names_that_begin_with_what_was_given_come_first(given: str, first: str) -> None:
    near = models._nearest_names(given)
    assert near[0] == first
    begin = [given.lower() in name.lower() for name in near]
    assert begin == sorted(begin, reverse=True)
    assert sum(begin) == min(3, sum(given.lower() in name.lower() for name in models.TABLE))


def test_a_name_like_no_other_gets_a_few_to_begin_with() -> None:
    assert models._nearest_names("google/gemma-2-9b-it") == models._nearest_names("") == []
    with pytest.raises(ConfigurationError, match=r"similar known names: nano, Qwen/Qwen3-0\.6B"):
        lookup("x")


def model_directory(path: Path, template: str | None = "", **config: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"hidden_size": 64, **config}))
    if template is not None:
        (path / "tokenizer_config.json").write_text("{}")
    if template:
        (path / "chat_template.jinja").write_text(template)
    return str(path)


def test_a_local_directory_resolves_through_its_files(tmp_path: Path) -> None:
    hybrid = "<|im_start|>{% if enable_thinking %}<think>"
    info = lookup(
        model_directory(
            tmp_path / "a", hybrid, model_type="qwen3", max_position_embeddings=4096, vocab_size=9
        )
    )
    assert info == models.ModelInfo(
        name=str(tmp_path / "a"),
        family="qwen3",
        organization="",
        version_str="",
        size_str="",
        is_chat=True,
        is_moe=False,
        is_vl=False,
        renderers=("qwen3", "qwen3_disable_thinking"),
        hidden_size=64,
        context_length=4096,
        lr_exponent=0.0775,
        gated=False,
    )


@pytest.mark.parametrize(
    "config, template, family, renderers, exponent",
    [
        ({"model_type": "qwen3"}, "<|im_start|>", "qwen3", ("qwen3_instruct",), 0.0775),
        ({"model_type": "qwen3"}, "<|im_start|><think>", "qwen3", ("qwen3",), 0.0775),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "", "qwen3_moe", ("role_colon",), 0.0775),
        ({"model_type": "llama", "vocab_size": 128_256}, "", "llama3", ("role_colon",), 0.781),
        (
            {"model_type": "llama", "vocab_size": 128_256},
            "<|start_header_id|>",
            "llama3",
            ("llama3",),
            0.781,
        ),
        (
            {"model_type": "llama", "vocab_size": 32_000},
            "[INST]",
            "llama",
            ("template",),
            0.781,
        ),
        ({"model_type": "mistral"}, "[INST]", "mistral", ("template",), None),
        ({"model_type": "mistral"}, "", "mistral", ("role_colon",), None),
        ({"model_type": "qwen3"}, None, "qwen3", (), 0.0775),  # no tokenizer there to ask
        ({"model_type": "gpt_oss"}, "<|channel|>", "gpt_oss", GPT_OSS, 0.781),
        ({"text_config": {"model_type": "qwen3"}}, "", "qwen3", ("role_colon",), 0.0775),
        (
            {"text_config": {"model_type": "qwen3_vl_text"}},
            "<|im_start|>",
            "qwen3_vl",
            ("template",),
            0.0775,
        ),
        (
            {"text_config": {"model_type": "mllama_text_model"}},
            "<|start_header_id|>",
            "mllama",
            ("template",),
            0.781,
        ),
        (
            {"text_config": {"model_type": "kimi_k2"}, "vision_config": {}},
            "<|im_middle|><think>",
            "kimi_k2",
            ("template",),
            0.781,
        ),
    ],
)
def test_renderers_are_told_from_the_chat_template(
    tmp_path: Path,
    config: dict[str, Any],
    template: str | None,
    family: str,
    renderers: tuple[str, ...],
    exponent: float | None,
) -> None:
    info = lookup(model_directory(tmp_path / "m", template, **config))
    assert (info.family, info.renderers, info.lr_exponent) == (family, renderers, exponent)
    assert info.is_moe == ("num_experts" in config)


def test_template_in_the_tokenizer_config(tmp_path: Path) -> None:
    for i, found in enumerate(
        [
            "<|im_start|>",
            [
                {"name": "tool_use", "template": "x"},
                {"name": "default", "template": "<|im_start|>"},
            ],
        ]
    ):
        name = model_directory(tmp_path / str(i), model_type="qwen3")
        (Path(name) / "tokenizer_config.json").write_text(json.dumps({"chat_template": found}))
        assert lookup(name).renderers == ("qwen3_instruct",)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("token", ["<|endoftext|>", {"content": "<|endoftext|>"}])
def test_a_directory_of_a_qwen3_base_model_is_one(
    tmp_path: Path, family: str, token: dict[str, str] | str
) -> None:
    """Its published files have the chat models' template; the table's row does not."""
    hybrid = "<|im_start|>{% if enable_thinking %}<think>"
    base, chat = (
        model_directory(tmp_path / name, hybrid, model_type=family, max_position_embeddings=32_768)
        for name in ("checkpoint-500", "Qwen3-8B-Base")
    )
    written = {"eos_token": token, "chat_template": hybrid}
    (Path(base) / "tokenizer_config.json").write_text(json.dumps(written))
    (Path(chat) / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    row = lookup("Qwen/Qwen3-8B-Base")
    found = lookup(base)
    assert (found.is_chat, found.renderers) == (row.is_chat, row.renderers)
    assert found.renderers == ("role_colon",) and found.context_length == 32_768
    assert lookup(chat).is_chat and lookup(chat).renderers[0] == "qwen3"


def test_other_families_end_chats_with_endoftext(tmp_path: Path) -> None:
    name = model_directory(tmp_path / "m", "<|user|>", model_type="phi3")
    (Path(name) / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert lookup(name).is_chat and lookup(name).renderers == ("template",)


REAL_TEMPLATES = {  # file, family of the models that have it: the renderer
    ("deepseek-r1-distill", "llama3"): "template",
    ("deepseek-v3", "deepseek_v3"): "template",
    ("deepseek-v3.1", "deepseek_v3"): "deepseekv3",
    ("gemma-3-it", "gemma3_text"): "template",
    ("gpt-oss", "gpt_oss"): "gpt_oss_no_sysprompt",
    ("gpt-oss-first-release", "gpt_oss"): "gpt_oss_no_sysprompt",
    ("kimi-k2-instruct-july2025", "kimi_k2"): "template",
    ("kimi-k2-thinking", "kimi_k2"): "kimi_k2",
    ("llama-3-instruct", "llama3"): "llama3",
    ("llama-3.1-instruct", "llama3"): "llama3",
    ("llama-3.2-instruct", "llama3"): "llama3",
    ("llama-3.3-instruct", "llama3"): "llama3",
    ("mistral-nemo-instruct-2407", "mistral"): "template",
    ("qwen2.5-instruct", "qwen2"): "template",
    ("qwen3", "qwen3"): "qwen3",
    ("qwen3", "qwen3_moe"): "qwen3",
    ("qwen3-coder", "qwen3_moe"): "template",
    ("qwen3-instruct-2507", "qwen3"): "qwen3_instruct",
    ("qwen3-vl", "qwen3_vl_text"): "template",
    ("qwen3.5-think", "qwen3_5_text"): "template",
    ("qwq-32b", "qwen2"): "template",
}


@pytest.mark.parametrize("file, family", REAL_TEMPLATES)
def test_real_templates_are_recognised(file: str, family: str) -> None:
    path = DATA / "chat_templates" / f"{file}.jinja"
    if not path.is_file():
        pytest.skip("no ../shared/data")
    found = models._fitting_renderers(FAMILIES.get(family), path.read_text(encoding="utf-8"))
    assert found[0] == REAL_TEMPLATES[file, family]


def test_bad_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such directory"):
        lookup(str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        lookup(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be read as JSON"):
        lookup(str(tmp_path))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("vocab_size", None, "a whole number of at least 1"),
        ("vocab_size", "many", "a whole number of at least 1"),
        ("hidden_size", "64", "a whole number of at least 1"),
        ("hidden_size", 0, "a whole number of at least 1"),
        ("hidden_size", True, "a whole number of at least 1"),
        ("max_position_embeddings", [4096], "a whole number of at least 1"),
        ("max_position_embeddings", 4096.5, "a whole number of at least 1"),
        ("model_type", None, "a string"),
        ("model_type", 3, "a string"),
        ("text_config", "x", "an object"),
        ("text_config", [{}], "an object"),
    ],
)
def test_values_of_the_wrong_type_are_named(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    name = model_directory(tmp_path / "m", **{"model_type": "llama", key: value})
    expected = f"{tmp_path}/m/config.json: {key}={value!r}, expected {words}"
    with pytest.raises(ConfigurationError) as caught:
        lookup(name)
    assert str(caught.value) == expected
    if key != "text_config":
        nested = {"model_type": "outer", "text_config": {"model_type": "llama", key: value}}
        (tmp_path / "m" / "config.json").write_text(json.dumps(nested))
        with pytest.raises(ConfigurationError) as caught:
            lookup(name)
        assert str(caught.value) == expected


def test_null_is_not_known(tmp_path: Path) -> None:
    nulls = {"text_config": None, "hidden_size": None, "max_position_embeddings": None}
    info = lookup(model_directory(tmp_path / "m", model_type="qwen3", num_experts=None, **nulls))
    assert (info.hidden_size, info.context_length, info.is_moe) == (None, None, False)


@pytest.mark.parametrize(
    "found",
    [
        ["x"],
        [["name", "template"]],
        [{"name": "default"}],
        [{"template": "x"}],
        [{"name": "default", "template": 3}],
        [{"name": {}, "template": "x"}],
        {"default": "x"},
        5,
    ],
)
def test_a_chat_template_of_the_wrong_type_is_named(tmp_path: Path, found: object) -> None:
    name = model_directory(tmp_path / "m", model_type="qwen3")
    file = tmp_path / "m" / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": found}))
    with pytest.raises(ConfigurationError) as caught:
        lookup(name)
    assert str(caught.value) == (
        f"{file}: chat_template={found}, expected a string or a list of objects"
        ' {"name": ..., "template": ...} with strings'
    )


def test_a_chat_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    name = model_directory(tmp_path / "m", "x", model_type="qwen3")
    (tmp_path / "m" / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"chat_template\.jinja cannot be read as text"):
        lookup(name)


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Callable[..., str], list[str], dict[str, str], Path]:
    """A hub that is in reach and has one model, `me/tuned`; what was fetched from it, and the
    cache's directory for it."""
    import huggingface_hub
    import huggingface_hub.constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    template = "<|im_start|>"
    files = {"config.json": '{"model_type": "qwen3"}', "tokenizer_config.json": "{}"}
    files["chat_template.jinja"] = template
    snapshot = tmp_path / "hub" / "models--me--tuned" / "snapshots" / "abc"
    fetched = []

    def download(name: str, file: str, revision: str | None = None) -> str:
        fetched.append(file)
        assert name == "me/tuned" and revision in (None, "abc")
        if file not in files:
            raise LocalEntryNotFoundError("no such file")
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text(files[file])
        (snapshot.parents[1] / "refs").mkdir(exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text("abc")
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(models.hub_reach, "problem", lambda name, file: None)
    return download, fetched, files, snapshot


def test_absent_files_of_a_hub_model_are_fetched_whatever_is_cached(
    hub: tuple[Callable[..., str], list[str], dict[str, str], Path],
) -> None:
    download, fetched, _, _ = hub
    download("me/tuned", "config.json")
    fetched.clear()
    assert lookup("me/tuned").renderers == ("qwen3_instruct",)
    assert fetched == ["tokenizer_config.json", "chat_template.jinja"]
    assert lookup("me/tuned").renderers == ("qwen3_instruct",)  # now all is in the cache
    assert len(fetched) == 2


def test_a_hub_model_of_which_nothing_is_cached(
    hub: tuple[Callable[..., str], list[str], dict[str, str], Path],
) -> None:
    _, fetched, files, _ = hub
    del files["chat_template.jinja"]  # many models have none
    assert lookup("me/tuned").renderers == ("role_colon",)
    assert fetched == ["config.json", "tokenizer_config.json", "chat_template.jinja"]


def test_files_that_a_model_is_known_to_lack_are_not_asked_for_again(
    hub: tuple[Callable[..., str], list[str], dict[str, str], Path],
) -> None:
    download, fetched, _, snapshot = hub
    download("me/tuned", "config.json")
    fetched.clear()
    known = snapshot.parents[1] / ".no_exist" / "abc"
    known.mkdir(parents=True)
    (known / "chat_template.jinja").touch()
    assert lookup("me/tuned").renderers == ("role_colon",)
    assert fetched == ["tokenizer_config.json"]


def test_nothing_is_fetched_from_a_hub_out_of_reach(
    hub: tuple[Callable[..., str], list[str], dict[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    download, fetched, _, _ = hub
    download("me/tuned", "config.json")
    fetched.clear()
    out = {"tokenizer_config.json": "no network", "chat_template.jinja": "no network"}
    monkeypatch.setattr(models.hub_reach, "problem", lambda name, file: out.get(file))
    assert lookup("me/tuned").renderers == () and fetched == []


def test_an_unknown_hub_name_resolves_from_the_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--me--tuned"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    model_directory(repository / "snapshots" / "abc", "<|im_start|>", model_type="qwen3")
    info = lookup("me/tuned")
    assert (info.name, info.organization, info.renderers) == ("me/tuned", "me", ("qwen3_instruct",))
    with pytest.raises(ConfigurationError, match="me/other"):
        lookup("me/other")


def test_load_path() -> None:
    assert Path(load_path("nano")) == Path(models.__file__).parent / "nano"
    assert load_path("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert lookup(load_path("nano")).name == "nano"


def test_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model_directory(tmp_path / "m", "<|im_start|>", model_type="qwen3")
    assert load_path("~/m") == f"{tmp_path}/m"
    info = lookup("~/m")
    assert (info.name, info.organization, info.hidden_size) == ("~/m", "", 64)
    with pytest.raises(ConfigurationError, match="no such directory"):
        lookup("~/absent")
    (tmp_path / "nano").symlink_to(load_path("nano"))
    assert lookup("~/nano").name == "nano"


def test_a_missing_tokenizer_is_what_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    """renderer_name= would only lead to the next error."""
    bare = model_directory(tmp_path / "bare", None, model_type="llama")
    with pytest.raises(ConfigurationError, match=r"alone would not help; put the .*files there"):
        recommended_renderer(bare)


def test_a_tokenizer_alone_is_enough_with_a_renderer_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"no config\.json.* set renderer_name="):
        recommended_renderer(str(tmp_path))
    with pytest.raises(ConfigurationError, match="no such directory"):
        recommended_renderer(str(tmp_path / "absent"))


def test_infos_are_frozen() -> None:
    with pytest.raises(AttributeError):
        lookup("nano").name = "x"
    assert replace(lookup("nano"), name="x").name == "x"
