"""TRL's trainers as contestants: real `train()` calls of one step each.

Timed from the moment the batch is ready to the end of the optimizer step.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import torch
from basis import ADAM, Batch
from datasets import Dataset
from pairs import Pairs
from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from transformers_contestants import load, padded

os.environ.setdefault("WANDB_DISABLED", "true")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


class _Clock(TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def tokenizer() -> PreTrainedTokenizerFast:
    """A dummy tokenizer: the trainers require one, but there is no text to tokenize."""
    words = {"<pad>": 0, "<eos>": 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )


def arguments(dtype: str, device: str) -> dict[str, Any]:
    """Arguments for one AdamW step like the other contestants', no activation checkpointing."""
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-trl-"),
        "use_cpu": device == "cpu",
        "bf16": dtype == "bfloat16",
        "gradient_checkpointing": False,
        "max_steps": 1,
        "learning_rate": ADAM["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta1": ADAM["betas"][0],
        "adam_beta2": ADAM["betas"][1],
        "adam_epsilon": ADAM["eps"],
        "weight_decay": ADAM["weight_decay"],
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


class _Trl:
    trainer: Any

    def measure(self) -> dict[str, float]:
        clock = _Clock()
        self.trainer.add_callback(clock)
        self.trainer.train()
        self.trainer.remove_callback(clock)
        losses = [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]
        return {"seconds": clock.seconds, "loss": losses[-1]}


class PackedSft(_Trl):
    """SFTTrainer with packing: the whole batch in one packed sequence."""

    def __init__(self, facts: dict[str, Any], batch: str, device: str) -> None:
        from trl import SFTConfig, SFTTrainer

        sequences = Batch.read(batch).sequences
        self.trainer = SFTTrainer(
            model=load(facts, device, trainable=True),
            args=SFTConfig(
                **arguments(facts["dtype"], device),
                packing=True,
                max_length=sum(map(len, sequences)),
                per_device_train_batch_size=1,
            ),
            train_dataset=Dataset.from_dict({"input_ids": sequences}),
            processing_class=tokenizer(),
        )
        if len(self.trainer.train_dataset) != 1:
            raise RuntimeError(f"packed into {len(self.trainer.train_dataset)} rows instead of one")
        self.facts = {"loss": self.measure()["loss"]}


class GrpoStep(_Trl):
    """GRPOTrainer's training step on a given group, without sampling."""

    def __init__(self, facts: dict[str, Any], batch: str, device: str) -> None:
        from trl import GRPOConfig, GRPOTrainer

        given = Batch.read(batch)
        assert given.logprobs is not None and given.advantages is not None
        completions = [sequence[given.prompt :] for sequence in given.sequences]
        longest = max(map(len, completions))
        ready = {
            "prompt_ids": torch.tensor([s[: given.prompt] for s in given.sequences]),
            "prompt_mask": torch.ones(len(completions), given.prompt, dtype=torch.long),
            "completion_ids": padded(completions, 0),
            "completion_mask": padded([[1] * len(c) for c in completions], 0),
            "old_per_token_logps": padded(given.logprobs, 0.0),
            "advantages": torch.tensor(given.advantages),
        }
        ready = {key: tensor.to(device) for key, tensor in ready.items()}

        class Sampled(GRPOTrainer):
            def _prepare_inputs(self, generation_batch: Any) -> dict[str, torch.Tensor]:
                return ready  # instead of sampling and scoring

        count = len(completions)
        self.trainer = Sampled(
            model=load(facts, device, trainable=True),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                **arguments(facts["dtype"], device),
                loss_type="bnpo",  # a mean over the tokens of the batch
                beta=0.0,
                epsilon=0.2,
                num_generations=count,
                per_device_train_batch_size=count,
                max_completion_length=longest,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a"] * count}),
            processing_class=tokenizer(),
        )
        self.facts = {"loss": self.measure()["loss"]}


class DpoStep(_Trl):
    """DPOTrainer's training step on pairs of token ids.

    precompute: the reference logprobs come from a pass before training, which is not timed;
    otherwise from one in each step. pairs_per_pass: the batch is padded as one (None), or goes
    through the model in parts whose gradients are accumulated.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        pairs: str,
        device: str,
        beta: float,
        precompute: bool,
        pairs_per_pass: int | None = None,
    ) -> None:
        from trl import DPOConfig, DPOTrainer

        class Tokenized(DPOTrainer):
            def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
                return dataset  # it has token ids already

        given = Pairs.read(pairs)
        count = len(given.prompts)
        per_pass = pairs_per_pass or count
        # A new adapter, so that the trainer takes the base model as the reference; an adapter that
        # came with the model would become the reference itself.
        adapter = PeftConfig.from_pretrained(facts["peft"])
        adapter.inference_mode = False
        self.trainer = Tokenized(
            model=AutoModelForCausalLM.from_pretrained(
                facts["path"], dtype=getattr(torch, facts["dtype"])
            ),
            args=DPOConfig(
                **arguments(facts["dtype"], device),
                beta=beta,
                max_length=None,
                precompute_ref_log_probs=precompute,
                per_device_train_batch_size=per_pass,
                gradient_accumulation_steps=count // per_pass,
            ),
            train_dataset=Dataset.from_dict(
                {
                    "prompt_ids": given.prompts,
                    "chosen_ids": given.chosen,
                    "rejected_ids": given.rejected,
                }
            ),
            processing_class=tokenizer(),
            peft_config=adapter,
        )
        set_peft_model_state_dict(self.trainer.model, load_peft_weights(facts["peft"], device))
        self.facts = {"loss": self.measure()["loss"]}
