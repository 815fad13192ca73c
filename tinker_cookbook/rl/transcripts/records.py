"""Every rollout of a step, to be read afterwards: JSON lines for programs, a page for people.

`write_step` leaves two files in `<log_path>/iteration_NNNNNN/`:

`<split>_rollout_summaries.jsonl`, one object for each trajectory:

    schema_version, split, iteration, group_idx, traj_idx, tags, sampling_client_step
    total_reward, final_reward     of the episode; of that, what compute_group_rewards gave
    trajectory_metrics             of compute_group_rewards
    steps                          its turns, see below
    final_ob_len, final_ob_start, final_ob_tokens, final_ob_text     what followed the last reply
    stop_reason                    types.StopReason
    errors                         of the whole group (types.RolloutError), in its first line only

a step, where N is `ac_len`:

    step_idx, reward, episode_done, trainable, metrics, logs
    ob_len, ob_start, ob_tokens, ob_text     the prompt of `ob_len` tokens is the first `ob_start`
                                             tokens of the turn before (prompt and reply), then
                                             `ob_tokens`; `observations` puts it together
    ac_len, ac_tokens, ac_text               the reply as it was sampled
    stop_reason                              "stop" or "length"
    logprobs           [N] sampled, nats; null: whoever replied has none
    advantages         [N] as trained; null: not trained
    trained_logprobs   [N] of the trainer before the step's update; null: not known

A group that nobody survived has one line without turns, whose traj_idx and rewards are null. Per
token numbers have 6 significant digits.

`<split>.html`, one page that needs no network: metrics, groups, and each rollout with its tokens
coloured by logprob or by advantage. See page.py.
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
from tinker_cookbook.rl.transcripts.page import PAGE_TOKENS, RolloutPage
from tinker_cookbook.rl.transcripts.schema import Body, ErrorRecord, Head, Record, StepOfRollout
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
_DIGITS = 6
_LINES = "_rollout_summaries.jsonl"


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
    page_tokens: int = PAGE_TOKENS,
) -> None:
    """Writes both files of a step, or of an evaluation, each atomically.

    split: "train" or "eval_<name>". tags, sampling_client_steps (steps the weights had been trained
    for when the group was played): one entry for each group. training: of those groups that were
    trained, in any order. trained_logprobs_D: what `forward_backward` returned, [N-1] for each
    sequence of `training` that has a trained token, in order. page_tokens: tokens of rollouts that
    the page holds; the JSON lines always hold all.

    Whatever goes wrong here is a warning: the step it tells of is done and counts.
    """
    folder = Path(directory) / f"iteration_{iteration:06d}"
    try:
        steps = sampling_client_steps or [None] * len(groups)
        known = _Training(training or (), trained_logprobs_D)
        page = RolloutPage(tokenizer, page_tokens)

        def records() -> Iterator[JsonObject]:
            for index, (group, names, step) in enumerate(safezip(groups, tags, steps)):
                head = _head(split, iteration, index, names, step)
                for body in _bodies(group, known, tokenizer):
                    record: Record = {**head, **body}
                    page.add(record)
                    yield _as_json(record)

        folder.mkdir(parents=True, exist_ok=True)
        lines = rollouts_file(directory, split, iteration)
        jsonl.write_lines(lines, records())
        _write_page(lines, page, split, iteration, metrics)
    except Exception as error:
        logger.warning(
            "%s: the rollouts of %s could not be written (%s: %s); the run goes on without them",
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
    """Adds the records of one group to the JSON lines of an evaluation, as soon as it was played,
    and returns them; `write_page` makes the page of all. The order of groups is that of playing."""
    head = _head(split, iteration, index, tags, None)
    bodies = _bodies(group, _Training((), None), tokenizer)
    records: list[Record] = [{**head, **body} for body in bodies]
    file = rollouts_file(directory, split, iteration)
    file.parent.mkdir(parents=True, exist_ok=True)
    for record in records:
        jsonl.append_line(file, _as_json(record))
    return records


def write_page(
    directory: Path, split: str, iteration: int, tokenizer: Tokenizer, metrics: Metrics
) -> Path:
    """The page of the JSON lines that `append_group` has written."""
    lines = rollouts_file(directory, split, iteration)
    page = RolloutPage(tokenizer)
    for line in jsonl.iter_lines(lines):
        page.add(_from_json(line.value))
    return _write_page(lines, page, split, iteration, metrics)


def rollouts_file(directory: Path, split: str, iteration: int) -> Path:
    """The JSON lines of a step or an evaluation."""
    name = re.sub(r"[^\w.-]+", "_", split)
    return Path(directory) / f"iteration_{iteration:06d}" / f"{name}{_LINES}"


def _write_page(
    lines: Path, page: RolloutPage, split: str, iteration: int, metrics: Metrics
) -> Path:
    file = lines.with_name(lines.name.removesuffix(_LINES) + ".html")
    title = f"{split}, iteration {iteration}"
    replace_file(file, page.html(title, plain(metrics), lines.name))
    return file


def _head(split: str, iteration: int, index: int, tags: Sequence[str], step: int | None) -> Head:
    return {
        "schema_version": SCHEMA_VERSION,
        "split": split,
        "iteration": iteration,
        "group_idx": index,
        "tags": list(tags),
        "sampling_client_step": step,
    }


def read_rollouts(path: str | Path) -> list[Record]:
    """The records of a `<split>_rollout_summaries.jsonl`."""
    return [_from_json(line.value) for line in jsonl.read_lines(path)]


def _as_json(record: Record) -> JsonObject:
    return cast("JsonObject", record)  # it is one, but to a type checker a TypedDict is not a dict


def _from_json(line: Mapping[str, Json]) -> Record:
    return cast("Record", line)  # we have written it


def observations(record: Record) -> list[list[int]]:
    """The whole prompt of each turn of a record, and last the tokens after the last reply."""
    before: list[int] = []
    found = []
    for step in record["steps"]:
        found.append(before[: step["ob_start"]] + step["ob_tokens"])
        before = found[-1] + step["ac_tokens"]
    return [*found, before[: record["final_ob_start"]] + record["final_ob_tokens"]]


# ------------------------------------------------------------------------------- records


def _bodies(group: TrajectoryGroup, known: _Training, tokenizer: Tokenizer) -> Iterator[Body]:
    errors = [_error_record(error) for error in group.rollout_errors]
    if not group.trajectories_G:
        yield _nobody(errors)
    rewards_G = group.get_total_rewards()
    for member, trajectory in enumerate(group.trajectories_G):
        steps, final = _steps(trajectory, known.turns(group, member), tokenizer)
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


def _nobody(errors: list[ErrorRecord]) -> Body:
    """Of a group that nobody survived."""
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


def _steps(
    trajectory: Trajectory, turns: Sequence[_TrainedTurn], tokenizer: Tokenizer
) -> tuple[list[StepOfRollout], _Prompt]:
    """The turns, and what followed the last reply."""
    before: list[int] = []
    steps: list[StepOfRollout] = []
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
                "logprobs": None if logprobs is None else _rounded(logprobs),
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
    """A prompt as what it shares with the turn before, and what is new."""

    length: int
    start: int
    tokens: list[int]
    text: str


def _prompt(before: list[int], tokens: list[int], tokenizer: Tokenizer) -> _Prompt:
    start = _shared(before, tokens)
    new = tokens[start:]
    return _Prompt(len(tokens), start, new, _text(tokenizer, new))


def _shared(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return int(np.flatnonzero(np.array(a[:length]) != np.array(b[:length]))[0])


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) if tokens else ""


def _rounded(values: npt.ArrayLike) -> list[float]:
    """To _DIGITS significant digits: half the file, and more than anyone reads."""
    values = np.asarray(values, np.float64)
    fine = np.isfinite(values) & (values != 0)
    exponents = np.floor(np.log10(np.abs(values), where=fine, out=np.zeros_like(values)))
    scales = 10.0 ** (_DIGITS - 1 - exponents)
    return np.where(fine, np.round(values * scales) / scales, values).tolist()


# ------------------------------------------------------------------ what training knows


@dataclasses.dataclass(frozen=True)
class _TrainedTurn:
    """Of the N tokens of a reply; None where it was not trained, or what came out is not known."""

    advantages: list[float] | None = None
    logprobs: list[float] | None = None


class _Training:
    """What training knows of the replies of a group."""

    def __init__(
        self,
        training: Sequence[TrainingGroup],
        trained_logprobs_D: Sequence[Values] | None,
    ) -> None:
        self._groups = {id(group.group): group for group in training}
        self._logprobs = {}  # by the id of a sequence: of each of its N tokens
        if trained_logprobs_D is not None:
            trained = [group.sequences_G[i][j] for group in training for i, j in group.trained()]
            self._logprobs = {
                id(sequence): _unshifted(logprobs, len(sequence))
                for sequence, logprobs in safezip(trained, trained_logprobs_D)
            }

    def turns(self, played: TrajectoryGroup, member: int) -> list[_TrainedTurn]:
        transitions = played.trajectories_G[member].transitions
        group = self._groups.get(id(played))
        if group is None:
            return [_TrainedTurn()] * len(transitions)
        sequences, advantages = group.sequences_G[member], group.advantages_G[member]
        found = []
        for place in _places(transitions, sequences):
            if place is None:
                found.append(_TrainedTurn())
                continue
            tokens = slice(place.start, place.end)
            logprobs = self._logprobs.get(id(sequences[place.sequence]))
            found.append(
                _TrainedTurn(
                    _rounded(advantages[place.sequence][tokens]),
                    None if logprobs is None else _rounded(logprobs[tokens]),
                )
            )
        return found


def _unshifted(logprobs: Values, length: int) -> np.ndarray:
    """For each of N tokens, from those of the N-1 that are predicted; NaN for the first."""
    logprobs = as_numpy(logprobs)
    if logprobs.shape != (length - 1,):
        raise ValueError(f"trained_logprobs_D has shape {logprobs.shape} for {length} tokens")
    return np.concatenate([[np.nan], logprobs]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a reply stands among a member's sequences: tokens `start` to `end` of one of them."""

    sequence: int
    start: int
    end: int


def _places(
    transitions: Sequence[Transition], sequences: Sequence[TokenSequence]
) -> Iterator[_Place | None]:
    """Of each turn, by its tokens, however turns were merged; None: it is in no sequence."""
    at, taken = 0, 0  # the sequence that is filled, and how many of its tokens
    for transition in transitions:
        prompt = model_input_tokens(transition.ob)
        tokens = np.array(prompt + transition.ac.tokens, np.int32)
        place = None
        for index in range(at, len(sequences)):
            if index == at and len(prompt) < taken:
                continue  # that part of it belongs to an earlier turn
            if np.array_equal(sequences[index].tokens[: len(tokens)], tokens):
                place = _Place(index, len(prompt), len(tokens))
                at, taken = index, len(tokens)
                break
        yield place
