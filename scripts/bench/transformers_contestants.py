"""transformers and peft as contestants, used as in their documentation."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from basis import ADAM, Batch, random_sequences
from peft import PeftModel
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

IGNORED = -100  # label without a loss
PAGE = 32  # tokens per page of generate_batch's cache


def load(facts: dict[str, Any], device: str, trainable: bool) -> Any:
    """Load the model with the common adapter, which peft keeps in fp32."""
    model = AutoModelForCausalLM.from_pretrained(
        facts["path"], dtype=getattr(torch, facts["dtype"])
    ).to(device)
    return PeftModel.from_pretrained(model, facts["peft"], is_trainable=trainable)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def padded(rows: list[list[Any]], value: Any) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


class PaddedTraining:
    """A right-padded batch: full logits, loss, backward, AdamW."""

    def __init__(self, facts: dict[str, Any], batch: str, device: str, loss_fn: str) -> None:
        self.device = device
        self.model = load(facts, device, trainable=True)
        self.model.train()
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, **ADAM)
        self.batch = Batch.read(batch)
        sequences = self.batch.sequences
        self.input_ids = padded(sequences, 0).to(device)
        self.attention_mask = padded([[1] * len(s) for s in sequences], 0).to(device)
        self.labels = padded(sequences, IGNORED).to(device)
        self.loss = {"cross_entropy": self._cross_entropy, "ppo": self._ppo}[loss_fn]
        self.facts = {"loss": self.measure()["loss"]}

    def measure(self) -> dict[str, float]:
        started = time.perf_counter()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = loss.item()
        synchronise(self.device)
        return {"seconds": time.perf_counter() - started, "loss": value}

    def _cross_entropy(self) -> torch.Tensor:
        return self.model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            labels=self.labels,
            use_cache=False,
        ).loss

    def _ppo(self) -> torch.Tensor:
        """Clipped ratio (Schulman et al. 2017, https://arxiv.org/abs/1707.06347), mean over tokens;
        computes logits of the completions only."""
        assert self.batch.logprobs is not None
        completion = self.labels[:, self.batch.first :]
        logits = self.model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            logits_to_keep=completion.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        mask = completion != IGNORED
        logprobs = -F.cross_entropy(
            logits.float().flatten(0, 1),
            completion.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        ).view(completion.shape)
        sampled = padded(self.batch.logprobs, 0.0).to(logprobs)
        advantages = torch.tensor(self.batch.advantages, device=logprobs.device)[:, None]
        ratio = (logprobs - sampled).exp()
        value = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        return -(value * mask).sum() / mask.sum()


class _Generation:
    def __init__(
        self,
        facts: dict[str, Any],
        device: str,
        prompts: int,
        prompt_tokens: int,
        samples: int,
        tokens: int,
    ) -> None:
        self.device = device
        self.model = load(facts, device, trainable=False).eval()
        # without a stop token all sequences have the same length
        self.model.generation_config.eos_token_id = None
        self.model.config.eos_token_id = None
        self.vocab_size = facts["vocab_size"]
        self.shape = (prompts, prompt_tokens)
        self.samples = samples
        self.tokens = tokens
        self._ask(random_sequences([prompt_tokens] * prompts, self.vocab_size, seed=0), tokens=8)

    def measure(self, seed: int) -> dict[str, float]:
        count, length = self.shape
        prompts = random_sequences([length] * count, self.vocab_size, seed)
        return {"seconds": self._ask(prompts, self.tokens)}

    def _ask(self, prompts: list[list[int]], tokens: int) -> float:
        started = time.perf_counter()
        lengths = self._generate(prompts, tokens)
        synchronise(self.device)
        seconds = time.perf_counter() - started
        wanted = [tokens] * len(prompts) * self.samples
        if lengths != wanted:
            raise RuntimeError(
                f"{len(lengths)} sequences of {sorted(set(lengths))} tokens, asked for"
                f" {len(wanted)} of {tokens}"
            )
        return seconds

    def _generate(self, prompts: list[list[int]], tokens: int) -> list[int]:
        raise NotImplementedError


class Generate(_Generation):
    """`generate` with `num_return_sequences`."""

    def _generate(self, prompts: list[list[int]], tokens: int) -> list[int]:
        ids = torch.tensor(prompts, device=self.device)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=self.samples,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return [len(sequence) - ids.shape[1] for sequence in out]


class GenerateBatch(_Generation):
    """`generate_batch`: the continuous batching of transformers."""

    def _generate(self, prompts: list[list[int]], tokens: int) -> list[int]:
        config = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=self.samples,
            eos_token_id=None,
            pad_token_id=0,
        )
        # Enough cache for all sequences at once and for a whole prefill. The default takes 90 % of
        # the memory, which on a CPU is shared with everything else.
        rows = len(prompts) * self.samples
        pages = -(-(len(prompts[0]) + tokens) // PAGE) + 1
        batching = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=rows * pages,
            max_batch_tokens=max(rows, min(len(prompts) * len(prompts[0]), 2048)),
            max_memory_percent=0.5,
        )
        # Only the inner model has this method; peft has inserted its layers there in place.
        answers = self.model.base_model.model.generate_batch(
            inputs=prompts, generation_config=config, continuous_batching_config=batching
        )
        return [len(answer.generated_tokens) for answer in answers.values()]
