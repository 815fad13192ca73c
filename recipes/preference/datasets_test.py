"""The comparison data sets of the recipes, read from local copies of the shape of the originals."""

import gzip
import json
from pathlib import Path
from typing import Any

import chz
import datasets
import pytest

from recipes.preference.datasets import (
    HelpSteer3ComparisonBuilder,
    HHHComparisonBuilder,
    NanoPairs,
    NanoReplies,
    UltraFeedbackComparisonBuilder,
    check_dataset_path,
    comparisons_of,
)
from recipes.preference.sampled_style import Preference, has_style
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.nano import tasks
from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import HubComparisons
from tinker_cookbook.preference.types import LabeledComparison
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.data_files import where
from tinker_cookbook.utils.private_apis import field_doc


def comparisons(builder: ComparisonDatasetBuilder, split: int) -> list[LabeledComparison]:
    """All comparisons of the training (0) or the test (1) split."""
    rows = builder.get_train_and_test_datasets()[split]
    assert rows is not None
    found = [builder.example_to_labeled_comparison(rows[index]) for index in range(len(rows))]
    return [labeled for labeled in found if labeled is not None]


def text(messages: list[Any] | None) -> str:
    assert messages is not None
    return messages[-1]["content"]


def prompts(builder: ComparisonDatasetBuilder, split: int) -> list[str]:
    return [text(each.comparison.prompt_conversation) for each in comparisons(builder, split)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def shuffled(count: int) -> list[str]:
    """q0, q1, ... in the order that the Tinker cookbook gets from `datasets` with seed 0."""
    rows = datasets.Dataset.from_dict({"q": [f"q{i}" for i in range(count)]})
    return list(rows.shuffle(seed=0)["q"])


def hh(count: int) -> list[dict[str, str]]:
    prefixes = [f"\n\nHuman: q{i}\n\nAssistant: " for i in range(count)]
    return [{"chosen": f"{prefix}good", "rejected": f"{prefix}bad"} for prefix in prefixes]


def test_hhh_is_evaluated_on_1024_rows_of_the_shuffled_test_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl.gz", hh(20))
    write(tmp_path / "test.jsonl.gz", hh(1100))
    builder = HHHComparisonBuilder(path=str(tmp_path))
    assert sorted(prompts(builder, 0)) == sorted(f"q{i}" for i in range(20))
    assert prompts(builder, 1) == shuffled(1100)[:1024]
    assert {(text(c.chosen), text(c.rejected)) for c in comparisons(builder, 0)} == {
        ("good", "bad")
    }


# lines of the real file whose chosen and rejected cannot be compared; see comparison_rows_test.py
MALFORMED = {87, 517, 926, 1104, 1255, 1689, 1951, 1953, 2037}


def test_hhh_of_the_real_file(shared_data: Path) -> None:
    """A single file has no test split: a tenth of it is held out, or test_size rows."""
    path = shared_data / "datasets" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    train, test = HHHComparisonBuilder(path=str(path)).get_train_and_test_datasets()
    assert test is not None and (len(train), len(test)) == (2312 - 231, 231)
    builder = HHHComparisonBuilder(path=str(path), test_size=700)
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=None,
        batch_size=8,
    )
    _, dataset = DPODatasetBuilderFromComparisons(
        common_config=common, comparison_builder=builder
    )()
    rows = builder.open_splits()[1]
    assert dataset is not None and dataset.report is not None and rows is not None
    held_out = {where(rows.rows, index) for index in range(700)}
    expected = held_out & {f"{path}:{line}" for line in MALFORMED}
    batch, report = dataset.get_batch(0), dataset.report
    assert len(batch) == report.num_examples == 2 * (700 - len(expected))
    assert report.num_conversations == 700
    assert {reason.partition(": ")[0] for reason in report.skipped} == expected and expected


def test_helpsteer3_keeps_ties_for_the_data_set_to_drop(tmp_path: Path) -> None:
    rows = [
        {
            "domain": "code",
            "language": "english",
            "context": [{"role": "user", "content": f"q{number}"}],
            "response1": "one",
            "response2": "two",
            "overall_preference": number,
            "individual_preference": [{"score": number, "reasoning": "r"}],
        }
        for number in range(-3, 4)
    ]
    write(tmp_path / "preference" / "train.jsonl.gz", rows)
    write(tmp_path / "preference" / "validation.jsonl.gz", rows[:3])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: preference\n  default: true\n  data_files:\n"
        "  - split: train\n    path: preference/train.jsonl.gz\n"
        "  - split: validation\n    path: preference/validation.jsonl.gz\n---\n"
    )
    builder = HelpSteer3ComparisonBuilder(path=str(tmp_path))
    labels = {text(c.comparison.prompt_conversation): c.label for c in comparisons(builder, 0)}
    assert labels == {
        **{f"q{n}": "A" for n in (-3, -2, -1)},
        "q0": "Tie",
        **{f"q{n}": "B" for n in (1, 2, 3)},
    }
    assert prompts(builder, 1) == ["q-3", "q-2", "q-1"]  # all of the validation split, in order
    single = str(tmp_path / "preference" / "train.jsonl.gz")
    assert HelpSteer3ComparisonBuilder(path=single).get_train_and_test_datasets()[1] is None


def test_ultrafeedback_holds_out_1024_rows(tmp_path: Path) -> None:
    rows = [
        {
            "source": "ultrachat",
            "instruction": f"q{i}",
            "chosen_response": "good",
            "rejected_response": "bad",
            "chosen_avg_rating": 5.0,
            "rejected_avg_rating": 2.5,
            "chosen_model": "m",
        }
        for i in range(1100)
    ]
    write(tmp_path / "data" / "train.jsonl.gz", rows)
    builder = UltraFeedbackComparisonBuilder(path=str(tmp_path))
    assert prompts(builder, 1) == shuffled(1100)[:1024]
    assert prompts(builder, 0) == shuffled(1100)[1024:]


@pytest.mark.parametrize("preference", ["polite", "short", "correct"])
def test_nano_pairs_follow_their_rule_on_sums_of_their_split(preference: str) -> None:
    builder = NanoPairs(preference=preference, num_train=512, num_test=128)  # type: ignore
    train, test = (comparisons(builder, split) for split in (0, 1))
    assert (len(train), len(test)) == (512, 128)
    for labeled in [*train, *test]:
        chosen, rejected = text(labeled.chosen), text(labeled.rejected)
        if preference == "polite":
            assert tasks.is_polite(chosen) and not tasks.is_polite(rejected)
        elif preference == "short":
            assert len(chosen) < len(rejected)
        else:
            assert chosen.isdigit() and chosen != rejected
    assert all(is_held_out(labeled) for labeled in test)
    assert not any(is_held_out(labeled) for labeled in train)


def is_held_out(labeled: LabeledComparison) -> bool:
    prompt = text(labeled.comparison.prompt_conversation)
    a, b = (int(n) for n in "".join(c if c.isdigit() else " " for c in prompt).split())
    return tasks.held_out_pair(a, b)


def test_nano_pairs_depend_on_their_seed_alone() -> None:
    assert comparisons(NanoPairs(), 0) == comparisons(NanoPairs(), 0)
    assert comparisons(NanoPairs(), 0) != comparisons(NanoPairs(seed=1), 0)
    assert comparisons(NanoPairs(num_train=3), 0) == comparisons(NanoPairs(), 0)[:3]
    assert NanoPairs(num_test=0).get_train_and_test_datasets()[1] is None
    with pytest.raises(ConfigurationError, match="num_train=0: expected 1 or more"):
        NanoPairs(num_train=0)


def test_every_key_has_a_help_text() -> None:
    builders = (HHHComparisonBuilder, HelpSteer3ComparisonBuilder, NanoPairs, NanoReplies)
    for builder in (*builders, UltraFeedbackComparisonBuilder):
        assert all(field_doc(field) for field in chz.chz_fields(builder).values())


def nano_replies(**keys: Any) -> list[tuple[str, str]]:
    """The questions and replies of an epoch of NanoReplies."""
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        batch_size=8,
        max_length=100,
    )
    train, test = NanoReplies(common_config=common, **keys)()
    assert test is None
    tokenizer = get_tokenizer("nano")
    found = []
    for index in range(len(train)):
        for datum in train.get_batch(index):
            conversation = str(tokenizer.decode(from_datum(datum).tokens.tolist()))
            user, assistant = conversation.split("<|im_end|>\n<|im_start|>assistant\n")
            found.append((user.split("user\n")[1], assistant.split("<|im_end|>")[0]))
    return found


@pytest.mark.parametrize("preference", ["polite", "short", "correct"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_nano_replies_have_their_share_of_the_preferred_style(
    preference: Preference, share: float
) -> None:
    replies = nano_replies(preference=preference, preferred_share=share, num_train=400)
    assert len(replies) == 400
    preferred = 0
    for question, reply in replies:
        a, b = (int(n) for n in "".join(c if c.isdigit() else " " for c in question).split())
        assert not tasks.held_out_pair(a, b)
        preferred += has_style(reply, preference, a + b)
    assert abs(preferred / 400 - share) <= (0.06 if 0 < share < 1 else 0)


def test_nano_replies_depend_on_their_seed_alone() -> None:
    assert nano_replies(num_train=16) == nano_replies(num_train=16)
    assert sorted(nano_replies(num_train=16)) != sorted(nano_replies(num_train=16, seed=1))
    with pytest.raises(ConfigurationError, match=r"preferred_share=1\.5: expected 0 to 1"):
        NanoReplies(preferred_share=1.5)


def test_the_comparisons_that_a_name_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert comparisons_of("nano_pairs") == NanoPairs()
    assert comparisons_of("hhh") == HHHComparisonBuilder()
    (tmp_path / "pairs.jsonl").touch()
    for path in (str(tmp_path / "pairs.jsonl"), "org/name", str(tmp_path)):
        assert comparisons_of(path) == HubComparisons(path=path)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    check_dataset_path("folder")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nano", "dataset='nano' is unknown; set hhh, helpsteer3, ultrafeedback, nano_pairs, a"),
        ("missing.jsonl", "dataset=missing.jsonl"),
        ("folder/missing.jsonl", "dataset=folder/missing.jsonl"),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    for check in (comparisons_of, check_dataset_path):
        with pytest.raises(ConfigurationError) as caught:
            check(name)
        assert str(caught.value).startswith(message), caught.value
