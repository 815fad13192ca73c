from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import chz
import pytest

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.models import defaults, fill_defaults, load_path, resolve

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_rows():
    qwen = resolve("Qwen/Qwen3-30B-A3B-Instruct-2507")
    assert (qwen.family, qwen.size_str, qwen.is_moe, qwen.is_chat) == (
        "qwen3_moe",
        "30B-A3B",
        True,
        True,
    )
    assert qwen.renderers == ("qwen3_instruct",) and qwen.context_length == 262_144
    assert resolve("Qwen/Qwen3-8B").renderers[0] == "qwen3"
    base = resolve("Qwen/Qwen3-8B-Base")
    assert (base.is_chat, base.renderers, base.hidden_size) == (False, ("role_colon",), 4096)
    llama = resolve("meta-llama/Llama-3.3-70B-Instruct")
    assert (llama.gated, llama.renderers, llama.version_str) == (True, ("llama3",), "3.3")
    assert resolve("nano").renderers[0] == "qwen3_instruct"
    assert resolve("moonshotai/Kimi-K2-Thinking").renderers == ("kimi_k2",)
    assert resolve("moonshotai/Kimi-K2-Instruct").renderers == ("template",)


def test_the_table_holds_every_model_that_was_promised():
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


def test_every_row_is_named_by_its_key_and_has_a_renderer():
    assert len(models.TABLE) == len(models._ROWS)
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
def test_a_typo_gets_the_nearest_names(typo, meant):
    with pytest.raises(ConfigurationError) as caught:
        resolve(typo)
    message = str(caught.value)
    assert repr(typo) in message and meant in message
    assert "renderer_name=" in message and "learning_rate=" in message
    assert "\n" not in message


def test_a_name_like_no_other_gets_a_few_to_begin_with():
    assert models._nearest("google/gemma-2-9b-it") == models._nearest("") == []
    with pytest.raises(ConfigurationError, match=r"near it: nano, Qwen/Qwen3-0\.6B"):
        resolve("x")


def model_directory(path: Path, template: str | None = "", **config) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"hidden_size": 64, **config}))
    if template is not None:
        (path / "tokenizer_config.json").write_text("{}")
    if template:
        (path / "chat_template.jinja").write_text(template)
    return str(path)


def test_a_local_directory_resolves_through_its_files(tmp_path):
    hybrid = "<|im_start|>{% if enable_thinking %}<think>"
    info = resolve(
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
        lr_exponent=models.QWEN_EXPONENT,
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
        ({"model_type": "gpt_oss"}, "<|channel|>", "gpt_oss", models._GPT_OSS, 0.781),
        ({"text_config": {"model_type": "qwen3"}}, "", "qwen3", ("role_colon",), 0.0775),
    ],
)
def test_renderers_are_told_from_the_chat_template(
    tmp_path, config, template, family, renderers, exponent
):
    info = resolve(model_directory(tmp_path / "m", template, **config))
    assert (info.family, info.renderers, info.lr_exponent) == (family, renderers, exponent)
    assert info.is_moe == ("num_experts" in config)


def test_template_in_the_tokenizer_config(tmp_path):
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
        assert resolve(name).renderers == ("qwen3_instruct",)


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
def test_real_templates_are_recognised(file, family):
    path = DATA / "chat_templates" / f"{file}.jinja"
    if not path.is_file():
        pytest.skip("no ../shared/data")
    found = models._fitting_renderers(family, path.read_text(encoding="utf-8"))
    assert found[0] == REAL_TEMPLATES[file, family]


def test_bad_directories_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="no such directory"):
        resolve(str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be read as JSON"):
        resolve(str(tmp_path))


def test_an_unknown_hub_name_resolves_from_the_cache(tmp_path):
    repository = tmp_path / "hub" / "models--me--tuned"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    model_directory(repository / "snapshots" / "abc", "<|im_start|>", model_type="qwen3")
    info = resolve("me/tuned")
    assert (info.name, info.organization, info.renderers) == ("me/tuned", "me", ("qwen3_instruct",))
    with pytest.raises(ConfigurationError, match="me/other"):
        resolve("me/other")


def test_load_path():
    assert Path(load_path("nano")) == Path(models.__file__).parent / "nano"
    assert load_path("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert resolve(load_path("nano")).name == "nano"


def test_defaults_of_nano():
    expected = {
        "learning_rate": 6e-3,
        "renderer_name": "qwen3_instruct",
        "batch_size": 32,
        "max_length": 512,
    }
    assert defaults("nano", "sl") == defaults("nano", "chat_sl") == expected
    assert defaults(load_path("nano"), "sl") == expected


def test_defaults_of_others(tmp_path):
    sl = defaults("Qwen/Qwen3-8B", "sl")
    assert sl.pop("learning_rate") == pytest.approx(4.73e-4, rel=1e-3)
    assert sl == {"renderer_name": "qwen3", "batch_size": 128, "max_length": 32_768}
    chat = defaults("meta-llama/Llama-3.1-8B", "chat_sl")
    assert (chat["batch_size"], chat["max_length"], chat["renderer_name"]) == (
        256,
        16_384,
        "role_colon",
    )
    short = model_directory(tmp_path / "m", model_type="qwen3", max_position_embeddings=1024)
    assert defaults(short, "sl")["max_length"] == 1024


def test_defaults_that_cannot_be_told_name_the_key(tmp_path):
    mistral = model_directory(tmp_path / "mistral", "[INST]", model_type="mistral")
    with pytest.raises(ConfigurationError, match=r"learning_rate= must be given"):
        defaults(mistral, "sl")
    bare = model_directory(tmp_path / "bare", None, model_type="llama")
    with pytest.raises(ConfigurationError, match=r"no tokenizer .*renderer_name= .* must be given"):
        defaults(bare, "sl")
    with pytest.raises(ConfigurationError, match=r"method 'ppo'.*chat_sl"):
        defaults("nano", "ppo")


@chz.chz
class Config:
    model_name: str
    learning_rate: float | None = None
    renderer_name: str | None = None
    max_length: int | None = None
    save_every: int | None = None


def test_fill_defaults_fills_what_is_none_and_known():
    config, filled = fill_defaults(Config(model_name="nano", max_length=64), "sl")
    assert filled == {"learning_rate": 6e-3, "renderer_name": "qwen3_instruct"}
    assert config == Config(
        model_name="nano", learning_rate=6e-3, renderer_name="qwen3_instruct", max_length=64
    )


def test_what_was_filled_is_one_line():
    filled = fill_defaults(Config(model_name="Qwen/Qwen3-8B"), "sl").filled
    assert models.filled_line("Qwen/Qwen3-8B", filled) == (
        "Qwen/Qwen3-8B: learning_rate=0.000473 renderer_name=qwen3 max_length=32768"
    )


def test_an_unknown_model_works_when_every_key_is_given():
    given = Config(model_name="me/x", learning_rate=1e-4, renderer_name="qwen3", max_length=9)
    assert fill_defaults(given, "sl") == (given, {})
    with pytest.raises(ConfigurationError, match="me/x"):
        fill_defaults(chz.replace(given, learning_rate=None), "sl")


def test_zero_is_a_value():
    config = Config(model_name="nano", learning_rate=0.0, renderer_name="qwen3", max_length=1)
    assert fill_defaults(config, "sl").filled == {}


def test_infos_are_frozen():
    with pytest.raises(AttributeError):
        resolve("nano").name = "x"
    assert replace(resolve("nano"), name="x").name == "x"
