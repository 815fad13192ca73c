from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import tinker

from tinker_cookbook.distillation.teacher import (
    TeacherConfig,
    check_teacher,
    connect_teacher,
    locate_teacher,
)
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.training.run_identity import RunIdentity
from tinker_cookbook.utils.plain_data import comparable


@pytest.fixture
def copy_of_nano(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "other"))


def check(teacher: str, student: str = "nano", renderer_name: str = "qwen3_instruct") -> None:
    check_teacher(TeacherConfig(base_model=teacher), student, renderer_name, None)


def test_the_same_tokens(copy_of_nano: Path) -> None:
    for renderer_name in ("qwen3_instruct", "qwen3", "qwen3_disable_thinking"):
        check("nano", renderer_name=renderer_name)
    check(str(copy_of_nano), renderer_name="qwen3")
    check(str(NANO), str(copy_of_nano))


def test_another_vocabulary(copy_of_nano: Path) -> None:
    file = copy_of_nano / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    number = vocabulary[one]
    vocabulary[one], vocabulary[other] = vocabulary[other], number
    file.write_text(json.dumps(content))
    with pytest.raises(
        ConfigurationError, match="its tokenizer differs from that of model_name=nano"
    ) as found:
        check(str(copy_of_nano))
    assert f"is token {number + 1} and {number}" in str(found.value)
    assert "recipes.distillation.off_policy_reasoning without topk" in str(found.value)


def test_another_split_of_the_same_vocabulary(copy_of_nano: Path) -> None:
    file = copy_of_nano / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="they split the same text differently"):
        check(str(copy_of_nano))


def test_another_template() -> None:
    with pytest.raises(
        ConfigurationError,
        match="renderer_name=role_colon: the teacher nano uses qwen3_instruct, which renders a"
        " question with other tokens; set renderer_name=qwen3_instruct, or choose another teacher",
    ):
        check("nano", renderer_name="role_colon")


def test_a_template_of_its_own(copy_of_nano: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    (copy_of_nano / "chat_template.jinja").write_text(template)
    with pytest.raises(
        ConfigurationError, match="uses template, which renders a question with other tokens"
    ):
        check(str(copy_of_nano))


def test_a_base_model_takes_any_template(tiny_llama: str) -> None:
    check(tiny_llama, tiny_llama, "role_colon")


def test_two_templates_of_their_own(copy_of_nano: Path, tmp_path: Path) -> None:
    """Both renderers are called `template`, and write other tokens."""
    student = Path(shutil.copytree(copy_of_nano, tmp_path / "student"))
    for directory, mark in ((copy_of_nano, "[{{ m.role }}] "), (student, "<{{ m.role }}> ")):
        template = f"{{% for m in messages %}}{mark}{{{{ m.content }}}}<|im_end|>{{% endfor %}}"
        template += "{% if add_generation_prompt %}[assistant] {% endif %}"
        (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigurationError, match="renders a question with other tokens"):
        check(str(copy_of_nano), str(student), "template")
    check(str(student), str(student), "template")


def test_located_paths(tmp_path: Path) -> None:
    located = locate_teacher(TeacherConfig(), "nano", "teacher_checkpoint", None)
    assert located == TeacherConfig(base_model="nano")
    with pytest.raises(CheckpointError, match=r"teacher_checkpoint=.*nowhere"):
        path = TeacherConfig(load_checkpoint_path=str(tmp_path / "nowhere"))
        locate_teacher(path, "nano", "teacher_checkpoint", None)


async def test_the_base_model_of_a_checkpoint(
    copy_of_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_COOKBOOK_STORE_DIR", str(tmp_path / "store"))
    service = connect(engine=EngineConfig(num_threads=1))
    client = await service.create_lora_training_client("nano", rank=1)
    path = (await client.save_weights_for_sampler("x")).path
    teacher = TeacherConfig(load_checkpoint_path=path)
    for student, base in (("nano", "nano"), ("Qwen/Qwen3-8B", "nano")):
        assert locate_teacher(teacher, student, "key", None).base_model == base
    wrong = TeacherConfig(load_checkpoint_path=path, base_model=str(copy_of_nano))
    with pytest.raises(ConfigurationError, match=r"key=tinker://.* was trained on nano, not on /"):
        locate_teacher(wrong, "nano", "key", None)


@pytest.mark.parametrize("key", ["base_model", "load_checkpoint_path"])
def test_a_replaced_directory_is_another_teacher(tmp_path: Path, key: str) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    found = []
    for content in ("a", "b"):
        (tmp_path / "adapter_config.json").write_text(content)
        config = TeacherConfig(**{key: str(tmp_path)})
        found.append(comparable(RunIdentity(config, "x").config_json))
    assert found[0] != found[1]


async def test_an_adapter_of_the_students_model_shares_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = connect(store_dir=tmp_path, engine=EngineConfig(num_threads=1))
    student = await service.create_lora_training_client("nano", rank=4)
    path = (await student.save_weights_for_sampler("start")).path
    teacher = await connect_teacher(
        service, TeacherConfig(base_model="nano", load_checkpoint_path=path)
    )
    policy = await student.save_weights_and_get_sampling_client()
    sampler = sys.modules["tinker_cookbook.engine.torch_sampler"].TorchSampler
    adapters_in_pass = []
    prefill = sampler._prefill

    def spy(self: object, prefills: list) -> None:
        adapters_in_pass.append(len({id(chunk.job.adapter) for chunk, _ in prefills}))
        prefill(self, prefills)

    monkeypatch.setattr(sampler, "_prefill", spy)
    futures = []
    for number in range(8):
        prompt = tinker.ModelInput.from_ints([5 + number, *range(100, 140)])
        futures.append(policy.sample(prompt, 1, tinker.SamplingParams(max_tokens=2)))
        futures.append(teacher.compute_logprobs(prompt))
    for future in futures:
        await future
    assert max(adapters_in_pass) == 2
