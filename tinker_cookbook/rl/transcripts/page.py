"""The page that shows a step's rollouts, made of the records that records.py writes.

Metrics, groups and their errors are in the page as HTML. Rollouts are in it as data; the page's
script (page.js) shows those that a reader opens, each token coloured by its probability,
its advantage, or how far sampler and trainer disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tinker_cookbook.utils.display import short
from tinker_cookbook.utils.report import Content, Html, element, fold, metrics_table, page

if TYPE_CHECKING:
    from tinker_cookbook.rl.transcripts.schema import ErrorRecord, Record, StepOfRollout
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.utils.json_types import JsonObject
    from tinker_cookbook.utils.report import Text

PAGE_TOKENS = 300_000  # about 6 MB of page
_MAX_ERRORS = 20  # of a group, on the page

_FILES = Path(__file__)
_PARTIAL = "\ufffd"  # what a tokenizer decodes bytes to that are no whole character
_LONGEST_CHARACTER = 8  # tokens; UTF-8 needs 4, and a token may end one character and begin another

SHADES = {
    "logprob": "probability: the less likely, the stronger",
    "advantage": "advantage: blue is made more likely, orange less",
    "gap": "|sampled - trained| logprob",
}


@dataclass
class _Group:
    tags: list[str]
    rewards: list[float] = field(default_factory=list)
    errors: list[ErrorRecord] = field(default_factory=list)
    shown: list[JsonObject] = field(default_factory=list)  # rollouts, as the script reads them

    @property
    def kind(self) -> str:
        """ "constant": all rewards are equal, so a group-centred reward teaches nothing."""
        if len(self.rewards) < 2:
            return "single" if self.rewards else "lost"
        return "constant" if min(self.rewards) == max(self.rewards) else "mixed"


class RolloutPage:
    """Collects the records of a step, in order, and keeps what goes into the page.

    max_tokens: rollouts are taken until they hold so many tokens; of later ones the page says that
    they are only in the JSON lines.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = PAGE_TOKENS) -> None:
        self._vocabulary = _Vocabulary(tokenizer)
        self._max_tokens = max_tokens
        self._tokens = 0
        self._groups: dict[int, _Group] = {}
        self._strongest = {"advantage": 0.0, "gap": 0.0}

    def add(self, record: Record) -> None:
        group = self._groups.setdefault(record["group_idx"], _Group(record["tags"]))
        group.errors += record["errors"]
        if record["total_reward"] is None:  # nobody survived
            return
        group.rewards.append(record["total_reward"])
        if self._tokens < self._max_tokens:
            self._tokens += _size(record)
            group.shown.append(self._rollout(record))

    def _rollout(self, record: Record) -> JsonObject:
        turns, length = [], 0
        for step in record["steps"]:
            turns.append(self._turn(step) | {"continues": step["ob_start"] == length})
            length = step["ob_len"] + step["ac_len"]
        return {
            "index": record["traj_idx"],
            "reward": record["total_reward"],
            "final_reward": record["final_reward"],
            "metrics": record["trajectory_metrics"],
            "stop_reason": record["stop_reason"],
            "final_text": record["final_ob_text"],
            "turns": turns,
        }

    def _turn(self, step: StepOfRollout) -> JsonObject:
        advantages, sampled = step["advantages"], step["logprobs"]
        trained = step["trained_logprobs"]
        self._note("advantage", advantages or [])
        if sampled and trained:
            self._note("gap", [a - b for a, b in zip(sampled, trained, strict=True)])
        return {
            "start": step["ob_start"],
            "new": len(step["ob_tokens"]),
            "text": step["ob_text"],
            "tokens": self._vocabulary.indices(step["ac_tokens"]),
            "logprobs": _short(sampled, 4),
            "advantages": _short(advantages, 6),
            "trained": _short(trained, 4),
            "reward": step["reward"],
            "metrics": step["metrics"],
            "logs": step["logs"],
            "cut": step["stop_reason"] == "length",
            "trainable": step["trainable"],
        }

    def _note(self, name: str, values: list[float]) -> None:
        # NaN is not above anything, so it cannot become the scale of the others
        for value in set(values):
            if abs(value) > self._strongest[name] and abs(value) != float("inf"):
                self._strongest[name] = abs(value)

    def html(self, title: str, metrics: Mapping[str, Text], lines_name: str) -> str:
        """The page. `lines_name`: the file beside it that holds all rollouts."""
        body = [
            element("h1", title),
            self._summary(lines_name),
            fold(f"{len(metrics)} metrics", metrics_table(metrics)) if metrics else None,
            _shade_switch(with_gap=self._strongest["gap"] > 0),
            [_group_html(number, group) for number, group in sorted(self._groups.items())],
            element("noscript", "Rollouts are shown by a script, which this browser does not run."),
            element("div", id="values", hidden=True),
        ]
        data = {
            "vocabulary": self._vocabulary.entries,
            "strongest": self._strongest,
            "groups": {number: group.shown for number, group in self._groups.items()},
        }
        style, script = (
            _FILES.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js")
        )
        return page(title, body, style=style, script=script, data=data)

    def _summary(self, lines_name: str) -> Html:
        groups = self._groups.values()
        rewards = [reward for group in groups for reward in group.rewards]
        kinds = Counter(group.kind for group in groups)
        parts = [f"{len(rewards)} rollouts in {len(groups)} groups"]
        parts += [f"{count} {kind}" for kind, count in sorted(kinds.items())]
        if rewards:
            parts.append(f"mean reward {short(sum(rewards) / len(rewards))}")
        if errors := sum(len(group.errors) for group in groups):
            parts.append(f"{errors} errors")
        left_out = len(rewards) - sum(len(group.shown) for group in groups)
        link = element("a", lines_name, href=lines_name)
        where: list[Content] = [" · all of them in ", link]
        if left_out:
            where = [f" · {left_out} rollouts are only in ", link, ", for the size of this page"]
        return element("p", " · ".join(parts), where, class_="faint")


def _size(record: Record) -> int:
    """Tokens of a record that the page would hold."""
    turns = sum(len(step["ob_tokens"]) + step["ac_len"] for step in record["steps"])
    return turns + len(record["final_ob_tokens"])


def _short(values: list[float] | None, digits: int) -> list[float] | float | None:
    """A list as the page holds it: one number where all are the same, as advantages mostly are."""
    if not values:
        return values
    values = [round(value, digits) for value in values]
    return values[0] if min(values) == max(values) else values


def _shade_switch(with_gap: bool) -> Html:
    names = [name for name in SHADES if with_gap or name != "gap"]
    return element(
        "fieldset",
        element("legend", "Colour of tokens"),
        [
            element(
                "label",
                element("input", type="radio", name="shade", value=name, checked=name == "logprob"),
                f" {SHADES[name]} ",
            )
            for name in names
        ],
    )


def _group_html(number: int, group: _Group) -> Html:
    mean = sum(group.rewards) / len(group.rewards) if group.rewards else 0.0
    head = [
        element("b", f"group {number}"),
        element("span", group.kind, class_=f"chip {group.kind}"),
        [element("span", tag, class_="chip") for tag in group.tags],
        element("span", f" mean {short(mean)}: ", class_="faint") if group.rewards else None,
        [element("span", short(each), class_=_rank(each, mean)) for each in group.rewards],
        element("span", f"{len(group.errors)} errors", class_="chip worse")
        if group.errors
        else None,
    ]
    left_out = len(group.rewards) - len(group.shown)
    if left_out:
        some = "the rollouts" if left_out == len(group.rewards) else f"the last {left_out} rollouts"
        head.append(element("span", f" {some} are only in the JSON lines", class_="faint"))
    errors = [_error_html(error) for error in group.errors[:_MAX_ERRORS]]
    if len(group.errors) > _MAX_ERRORS:
        more = len(group.errors) - _MAX_ERRORS
        errors.append(element("p", f"{more} more errors are only in the JSON lines"))
    return fold(head, errors, data_group=str(number))


def _error_html(error: ErrorRecord) -> Html:
    whose = "the group" if error["member"] is None else f"member {error['member']}"
    head = f"{error['kind']} of {whose}: {error['message']}"
    return fold(head, element("pre", error["traceback"] or "no traceback"))


def _rank(reward: float, mean: float) -> str:
    return "chip" + (" better" if reward > mean else " worse" if reward < mean else "")


class _Vocabulary:
    """The tokens that occur in a page: `entries[i]` is [token id, its text].

    A character of several tokens is the text of the last of them; the others have the text "".
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}
        self._known: dict[tuple[int, str], int] = {}

    @property
    def entries(self) -> list[list[int | str]]:
        return [[token, text] for token, text in self._known]

    def indices(self, tokens: list[int]) -> list[int]:
        """The entry of each token."""
        return [
            self._known.setdefault(each, len(self._known))
            for each in zip(tokens, self._texts(tokens), strict=True)
        ]

    def _texts(self, tokens: list[int]) -> list[str]:
        texts: list[str] = []
        held: list[int] = []  # tokens that are no whole character yet
        for token in tokens:
            alone = self._alone.get(token)
            if alone is None:
                alone = self._alone[token] = self._decode([token])
            if _PARTIAL not in alone:
                if held:  # never became one: shown as it decodes
                    texts[-1], held = self._decode(held), []
                texts.append(alone)
                continue
            held.append(token)
            text = self._decode(held)
            if text.endswith(_PARTIAL) and len(held) < _LONGEST_CHARACTER:
                texts.append("")
            else:
                texts.append(text)
                held = []
        if held:
            texts[-1] = self._decode(held)
        return texts

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
