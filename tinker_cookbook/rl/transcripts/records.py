"""Write every rollout of a step to disk: a JSONL file for programs, an HTML page for people.

`write_step` writes two files to `<log_path>/iteration_NNNNNN/`:

`<split>_rollout_summaries.jsonl`, one object for each trajectory:

    schema_version, split, iteration, group_idx, traj_idx, tags, sampling_client_step
    total_reward                   the episode's step rewards plus final_reward
    final_reward                   from compute_group_rewards
    trajectory_metrics             from compute_group_rewards
    steps                          its turns, see below
    final_ob_len, final_ob_start, final_ob_tokens, final_ob_text     the prompt after the last reply
    stop_reason                    types.StopReason
    errors                         all errors of the group (types.RolloutError), in the group's
                                   first line only

a step, where N is `ac_len`:

    step_idx, reward, episode_done, trainable, metrics, logs
    ob_len, ob_start, ob_tokens, ob_text     the prompt, delta-encoded: the first `ob_start` tokens
                                             of the previous turn (prompt and reply), followed by
                                             `ob_tokens`; `observations` decodes it
    ac_len, ac_tokens, ac_text               the reply as sampled
    stop_reason                              "stop" or "length"
    logprobs           [N] sampling logprobs, nats; null: the policy returned none
    advantages         [N] as trained; null: not trained
    trained_logprobs   [N] training logprobs before the step's update; null: unknown

A group whose members all failed has one line without steps; its traj_idx and rewards are null.
Per-token numbers have 6 significant digits.

`<split>.html`, one self-contained page: metrics, groups, and each rollout with its tokens coloured
by logprob or advantage. See page.py.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.transcripts.page import MAX_PAGE_TOKENS, RolloutPage
from tinker_cookbook.rl.transcripts.schema import (
    ErrorRecord,
    Record,
    RecordBody,
    RecordHeader,
    RolloutStep,
)
from tinker_cookbook.rl.types import RolloutError, Trajectory, TrajectoryGroup, Transition
from tinker_cookbook.sequences import Sequence as TokenSequence
from tinker_cookbook.sequences import as_numpy, model_input_tokens
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.files import replace_file
from tinker_cookbook.utils.misc_utils import safezip
from tinker_cookbook.utils.plain_data import plain

if TYPE_CHECKING:
    from tinker_cookbook.sequences import Values
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.utils.json_types import Json, JsonObject
    from tinker_cookbook.utils.ml_log import Metrics

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SIGNIFICANT_DIGITS = 6
_JSONL_SUFFIX = "_rollout_summaries.jsonl"


def write_step(
    directory: Path,
    split: str,
    iteration: int,
    groups: Sequence[TrajectoryGroup],
    tags: Sequence[Sequence[str]],
    training: Sequence[TrainingGroup] | None,
    tokenizer: Tokenizer,
    metrics: Metrics,
    *,
    sampling_client_steps: Sequence[int | None] | None = None,
    trained_logprobs_D: Sequence[Values] | None = None,
    page_tokens: int = MAX_PAGE_TOKENS,
) -> None:
    """Write both files of a step, or of an evaluation, each atomically.

    split: "train" or "eval_<name>". tags, sampling_client_steps (version of the weights that
    sampled the group): one entry per group. training: the trained groups, in any order.
    trained_logprobs_D: what `forward_backward` returned, [N-1] per sequence of `training` that has
    a trained token, in order. page_tokens: maximum tokens on the page; the JSONL file has all.

    An error is logged as a warning, never raised: the step itself succeeded, and its result must
    not be lost for a transcript.
    """
    folder = Path(directory) / f"iteration_{iteration:06d}"
    try:
        steps = sampling_client_steps or [None] * len(groups)
        results = _TrainingResults(training or (), trained_logprobs_D)
        page = RolloutPage(tokenizer, page_tokens)

        def records() -> Iterator[JsonObject]:
            for index, (group, names, step) in enumerate(safezip(groups, tags, steps)):
                head = _record_header(split, iteration, index, names, step)
                # yielded one at a time, so that the records are never all in memory
                for body in _record_bodies(group, results, tokenizer):
                    record: Record = {**head, **body}
                    page.add(record)
                    yield _as_json(record)

        folder.mkdir(parents=True, exist_ok=True)
        lines = rollouts_file(directory, split, iteration)
        jsonl.write_lines(lines, records())
        _write_page(lines, page, split, iteration, metrics)
    except Exception as error:
        logger.warning(
            "%s: the rollouts of %s could not be written (%s: %s); the run continues without them",
            *(folder, split, type(error).__name__, first_line(error)),
        )
        logger.info("where writing rollouts failed", exc_info=True)


def append_group(
    directory: Path,
    split: str,
    iteration: int,
    index: int,
    group: TrajectoryGroup,
    tags: Sequence[str],
    tokenizer: Tokenizer,
) -> list[Record]:
    """Append one finished group to the JSONL file of an evaluation; return its records.

    Groups are in the file in the order in which they finish. `write_page` builds the page of all.
    """
    head = _record_header(split, iteration, index, tags, None)
    bodies = _record_bodies(group, _TrainingResults((), None), tokenizer)
    records: list[Record] = [{**head, **body} for body in bodies]
    file = rollouts_file(directory, split, iteration)
    file.parent.mkdir(parents=True, exist_ok=True)
    for record in records:
        jsonl.append_line(file, _as_json(record))
    return records


def write_page(
    directory: Path, split: str, iteration: int, tokenizer: Tokenizer, metrics: Metrics
) -> Path:
    """Build the page of the JSONL file that `append_group` has written; return its path."""
    lines = rollouts_file(directory, split, iteration)
    page = RolloutPage(tokenizer)
    for line in jsonl.iter_lines(lines):
        page.add(_from_json(line.value))
    return _write_page(lines, page, split, iteration, metrics)


def rollouts_file(directory: Path, split: str, iteration: int) -> Path:
    """Path of the JSONL file of a step or an evaluation."""
    name = re.sub(r"[^\w.-]+", "_", split)
    return Path(directory) / f"iteration_{iteration:06d}" / f"{name}{_JSONL_SUFFIX}"


def _write_page(
    lines: Path, page: RolloutPage, split: str, iteration: int, metrics: Metrics
) -> Path:
    file = lines.with_name(lines.name.removesuffix(_JSONL_SUFFIX) + ".html")
    title = f"{split}, iteration {iteration}"
    replace_file(file, page.html(title, plain(metrics), lines.name))
    return file


def _record_header(
    split: str, iteration: int, index: int, tags: Sequence[str], step: int | None
) -> RecordHeader:
    return {
        "schema_version": SCHEMA_VERSION,
        "split": split,
        "iteration": iteration,
        "group_idx": index,
        "tags": list(tags),
        "sampling_client_step": step,
    }


def read_rollouts(path: str | Path) -> list[Record]:
    """Read the records of a `<split>_rollout_summaries.jsonl`."""
    return [_from_json(line.value) for line in jsonl.read_lines(path)]


def _as_json(record: Record) -> JsonObject:
    return cast("JsonObject", record)  # a type checker does not accept a TypedDict as a dict


def _from_json(line: Mapping[str, Json]) -> Record:
    return cast("Record", line)  # unchecked: we wrote the file


def observations(record: Record) -> list[list[int]]:
    """Decode the full prompt of each turn of a record, and as the last item the prompt after the
    last reply."""
    before: list[int] = []
    prompts = []
    for step in record["steps"]:
        prompts.append(before[: step["ob_start"]] + step["ob_tokens"])
        before = prompts[-1] + step["ac_tokens"]
    return [*prompts, before[: record["final_ob_start"]] + record["final_ob_tokens"]]


# ------------------------------------------------------------------------------- records


def _record_bodies(
    group: TrajectoryGroup, results: _TrainingResults, tokenizer: Tokenizer
) -> Iterator[RecordBody]:
    errors = [_error_record(error) for error in group.rollout_errors]
    if not group.trajectories_G:
        yield _failed_group_body(errors)
    rewards_G = group.get_total_rewards()
    for member, trajectory in enumerate(group.trajectories_G):
        steps, final = _turn_records(trajectory, results.of_member(group, member), tokenizer)
        yield {
            "traj_idx": member,
            "total_reward": plain(rewards_G[member]),
            "final_reward": plain(group.final_rewards_G[member]),
            "trajectory_metrics": plain(group.metrics_G[member]),
            "steps": steps,
            "final_ob_len": final.length,
            "final_ob_start": final.start,
            "final_ob_tokens": final.tokens,
            "final_ob_text": final.text,
            "stop_reason": str(trajectory.stop_reason),
            "errors": [] if member else errors,
        }


def _failed_group_body(errors: list[ErrorRecord]) -> RecordBody:
    """The only record of a group whose members all failed."""
    return {
        "traj_idx": None,
        "total_reward": None,
        "final_reward": None,
        "trajectory_metrics": {},
        "steps": [],
        "final_ob_len": 0,
        "final_ob_start": 0,
        "final_ob_tokens": [],
        "final_ob_text": "",
        "stop_reason": None,
        "errors": errors,
    }


def _error_record(error: RolloutError) -> ErrorRecord:
    return {
        "kind": error.kind,
        "message": error.message,
        "member": error.member,
        "traceback": error.traceback,
    }


def _turn_records(
    trajectory: Trajectory, turns: Sequence[_TurnResults], tokenizer: Tokenizer
) -> tuple[list[RolloutStep], _Prompt]:
    """The records of an episode's turns, and the prompt after the last reply."""
    before: list[int] = []
    steps: list[RolloutStep] = []
    for index, (transition, trained) in enumerate(safezip(trajectory.transitions, turns)):
        observation = model_input_tokens(transition.ob)
        prompt = _prompt(before, observation, tokenizer)
        logprobs = transition.ac.maybe_logprobs
        steps.append(
            {
                "step_idx": index,
                "ob_len": prompt.length,
                "ob_start": prompt.start,
                "ob_tokens": prompt.tokens,
                "ob_text": prompt.text,
                "ac_len": len(transition.ac.tokens),
                "ac_tokens": list(transition.ac.tokens),
                "ac_text": _text(tokenizer, transition.ac.tokens),
                "stop_reason": transition.ac.stop_reason,
                "logprobs": None if logprobs is None else _round_significant(logprobs),
                "advantages": trained.advantages,
                "trained_logprobs": trained.logprobs,
                "reward": plain(transition.reward),
                "episode_done": transition.episode_done,
                "trainable": transition.trainable,
                "metrics": plain(transition.metrics),
                "logs": plain(transition.logs),
            }
        )
        before = observation + transition.ac.tokens
    return steps, _prompt(before, model_input_tokens(trajectory.final_ob), tokenizer)


class _Prompt(NamedTuple):
    """A prompt relative to the previous turn: it shares `start` tokens, `tokens` are new."""

    length: int
    start: int
    tokens: list[int]
    text: str


def _prompt(before: list[int], tokens: list[int], tokenizer: Tokenizer) -> _Prompt:
    start = _common_prefix_length(before, tokens)
    new = tokens[start:]
    return _Prompt(len(tokens), start, new, _text(tokenizer, new))


def _common_prefix_length(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    # the usual case first, at the speed of a list comparison
    if a[:length] == b[:length]:
        return length
    return int(np.flatnonzero(np.array(a[:length]) != np.array(b[:length]))[0])


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) if tokens else ""


def _round_significant(values: npt.ArrayLike) -> list[float]:
    """Round to _SIGNIFICANT_DIGITS significant digits, which halves the file."""
    values = np.asarray(values, np.float64)
    has_exponent = np.isfinite(values) & (values != 0)
    exponents = np.floor(np.log10(np.abs(values), where=has_exponent, out=np.zeros_like(values)))
    scales = 10.0 ** (_SIGNIFICANT_DIGITS - 1 - exponents)
    return np.where(has_exponent, np.round(values * scales) / scales, values).tolist()


# ------------------------------------------------------------------ results of training


@dataclasses.dataclass(frozen=True)
class _TurnResults:
    """Per-token values of a reply's N tokens; None if not trained, or unknown."""

    advantages: list[float] | None = None
    logprobs: list[float] | None = None


class _TrainingResults:
    """Looks up the advantages and training logprobs of replies.

    Keyed by `id()`: the objects are compared as the very ones that were trained, not by value. They
    outlive this lookup, as `training` and `groups` are arguments of `write_step`.
    """

    def __init__(
        self,
        training: Sequence[TrainingGroup],
        trained_logprobs_D: Sequence[Values] | None,
    ) -> None:
        self._groups = {id(group.group): group for group in training}
        self._logprobs = {}  # id of a sequence -> logprobs of its N tokens
        if trained_logprobs_D is not None:
            trained = [
                group.sequences_G[i][j] for group in training for i, j in group.trained_sequences()
            ]
            self._logprobs = {
                id(sequence): _unshift_logprobs(logprobs, len(sequence))
                for sequence, logprobs in safezip(trained, trained_logprobs_D)
            }

    def of_member(self, rollouts: TrajectoryGroup, member: int) -> list[_TurnResults]:
        """The results of each turn of a member."""
        transitions = rollouts.trajectories_G[member].transitions
        group = self._groups.get(id(rollouts))
        if group is None:
            return [_TurnResults()] * len(transitions)
        sequences, advantages = group.sequences_G[member], group.advantages_G[member]
        turns = []
        for span in _locate_replies(transitions, sequences):
            if span is None:
                turns.append(_TurnResults())
                continue
            tokens = slice(span.start, span.end)
            logprobs = self._logprobs.get(id(sequences[span.sequence]))
            turns.append(
                _TurnResults(
                    _round_significant(advantages[span.sequence][tokens]),
                    None if logprobs is None else _round_significant(logprobs[tokens]),
                )
            )
        return turns


def _unshift_logprobs(logprobs: Values, length: int) -> np.ndarray:
    """Logprobs of N tokens from those of the N-1 predicted ones; NaN for the first."""
    logprobs = as_numpy(logprobs)
    if logprobs.shape != (length - 1,):
        raise ValueError(f"trained_logprobs_D has shape {logprobs.shape} for {length} tokens")
    return np.concatenate([[np.nan], logprobs]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _ReplySpan:
    """The position of a reply: tokens `start` to `end` of a member's sequence."""

    sequence: int
    start: int
    end: int


def _locate_replies(
    transitions: Sequence[Transition], sequences: Sequence[TokenSequence]
) -> Iterator[_ReplySpan | None]:
    """Yield the position of each turn's reply, or None if it is in no sequence.

    Found by comparing tokens, so it does not depend on how turns were merged into sequences.
    """
    current, num_consumed = 0, 0  # the sequence of the last located turn, and where that turn ends
    for transition in transitions:
        prompt = model_input_tokens(transition.ob)
        tokens = np.array(prompt + transition.ac.tokens, np.int32)
        span = None
        for index in range(current, len(sequences)):
            if index == current and len(prompt) < num_consumed:
                # A prompt that is shorter than the last turn cannot continue that sequence: these
                # tokens are the earlier turn's, even if they are equal.
                continue
            if np.array_equal(sequences[index].tokens[: len(tokens)], tokens):
                span = _ReplySpan(index, len(prompt), len(tokens))
                current, num_consumed = index, len(tokens)
                break
        yield span
