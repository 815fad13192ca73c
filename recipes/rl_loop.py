"""Reinforcement learning as one flat file to copy and change: sample, grade, train, log.

    ./scripts/run recipes.rl_loop
    ./scripts/run recipes.rl_loop model_name=Qwen/Qwen3-8B data_path=gsm8k/train.jsonl

nano learns to add; any other model solves GSM8K. Without keys, seed 0 (29 November 2026, 2 CPU
cores, one thread: 55 s of CPU time): mean reward 0.48 -> 0.62 (step 3) -> 0.80 (6) -> 0.95 (9) ->
0.96 (mean of 12 to 23), replies from 11 tokens to 27.

rl_basic does the same through the library's loop, with evaluations, transcripts and several turns.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import chz
import tinker

from recipes.math_rl.gsm8k import Gsm8k
from tinker_cookbook import sequences
from tinker_cookbook.checkpoint_utils import start_training_client
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import derive_seed
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems.boxed_prompt import REQUEST
from tinker_cookbook.math_problems.math_grading import extract_boxed, grade_answer
from tinker_cookbook.nano import tasks
from tinker_cookbook.renderers import get_renderer, get_text_content
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.config import ADAM
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, SEED, CheckedConfig
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.resolve import resolve_defaults
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.utils.data_identity import adapter_identity, data_set_identity
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.json_types import Plain


@chz.chz
class Config(CheckedConfig):
    model_name: str = chz.field(default="nano", doc="base model: nano (bundled), hub name or path")
    data_path: str | None = chz.field(
        default=None, doc="local copy of GSM8K: a file or a directory (None: openai/gsm8k)"
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
    groups_per_batch: int | None = chz.field(
        default=None, doc="problems per step (None: the default for the model)", metadata=COUNT
    )
    group_size: int | None = chz.field(
        default=None,
        doc="rollouts per problem, whose rewards are compared (None: the default for the model)",
        metadata=COUNT,
    )
    max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per completion (None: the default for model and data)",
        metadata=COUNT,
    )
    max_steps: int = chz.field(default=24, doc="number of steps", metadata=COUNT)
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
        """The content of local files, so that a changed file is a new run."""
        data = self.data_path and data_set_identity(self.data_path)
        return ({"data_path": data} if data else {}) | adapter_identity(self.load_checkpoint_path)


class Sums:
    """nano's problems, as (question, answer)."""

    def draw(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
        problems = [tasks.add_problem(rng) for _ in range(count)]
        return [(p["messages"][0]["content"], str(p["answer"])) for p in problems]

    def is_correct(self, reply: str, answer: str) -> bool:
        return tasks.last_integer(reply) == int(answer)


class WordProblems:
    """GSM8K, with answers in \\boxed{}."""

    def __init__(self, path: str | None, groups_per_batch: int) -> None:
        self.problems = (Gsm8k(path=path) if path else Gsm8k()).train_problems()
        if (count := len(self.problems)) < groups_per_batch:
            raise ConfigurationError(
                f"groups_per_batch={groups_per_batch}: the data has only {count} problems;"
                " set it lower"
            )

    def draw(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
        problems = rng.sample(self.problems, count)
        return [(problem.question + REQUEST, problem.answer) for problem in problems]

    def is_correct(self, reply: str, answer: str) -> bool:
        try:
            return grade_answer(extract_boxed(reply), answer)
        except ValueError:  # no \boxed{} in the reply
            return False


def datums(
    prompt: list[int], replies: Sequence[tinker.SampledSequence], rewards: Sequence[float]
) -> list[tinker.Datum]:
    """Datums of a group, with advantage = reward - mean reward of the group on each reply's
    tokens."""
    mean, zeros = sum(rewards) / len(rewards), [0.0] * len(prompt)
    group = []
    for reply, reward in zip(replies, rewards):
        length = len(reply.tokens)
        sequence = sequences.Sequence(
            tokens=prompt + list(reply.tokens),
            weights=zeros + [1.0] * length,
            logprobs=zeros + list(reply.logprobs or []),
            advantages=zeros + [reward - mean] * length,
        )
        group.append(sequences.remove_mask(sequences.to_datum(sequence)))
    return group


async def main(config: Config) -> None:
    resolved = resolve_defaults(config, RL_DEFAULTS)
    config, sizes = resolved.config, resolved.sizes
    adam = tinker.AdamParams(learning_rate=resolved.learning_rate, **ADAM)
    if (nano := config.model_name == "nano") and config.data_path is not None:
        raise ConfigurationError(f"data_path={config.data_path}: nano only adds; set model_name=")
    renderer = get_renderer(resolved.renderer_name, get_tokenizer(config.model_name))
    task = Sums() if nano else WordProblems(config.data_path, sizes.groups_per_batch)

    service = connect(config.base_url, config.engine)
    rest_client = service.create_rest_client()  # the journal manages checkpoints with it
    with Journal(
        config,
        recipe="rl_loop",
        total_steps=config.max_steps,
        progress="rl",
        headlines={"reward/total": "reward", "reply_tokens": "reply tokens"},
        rest_client=rest_client,
    ) as journal:
        if chosen := resolved.line():
            journal.log_line(chosen)
        client = await start_training_client(
            service, config, journal.resume, {"recipe": "rl_loop"}, log_line=journal.log_line
        )
        sampler = await client.save_weights_and_get_sampling_client()
        for step in range(journal.start_step, config.max_steps):
            with journal.step(step) as row:
                # rollouts: submit all before awaiting any; the step seeds them, also on resume
                rng = random.Random(f"{config.seed} {step}")
                problems = task.draw(rng, sizes.groups_per_batch)
                prompts = [
                    renderer.build_generation_prompt([{"role": "user", "content": question}])
                    for question, _ in problems
                ]
                futures = [
                    sampler.sample(
                        prompt,
                        sizes.group_size,
                        tinker.SamplingParams(
                            max_tokens=sizes.max_tokens,
                            stop=renderer.get_stop_sequences(),
                            seed=derive_seed(config.seed, step, number),
                        ),
                    )
                    for number, prompt in enumerate(prompts)
                ]
                with journal.interruptible():  # a stop may cancel this: no weights have changed
                    groups = [(await future).sequences for future in futures]

                # grade; a group with equal rewards is skipped, as all its advantages are 0
                batch, rewards, lengths = [], [], []
                for (_, answer), prompt, replies in zip(problems, prompts, groups):
                    graded = []
                    for reply in replies:
                        message, termination = renderer.parse_response(reply.tokens)
                        correct = task.is_correct(get_text_content(message), answer)
                        graded.append(float(correct and termination.is_clean))
                    rewards += graded
                    lengths += [len(reply.tokens) for reply in replies]
                    if len(set(graded)) > 1:
                        batch += datums(prompt.to_ints(), replies, graded)

                # train: submit both requests before awaiting either, so the engine never idles
                if batch:
                    output = client.forward_backward(batch, "importance_sampling")
                    await client.optim_step(adam)
                    row.update((await output).metrics)
                save = journal.submit_save(client, step + 1)
                sampler = await client.save_weights_and_get_sampling_client()

                # log
                row["reward/total"] = sum(rewards) / len(rewards)
                row["reply_tokens"] = sum(lengths) / len(lengths)
                row["num_sequences"] = len(batch)
                row["optim/lr"] = resolved.learning_rate
            await journal.finish(save)
        await journal.finish(journal.submit_save(client, config.max_steps, final=True))


FIRST_KEYS = (  # that `--help` explains first
    "model_name",
    "data_path",
    "learning_rate",
    "groups_per_batch",
    "group_size",
    "max_tokens",
    "max_steps",
    "lora_rank",
    "save_every",
    "log_path",
)

if __name__ == "__main__":
    cli(main, Config, first_keys=FIRST_KEYS)
