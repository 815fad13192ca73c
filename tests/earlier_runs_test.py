"""Runs that were begun by the version of November 2026 go on: the same directory is found, and the
config in it is that of the same command today.

A key that is added to a config is another config; whoever adds one writes data/runs_2026_11.json
anew (each entry: a command line, the directory's name, config.json).
"""

from __future__ import annotations

import importlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.checkpoint_utils import CheckpointRecord, append_record
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.run_location import RunLocation, RunLocator

RUNS = json.loads((Path(__file__).parent / "data/runs_2026_11.json").read_text())
MAY_CHANGE = {
    "sl": "submit_ahead=2 sample_replies=0 infrequent_eval_every=7",
    "rl": "transcripts_every=0 max_logprob_gap=0.2 limits.env_timeout=3 groups_at_a_time=2",
}


class Found(Exception):
    """Instead of training: where the run goes on."""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def enter(journal: Journal) -> None:
        finder = RunLocator(journal.identity, journal.total_steps, "step", None, None)
        with ExitStack() as stack:
            raise Found(finder.take(stack))

    monkeypatch.setattr(Journal, "__enter__", enter)
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path))
    return tmp_path


async def place(command: str, *more: str) -> RunLocation:
    recipe, *words = command.split()
    module = importlib.import_module(recipe)
    config_class = getattr(module, "CLI", None) or module.Config
    with pytest.raises(Found) as found:
        await module.main(parse(config_class, [*words, *more], getattr(module, "ALIASES", {})))
    return found.value.args[0]


@pytest.mark.parametrize("command", RUNS)
async def test_an_earlier_run_goes_on(runs: Path, command: str) -> None:
    directory = runs / RUNS[command]["directory"]
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(RUNS[command]["config"]))
    append_record(directory, CheckpointRecord("000003", batch=3, state_path="tinker://a/weights/3"))
    more = ["save_every=7", "display=plain", "wandb_name=w", "engine.max_rows=8", "max_steps=9"]
    if "_loop" not in command:
        more += ["eval_every=3", "rolling_save_every=2"]
        more += MAY_CHANGE["sl" if "sl" in command else "rl"].split()
    for words in ([], more):
        found: Any = await place(command, *words)
        assert found.path == directory
        assert found.resume.batch == 3
        assert any(line.startswith(f"resuming {directory} at step 3 of ") for line in found.remarks)
