"""The keys of constitutional AI."""

from __future__ import annotations

from typing import Literal

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.supervised.chat_config import ChatConfig
from tinker_cookbook.training.config import ProgramConfig
from tinker_cookbook.training.fields import COUNT, FRACTION, MAY_CHANGE, NON_NEGATIVE
from tinker_cookbook.training.stages import check_same_adapter

NANO_MAX_TOKENS, MAX_TOKENS = 48, 512
NANO_PROMPTS, NUM_PROMPTS = 64, 4096
# keys of a training stage that it may not set, besides those that all stages share
RESERVED_KEYS = ("renderer_name", "load_checkpoint_path", "dataset_builder", "dataset_path")


@chz.chz
class CLI(ProgramConfig):
    model_kind: Literal["auto", "base", "instruct"] = chz.field(
        default="auto",
        doc="how the model is asked for critiques and revisions: instruct by instructions, base by"
        " worked examples (auto: instruct if it is a chat model)",
    )
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="initial weights, with a fresh optimizer: a tinker:// path, a run directory (its last"
        " checkpoint) or a PEFT adapter directory (None: a new adapter)",
    )
    principles: str | None = chz.field(
        default=None,
        doc="text file with one principle per line (None: six principles of this recipe)",
    )
    prompts: str | None = chz.field(
        default=None,
        doc="prompts to reply to: nano_sums, hhh, a text file with one per line, or a file, a"
        " directory or a hub data set of prompts, conversations or comparisons (None: nano_sums for"
        " nano, else hhh)",
    )
    num_prompts: int | None = chz.field(
        default=None,
        doc=f"prompts to reply to, at most (None: {NANO_PROMPTS} for nano, else {NUM_PROMPTS});"
        " before training has started, raising it extends the sampled files",
        metadata=COUNT | MAY_CHANGE,
    )
    num_revisions: int = chz.field(
        default=1, doc="rounds of critique and revision per reply", metadata=COUNT
    )
    max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per completion (None: the default for model and data)",
        metadata=COUNT,
    )
    temperature: float = chz.field(
        default=1.0, doc="sampling temperature (0: greedy decoding)", metadata=NON_NEGATIVE
    )
    judge_model: Literal["start", "sft"] = chz.field(
        default="start", doc="judge of the comparisons: the start model, or the model of sft/"
    )
    min_preference: float = chz.field(
        default=0.1,
        doc="pairs with a smaller |preference|, which is 0 to 1, are ties and not trained on",
        metadata=FRACTION,
    )
    run_revisions: bool = chz.field(
        default=True, doc="run the stage of critiques and revisions", metadata=MAY_CHANGE
    )
    run_sft: bool = chz.field(
        default=True, doc="run the stage of supervised fine-tuning", metadata=MAY_CHANGE
    )
    run_judge: bool = chz.field(
        default=True, doc="run the stage of judged comparisons", metadata=MAY_CHANGE
    )
    run_dpo: bool = chz.field(default=True, doc="run the DPO stage", metadata=MAY_CHANGE)
    sft: ChatConfig = chz.field(default_factory=ChatConfig, doc="supervised fine-tuning")
    dpo: train_dpo.Config = chz.field(
        default_factory=train_dpo.Config, doc="preference optimization"
    )

    @chz.validate
    def _check_stage_keys(self) -> None:
        for name, stage in (("sft", self.sft), ("dpo", self.dpo)):
            for key in RESERVED_KEYS:
                if (value := getattr(stage, key)) is not None:
                    remedy = f"set {key}=" if key in chz.chz_fields(self) else "drop it"
                    raise ConfigurationError(
                        f"{name}.{key}={value}: this recipe sets it for each stage; {remedy}"
                    )

    @chz.validate
    def _check_same_adapter(self) -> None:
        if self.run_dpo:
            check_same_adapter("dpo", self.dpo, "sft", self.sft)
        if self.dpo.loss == "kto":
            raise ConfigurationError(
                "dpo.loss=kto trains on single replies, and this recipe makes pairs: set another"
                " loss"
            )
