"""docs/choosing.md: its learning rates and sizes are the code's, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinker_cookbook.hyperparam_utils import get_lr
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.supervised.defaults import SL_DEFAULTS
from tinker_cookbook.supervised.train import FEW_STEPS

ROOT = Path(__file__).parent.parent
PAGES = ("docs/choosing.md", "recipes/README.md", "recipes/chat_sl/README.md")
PAGE = (ROOT / PAGES[0]).read_text(encoding="utf-8")


def test_the_learning_rates_are_the_defaults() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([\d.]+e-\d) \| ([\d.]+e-\d) \|$", PAGE, re.M)
    assert len(rows) >= 5
    for model, supervised, reinforcement in rows:
        assert f"{get_lr(model):.1e}".replace("e-0", "e-").replace(".0e", "e") == supervised
        defaults = RL_DEFAULTS.nano if model == "nano" else RL_DEFAULTS.others
        assert float(reinforcement) == defaults.learning_rate


def test_the_batch_sizes_are_the_defaults() -> None:
    groups = RL_DEFAULTS.others.sizes
    batch = f"`batch_size` {SL_DEFAULTS.others.sizes.batch_size} examples"
    assert f"{batch} | `groups_per_batch` {groups.groups_per_batch} × `group_size`" in PAGE
    assert f"`group_size` {groups.group_size} |" in PAGE
    assert f"under {FEW_STEPS} the run warns you" in PAGE


@pytest.mark.parametrize("page", [*PAGES, "recipes/math_rl/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = (file.parent / path).resolve()
            assert linked.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
                assert anchor in [h.lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("page", [*PAGES, "recipes/math_rl/README.md"])
def test_the_programs_and_configurations_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    modules = set(re.findall(r"(?<=[ `])(recipes(?:\.\w+)+)", text))
    assert modules
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for config in re.findall(r"config=(\S+\.yaml)", text):
        assert (ROOT / config).is_file(), config
