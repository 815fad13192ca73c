"""Self-distillation on nano: the teacher and its file, what is trained, metrics, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook.distillation import sdft
from tinker_cookbook.distillation.demonstrations import (
    DEMONSTRATION,
    QUESTION,
    DemonstrationChats,
)
from tinker_cookbook.distillation.sdft_batch import (
    Completion,
    Question,
    SamplingSettings,
    ScoredCompletion,
    _to_scored,
)
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.distillation.sdft_loss import reverse_kl
from tinker_cookbook.distillation.sdft_objective import _reverse_loss
from tinker_cookbook.distillation.sdft_teacher import FILE_NAME
from tinker_cookbook.distillation.soft_targets import TopK
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, DataValidationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.sequences import as_numpy
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.service.local import LocalSamplingClient, LocalTrainingClient
from tinker_cookbook.supervised.chat_config import resolve_chat_config
from tinker_cookbook.supervised.data import JsonlChats
from tinker_cookbook.supervised.types import SupervisedDatasetBuilder
from tinker_cookbook.utils import jsonl

NAMES = ("Ivy", "Kate", "Carla", "Henry", "Ben")
THINGS = ("lamp", "chair", "table", "spoon", "knife", "plate", "glass", "shirt", "shoe", "coat")
FACTS = [
    {"prompt": f"Who has the {thing}?", "completion": f"{name} has the {thing}."}
    for name, thing in zip(NAMES * 2, THINGS)
]


@pytest.fixture
def data(tmp_path: Path) -> DemonstrationChats:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    template = f"An example of a good answer: {DEMONSTRATION} {QUESTION}"
    return DemonstrationChats(path=str(path), test_size=2, template=template)


async def run(data: SupervisedDatasetBuilder, log_path: Path, **keys: Any) -> list[dict]:
    """Steps of four questions; returns the rows of metrics.jsonl without times."""
    config = sdft.Config(
        **{
            "dataset_builder": data,
            "log_path": str(log_path),
            "display": "plain",
            "lora_rank": 4,
            "batch_size": 4,
            "num_epochs": 3,
            "learning_rate": 3e-3,
            "lr_schedule": "constant",
            "max_tokens": 12,
            "topk": 5,
            "eval_every": 3,
            "sample_replies": 0,
            "engine": EngineConfig(num_threads=1),
            **keys,
        }
    )
    await sdft.run(resolve_chat_config(config, SDFT_DEFAULTS, data), "sdft")
    rows = [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "progress"))}
        for row in rows
    ]


_synced: list[list[dict]] = []


async def run_synced(data: SupervisedDatasetBuilder, log_path: Path) -> list[dict]:
    """The rows of an uninterrupted run with teacher_sync_every=2; it is done once."""
    if not _synced:
        _synced.append(await run(data, log_path, teacher_sync_every=2))
        assert len(_synced[0]) == 7 and teachers(log_path) == [0, 2, 4]
    return _synced[0]


def teachers(log_path: Path) -> list[int]:
    return [line.value["step"] for line in jsonl.read_lines(log_path / FILE_NAME)]


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_resumed_run_samples_and_learns_the_same(
    data: DemonstrationChats, tmp_path: Path, reverse: bool
) -> None:
    """It is stopped after three steps, between the teacher's changes before steps 2 and 4."""
    keys: dict[str, Any] = {"reverse": reverse, "teacher_sync_every": 2}
    whole = (
        await run(data, tmp_path / "whole", **keys)
        if reverse
        else await run_synced(data, tmp_path / "whole")
    )
    await run(data, tmp_path / "parts", max_steps=3, **keys)
    assert teachers(tmp_path / "parts") == [0, 2]
    assert await run(data, tmp_path / "parts", **keys) == whole
    assert teachers(tmp_path / "parts") == [0, 2, 4]


@pytest.mark.parametrize(("stop", "eval_every"), [(3, 3), (4, 2)])
async def test_steps_after_the_checkpoint_are_repeated_with_their_teachers(
    data: DemonstrationChats, tmp_path: Path, stop: int, eval_every: int
) -> None:
    """As after a crash: the file lists a teacher that belongs to a step to be done again."""
    keys = {"teacher_sync_every": 2, "eval_every": eval_every}
    whole = (
        await run_synced(data, tmp_path / "whole")
        if eval_every == 3  # as in `run`
        else await run(data, tmp_path / "whole", **keys)
    )
    parts = tmp_path / "parts"
    await run(data, parts, max_steps=stop, **keys)
    jsonl.append_line(parts / FILE_NAME, {"step": 4, "path": "tinker://no/sampler_weights/such"})
    assert await run(data, parts, **keys) == whole


async def test_the_teacher_keeps_the_initial_weights_or_follows(
    data: DemonstrationChats, tmp_path: Path
) -> None:
    fixed = await run(data, tmp_path / "fixed")
    synced = await run_synced(data, tmp_path / "synced")
    own = await run(data, tmp_path / "own", teacher_sync_every=1)
    assert teachers(tmp_path / "fixed") == [0] and teachers(tmp_path / "own") == []
    assert fixed[:2] == synced[:2] and fixed[0] == own[0]
    assert fixed[2] != synced[2] and fixed[1] != own[1]
    for rows in (fixed, synced, own):
        assert rows[5]["sdft/forward_kl"] < rows[0]["sdft/forward_kl"]
        assert rows[6]["test/nll"] < 1.5


async def test_a_run_from_a_checkpoint_has_its_weights_as_teacher(
    data: DemonstrationChats, tmp_path: Path
) -> None:
    """Also in a directory that another run used before: its teacher is not taken."""
    await run(data, tmp_path / "first", max_steps=2)
    keys = {"load_checkpoint_path": str(tmp_path / "first"), "max_steps": 2}
    await run(data, tmp_path / "again", max_steps=2, seed=1)
    again = await run(data, tmp_path / "again", **keys, behavior_if_log_dir_exists="delete")
    assert again == await run(data, tmp_path / "fresh", **keys)


async def test_a_teacher_that_is_lost(data: DemonstrationChats, tmp_path: Path) -> None:
    log_path = tmp_path / "run"
    await run(data, log_path, max_steps=3)
    (line,) = jsonl.read_lines(log_path / FILE_NAME)
    lost = {**line.value, "path": line.value["path"].replace("teacher-", "no-")}
    jsonl.write_lines(log_path / FILE_NAME, [lost])
    with pytest.raises(CheckpointError, match=r"the teacher of step 3, tinker://.* is lost: .*;"):
        await run(data, log_path)
    (log_path / FILE_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"lists no teacher for step 3, .*: restore it, or"):
        await run(data, log_path)


async def test_superseded_teachers_expire(
    data: DemonstrationChats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expiring: list[tuple[str, int | None]] = []
    from tinker_cookbook.service.rest import LocalRestClient

    original = LocalRestClient.set_checkpoint_ttl_from_tinker_path

    def record(self: LocalRestClient, path: str, ttl_seconds: int | None) -> Any:
        expiring.append((path.rpartition("/")[2], ttl_seconds))
        return original(self, path, ttl_seconds)

    monkeypatch.setattr(LocalRestClient, "set_checkpoint_ttl_from_tinker_path", record)
    keys = {"teacher_sync_every": 2, "ttl_seconds": 60}
    await run(data, tmp_path / "run", max_steps=5, **keys)
    assert expiring == [("teacher-000000", 60), ("teacher-000002", 60)]
    expiring.clear()
    await run(data, tmp_path / "run", **keys)
    assert expiring == [("teacher-000004", None)]  # needed again, even if it was superseded


async def test_what_a_step_trains_and_reports(
    data: DemonstrationChats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tinker.Datum]] = []
    prompts: list[int] = []
    train, sample = LocalTrainingClient.forward_backward, LocalSamplingClient.sample

    def record(self: LocalTrainingClient, batch: list[tinker.Datum], *rest: Any) -> Any:
        batches.append(batch)
        return train(self, batch, *rest)

    def record_sample(
        self: LocalSamplingClient, prompt: tinker.ModelInput, *rest: Any, **keys: Any
    ) -> Any:
        prompts.append(prompt.length)
        return sample(self, prompt, *rest, **keys)

    monkeypatch.setattr(LocalTrainingClient, "forward_backward", record)
    monkeypatch.setattr(LocalSamplingClient, "sample", record_sample)
    keys = {"group_size": 2, "skip_first_tokens": 2, "max_steps": 1, "max_tokens": 6}
    row, _ = await run(data, tmp_path / "run", **keys)
    (batch,) = batches
    weights = [as_numpy(datum.loss_fn_inputs["weights"]) for datum in batch]
    assert row["num_sequences"] == len(batch) == 8
    assert row["num_tokens"] == sum(datum.model_input.length for datum in batch)
    completions = [d.model_input.length + 1 - prompt for d, prompt in zip(batch, prompts[:8])]
    assert row["sdft/completion_tokens"] == np.mean(completions)
    assert row["num_loss_tokens"] == sum(max(0, length - 2) for length in completions)
    assert row["sdft/truncated"] >= np.mean([length > 6 for length in completions])
    assert 0 < row["sdft/left_out_mass"] < 0.5 and row["sdft/forward_kl"] > 0
    for length, values in zip(completions, weights):
        assert values.shape[1] == 5
        trained = max(0, length - 2)
        assert values.sum() == pytest.approx(1 if trained else 0, abs=1e-6)
        assert np.count_nonzero(values.sum(axis=1)) == trained
        assert (values[: len(values) - trained] == 0).all()


async def test_a_custom_loss_in_parts_is_that_of_the_batch(
    data: DemonstrationChats, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"reverse": True, "max_steps": 2}
    whole = await run(data, tmp_path / "whole", **keys)
    small = EngineConfig(num_threads=1, tokens_per_pass=64)
    parts = await run(data, tmp_path / "parts", **keys, engine=small)
    for key in ("sdft/reverse_kl", "grad_norm", "num_loss_tokens"):
        for one, other in zip(whole[:2], parts):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key


def scored(length: int, skip: int, seed: int) -> ScoredCompletion:
    """A completion of `length` tokens after a prompt of 3, with a teacher's 2 of 6 tokens."""
    logits = torch.randn(length, 6, generator=torch.Generator().manual_seed(seed)).double()
    values, tokens = logits.log_softmax(1).topk(2)
    completion = Completion(Question([1, 2, 3], [4, 5]), list(range(length)), truncated=False)
    return _to_scored(completion, TopK(tokens.numpy(), values.numpy()), skip)


def test_the_reverse_loss_is_a_mean_over_trained_tokens_of_each_completion() -> None:
    batch = [scored(4, 1, seed=0), scored(2, 1, seed=1), scored(1, 1, seed=2)]
    assert [each.positions.tolist() for each in batch] == [[3, 4, 5], [3], []]
    generator = torch.Generator().manual_seed(3)
    leaves = [
        torch.randn(each.datum.model_input.length, 6, generator=generator)
        .log_softmax(1)[:, :2]
        .clone()
        .requires_grad_()
        for each in batch
    ]
    loss, _ = _reverse_loss(batch, [each.datum for each in batch], leaves)
    loss.backward()
    expected = 0.0
    for each, leaf in zip(batch[:2], leaves):
        values = reverse_kl(each.teacher, leaf.detach().double()[each.positions])
        expected += values.mean().item()
        assert leaf.grad is not None
        assert (leaf.grad[:3] == 0).all() and (leaf.grad[3:] != 0).all()
    assert loss.item() == pytest.approx(expected)
    assert leaves[2].grad is not None and (leaves[2].grad == 0).all()


def test_completions_have_the_room_that_the_longer_prompt_leaves() -> None:
    settings = SamplingSettings(1, 8, 1.0, [0], seed=0, context=16)
    assert settings.limit(Question([1] * 3, [1] * 5)) == 8
    assert settings.limit(Question([1] * 3, [1] * 12)) == 3  # 12 + 3 + 1 that scoring samples
    with pytest.raises(DataValidationError, match="a prompt of 15 tokens leaves no room"):
        settings.limit(Question([1] * 15, [1] * 5))
    unlimited = SamplingSettings(1, 8, 1.0, [0], seed=0)
    assert unlimited.limit(Question([1] * 3, [1] * 12)) == 8


async def test_the_longest_completion_fits_into_the_context(tmp_path: Path) -> None:
    """The demonstration leaves room for less than max_tokens."""
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS[:4]))
    data = DemonstrationChats(path=str(path), template=f"{'a ' * 470}{DEMONSTRATION} {QUESTION}")
    row, *_ = await run(data, tmp_path / "run", max_steps=1, max_tokens=500)
    assert row["sdft/completion_tokens"] < 30


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_tokens": 512}, "max_tokens=512 leaves no room for a prompt in 512 tokens"),
        ({"max_tokens": 4, "skip_first_tokens": 4}, "skip_first_tokens=4 leaves nothing to train"),
        ({"topk": 4096}, "topk=4096: nano has 2048 tokens"),
        ({"topk": 0}, "topk=0: expected 1 or more"),
        ({"teacher_sync_every": 0}, "teacher_sync_every=0: expected 1 or more"),
        ({"train_on_what": TrainOnWhat.ALL_TOKENS}, "self-distillation trains on sampled replies"),
    ],
)
async def test_bad_keys(
    data: DemonstrationChats, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await run(data, tmp_path / "run", **keys)


async def test_keys_that_change_training_are_part_of_the_run(
    data: DemonstrationChats, tmp_path: Path
) -> None:
    await run(data, tmp_path / "run", max_steps=1, save_every=1)
    for keys in (
        {"topk": 6},
        {"reverse": True},
        {"skip_first_tokens": 1},
        {"teacher_sync_every": 2},
        {"group_size": 2},
        {"max_tokens": 13},
        {"temperature": 0.9},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(keys))):
            await run(data, tmp_path / "run", **{"max_steps": 2, **keys})


async def test_data_without_demonstrations_is_refused(
    data: DemonstrationChats, tmp_path: Path
) -> None:
    with pytest.raises(DataValidationError, match="use data=DemonstrationChats"):
        await run(JsonlChats(path=data.path), tmp_path / "run")


def test_main_needs_data() -> None:
    with pytest.raises(ConfigurationError, match="needs dataset_builder"):
        sdft.main(sdft.Config())
