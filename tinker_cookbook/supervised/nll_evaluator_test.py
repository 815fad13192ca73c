"""The evaluators, against clients whose model is a table: the logprob of token t is -t / 10."""

import math

import pytest
import tinker
from tinker.types import ForwardBackwardOutput

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.sequences import Sequence, to_datum
from tinker_cookbook.supervised import nll_evaluator
from tinker_cookbook.supervised.common_test import ByteTokenizer
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator, SamplerNLLEvaluator, all_datums
from tinker_cookbook.supervised.types import SupervisedDataset
from tinker_cookbook.training.evaluators import SamplingClientEvaluator, TrainingClientEvaluator

DATA = [
    to_datum(Sequence([5, 10, 20, 30], [0, 0, 1, 1])),
    to_datum(Sequence([5, 40], [0, 2])),
    to_datum(Sequence([5, 50, 60], [0, 1, 0])),
]
NLL = (2 + 3 + 2 * 4 + 5) / 5
BPB = (2 + 3 + 4 + 5) / (math.log(2) * 4)


class Later:
    """Can be awaited once everything was submitted, as the answers of a service are."""

    def __init__(self, client, value):
        self.client, self.value = client, value

    def __await__(self):
        self.client.awaited.append(self.client.submitted)
        yield from ()
        return self.value


class TableClient:
    def __init__(self):
        self.submitted, self.awaited = 0, []

    def forward(self, data, loss_fn):
        assert loss_fn == "cross_entropy"
        self.submitted += 1
        outputs = [
            {
                "logprobs": tinker.TensorData(
                    data=[-token / 10 for token in datum.loss_fn_inputs["target_tokens"].data],
                    dtype="float32",
                )
            }
            for datum in data
        ]
        return Later(self, ForwardBackwardOutput("x", outputs))

    def compute_logprobs(self, prompt):
        self.submitted += 1
        tokens = prompt.to_ints()
        return Later(self, [None, *(-token / 10 for token in tokens[1:])])


async def test_nll_of_the_weights_in_training(monkeypatch):
    monkeypatch.setattr(nll_evaluator, "DATUMS_PER_REQUEST", 2)
    client = TableClient()
    evaluator = NLLEvaluator(DATA, tokenizer=ByteTokenizer())
    assert isinstance(evaluator, TrainingClientEvaluator)
    metrics = await evaluator(client)
    assert metrics == {"test/nll": pytest.approx(NLL), "test/bpb": pytest.approx(BPB)}
    assert client.awaited == [2, 2]  # both requests were submitted before either was awaited


async def test_nll_of_a_snapshot_skips_the_first_logprob():
    client = TableClient()
    evaluator = SamplerNLLEvaluator(DATA, name="held_out", tokenizer=ByteTokenizer())
    assert isinstance(evaluator, SamplingClientEvaluator)
    metrics = await evaluator(client)
    assert metrics == {"held_out/nll": pytest.approx(NLL), "held_out/bpb": pytest.approx(BPB)}
    assert client.awaited == [3, 3, 3]


async def test_no_bpb_without_a_tokenizer():
    assert await NLLEvaluator(DATA)(TableClient()) == {"test/nll": pytest.approx(NLL)}


def test_an_evaluator_without_data_is_refused():
    with pytest.raises(ConfigurationError, match="'test' has no data"):
        NLLEvaluator([])


async def test_from_dataset_takes_every_batch():
    class Fixed(SupervisedDataset):
        def __len__(self):
            return 2

        def get_batch(self, index):
            return [DATA[:2], DATA[2:]][index]

    assert all_datums(Fixed()) == DATA
    for kind in (NLLEvaluator, SamplerNLLEvaluator):
        assert await kind.from_dataset(Fixed())(TableClient()) == {"test/nll": pytest.approx(NLL)}
