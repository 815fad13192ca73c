"""Exports as a user makes them: greedy replies before and after, mistakes, interruptions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
import torch
from tinker import SamplingParams

from tests.programs import Programs
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.service.store import Store
from tinker_cookbook.tokenizer_utils import get_tokenizer

PROGRAM = "tinker_cookbook.weights.export"
QUESTIONS = [f"Write {number} in words." for number in range(3, 100, 5)]
Export = Callable[..., CompletedProcess[str]]


class Trained(NamedTuple):
    runs: Path
    log_path: Path


@pytest.fixture(scope="module")
def trained(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A short run of sl_basic on nano."""
    runs = tmp_path_factory.mktemp("trained")
    words = [f"log_path={runs / 'run'}", "max_steps=12", "save_every=6", "eval_every=0"]
    done = programs.run("recipes.sl_basic", *words, env=environment(runs))
    assert done.returncode == 0, done.stderr
    return Trained(runs, runs / "run")


def environment(runs: Path) -> dict[str, str]:
    return {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(runs)}


@pytest.fixture
def export(programs: Programs, trained: Trained, tmp_path: Path) -> Export:
    def export(*words: str) -> CompletedProcess[str]:
        return programs.run(PROGRAM, *words, cwd=tmp_path, env=environment(trained.runs))

    return export


def our_replies(trained: Trained) -> list[str]:
    service = connect(
        engine=EngineConfig(device="cpu", dtype="float32"), store_dir=trained.runs / "store"
    )
    client = service.create_sampling_client(model_path=str(trained.log_path))
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    params = SamplingParams(max_tokens=24, temperature=0.0, stop=renderer.get_stop_sequences())
    replies = []
    for question in QUESTIONS:
        prompt = renderer.build_generation_prompt([{"role": "user", "content": question}])
        tokens = client.sample(prompt, 1, params).result().sequences[0].tokens
        replies.append(get_tokenizer("nano").decode(tokens, skip_special_tokens=True))
    return replies


def transformers_replies(directory: Path, model: Any) -> list[str]:
    """With the tokenizer, the chat template and the stop tokens of the export."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    replies = []
    for question in QUESTIONS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = model.generate(**asked, max_new_tokens=24, do_sample=False)[0]
        new = out[asked["input_ids"].shape[1] :]
        replies.append(tokenizer.decode(new, skip_special_tokens=True))
    return replies


def test_greedy_replies_are_those_before_the_export(
    export: Export, trained: Trained, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    expected = our_replies(trained)
    assert len(set(expected)) > 5, "they must depend on the question"
    run = f"checkpoint={trained.log_path}"
    done = export(run, "output=adapter")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"adapter: adapter for peft and vLLM, \d\.\d\d MB", last)
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert transformers_replies(tmp_path / "adapter", adapter) == expected
    done = export(run, "format=merged", "dtype=float32", "output=merged")
    assert done.returncode == 0, done.stderr
    assert "note: the base model uses one matrix as embedding and unembedding" in done.stdout
    gap = re.search(
        r"checked: .* by (\S+) nats on average, (\S+) at most; .* by (\S+)\n", done.stdout
    )
    assert gap and float(gap[1]) < 1e-5 and float(gap[2]) < 1e-4 < float(gap[3])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert transformers_replies(tmp_path / "merged", model) == expected
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "by the recipe `sl_basic`" in card and "| learning_rate | 0.006 |" in card


def test_what_checkpoint_may_be(export: Export, trained: Trained, tmp_path: Path) -> None:
    """The run, its links, tinker:// paths of both kinds, and an exported adapter again."""
    records = [
        json.loads(line)
        for line in (trained.log_path / "checkpoints.jsonl").read_text().split("\n")[:-1]
    ]
    final, early = records[-1], records[0]
    given = {
        "run": str(trained.log_path),
        "link": str(trained.log_path / "weights" / "final"),
        "sampler": final["sampler_path"],
        "state": final["state_path"],
        "again": "run",
        "early": early["sampler_path"],
    }
    contents = {}
    for name, checkpoint in given.items():
        done = export(f"checkpoint={checkpoint}", f"output={name}")
        assert done.returncode == 0, done.stderr
        contents[name] = (tmp_path / name / "adapter_model.safetensors").read_bytes()
    early_weights = contents.pop("early")
    assert len(set(contents.values())) == 1 and early_weights not in contents.values()
    for name in ("run", "link", "sampler"):
        assert "`sl_basic`" in (tmp_path / name / "README.md").read_text()


def test_mistakes_are_one_line(export: Export, trained: Trained, tmp_path: Path) -> None:
    run = f"checkpoint={trained.log_path}"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for words, said in (
        ([run, "output=full"], "output=full exists: set output to a new directory"),
        ([run, "output=new", "format=gguf"], "format"),
        ([run, "output=new", "dtype=int4"], "dtype"),
        ([run, "output=new", "formt=peft"], "did you mean 'format'?"),
        ([run], "output"),
        (["checkpoint=absent", "output=new"], "checkpoint=absent: no such directory; expected"),
        (["checkpoint=tinker://a/weights/b", "output=new"], "no run a in the store"),
        ([run, "output=new", "base_model=Qwen/Qwen3-8B"], "was trained on 'nano'"),
        ([run, "output=new", "base_url=http://127.0.0.1:9"], "is not reachable"),
        ([run, "output=full/x/new"], "cannot be written"),
    ):
        done = export(*words)
        assert done.returncode == 2, words
        assert len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_an_expired_checkpoint(programs: Programs, trained: Trained, tmp_path: Path) -> None:
    copied = tmp_path / "runs"
    shutil.copytree(trained.runs, copied, symlinks=True)
    record = json.loads((trained.log_path / "checkpoints.jsonl").read_text().splitlines()[0])
    Store(copied / "store").set_ttl(record["sampler_path"], 0.05)
    time.sleep(0.1)
    words = [f"checkpoint={record['sampler_path']}", f"output={tmp_path / 'new'}"]
    done = programs.run(PROGRAM, *words, env=environment(copied))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "has no sampler_weights/000006; it has" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_leaves_no_half_export(
    number: signal.Signals, programs: Programs, trained: Trained, tmp_path: Path
) -> None:
    words = [f"checkpoint={trained.log_path}", "format=merged", "output=out"]
    environ = environment(trained.runs)
    program = programs.start(PROGRAM, *words, cwd=tmp_path, env=environ)
    partial = tmp_path / ".out.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    program.send_signal(number)
    out, err = program.communicate(timeout=60)
    assert not (tmp_path / "out").exists(), (out, err)
    left = sorted(path.name for path in tmp_path.iterdir())
    if number == signal.SIGKILL:
        assert left == [".out.lock", ".out.partial"]
    else:
        assert left == [] and program.returncode == 128 + number, err
        assert "Traceback" not in err
    done = programs.run(PROGRAM, *words, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr
    assert ("which an interrupted export had left" in done.stdout) == (number == signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_export_starts_a_run(programs: Programs, trained: Trained, tmp_path: Path) -> None:
    """The way back: the exported adapter gives the first loss of a run from the checkpoint."""
    losses = []
    adapter = tmp_path / "adapter"
    env = environment(trained.runs)
    words = [f"checkpoint={trained.log_path}", f"output={adapter}"]
    done = programs.run(PROGRAM, *words, env=env)
    assert done.returncode == 0, done.stderr
    for name, start in (("a", trained.log_path), ("b", adapter)):
        done = programs.run(
            "recipes.sl_basic",
            f"load_checkpoint_path={start}",
            f"log_path={tmp_path / name}",
            "max_steps=1",
            "eval_every=0",
            env=env,
        )
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        losses.append(next(row["train_mean_nll"] for row in rows if "train_mean_nll" in row))
    assert losses[0] == losses[1]
