"""Supervised fine-tuning as one flat file to copy and change: data, forward/backward, step, log.

    ./scripts/run recipes.sl_loop
    ./scripts/run recipes.sl_loop model_name=Qwen/Qwen3-8B dataset_path=my.jsonl learning_rate=4e-4

Without keys, nano on the bundled numbers in words, seed 0 (29 November 2026, 2 CPU cores, one
thread: 18 s of CPU time): loss 8.2 -> 0.93 (step 9) -> 0.18 (19) -> 0.004 (39) -> 0.002 (59).

sl_basic does the same through the library's loop, which adds evaluations, rolling checkpoints and
steps submitted ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

import chz
import tinker

from recipes import number_words
from tinker_cookbook.checkpoint_utils import start_training_client
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.supervised.common import compute_mean_nll
from tinker_cookbook.supervised.data import HubChats, JsonlChats, builder_for_path
from tinker_cookbook.supervised.datasets import epoch_seed
from tinker_cookbook.supervised.defaults import SL_DEFAULTS
from tinker_cookbook.supervised.types import EXAMPLE_LENGTH, ChatDatasetBuilderCommonConfig
from tinker_cookbook.training.config import ADAM
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, SEED, CheckedConfig
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.resolve import resolve_defaults
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.utils.data_identity import adapter_identity
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.json_types import Plain


@chz.chz
class Config(CheckedConfig):
    model_name: str = chz.field(default="nano", doc="base model: nano (bundled), hub name or path")
    dataset_path: str | None = chz.field(
        default=None,
        doc="conversations: JSONL file, local directory or hub data set (None: recipe's default)",
    )
    renderer_name: str | None = chz.field(
        default=None,
        doc="renderer, i.e. chat template (None: the checkpoint's, else the model's default)",
    )
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="initial weights, with a fresh optimizer: a tinker:// path, a run directory (its last"
        " checkpoint) or a PEFT adapter directory (None: a new adapter)",
    )
    learning_rate: float | None = chz.field(
        default=None,
        doc="learning rate, before any schedule (None: the default for the model)",
        metadata=NON_NEGATIVE,
    )
    batch_size: int | None = chz.field(
        default=None, doc="examples per step (None: the default for the model)", metadata=COUNT
    )
    max_length: int | None = chz.field(
        default=None,
        doc="tokens per example; longer ones are truncated on the right (None: the default for"
        " the model)",
        metadata=EXAMPLE_LENGTH,
    )
    num_epochs: int | None = chz.field(
        default=None,
        doc="passes over the data (None: the data set's default, usually 1)",
        metadata=COUNT,
    )
    max_steps: int | None = chz.field(
        default=None,
        doc="maximum number of steps (None: all the data); also the length of the learning-rate"
        " schedule",
        metadata=COUNT,
    )
    lora_rank: int = chz.field(default=32, doc="LoRA rank", metadata=COUNT)
    train_attn: bool = chz.field(default=True, doc="train LoRA weights on the attention layers")
    train_mlp: bool = chz.field(default=True, doc="train LoRA weights on the MLP layers")
    train_unembed: bool = chz.field(default=True, doc="train LoRA weights on the unembedding layer")
    seed: int = chz.field(
        default=0, doc="random seed (initialization, data, sampling)", metadata=SEED
    )
    save_every: int = chz.field(
        default=20, doc="steps between checkpoints (0: only the final one)", metadata=NON_NEGATIVE
    )
    log_path: str | None = chz.field(
        default=None, doc="run directory (None: named after the config)"
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None,
        doc="what to do if the run directory already holds a run (None: resume it if config and"
        " code match; resume: also with edited code; skip: exit if it is finished)",
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: run in process)"
    )
    engine: EngineConfig = chz.field(default_factory=EngineConfig, doc="in-process engine settings")
    display: DisplayMode = chz.field(
        default="auto", doc="progress display (auto: live on a terminal)"
    )
    wandb_project: str | None = chz.field(
        default=None, doc="Weights & Biases project (None: no wandb)"
    )
    wandb_name: str | None = chz.field(default=None, doc="name of the Weights & Biases run")

    def identity(self) -> Mapping[str, Plain]:
        """Another file of the same name is another run."""
        files = {"dataset_path": data(self).identity().get("path", self.dataset_path)}
        return files | adapter_identity(self.load_checkpoint_path)


def data(config: Config) -> JsonlChats | HubChats:
    return builder_for_path(config.dataset_path or number_words.path("train"), "dataset_path")


async def main(config: Config) -> None:
    resolved = resolve_defaults(config, SL_DEFAULTS)
    config = resolved.config
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=resolved.model_name,
        renderer_name=resolved.renderer_name,
        max_length=resolved.sizes.max_length,
        batch_size=resolved.sizes.batch_size,
    )
    train, _ = chz.replace(data(config), common_config=common_config)()
    num_epochs = config.num_epochs
    if num_epochs is None:
        num_epochs = 1 if config.dataset_path else number_words.NUM_EPOCHS
    total_steps = len(train) * num_epochs
    if config.max_steps is not None:
        total_steps = min(total_steps, config.max_steps)

    service = connect(config.base_url, config.engine)
    rest_client = service.create_rest_client()  # looks after the run's checkpoints
    with Journal(
        config, recipe="sl_loop", total_steps=total_steps, rest_client=rest_client
    ) as journal:
        if chosen := resolved.line():
            journal.log_line(chosen)
        for line in train.report.lines() if train.report else ():
            journal.log_line(line)
        client = await start_training_client(
            service, config, journal.resume, {"recipe": "sl_loop"}, log_line=journal.log_line
        )
        for step in range(journal.start_step, total_steps):
            with journal.step(step) as row:
                # data
                epoch, index = divmod(step, len(train))
                train.set_epoch(epoch_seed(config.seed, epoch))
                batch = train.get_batch(index)

                # forward and backward, optimizer: both are queued before either is awaited
                learning_rate = resolved.learning_rate * (1 - step / total_steps)
                forward_backward = client.forward_backward(batch, "cross_entropy")
                optim_step = client.optim_step(
                    tinker.AdamParams(learning_rate=learning_rate, **ADAM)
                )
                save = journal.submit_save(client, step + 1, epoch=epoch)
                output = await forward_backward
                await optim_step

                # log
                row["epoch"] = epoch
                row["learning_rate"] = learning_rate
                row["num_tokens"] = sum(datum.model_input.length for datum in batch)
                row["train_mean_nll"] = compute_mean_nll(
                    [each["logprobs"] for each in output.loss_fn_outputs],
                    [datum.loss_fn_inputs["weights"] for datum in batch],
                )
            await journal.finish(save)
        save = journal.submit_save(client, total_steps, final=True, epoch=num_epochs)
        await journal.finish(save)


FIRST_KEYS = (  # that `--help` explains first
    "model_name",
    "dataset_path",
    "learning_rate",
    "batch_size",
    "max_length",
    "num_epochs",
    "max_steps",
    "lora_rank",
    "save_every",
    "log_path",
)

if __name__ == "__main__":
    cli(main, Config, first_keys=FIRST_KEYS)
