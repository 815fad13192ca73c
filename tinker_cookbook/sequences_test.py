"""The shift, by values worked out by hand."""

import numpy as np
import pytest
import torch

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.sequences import Sequence, from_datum, to_datum


def parts(datum):
    targets, weights = (datum.loss_fn_inputs[key] for key in ("target_tokens", "weights"))
    assert (targets.dtype, weights.dtype) == ("int64", "float32")
    return datum.model_input.to_ints(), targets.tolist(), weights.tolist()


def test_each_position_predicts_the_next_token_with_that_tokens_weight():
    datum = to_datum(Sequence([10, 11, 12, 13], [0.0, 0.0, 1.0, 0.5]))
    assert parts(datum) == ([10, 11, 12], [11, 12, 13], [0.0, 1.0, 0.5])


def test_truncation_comes_before_the_shift():
    sequence = Sequence([10, 11, 12, 13], [0, 1, 1, 1])
    assert parts(to_datum(sequence, max_length=3)) == ([10, 11], [11, 12], [1.0, 1.0])
    assert parts(to_datum(sequence, max_length=4)) == parts(to_datum(sequence))


def test_mean_divides_what_is_left_after_truncation_and_shift():
    # The first token's weight is lost in the shift and the last one's in the cut: 1 + 3 remain.
    sequence = Sequence([1, 2, 3, 4], [5, 1, 3, 7])
    assert parts(to_datum(sequence, max_length=3, reduction="mean"))[2] == [0.25, 0.75]


def test_tensors_and_arrays_are_accepted():
    weights = torch.tensor([0.0, 1.0], dtype=torch.float32)
    assert parts(to_datum(Sequence(np.array([7, 8]), weights))) == ([7], [8], [1.0])


def test_a_datum_does_not_share_memory_with_its_sequence():
    sequence = Sequence([1, 2, 3], [0, 1, 1])
    datum = to_datum(sequence)
    sequence.weights[2] = 9
    assert parts(datum)[2] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("tokens", "weights", "max_length", "message"),
    [
        ([1], [1], None, "1 tokens cannot be trained on"),
        ([1, 2, 3], [0, 1, 1], 1, "1 tokens of 3 (max_length=1) cannot be trained on"),
        ([1, 2, 3], [1, 0, 0], None, "no trained token among the 3 tokens"),
        ([1, 2, 3], [0, 0, 1], 2, "no trained token among the 2 tokens of 3 (max_length=2)"),
    ],
)
def test_nothing_to_train_is_refused(tokens, weights, max_length, message):
    with pytest.raises(DataValidationError) as error:
        to_datum(Sequence(tokens, weights), max_length)
    assert message in str(error.value)


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataValidationError, match="one weight per token"):
        Sequence([1, 2, 3], [1, 1])


def test_weights_that_cancel_out_cannot_be_normalised():
    sequence = Sequence([1, 2, 3], [0, 1, -1])
    assert parts(to_datum(sequence))[2] == [1.0, -1.0]
    with pytest.raises(DataValidationError, match="positive sum"):
        to_datum(sequence, reduction="mean")


def test_from_datum_is_the_inverse():
    sequence = Sequence([10, 11, 12, 13], [0, 0.25, 0, 0.75])
    back = from_datum(to_datum(sequence))
    assert back.tokens.tolist() == [10, 11, 12, 13]
    assert back.weights.tolist() == [0, 0.25, 0, 0.75]
    assert parts(to_datum(back)) == parts(to_datum(sequence))


def test_num_loss_tokens_leaves_out_the_first_token():
    assert Sequence([1, 2, 3, 4], [1, 0.1, 0, 0.2]).num_loss_tokens == 2
