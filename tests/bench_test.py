"""The benchmarks with the smallest settings: they run, and everybody computes the same."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "scripts" / "bench"
LINE = {"bench", "date", "machine", "versions", "settings", "rows", "took_seconds"}


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH.parent))
    monkeypatch.syspath_prepend(str(BENCH))


def bench(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The last line of a benchmark whose contestants run in this process."""
    if name != "client_overhead":
        words = ("model=nano", "gemm=64", *words)
    module = importlib.import_module(name)
    module.main(parse(module.Config, ["isolate=false", "rounds=1", *words]))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["bench"] == name and set(line) >= LINE
    assert str(ROOT) not in json.dumps(line)  # it goes into the repository
    return line


def figures(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert not any("not_run" in row for row in line["rows"]), line["rows"]
    return {row["name"]: row for row in line["rows"]}


def test_fine_tuning_is_the_same_work_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    line = bench(
        "train_sft",
        capsys,
        "model=nano",
        "sequences=3",
        "shortest=5",
        "longest=20",
        "only=ours,peft",
    )
    rows = figures(line)
    assert set(rows) == {"ours", "ours, unembedding too", "transformers + peft, padded"}
    ours, peft = rows["ours"], rows["transformers + peft, padded"]
    # the second loss is one after an optimizer step, so gradients and AdamW agree as well
    assert len(ours["losses"]) == 2 and ours["losses"][0] != ours["losses"][1]
    assert ours["losses"] == pytest.approx(peft["losses"], rel=2e-5)
    assert line["tokens"] == 5 + 12 + 20  # evenly from 5 to 20: 12.5 is rounded to even
    assert ours["tokens_per_s"] == pytest.approx(line["tokens"] / ours["seconds"][0], rel=1e-4)
    assert ours["ratio"] == pytest.approx(peft["seconds"][0] / ours["seconds"][0], rel=1e-4)
    assert peft["ratio"] == 1 and ours["gemm_share"] > 0


def test_a_group_is_the_same_work_with_and_without_sharing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = bench(
        "train_rl", capsys, "group=3", "prompt=40", "shortest=6", "longest=12",
        "only=ours,peft",
    )  # fmt: skip
    rows = figures(line)
    assert set(rows) == {"ours", "ours, prompt not shared", "transformers + peft, padded"}
    losses = [row["losses"] for row in rows.values()]
    assert losses[0][0] != losses[0][1]
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
    assert line["tokens"] == 3 * 40 + 6 + 9 + 12 and line["ratio_to_not_shared"] > 0


def test_dpo_is_the_same_work_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    contestants = ["ours, reference stored", "ours, reference in the step"]
    peer = "reference in the step" if importlib.util.find_spec("trl") else "ours"
    words = ("pairs=2", f"only={peer}")
    small = ("shortest_prompt=3", "longest_prompt=9", "shortest=4", "longest=20")
    line = bench("train_dpo", capsys, *words, *small)
    rows = figures(line)
    if peer != "ours":
        contestants.append("TRL DPOTrainer, reference in the step")
    assert list(rows) == contestants
    losses = [row["losses"] for row in rows.values()]
    # not log(2): the policy starts away from the reference
    assert abs(losses[0][0] - math.log(2)) > 1e-3 < abs(losses[0][0] - losses[0][1])
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=2e-5)
    # prompts of 3 and 9 tokens, replies of 4, 9, 15 and 20
    assert line["tokens"] == 2 * (3 + 9) + 4 + 9 + 15 + 20 == sum(line["lengths"])


def test_real_pairs_have_the_prompt_and_both_replies(tmp_path: Path) -> None:
    from pairs import rendered_pairs

    from tinker_cookbook.tokenizer_utils import get_tokenizer

    pairs = [{"prompt": f"{n}?", "chosen": f"yes, {n}", "rejected": "no"} for n in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = rendered_pairs(str(tmp_path / "pairs.jsonl"), "nano", count=2, max_length=100)
    decode = get_tokenizer("nano").decode
    for prompt, chosen, rejected in zip(given.prompts, given.chosen, given.rejected, strict=True):
        (number,) = [n for n in range(3) if f"{n}?" in decode(prompt)]
        assert decode(chosen).startswith(f"yes, {number}") and decode(rejected).startswith("no")
    assert len(given.prompts) == 2 and given.tokens == sum(
        2 * len(prompt) + len(chosen) + len(rejected)
        for prompt, chosen, rejected in zip(given.prompts, given.chosen, given.rejected)
    )


def test_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    line = bench(
        "sample", capsys, "prompts=2", "prompt_tokens=20", "samples=2", "tokens=4",
        "only=ours,generate +,vllm",
    )  # fmt: skip
    rows = {row["name"]: row for row in line["rows"]}
    assert line["tokens"] == 16
    for name in ("ours", "transformers generate + peft"):
        assert rows[name]["tokens_per_s"] > 0 and rows[name]["ratio"] > 0
    assert rows["ours"]["tokens_per_s_again"] > 0
    assert "vllm_python=" in rows["vLLM"]["not_run"]


def test_tenants(capsys: pytest.CaptureFixture[str]) -> None:
    line = bench("tenants", capsys, "tenants=2", "sequences=1", "shortest=4", "longest=9")
    one, together, in_turn = line["rows"]
    assert one["times_one"] == 1 and together["times_one"] > 0 and in_turn["times_one"] > 0
    assert line["losses"][0] == pytest.approx(line["losses"][1], rel=2e-5)


def test_client_overhead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinker_cookbook.engine.samplers import SAMPLERS

    monkeypatch.setitem(SAMPLERS, "torch", SAMPLERS["torch"])  # put back afterwards
    line = bench("client_overhead", capsys, "calls=20", "in_flight=8", "prompt=6", "tokens=4")
    for row in line["rows"]:
        assert row["calls_per_s"] == pytest.approx(1e6 / row["microseconds"], rel=1e-4)


# -- contestants in processes of their own

CONTESTANT = """
import os, time

class Contestant:
    def __init__(self, greeting):
        print("noise on the way")
        self.facts = {"greeting": greeting}

    def measure(self, do):
        print("more noise")
        if do == "raise":
            raise ValueError("\\n  what is wrong\\nand more")
        if do == "end":
            os._exit(3)
        if do == "hang":
            time.sleep(60)
        return {"seconds": 0.5}
"""


@pytest.fixture
def contestant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "contestant_of_a_test.py").write_text(CONTESTANT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from contestant import Contestant, Place

    place = Place(isolate=True, threads=1, offline=True, answer_seconds=30)
    made = Contestant("it", "contestant_of_a_test:Contestant", {"greeting": "hello"})
    made.start(place, tmp_path / "log")
    yield made, place
    made.stop()


def test_a_process_answers_whatever_it_prints(contestant: Any) -> None:
    made, place = contestant
    assert made.error is None and made.facts == {"greeting": "hello"}
    assert made.measure(place, do="work") == {"seconds": 0.5} == made.measured[0]
    assert 0.001 < made.memory["peak_rss_gib"] < 1 and "more noise" in made.log()


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("raise", "ValueError: what is wrong"),
        ("end", "its process ended with code 3"),
        ("hang", "no answer within 1 s"),
    ],
)
def test_a_failure_is_a_row_that_says_why(contestant: Any, do: str, reason: str) -> None:
    import dataclasses

    from harness import row
    from report import text_table

    made, place = contestant
    place = dataclasses.replace(place, answer_seconds=1 if do == "hang" else 30)
    assert made.measure(place, do=do) is None and made.error == reason
    assert made.measure(place, do="work") is None and made.measured == []
    assert f"not run: {reason}" in text_table([row(made, 1, made, 1.0, made)])


def test_a_contestant_that_is_not_there_is_a_row_too(tmp_path: Path) -> None:
    from contestant import Contestant, Place

    place = Place(isolate=True, threads=1, offline=True, answer_seconds=30)
    for words, reason in (
        (("it", "no_such_module:X"), "ModuleNotFoundError: No module named 'no_such_module'"),
        (("it", "json:X", {}, str(tmp_path / "no-python")), "FileNotFoundError"),
    ):
        made = Contestant(*words)
        made.start(place, tmp_path / "log")
        assert made.error is not None and made.error.startswith(reason)
        made.stop()


def test_another_loss_is_no_figure() -> None:
    from contestant import Contestant
    from harness import check_losses, row

    ours, same, other = (
        Contestant(name, "", facts={"loss": 10.0}, measured=[{"seconds": 1.0, "loss": loss}])
        for name, loss in (("ours", 9.0), ("same", 9.00001), ("other", 9.1))
    )
    yardstick = Contestant("matrix product", "", measured=[{"tflops": 1.0}])
    assert check_losses([ours, same, other], "float32") == pytest.approx(1e-5)
    assert row(same, 3, ours, 1e11, yardstick)["gemm_share"] == pytest.approx(0.1)
    assert row(other, 3, ours, 1e11, yardstick) == {
        "name": "other",
        "not_run": "loss 9.1 at step 2, ours has 9",
    }


# -- two revisions in turns

TWIN = """
class Twin:
    def __init__(self, store):
        from tinker_cookbook import SECONDS
        self.seconds = SECONDS
        self.facts = {"store": store}

    def measure(self, way, times):
        return {"way": way, "seconds": self.seconds * times}
"""


@pytest.fixture
def revisions_of_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in which a step takes 3 s as committed, and 2 s as it is now."""
    import revisions

    root = tmp_path / "checkout"
    for name, text in {
        "tinker_cookbook/__init__.py": "SECONDS = 3.0\n",
        "recipes/__init__.py": "",
        "scripts/bench/worker.py": (BENCH / "worker.py").read_text(),
        "scripts/bench/twin.py": TWIN,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", "-C", root, *identity, *words], check=True)
    (root / "tinker_cookbook/__init__.py").write_text("SECONDS = 2.0\n")
    monkeypatch.setattr(revisions, "ROOT", root)
    return root


def test_a_revision_is_measured_in_turns_with_the_present(revisions_of_a_test: Path) -> None:
    import harness
    from contestant import Contestant

    config = harness.AgainstConfig(against="HEAD", rounds=2)
    with harness.run("twin", config) as run:
        versions = run.start_versions(
            Contestant("ours", "twin:Twin", {"store": run.store}, root=revisions_of_a_test)
        )
        run.turns(versions, {"once": {"times": 1}, "twice": {"times": 2}})
        rows = [
            harness.label_version({"name": "twice"}, each, versions, "twice") for each in versions
        ]
    assert [each.values("seconds") for each in versions] == [[2, 4] * 2, [3, 6] * 2]
    assert len({each.facts["store"] for each in versions}) == 2
    assert rows[0] == {"name": "twice", "times_as_fast": 1.5}
    assert rows[1]["name"].startswith("twice, ours at HEAD (")


def test_a_revision_that_is_not_there_is_one_line(revisions_of_a_test: Path) -> None:
    import harness
    from contestant import Contestant

    with (
        pytest.raises(ConfigurationError, match=r"^against=v9 is not a commit"),
        harness.run("twin", harness.AgainstConfig(against="v9")) as run,
    ):
        run.start_versions(Contestant("ours", "twin:Twin", {"store": ""}))
    with pytest.raises(ConfigurationError, match="needs isolate=true"):
        harness.AgainstConfig(against="HEAD", isolate=False)


# -- formulas, keys, the page


def test_flops_of_a_batch_worked_out_by_hand() -> None:
    from basis import forward_flops, training_flops
    from pairs import Pairs

    facts = {"linear_parameters": 10, "lora_parameters": 3, "attention_width": 2, "layers": 5}
    # 4 * 10 + 6 * 3 = 58 per token; 12 * 2 * 5 = 120 per pair of query and key
    assert training_flops(facts, [4, 2]) == 58 * 6 + 120 * (8 + 2)
    # prefix of 2: own parts of 2 and 0 tokens; pairs 2 within it, 4 to it, 2 within the own part
    assert training_flops(facts, [4, 2], prefix=2) == 58 * 4 + 120 * (2 + 4 + 2)
    assert training_flops(facts, [4]) == training_flops(facts, [4], prefix=2)
    # forward: 2 * 10 per token, 4 * 2 * 5 = 40 per pair of query and key
    assert forward_flops(facts, [4, 2], prefix=2) == 20 * 4 + 40 * (2 + 4 + 2)
    pair = Pairs([[0, 1]], [[2, 3]], [[4]])
    shared = pair.flops(facts, shared=True, reference=True)
    assert shared == training_flops(facts, [4, 3], 2) + forward_flops(facts, [4, 3], 2)
    assert pair.flops(facts, shared=False, reference=False) == training_flops(facts, [4, 3])


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train_sft", ["rounds=0"], "rounds=0 must be at least 1"),
        ("train_sft", ["model=nano", "only=jax"], "only=jax: no contestant has that"),
        ("growth", ["sweeps=rank,depth"], "sweeps=depth: expected some of tokens, length"),
    ],
)
def test_a_wrong_key_says_what_is_right(name: str, words: list[str], said: str) -> None:
    module = importlib.import_module(name)
    with pytest.raises(ConfigurationError, match=said):
        module.main(parse(module.Config, ["isolate=false", *words]))


def test_the_page_shows_what_was_saved(tmp_path: Path) -> None:
    from report import save_result, write_page

    page = tmp_path / "benchmarks.md"
    page.write_text("A\n<!-- one -->\nold\n<!-- end -->\nB\n<!-- two -->\n<!-- end -->\n")
    line = {
        "bench": "one",
        "date": "2030-01-02",
        "machine": {"cpu": "a|b", "cores": 4, "threads": 2, "device": "cpu"},
        "versions": {"torch": "9"},
        "settings": {"rounds": 3, "only": None},
        "ratio_to_not_shared": 2.5,
        "rows": [
            {"name": "ours", "tokens_per_s": 1234.5, "ratio": 2.0},
            {"name": "theirs", "not_run": "x | y"},
        ],
    }
    save_result(tmp_path / "benchmarks.json", {**line, "date": "before"})
    save_result(tmp_path / "benchmarks.json", line)
    for _ in range(2):  # and once more, over its own tables
        write_page(tmp_path)
        text = page.read_text()
        assert "old" not in text and text.startswith("A\n<!-- one -->\n2030-01-02, a|b, 2 threads")
        assert "torch 9; `rounds=3`. Sharing the prompt makes ours 2.50 times as fast.\n\n" in text
        assert "|  | tokens/s | ratio | note |\n| --- | ---: | ---: | --- |\n" in text
        assert (
            "| ours | 1,234 | 2.00 |  |\n| theirs |  |  | not run: x \\| y |\n<!-- end -->" in text
        )
        assert "\nB\n<!-- two -->\nNo figures here yet" in text


def test_the_page_has_a_place_for_every_benchmark() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    run = (BENCH / "run").read_text()
    names = run.split("benchmarks=(")[1].split(")")[0].split()
    assert all(f"<!-- {name} -->\n" in text and f"bench/run {name}" in text for name in names)
