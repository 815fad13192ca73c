"""Directories as checkpoints: PEFT's own logits, runs, the store's directories, and refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinker_cookbook.checkpoint_utils import CheckpointRecord as Record
from tinker_cookbook.checkpoint_utils import (
    append_record,
    resolve_renderer_name_from_checkpoint_or_default,
    start_training_client,
)
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.service import EngineConfig, connect, locate_checkpoint
from tinker_cookbook.service.checkpoint_dirs import is_copy, same_model
from tinker_cookbook.training.config import LoopConfig
from tinker_cookbook.utils.plain_data import plain

TOKENS = [5, 17, 200, 33, 81, 6, 299, 14, 3, 120, 77, 250]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


@pytest.fixture
def service() -> Any:
    return connect(engine=EngineConfig(device="cpu"))


def make(model: str, directory: Path, **config: Any) -> tuple[Path, torch.Tensor]:
    """An adapter as peft saves it, and its logprobs [T - 1] of TOKENS."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12, **config}
    wrapped: Any = get_peft_model(base, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    wrapped.save_pretrained(directory)
    with torch.no_grad():
        logits = wrapped(torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1)
    return directory, logits.gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


def logprobs(client: Any) -> torch.Tensor:
    import tinker

    return torch.tensor(client.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result()[1:])


VARIANTS = {
    "peft's default layers": {},
    "all layers": {"target_modules": ALL[:-1]},
    "lm_head": {"target_modules": ALL},
    "rank-stabilised": {"target_modules": ALL[:4], "use_rslora": True, "lora_alpha": 3},
    "a pattern": {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    "one layer": {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
    "dropout": {"target_modules": ["o_proj"], "lora_dropout": 0.5, "r": 16},
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of tied embeddings
@pytest.mark.parametrize("model", ["tiny_qwen3", "tiny_llama"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_peft_computes(
    service: Any, request: Any, tmp_path: Path, model: str, variant: str
) -> None:
    base = request.getfixturevalue(model)
    adapter, expected = make(base, tmp_path / "adapter", **VARIANTS[variant])
    plain_base = logprobs(service.create_sampling_client(base_model=base).result())
    assert (plain_base - expected).abs().max() > 0.01, "the adapter must matter"
    sampler = service.create_sampling_client(model_path=str(adapter)).result()
    assert (logprobs(sampler) - expected).abs().max() < 1e-5
    trainer = service.create_training_client_from_state(str(adapter), base_model=base)
    again = trainer.save_weights_and_get_sampling_client().result()
    assert (logprobs(again) - expected).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_client_of_another_alpha_and_files_in_bf16(
    service: Any, tiny_llama: str, tmp_path: Path
) -> None:
    adapter, expected = make(tiny_llama, tmp_path / "a", target_modules=ALL, lora_alpha=5)
    client = service.create_lora_training_client(tiny_llama, rank=4, seed=3)
    client.load_state(str(adapter)).result()
    loaded = client.save_weights_and_get_sampling_client().result()
    assert (logprobs(loaded) - expected).abs().max() < 1e-5
    file = adapter / "adapter_model.safetensors"
    rounded = {k: v.bfloat16() if "lora_" in k else v for k, v in load_file(file).items()}
    save_file(rounded, file)
    client.load_state(str(adapter)).result()
    half = logprobs(client.save_weights_and_get_sampling_client().result())
    assert 1e-6 < (half - expected).abs().max() < 0.05
    with pytest.raises(CheckpointError, match=r"rank=4, not 8"):
        service.create_lora_training_client(tiny_llama, rank=8).load_state(str(adapter)).result()
    with pytest.raises(CheckpointError, match="has no optimizer state"):
        client.load_state_with_optimizer(str(adapter)).result()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora=true"),
        ({"bias": "lora_only"}, 'bias="lora_only"'),
        ({"modules_to_save": ["norm"]}, r'modules_to_save=\["norm"\]'),
        ({"rank_pattern": {"q_proj": 2}}, r'rank_pattern={"q_proj": 2}'),
        ({"alpha_pattern": {"q_proj": 2}}, r'alpha_pattern={"q_proj": 2}'),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\]"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights="pissa"'),
        ({"lora_bias": True}, "lora_bias=true"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A.* is not a tensor of plain LoRA"),
    ],
)
def test_what_the_engine_does_not_compute_is_refused_by_name(
    service: Any, tiny_llama: str, tmp_path: Path, config: Any, named: str
) -> None:
    adapter, _ = make(tiny_llama, tmp_path / "a", **config)
    for create in (service.create_sampling_client, service.create_training_client_from_state):
        with pytest.raises(CheckpointError, match=named) as refused:
            create(str(adapter), base_model=tiny_llama).result()
        assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_that_do_not_fit(
    service: Any, tiny_llama: str, tiny_qwen3: str, tmp_path: Path
) -> None:
    adapter, _ = make(tiny_llama, tmp_path / "a", target_modules=ALL)
    config, file = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"

    def refused(**changes: Any) -> str:
        base = changes.pop("base", tiny_llama)
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | changes))
        with pytest.raises(CheckpointError) as error:
            service.create_sampling_client(str(adapter), base_model=base).result()
        config.write_text(json.dumps(content))
        return str(error.value)

    assert f"is an adapter for '{tiny_llama}', not for '{tiny_qwen3}'" in refused(base=tiny_qwen3)
    assert 'peft_type="LOHA"' in refused(peft_type="LOHA")
    assert 'a_feature_of_tomorrow={"x": 1}' in refused(a_feature_of_tomorrow={"x": 1})
    assert "its rank is not r=3 everywhere" in refused(r=3)
    assert "r=None" in refused(r=None)
    tensors = load_file(file)
    embedding = next(key for key in tensors if "lora_" not in key)
    save_file(tensors | {embedding: tensors[embedding] + 0.1}, file)
    assert "it was trained or resized" in refused()
    deep = {k.replace("layers.1", "layers.7"): v for k, v in tensors.items()}
    save_file(deep, file)
    assert "has no layer 'model.layers.7" in refused()
    lone = next(key for key in tensors if key.endswith("lora_B.weight"))
    save_file({k: v for k, v in tensors.items() if k != lone}, file)
    assert f"{lone} is missing" in refused()
    file.rename(adapter / "adapter_model.bin")
    assert "save it as safetensors" in refused()


def test_names_of_one_model() -> None:
    assert same_model("Qwen/Qwen3-8B", "/data/models/qwen3-8b/")
    cached = "/x/hub/models--Qwen--Qwen3-8B/snapshots/0123abc"
    assert same_model(cached, "Qwen/Qwen3-8B")
    assert not same_model("Qwen/Qwen3-8B", "Qwen/Qwen3-4B")


def begin(service: Any, run: Path) -> dict[str, str]:
    """A run of nano with two checkpoints, the later one of its state alone."""
    client = service.create_lora_training_client(
        "nano", rank=4, seed=1, user_metadata={"renderer_name": "role_colon"}
    )
    paths = {
        "early": client.save_state("early").result().path,
        "sampler": client.save_weights_for_sampler("early").result().path,
        "late": client.save_state("late").result().path,
    }
    append_record(run, Record("early", 1, state_path=paths["early"], sampler_path=paths["sampler"]))
    append_record(run, Record("late", 2, state_path=paths["late"]))
    return paths


def test_a_run_is_its_last_checkpoint(service: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    paths = begin(service, run)
    assert locate_checkpoint(str(run), "weights", "k") == paths["late"]
    assert locate_checkpoint(str(run), "sampler_weights", "k") == paths["sampler"]
    name = resolve_renderer_name_from_checkpoint_or_default(
        model_name="nano", explicit_renderer_name=None, load_checkpoint_path=str(run)
    )
    assert name == "role_colon"
    sampler = service.create_sampling_client(model_path=str(run)).result()
    expected = service.create_sampling_client(model_path=paths["sampler"]).result()
    assert torch.equal(logprobs(sampler), logprobs(expected))


def test_a_directory_of_the_store_is_its_checkpoint(service: Any, tmp_path: Path) -> None:
    paths = begin(service, tmp_path)
    store = service.store
    directory = store.root / "runs" / paths["sampler"].removeprefix("tinker://")
    assert (directory / "adapter_config.json").is_file() and directory.is_symlink()
    assert store.path_of(directory) == paths["sampler"]
    name = resolve_renderer_name_from_checkpoint_or_default(
        model_name="nano", explicit_renderer_name=None, load_checkpoint_path=str(directory)
    )
    assert name == "role_colon"
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    assert store.path_of(copy) is None
    expected = logprobs(service.create_sampling_client(model_path=paths["sampler"]).result())
    for each in (directory, copy):
        found = service.create_sampling_client(model_path=str(each)).result()
        assert torch.equal(logprobs(found), expected)


def test_readable_names_and_ordinary_permissions(service: Any, tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    mode = (tmp_path / "ordinary").stat().st_mode
    metadata = {"recipe": "my recipe"}
    clients = [
        service.create_lora_training_client("nano", rank=2, user_metadata=metadata),
        service.create_lora_training_client("nano", rank=2),
    ]
    saved = [client.save_state("a").result().path for client in clients]
    runs = [path.split("/")[2] for path in saved]
    assert re.fullmatch(r"my_recipe-nano-\d{8}-\d{6}-[0-9a-f]{6}", runs[0])
    assert re.fullmatch(r"nano-\d{8}-\d{6}-[0-9a-f]{6}-2", runs[1])
    directory = service.store.find(saved[0]).directory
    modes = {file.name: file.stat().st_mode for file in directory.iterdir()}
    assert set(modes.values()) == {mode} and "optimizer.safetensors" in modes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such directory; expected tinker://<run>/<kind>/<name>, a run directory"),
        ({}, "that directory is neither"),
        ({"run.json": "{}"}, "it is a run in the store, with its weights in sampler_weights/"),
        ({"config.json": "{}", "metrics.jsonl": ""}, "that run has no checkpoint yet"),
        ({"checkpoints.jsonl": ""}, "that run has no checkpoint with state_path yet"),
        ({"checkpoints.jsonl": "{\n{}\n"}, "checkpoints.jsonl is damaged"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    place = tmp_path / "x"
    for name, text in (content or {}).items():
        place.mkdir(exist_ok=True)
        (place / name).write_text(text)
    if content == {}:
        place.mkdir()
    with pytest.raises(CheckpointError, match=message):
        locate_checkpoint(str(place), "weights", "load_checkpoint_path")
    with pytest.raises(CheckpointError, match="model_path=tinker:/typo: no such directory"):
        locate_checkpoint("tinker:/typo", "weights", "model_path")


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_a_run_that_starts_from_an_adapter(
    service: Any, tiny_llama: str, tmp_path: Path
) -> None:
    adapter, expected = make(tiny_llama, tmp_path / "a", target_modules=ALL[:4])
    keys = {"model_name": tiny_llama, "renderer_name": "role_colon"}
    config = LoopConfig(load_checkpoint_path=str(adapter), **keys)
    with pytest.raises(
        ConfigurationError, match=r"set lora_rank=4 train_mlp=False train_unembed=False"
    ):
        await start_training_client(service, config, None)
    fits = LoopConfig(
        load_checkpoint_path=str(adapter),
        lora_rank=4,
        train_mlp=False,
        train_unembed=False,
        **keys,
    )
    client = await start_training_client(service, fits, None)
    sampler = await client.save_weights_and_get_sampling_client()
    assert (logprobs(sampler) - expected).abs().max() < 1e-5
    before = plain(fits)["identity"]["load_checkpoint_path"]
    file = adapter / "adapter_model.safetensors"
    save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    assert plain(fits)["identity"]["load_checkpoint_path"] != before


def test_an_adapter_is_no_checkpoint_of_a_server(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="which the server at base_url cannot read"):
        locate_checkpoint(str(tmp_path), "weights", "load_checkpoint_path", "http://x")


def test_names_of_copies() -> None:
    assert is_copy("/data/gpt-oss-20b-bf16", "openai/gpt-oss-20b")
    assert is_copy("Qwen/Qwen3-8B", "/data/models/qwen3-8b/")
    assert not is_copy("/data/Qwen3-8B-Base", "Qwen/Qwen3-8B")
    assert not is_copy("/data/llama", "Qwen/Qwen3-8B")
