"""HTML page of one step's rollouts, built from the records that records.py defines.

Metrics, groups and their errors are static HTML. Rollouts are embedded as JSON, and the page's
script (page.js) renders those that a reader opens, with each token coloured by its probability, its
advantage, or the difference between its sampling and training logprobs.
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
    from tinker_cookbook.rl.transcripts.schema import ErrorRecord, Record, RolloutStep
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.utils.json_types import JsonObject
    from tinker_cookbook.utils.report import Text

MAX_PAGE_TOKENS = 300_000  # about 6 MB of page
_MAX_ERRORS = 20  # shown per group

_ASSET_BASE = Path(__file__)
_REPLACEMENT_CHAR = "\ufffd"  # tokenizers decode incomplete UTF-8 to this
# An upper bound on tokens decoded together. A character has at most 4 bytes, hence 4 tokens, but
# its first and last token may also hold bytes of neighbouring characters, decoded along with it.
_MAX_TOKENS_PER_CHAR = 8

# The keys are also those of the page's data and of COLOUR_MODES in page.js.
COLOUR_MODES = {
    "logprob": "probability (darker: less likely)",
    "advantage": "advantage (blue: reinforced, orange: discouraged)",
    "gap": "|sampling logprob - training logprob|",
}


@dataclass
class _Group:
    tags: list[str]
    rewards: list[float] = field(default_factory=list)
    errors: list[ErrorRecord] = field(default_factory=list)
    rollouts: list[JsonObject] = field(default_factory=list)  # as page.js reads them

    @property
    def kind(self) -> str:
        """failed: no trajectory. single: only one, so there is no baseline. constant: all
        rewards are equal, so every group-relative advantage is zero. mixed: rewards differ."""
        if len(self.rewards) < 2:
            return "single" if self.rewards else "failed"
        return "constant" if min(self.rewards) == max(self.rewards) else "mixed"


class RolloutPage:
    """Collects the records of a step, in order, and builds the page.

    max_tokens: once the page holds this many tokens, further rollouts are omitted, with a pointer
    to the JSONL file.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = MAX_PAGE_TOKENS) -> None:
        self._vocabulary = _Vocabulary(tokenizer)
        self._max_tokens = max_tokens
        self._tokens = 0
        self._groups: dict[int, _Group] = {}
        self._max_abs = {"advantage": 0.0, "gap": 0.0}

    def add(self, record: Record) -> None:
        group = self._groups.setdefault(record["group_idx"], _Group(record["tags"]))
        group.errors += record["errors"]
        if record["total_reward"] is None:  # every member failed
            return
        group.rewards.append(record["total_reward"])
        # checked before adding, so that even one very long rollout is shown
        if self._tokens < self._max_tokens:
            self._tokens += _num_page_tokens(record)
            group.rollouts.append(self._rollout(record))

    def _rollout(self, record: Record) -> JsonObject:
        turns, length = [], 0
        for step in record["steps"]:
            # the prompt extends the previous turn if it shares all of that turn's tokens
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

    def _turn(self, step: RolloutStep) -> JsonObject:
        advantages, sampled = step["advantages"], step["logprobs"]
        trainer_logprobs = step["trained_logprobs"]
        self._update_max_abs("advantage", advantages or [])
        if sampled and trainer_logprobs:
            self._update_max_abs(
                "gap", [a - b for a, b in zip(sampled, trainer_logprobs, strict=True)]
            )
        return {
            "start": step["ob_start"],
            "new": len(step["ob_tokens"]),
            "text": step["ob_text"],
            "tokens": self._vocabulary.indices(step["ac_tokens"]),
            "logprobs": _round_and_collapse(sampled, 4),
            "advantages": _round_and_collapse(advantages, 6),
            "trained": _round_and_collapse(trainer_logprobs, 4),
            "reward": step["reward"],
            "metrics": step["metrics"],
            "logs": step["logs"],
            "cut": step["stop_reason"] == "length",
            "trainable": step["trainable"],
        }

    def _update_max_abs(self, name: str, values: list[float]) -> None:
        # NaN compares false, so it never sets the colour scale. A set, for speed:
        # advantages are mostly constant over a reply.
        for value in set(values):
            if abs(value) > self._max_abs[name] and abs(value) != float("inf"):
                self._max_abs[name] = abs(value)

    def html(self, title: str, metrics: Mapping[str, Text], jsonl_name: str) -> str:
        """Return the page. `jsonl_name`: the file next to it that holds all rollouts."""
        body = [
            element("h1", title),
            self._summary(jsonl_name),
            fold(f"{len(metrics)} metrics", metrics_table(metrics)) if metrics else None,
            _colour_mode_picker(has_trainer_logprobs=self._max_abs["gap"] > 0),
            [_group_html(number, group) for number, group in sorted(self._groups.items())],
            element("noscript", "Enable JavaScript to view the rollouts."),
            element("div", id="values", hidden=True),
        ]
        data = {
            "vocabulary": self._vocabulary.entries,
            "strongest": self._max_abs,
            "groups": {number: group.rollouts for number, group in self._groups.items()},
        }
        style, script = (
            _ASSET_BASE.with_suffix(suffix).read_text(encoding="utf-8")
            for suffix in (".css", ".js")
        )
        return page(title, body, style=style, script=script, data=data)

    def _summary(self, jsonl_name: str) -> Html:
        groups = self._groups.values()
        rewards = [reward for group in groups for reward in group.rewards]
        kinds = Counter(group.kind for group in groups)
        parts = [f"{len(rewards)} rollouts in {len(groups)} groups"]
        parts += [f"{count} {kind}" for kind, count in sorted(kinds.items())]
        if rewards:
            parts.append(f"mean reward {short(sum(rewards) / len(rewards))}")
        if errors := sum(len(group.errors) for group in groups):
            parts.append(f"{errors} errors")
        num_hidden = len(rewards) - sum(len(group.rollouts) for group in groups)
        link = element("a", jsonl_name, href=jsonl_name)
        pointer: list[Content] = [" · all rollouts in ", link]
        if num_hidden:
            pointer = [f" · {num_hidden} rollouts omitted to keep this page small; see ", link]
        return element("p", " · ".join(parts), pointer, class_="faint")


def _num_page_tokens(record: Record) -> int:
    """Number of tokens that a record adds to the page."""
    turns = sum(len(step["ob_tokens"]) + step["ac_len"] for step in record["steps"])
    return turns + len(record["final_ob_tokens"])


def _round_and_collapse(values: list[float] | None, digits: int) -> list[float] | float | None:
    """Round; collapse a constant list to one number (typical for advantages)."""
    if not values:
        return values
    values = [round(value, digits) for value in values]
    return values[0] if min(values) == max(values) else values


def _colour_mode_picker(has_trainer_logprobs: bool) -> Html:
    names = [name for name in COLOUR_MODES if has_trainer_logprobs or name != "gap"]
    return element(
        "fieldset",
        element("legend", "Colour of tokens"),
        [
            element(
                "label",
                element("input", type="radio", name="shade", value=name, checked=name == "logprob"),
                f" {COLOUR_MODES[name]} ",
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
        [
            element("span", short(reward), class_=_reward_class(reward, mean))
            for reward in group.rewards
        ],
        element("span", f"{len(group.errors)} errors", class_="chip worse")
        if group.errors
        else None,
    ]
    num_hidden = len(group.rewards) - len(group.rollouts)
    if num_hidden:
        hidden_label = (
            "all rollouts"
            if num_hidden == len(group.rewards)
            else f"the last {num_hidden} rollouts"
        )
        head.append(element("span", f" {hidden_label} omitted; see the JSONL file", class_="faint"))
    errors = [_error_html(error) for error in group.errors[:_MAX_ERRORS]]
    if len(group.errors) > _MAX_ERRORS:
        more = len(group.errors) - _MAX_ERRORS
        errors.append(element("p", f"{more} more errors in the JSONL file"))
    return fold(head, errors, data_group=str(number))


def _error_html(error: ErrorRecord) -> Html:
    scope = "whole group" if error["member"] is None else f"member {error['member']}"
    head = f"{scope}: {error['kind']}: {error['message']}"
    return fold(head, element("pre", error["traceback"] or "no traceback"))


def _reward_class(reward: float, mean: float) -> str:
    return "chip" + (" better" if reward > mean else " worse" if reward < mean else "")


class _Vocabulary:
    """The distinct (token id, text) pairs of a page; a token's text may depend on its neighbours.

    If a character spans several tokens, the last of them has its text and the others have "".
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._single_token_text: dict[int, str] = {}
        self._index_of_entry: dict[tuple[int, str], int] = {}

    @property
    def entries(self) -> list[list[int | str]]:
        return [[token, text] for token, text in self._index_of_entry]

    def indices(self, tokens: list[int]) -> list[int]:
        """Return each token's index into `entries`."""
        return [
            self._index_of_entry.setdefault(entry, len(self._index_of_entry))
            for entry in zip(tokens, self._decode_tokens(tokens), strict=True)
        ]

    def _decode_tokens(self, tokens: list[int]) -> list[str]:
        texts: list[str] = []
        pending: list[int] = []  # tokens of an incomplete character
        for token in tokens:
            single = self._single_token_text.get(token)
            if single is None:
                single = self._single_token_text[token] = self._decode([token])
            if _REPLACEMENT_CHAR not in single:
                # The pending character was never completed. Its tokens have "" in `texts` so far;
                # the last of them gets the replacement characters, so that none is invisible.
                if pending:
                    texts[-1], pending = self._decode(pending), []
                texts.append(single)
                continue
            pending.append(token)
            text = self._decode(pending)
            if text.endswith(_REPLACEMENT_CHAR) and len(pending) < _MAX_TOKENS_PER_CHAR:
                texts.append("")
            else:
                texts.append(text)
                pending = []
        if pending:
            texts[-1] = self._decode(pending)
        return texts

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
