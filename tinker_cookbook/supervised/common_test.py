"""The metrics, by values worked out by hand."""

import math

import pytest
import tinker
import torch
from tinker.types import ImageChunk

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.supervised.common import (
    compute_bpb,
    compute_mean_nll,
    create_rightshifted_model_input_and_leftshifted_targets,
    datum_from_model_input_weights,
)
from tinker_cookbook.supervised.testing import ByteTokenizer


def tensor(values: list[float]) -> tinker.TensorData:
    return tinker.TensorData.from_torch(torch.tensor(values, dtype=torch.float32))


def test_mean_nll_weighs_tokens_over_the_whole_batch() -> None:
    # (1*2 + 1*3 + 2*4) / (1 + 1 + 2)
    logprobs = [tensor([-9.0, -2.0, -3.0]), tensor([-4.0])]
    weights = [tensor([0.0, 1.0, 1.0]), tensor([2.0])]
    assert compute_mean_nll(logprobs, weights) == pytest.approx(13 / 4)


def test_mean_nll_of_normalised_weights_is_the_mean_over_examples() -> None:
    logprobs = [tensor([-1.0, -3.0]), tensor([-8.0])]
    weights = [tensor([0.5, 0.5]), tensor([1.0])]
    assert compute_mean_nll(logprobs, weights) == pytest.approx((2 + 8) / 2)


def test_mean_nll_ignores_a_missing_logprob_that_is_not_trained() -> None:
    assert compute_mean_nll([[None, -2.0]], [[0.0, 1.0]]) == 2.0


def test_mean_nll_of_nothing_is_nan() -> None:
    assert math.isnan(compute_mean_nll([tensor([-1.0])], [tensor([0.0])]))


def test_lists_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataValidationError, match="must have the same shape"):
        compute_mean_nll([tensor([-1.0, -2.0])], [tensor([1.0])])
    with pytest.raises(ValueError, match="shorter"):
        compute_mean_nll([tensor([-1.0])], [])


def test_bpb_counts_bytes_of_trained_text_without_special_tokens() -> None:
    # 'é' is two bytes; 'x' is not trained; 300 is special and its logprob does not count.
    targets = [*"é".encode(), ord("x"), ord("a"), 300]
    logprobs = [-1.0, -2.0, -50.0, -3.0, -70.0]
    weights = [0.2, 0.2, 0.0, 0.2, 0.2]
    bpb = compute_bpb([tensor(logprobs)], [tensor(weights)], [targets], ByteTokenizer())
    assert bpb == pytest.approx((1 + 2 + 3) / (math.log(2) * 3))


def test_bpb_decodes_each_run_of_tokens_together() -> None:
    # The two bytes of 'é' parted by an untrained token are two runs of one broken character each,
    # which decode to U+FFFD (3 bytes).
    first, second = "é".encode()
    targets, weights = [first, ord("x"), second], [1.0, 0.0, 1.0]
    bpb = compute_bpb([[-1.0, -9.0, -1.0]], [weights], [targets], ByteTokenizer())
    assert bpb == pytest.approx(2 / (math.log(2) * 6))


def test_bpb_without_text_is_nan() -> None:
    assert math.isnan(compute_bpb([[-1.0]], [[1.0]], [[300]], ByteTokenizer()))


def test_chunks_are_joined_and_shifted() -> None:
    chunks = [tinker.EncodedTextChunk(tokens=[1, 2]), tinker.EncodedTextChunk(tokens=[3])]
    model_input, targets = create_rightshifted_model_input_and_leftshifted_targets(chunks)
    assert (model_input.to_ints(), targets) == ([1, 2], [2, 3])


def test_datum_from_model_input_weights() -> None:
    model_input = tinker.ModelInput.from_ints([1, 2, 3, 4])
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0])
    datum = datum_from_model_input_weights(model_input, weights, max_length=3, reduction="mean")
    assert datum.model_input.to_ints() == [1, 2]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [2, 3]
    assert datum.loss_fn_inputs["weights"].tolist() == [0.5, 0.5]


def test_an_image_is_refused() -> None:
    image = ImageChunk(data=b"", format="png", expected_tokens=4)
    model_input = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1]), image])
    with pytest.raises(DataValidationError, match="ImageChunk"):
        datum_from_model_input_weights(model_input, torch.ones(5))
