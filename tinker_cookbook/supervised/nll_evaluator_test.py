"""The evaluators, over an engine whose model is a table: the logprob of token t is -t / 10."""

import asyncio
import math
from pathlib import Path

import pytest
import tinker

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.sequences import Sequence, to_datum
from tinker_cookbook.supervised import nll_evaluator
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator, SamplerNLLEvaluator, all_datums
from tinker_cookbook.supervised.testing import ByteTokenizer
from tinker_cookbook.supervised.types import SupervisedDataset
from tinker_cookbook.testing import Forward, ScriptedEngine, scripted_service
from tinker_cookbook.training.evaluators import SamplingClientEvaluator, TrainingClientEvaluator

DATA = [
    to_datum(Sequence([5, 10, 20, 30], [0, 0, 1, 1])),
    to_datum(Sequence([5, 40], [0, 2])),
    to_datum(Sequence([5, 50, 60], [0, 1, 0])),
]
NLL = (2 + 3 + 2 * 4 + 5) / 5
BPB = (2 + 3 + 4 + 5) / (math.log(2) * 4)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(logprob_of=lambda token: -token / 10)


@pytest.fixture
def service(engine: ScriptedEngine, tmp_path: Path) -> tinker.ServiceClient:
    return scripted_service(engine, tmp_path)


@pytest.fixture
def training_client(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client("nano", rank=1).result(10)


@pytest.fixture
def sampling_client(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model="nano").result()


async def measured(
    evaluator: NLLEvaluator,
    client: tinker.TrainingClient | tinker.SamplingClient,
    engine: ScriptedEngine,
    requests: int,
) -> dict[str, float]:
    """The metrics; all requests are submitted before any is answered."""
    engine.requests.clear()
    engine.hold()
    task = asyncio.ensure_future(evaluator(client))
    async with asyncio.timeout(5):
        while len(engine.requests) < requests:
            await asyncio.sleep(0.001)
    assert not task.done()
    engine.release()
    return await task


async def test_nll_of_the_weights_in_training(
    training_client: tinker.TrainingClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nll_evaluator, "DATUMS_PER_REQUEST", 2)
    evaluator = NLLEvaluator(DATA, tokenizer=ByteTokenizer())
    assert isinstance(evaluator, TrainingClientEvaluator)
    metrics = await measured(evaluator, training_client, engine, requests=2)
    assert metrics == {"test/nll": pytest.approx(NLL), "test/bpb": pytest.approx(BPB)}
    assert all(isinstance(each, Forward) for each in engine.requests)
    assert [len(each.sequences) for each in engine.requests] == [2, 1]


async def test_nll_of_a_snapshot_skips_the_first_logprob(
    sampling_client: tinker.SamplingClient, engine: ScriptedEngine
) -> None:
    evaluator = SamplerNLLEvaluator(DATA, name="held_out", tokenizer=ByteTokenizer())
    assert isinstance(evaluator, SamplingClientEvaluator)
    metrics = await measured(evaluator, sampling_client, engine, requests=3)
    assert metrics == {"held_out/nll": pytest.approx(NLL), "held_out/bpb": pytest.approx(BPB)}


async def test_no_bpb_without_a_tokenizer(training_client: tinker.TrainingClient) -> None:
    assert await NLLEvaluator(DATA)(training_client) == {"test/nll": pytest.approx(NLL)}


def test_an_evaluator_without_data_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'test' has no data"):
        NLLEvaluator([])


async def test_from_dataset_takes_every_batch(
    training_client: tinker.TrainingClient, sampling_client: tinker.SamplingClient
) -> None:
    class Fixed(SupervisedDataset):
        def __len__(self) -> int:
            return 2

        def get_batch(self, index: int) -> list[tinker.Datum]:
            return [DATA[:2], DATA[2:]][index]

    assert all_datums(Fixed()) == DATA
    for kind, client in ((NLLEvaluator, training_client), (SamplerNLLEvaluator, sampling_client)):
        assert await kind.from_dataset(Fixed())(client) == {"test/nll": pytest.approx(NLL)}
