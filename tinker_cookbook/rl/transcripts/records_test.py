import dataclasses
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.transcripts import observations, read_rollouts, write_step
from tinker_cookbook.rl.transcripts.page import _Vocabulary
from tinker_cookbook.rl.types import (
    RolloutError,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    Transition,
)
from tinker_cookbook.sequences import Sequence
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.testing import HOSTILE, Elements, shown

# what programs written for the official cookbook read
KNOWN_STEP_KEYS = {"step_idx", "ob_len", "ac_len", "reward", "episode_done", "metrics", "logs"}


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: list[int], clean_up_tokenization_spaces: bool = False) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def codes(text: str) -> list[int]:
    return list(text.encode())


def trained(played: TrajectoryGroup, *advantages: list[float]) -> TrainingGroup:
    """A group of one member as it is trained, with the advantages of each of its sequences."""
    training = TrainingGroup.from_group(played)
    training.advantages_G = [[np.array(each, np.float32) for each in advantages]]
    assert [len(each) for each in training.sequences_G[0]] == [len(each) for each in advantages]
    return training


def turn(prompt: str, reply: str, reward: float = 0.0, **known: Any) -> Transition:
    tokens = codes(reply)
    logprobs = known.pop("logprobs", [-0.5] * len(tokens))
    reply_tokens = TokensWithLogprobs(tokens, logprobs, known.pop("stop_reason", "stop"))
    ob = tinker.ModelInput.from_ints(codes(prompt))
    return Transition(ob, reply_tokens, reward, known.pop("episode_done", False), **known)


def trajectory(*turns: Transition, final: str = "", **known: Any) -> Trajectory:
    return Trajectory(list(turns), tinker.ModelInput.from_ints(codes(final)), **known)


def group(*trajectories: Trajectory, **known: Any) -> TrajectoryGroup:
    count = len(trajectories)
    return TrajectoryGroup(list(trajectories), [0.0] * count, [{} for _ in range(count)], **known)


def write(
    directory: Path, groups: list[TrajectoryGroup], training: Any = None, **known: Any
) -> Any:
    """Calls write_step; the records and the page of a step that was written, else None."""
    write_step(
        directory,
        known.pop("split", "train"),
        known.pop("iteration", 7),
        groups,
        known.pop("tags", [["adding"]] * len(groups)),
        training,
        known.pop("tokenizer", Bytes()),
        known.pop("metrics", {"env/all/reward/total": 0.25}),
        **known,
    )
    folder = directory / "iteration_000007"
    lines = folder / "train_rollout_summaries.jsonl"
    return (
        (read_rollouts(lines), (folder / "train.html").read_bytes().decode())
        if lines.exists()
        else None
    )


def page_data(html: str) -> Any:
    return json.loads(Elements(html).texts["script"][0])


# ------------------------------------------------------------------------------- records


def test_a_record_holds_the_known_schema_and_every_token(tmp_path: Path) -> None:
    first = turn("Q: 1+1?\nA: ", "3\n", 0.25, metrics={"format": 1}, logs={"answer": "2"})
    second = turn("Q: 1+1?\nA: 3\nNo.\nA: ", "2", 1.0, episode_done=True, stop_reason="length")
    played = TrajectoryGroup(
        [trajectory(first, second, final="Q: 1+1?\nA: 3\nNo.\nA: 2\nYes")], [0.5], [{"rank": 1}]
    )
    ((record,), _) = write(tmp_path, [played], sampling_client_steps=[6])
    known = {
        "schema_version": 1,
        "split": "train",
        "iteration": 7,
        "group_idx": 0,
        "traj_idx": 0,
        "tags": ["adding"],
        "sampling_client_step": 6,
        "total_reward": 1.75,
        "final_reward": 0.5,
        "trajectory_metrics": {"rank": 1},
        "final_ob_len": 25,
    }
    assert {key: record[key] for key in known} == known
    assert record["stop_reason"] == "done" and record["errors"] == []
    assert record["steps"][0] == {
        "step_idx": 0,
        "ob_len": 11,
        "ob_start": 0,
        "ob_tokens": codes("Q: 1+1?\nA: "),
        "ob_text": "Q: 1+1?\nA: ",
        "ac_len": 2,
        "ac_tokens": codes("3\n"),
        "ac_text": "3\n",
        "stop_reason": "stop",
        "logprobs": [-0.5, -0.5],
        "advantages": None,
        "trained_logprobs": None,
        "reward": 0.25,
        "episode_done": False,
        "trainable": True,
        "metrics": {"format": 1},
        "logs": {"answer": "2"},
    }
    step = record["steps"][1]
    assert set(step) >= KNOWN_STEP_KEYS
    assert (step["ob_start"], step["ob_text"], step["stop_reason"]) == (13, "No.\nA: ", "length")
    assert (record["final_ob_start"], record["final_ob_text"]) == (21, "\nYes")


def test_prompts_come_back_also_where_a_turn_does_not_extend_the_one_before(tmp_path: Path) -> None:
    prompts = ["abc", "abcXYdef", "abcQ", "zzz", "zzz"]
    replies = ["XY", "uv", "R", "", "S"]
    turns = [turn(*each) for each in zip(prompts, replies, strict=True)]
    ((record,), _) = write(tmp_path, [group(trajectory(*turns, final="zzzS!"))])
    assert [bytes(each).decode() for each in observations(record)] == [*prompts, "zzzS!"]
    assert [step["ob_start"] for step in record["steps"]] == [0, 5, 3, 0, 3]


def test_a_record_keeps_six_digits_and_what_is_no_number(tmp_path: Path) -> None:
    logprobs = [-1.23456789e-7, -0.0, -12345.678, -math.inf, math.nan, -0.333333333]
    ((record,), _) = write(tmp_path, [group(trajectory(turn("p", "abcdef", logprobs=logprobs)))])
    assert record["steps"][0]["logprobs"] == [
        -1.23457e-7,
        0,
        -12345.7,
        "-Infinity",
        "NaN",
        -0.333333,
    ]
    text = (tmp_path / "iteration_000007/train_rollout_summaries.jsonl").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_reply_that_was_not_sampled_has_no_logprobs(tmp_path: Path) -> None:
    ((record,), html) = write(tmp_path, [group(trajectory(turn("p", "ab", logprobs=None)))])
    assert record["steps"][0]["logprobs"] is None
    assert page_data(html)["groups"]["0"][0]["turns"][0]["logprobs"] is None


# ----------------------------------------------------------------------- what was trained


def test_advantages_and_trained_logprobs_stand_at_their_tokens(tmp_path: Path) -> None:
    """Two turns merged into one sequence, a third that began another, and a group left out."""
    turns = [turn("ab", "CD"), turn("abCDe", "F"), turn("xy", "Z", trainable=False), turn("k", "L")]
    untrained, played = group(trajectory(turn("ab", "CD"))), group(trajectory(*turns))
    training = trained(played, [0, 0, 0.5, 0.25, 0, -1], [0, 0, 0], [0, 2])
    logprobs = [np.array([-9, -1, -2, -9, -3], np.float32), [-4.0]]  # "xyZ" trains nothing
    records, html = write(tmp_path, [untrained, played], [training], trained_logprobs_D=logprobs)
    assert records[0]["steps"][0]["advantages"] is None
    steps = records[1]["steps"]
    assert [step["advantages"] for step in steps] == [[0.5, 0.25], [-1], [0], [2]]
    assert [step["trained_logprobs"] for step in steps] == [[-1, -2], [-3], None, [-4]]
    strongest = page_data(html)["strongest"]
    assert strongest == {"advantage": 2, "gap": 3.5}
    assert 'value="gap"' in html


def test_a_turn_seen_twice_is_found_twice(tmp_path: Path) -> None:
    """The same prompt and reply again is not merged: the second has a sequence of its own."""
    played = group(trajectory(turn("ab", "C"), turn("ab", "C"), turn("qq", "r"), turn("abC", "D")))
    sequences = [Sequence(codes(text), [1] * len(text)) for text in ("abC", "abCD")]
    training = TrainingGroup(played, [sequences], [[np.full(3, 1.0), np.full(4, 2.0)]])
    ((record,), _) = write(tmp_path, [played], [training])
    assert [step["advantages"] for step in record["steps"]] == [[1], [2], None, [2]]


def test_an_empty_prompt_has_no_trained_logprob_for_its_first_token(tmp_path: Path) -> None:
    played = group(trajectory(turn("", "ab")))
    training = trained(played, [1, 1])
    ((record,), _) = write(tmp_path, [played], [training], trained_logprobs_D=[[-3.0]])
    assert record["steps"][0]["trained_logprobs"] == ["NaN", -3]


# ----------------------------------------------------------------------- failures of rollouts


def test_errors_stand_once_and_a_lost_group_has_a_line(tmp_path: Path) -> None:
    error = RolloutError("env_error", "<b>boom</b>", 1, "Traceback\n  </pre>")
    lost = RolloutError("group_error", "no group")
    groups = [
        group(trajectory(turn("p", "a")), trajectory(turn("p", "b")), rollout_errors=[error]),
        group(rollout_errors=[lost]),
    ]
    records, html = write(tmp_path, groups)
    assert [(r["group_idx"], r["traj_idx"]) for r in records] == [(0, 0), (0, 1), (1, None)]
    assert [r["errors"] for r in records] == [
        [dataclasses.asdict(error)],
        [],
        [dataclasses.asdict(lost)],
    ]
    assert records[2]["total_reward"] is None and set(records[2]) == set(records[0])
    found = Elements(html)
    assert found.texts["summary"].count("member 1: env_error: <b>boom</b>") == 1
    assert "whole group: group_error: no group" in found.texts["summary"]
    assert "Traceback\n  </pre>" in found.texts["pre"]
    assert "1 constant · 1 failed" in "".join(found.texts["p"])


def test_a_failure_to_write_is_a_warning_and_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [group(trajectory(turn("p", "old")))])
    folder = tmp_path / "iteration_000007"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
        write(tmp_path, [group(trajectory(turn("p", "new")))])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and os.strerror(28) in warnings[0] and str(folder) in warnings[0]


def test_a_failure_half_way_through_the_records_leaves_no_half_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Bytes):
        def decode(self, tokens: list[int], clean_up_tokenization_spaces: bool = False) -> str:
            assert tokens != codes("bad"), "cannot decode"
            return super().decode(tokens)

    groups = [group(trajectory(turn("p", reply))) for reply in ("good", "bad")]
    assert write(tmp_path, groups, tokenizer=Failing()) is None
    assert list((tmp_path / "iteration_000007").iterdir()) == []
    assert "cannot decode" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"tags": []},
        {"sampling_client_steps": [1, 2]},
        {"trained_logprobs_D": [[-1.0, -1.0]]},
        {"trained_logprobs_D": []},
    ],
)
def test_what_does_not_fit_together_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: dict
) -> None:
    played = group(trajectory(turn("a", "b")))
    training = [trained(played, [0, 1])]
    assert write(tmp_path, [played], training, **wrong) is None
    assert "could not be written" in caplog.text


def test_a_directory_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "iteration_000007").write_text("a file is in the way")
    write(tmp_path, [group()])
    assert "could not be written" in caplog.text


# -------------------------------------------------------------------------------- the page


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    for text in HOSTILE:
        tokens = text.encode("utf-8", "replace").decode()
        played = TrajectoryGroup(
            [trajectory(turn(tokens, tokens, metrics={text: 1}, logs={text: text}), final=tokens)],
            [math.nan],
            [{text: math.inf}],
            [RolloutError("env_error", text, 0, text)],
        )
        ((record,), html) = write(tmp_path, [played], tags=[[text]], metrics={text: math.nan})
        assert record["tags"] == [text] and record["steps"][0]["logs"] == {text: text}
        assert record["total_reward"] == "NaN"
        found = Elements(html)
        assert found.tags().count("script") == 2 and "img" not in found.tags()
        assert not any(name.startswith("on") for _, attrs in found.found for name in attrs)
        assert shown(text) in found.texts["span"] and shown(text) in found.texts["td"]
        (rollout,) = page_data(html)["groups"]["0"]
        assert rollout["turns"][0]["logs"] == {text: text}
        assert rollout["turns"][0]["text"] == tokens


def test_the_page_marks_groups_and_links_its_lines(tmp_path: Path) -> None:
    def rewarded(*rewards: float) -> TrajectoryGroup:
        return group(*(trajectory(turn("p", "a", reward)) for reward in rewards))

    _, html = write(tmp_path, [rewarded(1, 1), rewarded(0, 1), rewarded(1)])
    found = Elements(html)
    chips = [each["class"] for each in found.attributes("span") if each["class"]]
    kinds = [
        each.split()[1] for each in chips if each.split()[1:] not in (["better"], ["worse"], [])
    ]
    assert kinds == ["constant", "mixed", "single"]
    assert chips.count("chip better") == 1 and chips.count("chip worse") == 1
    assert [each["href"] for each in found.attributes("a")] == ["train_rollout_summaries.jsonl"]
    assert "env/all/reward/total" in found.texts["td"]
    assert 'value="gap"' not in html


def test_above_its_budget_the_page_says_what_is_only_in_the_lines(tmp_path: Path) -> None:
    groups = [group(*(trajectory(turn("p" * 6, "a" * 4)) for _ in range(3))) for _ in range(3)]
    records, html = write(tmp_path, groups, page_tokens=45)
    assert len(records) == 9
    assert {k: len(v) for k, v in page_data(html)["groups"].items()} == {"0": 3, "1": 2, "2": 0}
    found = Elements(html)
    text = " ".join(found.texts["span"])
    assert "the last 1 rollouts omitted" in text and "all rollouts omitted" in text
    assert "4 rollouts omitted " in "".join(found.texts["p"])


def test_the_name_of_a_split_cannot_leave_the_directory(tmp_path: Path) -> None:
    write(tmp_path, [group()], split="eval_../../x y")
    names = sorted(file.name for file in (tmp_path / "iteration_000007").iterdir())
    assert names == ["eval_.._.._x_y.html", "eval_.._.._x_y_rollout_summaries.jsonl"]


def test_a_character_of_several_tokens_is_shown_once() -> None:
    vocabulary = _Vocabulary(Bytes())
    text = "a🙂é\ufffdb"
    indices = vocabulary.indices([*codes(text), 0xF0, 0x9F, ord("c"), 0xC3])
    pieces = [vocabulary.entries[index][1] for index in indices]
    whole = ["a", "", "", "", "🙂", "", "é", "", "", "\ufffd", "b"]
    assert pieces == [*whole, "", "\ufffd", "c", "\ufffd"]
    assert len(vocabulary.entries) == len({tuple(entry) for entry in vocabulary.entries})


def test_a_long_run_of_broken_bytes_takes_linear_time() -> None:
    class Counting(Bytes):
        decoded = 0

        def decode(self, tokens: list[int], clean_up_tokenization_spaces: bool = False) -> str:
            self.decoded += len(tokens)
            return super().decode(tokens)

    tokenizer = Counting()
    assert len(_Vocabulary(tokenizer).indices([0x80] * 4000)) == 4000
    assert tokenizer.decoded < 10 * 4000


def test_with_a_real_tokenizer(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("nano")
    text = "<|im_start|>What is 1 + 1 ? é 🙂"
    tokens = tokenizer.encode(text)
    reply = TokensWithLogprobs(tokens, [-0.1] * len(tokens))
    ob = tinker.ModelInput.from_ints(tokens)
    played = group(Trajectory([Transition(ob, reply, 0.0, True)], ob, StopReason.MAX_TURNS))
    ((record,), html) = write(tmp_path, [played], tokenizer=tokenizer)
    assert record["steps"][0]["ac_text"] == record["steps"][0]["ob_text"] == text
    data = page_data(html)
    pieces = data["groups"]["0"][0]["turns"][0]["tokens"]
    assert "".join(data["vocabulary"][index][1] for index in pieces) == text


# ------------------------------------------------------------------------------ the script

BROWSER = """
// As much of a browser as the page's script may use: whatever else it touches is an error.
const all = [];
class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], style: {}, on: {} });
    all.push(this);
  }
  append(...nodes) { this.children.push(...nodes); }
  addEventListener(name, call) { this.on[name] = call; }
  set textContent(text) { this.children = [String(text)]; }
  get textContent() {
    return this.children.map(c => typeof c === "string" ? c : c.textContent).join("");
  }
  set innerHTML(_) { throw new Error("markup"); }
}
const [groups, source, text] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const named = { data: new Node("script"), values: new Node("div") };
named.data.textContent = text;
const details = groups.map(g => Object.assign(new Node("details"), { dataset: { group: g } }));
const inputs = ["logprob", "advantage", "gap"].map(
  value => Object.assign(new Node("input"), { value }));
const listeners = {};
const document = {
  getElementById: id => named[id],
  createElement: tag => new Node(tag),
  querySelectorAll: what => ({
    "details[data-group]": details,
    "input[name=shade]": inputs,
    ".token": all.filter(n => (n.className || "").startsWith("token")),
  })[what],
  addEventListener: (name, call) => { listeners[name] = call; },
};
new Function("document", source)(document);
const open = node => { node.open = true; node.on.toggle(); };
const tokens = () => document.querySelectorAll(".token");
const atStart = tokens().length;
for (const group of details) { open(group); open(group); }
const rollouts = details.map(g => g.children.length);
const listed = tokens().length;
for (const group of details) for (const rollout of group.children) open(rollout);
const colours = inputs.map(input => {
  input.on.change();
  return tokens().map(t => t.style.background);
});
listeners.mouseover({ target: tokens()[0] });
const bar = named.values.textContent;
listeners.mouseover({ target: details[0] });
console.log(JSON.stringify({
  atStart, listed, rollouts, colours, bar, hidden: named.values.hidden,
  words: details.map(g => g.textContent), tags: [...new Set(all.map(n => n.tag))],
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_the_script_shows_what_is_opened(tmp_path: Path) -> None:
    played = group(
        trajectory(
            turn("<b>p</b>", "ab", 0.5, logprobs=[0.0, -0.7], logs={"<i>": "</i>"}),
            turn("<b>p</b>abc", "d", logprobs=[math.nan], trainable=False, stop_reason="length"),
            turn("<b>q", "e", logprobs=None, trainable=False),
            final="<b>qe!",
            stop_reason=StopReason.MAX_TURNS,
        )
    )
    training = [trained(played, [0] * 8 + [-1, 0.5, 0, 0], [0] * 5)]
    logprobs = [tinker.TensorData.from_numpy(np.array([-9] * 7 + [-0.5, -0.7, -9, -9], np.float32))]
    _, html = write(tmp_path, [played, group()], training, trained_logprobs_D=logprobs)
    page = Elements(html)
    data, script = page.texts["script"]
    groups = [each["data-group"] for each in page.attributes("details") if "data-group" in each]
    run = subprocess.run(
        ["node", "-e", BROWSER],
        input=json.dumps([groups, script, data]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["atStart"] == seen["listed"] == 0 and seen["rollouts"] == [1, 0]

    def mix(colour: str, percent: int) -> str:
        return f"color-mix(in srgb, var(--{colour}) {percent}%, transparent)"

    logprob, advantage, gap = seen["colours"]
    assert logprob == ["", mix("surprise", 38), "", ""]
    assert advantage == [mix("worse", 75), mix("better", 38), "", ""]
    assert gap == [mix("surprise", 75), "", "", ""]
    assert (
        seen["bar"]
        == '"a" · token 97 · logprob 0 (p = 1.00) · advantage -1 · training logprob -0.5'
    )
    assert seen["hidden"] is True
    words = seen["words"][0]
    for expected in (
        "rollout 0 · reward 0.5 · turns 3 · sampled tokens 4 · stopped: max_turns",
        "prompt, 8 tokens<b>p</b>reply, 2 tokens · reward 0.5ab",
        "<i></i>",
        "1 new tokensc",
        "reply, 1 tokens · reward 0 · truncated at the token limit · not trainedd",
        "1 new tokens, after 3 tokens shared with the previous turnq",
        "after the last reply!",
    ):
        assert expected in words
    assert not {"b", "i"} & set(seen["tags"])
