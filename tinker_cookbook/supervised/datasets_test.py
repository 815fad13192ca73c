"""Rendering with account kept and the order of batches; the renderer's tokens are letters."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataValidationError,
    RendererError,
)
from tinker_cookbook.renderers import TrainOnWhat, get_renderer
from tinker_cookbook.renderers.chats import Chat
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.datasets import (
    LazyRows,
    RenderedChats,
    SupervisedDatasetFromHFDataset,
    conversation_to_datum,
    conversation_to_datums,
    epoch_seed,
    render_conversation,
    render_rows,
)
from tinker_cookbook.supervised.testing import LetterRenderer, epoch, shown, talk, texts
from tinker_cookbook.tokenizer_utils import Tokenizer


def chats(count: int, prefix: str = "q") -> list[Chat]:
    return [Chat(talk(f"{prefix}{i}", f"a{i}"), f"chats.jsonl:{i + 1}") for i in range(count)]


def dataset(data: list[Chat], **changes: Any) -> RenderedChats:
    options = {"batch_size": 4, "max_length": None, "name": "chats.jsonl", **changes}
    return RenderedChats(data, LetterRenderer(), **options)


# Rendering


def test_one_example_where_the_renderer_has_the_extension_property() -> None:
    datums = conversation_to_datums(talk("hi", "yo", "bye", "so"), LetterRenderer(), None)
    assert [shown(datum) for datum in datums] == [("u:hi|a:yo|u:bye|a:so|", "yo|so|")]


def test_one_example_per_reply_where_it_has_not() -> None:
    """No reply is trained in the form it has as history (upper case here)."""
    renderer = LetterRenderer(has_extension_property=False)
    datums = conversation_to_datums(talk("hi", "yo", "bye", "so"), renderer, None)
    assert [shown(datum) for datum in datums] == [
        ("u:hi|a:yo|", "yo|"),
        ("u:hi|a:YO|u:bye|a:so|", "so|"),
    ]
    for datum in datums:
        assert datum.loss_fn_inputs["weights"].to_numpy().sum() == pytest.approx(1)


def test_a_single_datum_of_several_replies_without_the_property_warns() -> None:
    renderer = LetterRenderer(has_extension_property=False)
    with pytest.warns(UserWarning, match="conversation_to_datums"):
        datum = conversation_to_datum(talk("hi", "yo", "bye", "so"), renderer, None)
    assert shown(datum) == ("u:hi|a:YO|u:bye|a:so|", "YO|so|")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conversation_to_datum(talk("hi", "yo"), renderer, None)
        conversation_to_datum(talk("hi", "yo", "a", "b"), LetterRenderer(), None)


def test_truncation_and_what_it_leaves_out() -> None:
    renderer = LetterRenderer(has_extension_property=False)
    rendered = render_conversation(talk("hi", "yo", "bye", "so"), renderer, 10)
    assert [shown(datum) for datum in rendered.datums] == [("u:hi|a:yo|", "yo|")]
    assert rendered.truncated
    assert rendered.skipped == [
        "reply 2 of 2: the trained part begins after max_length=10 of 21 tokens"
    ]
    exact = render_conversation(talk("hi", "yo"), renderer, 10)
    assert not exact.truncated and not exact.skipped


def test_no_reply_at_all() -> None:
    for renderer in (LetterRenderer(), LetterRenderer(has_extension_property=False)):
        rendered = render_conversation(talk("hi"), renderer, None)
        assert rendered.datums == []
        assert len(rendered.skipped) == 1
        assert "train_on_what=all_assistant_messages" in rendered.skipped[0]


def test_conversation_to_datum_reductions() -> None:
    kept = conversation_to_datum(talk("hi", "yo"), LetterRenderer(), None, reduction="none")
    assert kept.loss_fn_inputs["weights"].to_numpy().sum() == 3
    with pytest.raises(DataValidationError, match="no trained token"):
        conversation_to_datum(talk("hi", "yo"), LetterRenderer(), 5)


# The report


def test_the_report_is_final_before_the_first_batch() -> None:
    data = [*chats(3), Chat(talk("no reply"), "chats.jsonl:4"), Chat(talk("x" * 30, "y"), "l:5")]
    report = dataset(data, max_length=20, batch_size=2).report
    assert report.complete
    assert (report.num_conversations, report.num_examples) == (5, 3)
    assert (report.num_truncated, report.num_skipped) == (1, 2)
    assert report.num_tokens == 3 * (len("u:q0|a:a0|") - 1)
    assert report.num_loss_tokens == 3 * len("a0|")
    assert report.skipped == [
        "chats.jsonl:4: no token is trained under train_on_what=all_assistant_messages",
        "l:5: the trained part begins after max_length=20 of 37 tokens",
    ]
    assert report.lines() == [
        "chats.jsonl: 5 conversations, 3 examples, 27 tokens, of them 9 trained",
        "chats.jsonl: 1 conversation longer than max_length=20, truncated on the right; 2"
        " trained tokens lost",
        "chats.jsonl: 2 examples skipped: " + "; ".join(report.skipped),
        "chats.jsonl: batches of 2: each epoch drops 1 of 3 examples, different ones each time",
    ]


def test_the_report_names_the_first_few_only() -> None:
    data = [*chats(1), *(Chat(talk("no reply"), f"line {i}") for i in range(9))]
    report = dataset(data).report
    assert report.num_skipped == 9 and len(report.skipped) == 5
    assert report.lines()[1].endswith("; and 4 more")


def test_a_data_set_in_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(DataValidationError) as error:
        dataset([Chat(talk("hi"), "chats.jsonl:1")])
    assert "chats.jsonl: none of the 1 conversations has a token to train on" in str(error.value)
    assert "chats.jsonl:1: no token" in str(error.value)


def test_a_message_that_cannot_be_rendered_is_named() -> None:
    with pytest.raises(RendererError, match=r"chats\.jsonl:7: message 0: role 'robot'"):
        dataset([Chat([{"role": "robot", "content": "x"}], "chats.jsonl:7")])


# Batches


def test_an_epoch_holds_each_example_at_most_once_and_drops_the_last_partial_batch() -> None:
    data = dataset(chats(11))
    assert len(data) == 2
    everything = set(texts(data._examples(i)[0] for i in range(11)))
    for seed in range(3):
        seen = epoch(data, seed)
        assert len(seen) == 8 == len(set(seen)) and set(seen) <= everything


def test_epochs_differ_and_depend_on_seed_and_epoch_alone() -> None:
    first = dataset(chats(40), shuffle_seed=3)
    epochs = [epoch(first, seed) for seed in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    second = dataset(chats(40), shuffle_seed=3)
    assert [epoch(second, seed) for seed in (2, 0, 1)] == [epochs[2], epochs[0], epochs[1]]
    assert epoch(dataset(chats(40), shuffle_seed=4), 0) != epochs[0]


def test_a_batch_does_not_depend_on_the_batches_asked_for_before() -> None:
    data = dataset(chats(12))
    data.set_epoch(1)
    batches = [texts(data.get_batch(index)) for index in range(3)]
    fresh = dataset(chats(12))
    fresh.set_epoch(1)
    assert [texts(fresh.get_batch(index)) for index in (2, 0, 2, 1)] == [
        batches[index] for index in (2, 0, 2, 1)
    ]


def test_without_a_seed_the_order_is_that_of_the_file() -> None:
    data = dataset(chats(4), batch_size=2, shuffle_seed=None)
    assert epoch(data, 0) == epoch(data, 7) == [f"u:q{i}|a:a{i}|" for i in range(4)]


def test_less_data_than_a_batch_is_one_batch_and_said_so() -> None:
    data = dataset(chats(3), batch_size=128)
    assert len(data) == 1 and len(data.get_batch(0)) == 3
    assert data.report.notes == ["batch_size=128 exceeds the data: each batch is all 3 examples"]
    with pytest.raises(IndexError):
        data.get_batch(1)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        dataset(chats(3), batch_size=0)


def test_stored_examples_are_the_datums_that_were_rendered() -> None:
    data = dataset(chats(1), batch_size=1)
    (stored,) = data.get_batch(0)
    (direct,) = conversation_to_datums(talk("q0", "a0"), LetterRenderer(), None)
    assert stored.model_input == direct.model_input
    for key in ("target_tokens", "weights"):
        left, right = stored.loss_fn_inputs[key], direct.loss_fn_inputs[key]
        assert left.dtype == right.dtype and left.tolist() == right.tolist()


# Rendering on demand


def rows(count: int) -> list[dict[str, Any]]:
    return [{"messages": talk(f"q{i}", f"a{i}")} for i in range(count)]


def lazy(data: Any, batch_size: int = 4, **options: Any) -> LazyRows:
    render = render_rows(LetterRenderer(), 20, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    return LazyRows(data, render, batch_size=batch_size, max_length=20, **options)


def test_lazy_batches_are_those_of_the_rendered_data_set() -> None:
    rendered, on_demand = dataset(chats(10)), lazy(rows(10))
    assert [epoch(on_demand, seed) for seed in (0, 1)] == [epoch(rendered, seed) for seed in (0, 1)]


def test_lazy_rows_are_counted_once() -> None:
    data = lazy([*rows(3), {"messages": talk("x" * 30, "y")}], shuffle_seed=None, name="d")
    assert data.report.num_conversations == 0 and not data.report.complete
    assert data.report.lines() == ["d: 4 conversations, rendered when first used"]
    for _ in range(2):
        assert len(data.get_batch(0)) == 3
    report = data.report
    assert (report.num_conversations, report.num_examples, report.num_truncated) == (4, 3, 1)
    assert report.skipped == ["row 3: the trained part begins after max_length=20 of 37 tokens"]
    assert report.complete


def test_a_bad_row_is_skipped_and_named() -> None:
    data = lazy([{"messages": [{"role": "robot", "content": "x"}]}, {"messages": None}, *rows(2)])
    assert len(data.get_batch(0)) == 2
    assert sorted(data.report.skipped) == [
        "row 0: message 0: role 'robot'",
        "row 1: 'messages' must be a non-empty list of messages; found null",
    ]


def test_the_account_names_what_was_converted_and_what_is_not_read() -> None:
    alpaca = [{"instruction": f"q{i}", "output": "a", "topic": "x"} for i in range(3)]
    forms = ["instruction/input/output, read as user and assistant messages"]
    data = lazy([*alpaca, {**alpaca[0], "weight": 2}], shuffle_seed=None, name="d", forms=forms)
    assert data.report.lines()[1:] == [f"d: rows of {forms[0]}"]
    for _ in range(2):
        assert texts(data.get_batch(0)) == [f"u:q{i}|a:a|" for i in range(3)]
    assert data.report.lines()[1:] == [
        "d: 1 example skipped: row 3: 'weight': 2 is not supported; all examples have the same"
        " weight: mix data sets by weight with data=InterleavedChatDatasetBuilder, or remove the"
        " key",
        f"d: 3 rows of {forms[0]}",
        "d: dropped keys: topic (3 rows)",
    ]


def test_a_batch_without_examples_takes_the_next_ones() -> None:
    bad = {"messages": talk("no reply")}
    data = lazy([bad, *rows(2)], batch_size=1, shuffle_seed=None)
    assert texts(data.get_batch(0)) == texts(data.get_batch(1)) == ["u:q0|a:a0|"]
    assert texts(data.get_batch(2)) == ["u:q1|a:a1|"]
    with pytest.raises(DataValidationError, match="no example with trained tokens: row 0"):
        lazy([bad] * 3, batch_size=1, shuffle_seed=None).get_batch(0)


def test_functions_of_the_user() -> None:
    def one(row: dict[str, Any]) -> tinker.Datum:
        if row["n"] == 2:
            raise DataValidationError("an odd row")
        return conversation_to_datum(talk(f"q{row['n']}", "a"), LetterRenderer(), None)

    table = [{"n": n} for n in range(4)]
    data = SupervisedDatasetFromHFDataset(table, 4, map_fn=one, shuffle_seed=None)
    assert texts(data.get_batch(0)) == ["u:q0|a:a|", "u:q1|a:a|", "u:q3|a:a|"]
    assert data.report.skipped == ["row 2: an odd row"]

    twice = SupervisedDatasetFromHFDataset(
        table[:2], 2, flatmap_fn=lambda row: [one(row), one(row)], shuffle_seed=None
    )
    assert texts(twice.get_batch(0)) == ["u:q0|a:a|"] * 2 + ["u:q1|a:a|"] * 2
    with pytest.raises(ConfigurationError, match="exactly one"):
        SupervisedDatasetFromHFDataset(table, 4)


# The real renderers


@pytest.fixture(scope="module")
def qwen3_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    from pathlib import Path

    path = Path(request.config.rootpath).parent / "shared" / "data" / "tokenizers" / "qwen3"
    if not path.is_dir():
        pytest.skip("no shared tokenizers beside the checkout")
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    return get_tokenizer(str(path))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_disable_thinking", "qwen3_instruct"])
def test_every_trained_reply_stands_behind_its_own_generation_prompt(
    name: str, qwen3_tokenizer: Tokenizer
) -> None:
    renderer = get_renderer(name, qwen3_tokenizer)
    conversation = talk("What is 1 + 1?", "Two.", "And 2 + 2?", "Four.")
    datums = conversation_to_datums(conversation, renderer, None)
    assert len(datums) == (1 if renderer.has_extension_property else 2)
    trained = []
    for datum in datums:
        sequence = from_datum(datum)
        on = np.flatnonzero(sequence.weights)
        runs = np.split(on, np.flatnonzero(np.diff(on) > 1) + 1)
        trained += [(sequence.tokens[: run[0]].tolist(), sequence.tokens[run]) for run in runs]
    assert len(trained) == 2
    for (before, reply), length in zip(trained, (1, 3)):
        assert before == renderer.build_generation_prompt(conversation[:length]).to_ints()
        message, termination = renderer.parse_response(reply.tolist())
        assert termination.is_clean
        assert message["content"] == conversation[length]["content"]


def test_no_two_seeds_share_the_order_of_an_epoch() -> None:
    pairs = [(seed, number) for seed in range(20) for number in range(20)]
    assert len({epoch_seed(*pair) for pair in pairs}) == len(pairs)
    assert epoch_seed(2**32 - 1, 10**6) < 2**63  # generators take it as a signed 64-bit number
