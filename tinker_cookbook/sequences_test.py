"""The shift, by values worked out by hand."""

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.sequences import Sequence, from_datum, remove_mask, to_datum


def parts(datum: tinker.Datum) -> tuple[list[int], list[int], list[float]]:
    targets, weights = (datum.loss_fn_inputs[key] for key in ("target_tokens", "weights"))
    assert (targets.dtype, weights.dtype) == ("int64", "float32")
    return datum.model_input.to_ints(), targets.tolist(), weights.tolist()


def test_each_position_predicts_the_next_token_with_that_tokens_weight() -> None:
    datum = to_datum(Sequence([10, 11, 12, 13], [0.0, 0.0, 1.0, 0.5]))
    assert parts(datum) == ([10, 11, 12], [11, 12, 13], [0.0, 1.0, 0.5])


def test_truncation_comes_before_the_shift() -> None:
    sequence = Sequence([10, 11, 12, 13], [0, 1, 1, 1])
    assert parts(to_datum(sequence, max_length=3)) == ([10, 11], [11, 12], [1.0, 1.0])
    assert parts(to_datum(sequence, max_length=4)) == parts(to_datum(sequence))


def test_mean_divides_what_is_left_after_truncation_and_shift() -> None:
    # The first token's weight is lost in the shift and the last one's in the cut: 1 + 3 remain.
    sequence = Sequence([1, 2, 3, 4], [5, 1, 3, 7])
    assert parts(to_datum(sequence, max_length=3, reduction="mean"))[2] == [0.25, 0.75]


def test_tensors_and_arrays_are_accepted() -> None:
    weights = torch.tensor([0.0, 1.0], dtype=torch.float32)
    assert parts(to_datum(Sequence(np.array([7, 8]), weights))) == ([7], [8], [1.0])


def test_a_datum_does_not_share_memory_with_its_sequence() -> None:
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
def test_nothing_to_train_is_refused(
    tokens: list[int], weights: list[int], max_length: int | None, message: str
) -> None:
    with pytest.raises(DataValidationError) as error:
        to_datum(Sequence(tokens, weights), max_length)
    assert message in str(error.value)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(DataValidationError, match="one weight per token"):
        Sequence([1, 2, 3], [1, 1])


def test_weights_that_cancel_out_cannot_be_normalised() -> None:
    sequence = Sequence([1, 2, 3], [0, 1, -1])
    assert parts(to_datum(sequence))[2] == [1.0, -1.0]
    with pytest.raises(DataValidationError, match="positive sum"):
        to_datum(sequence, reduction="mean")


def test_from_datum_is_the_inverse() -> None:
    sequence = Sequence([10, 11, 12, 13], [0, 0.25, 0, 0.75])
    back = from_datum(to_datum(sequence))
    assert back.tokens.tolist() == [10, 11, 12, 13]
    assert back.weights.tolist() == [0, 0.25, 0, 0.75]
    assert parts(to_datum(back)) == parts(to_datum(sequence))


def test_num_loss_tokens_leaves_out_the_first_token() -> None:
    assert Sequence([1, 2, 3, 4], [1, 0.1, 0, 0.2]).num_loss_tokens == 2


POLICY = Sequence([10, 11, 12, 13], [0, 1, 0, 2], [0, -0.5, 0, -0.25], [0, 2.0, 0, -3.0])


def inputs(datum: tinker.Datum) -> dict[str, tuple[str, list[float]]]:
    return {name: (t.dtype, t.tolist()) for name, t in datum.loss_fn_inputs.items()}


def test_a_sequence_with_advantages_becomes_a_datum_for_policy_losses() -> None:
    datum = to_datum(POLICY)
    assert datum.model_input.to_ints() == [10, 11, 12]
    assert inputs(datum) == {
        "target_tokens": ("int64", [11, 12, 13]),
        "logprobs": ("float32", [-0.5, 0, -0.25]),
        "advantages": ("float32", [2.0, 0, -3.0]),
        "mask": ("float32", [1.0, 0, 1.0]),
    }
    sent = remove_mask(datum)
    assert sorted(sent.loss_fn_inputs) == ["advantages", "logprobs", "target_tokens"]
    assert "mask" in datum.loss_fn_inputs


def test_truncation_cuts_every_field() -> None:
    cut = POLICY.truncate(2)
    assert [v.tolist() for v in (cut.tokens, cut.weights, cut.logprobs, cut.advantages)] == [
        [10, 11],
        [0, 1],
        [0, -0.5],
        [0, 2.0],
    ]
    assert Sequence([1, 2, 3], [0, 1, 1]).truncate(2).logprobs is None


def test_from_datum_gives_back_a_policy_sequence() -> None:
    back = from_datum(to_datum(POLICY))
    assert back.weights.tolist() == [0, 1, 0, 1]  # a mask tells trained from not trained
    assert back.logprobs.tolist() == POLICY.logprobs.tolist()
    assert back.advantages.tolist() == POLICY.advantages.tolist()
    assert inputs(to_datum(back)) == inputs(to_datum(POLICY))
    with pytest.raises(DataValidationError, match=r"target_tokens and weights \(or mask\), found"):
        from_datum(remove_mask(to_datum(POLICY)))


def test_policy_sequences_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(DataValidationError, match="one logprob per token"):
        Sequence([1, 2, 3], [0, 1, 1], [0.0, -1.0])
    with pytest.raises(DataValidationError, match="needs sampling logprobs"):
        to_datum(Sequence([1, 2], [0, 1], advantages=[0, 1]))
    with pytest.raises(DataValidationError, match="a policy loss does not have"):
        to_datum(POLICY, reduction="mean")
    nothing = Sequence([1, 2, 3], [1, 0, 0], [0, 0, 0], [1, 0, 0])  # the first is never trained
    with pytest.raises(DataValidationError, match="no trained token"):
        to_datum(nothing)
    assert nothing.loss_mask.tolist() == [False, False, False]
