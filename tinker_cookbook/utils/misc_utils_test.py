import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinker_cookbook.utils import misc_utils
from tinker_cookbook.utils.misc_utils import (
    all_same,
    concat_lists,
    counted,
    dict_mean,
    install_line,
    is_whole,
    not_none,
    runs_path,
    safezip,
    split_list,
    timed,
)


def test_safezip_pairs_and_refuses_other_lengths_before_the_first_item() -> None:
    assert list(safezip([1, 2], "ab")) == [(1, "a"), (2, "b")]
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        safezip([1, 2], [3])


def test_lists_and_nones() -> None:
    assert concat_lists([[1, 2], [], (3,)]) == [1, 2, 3] and concat_lists([]) == []
    assert not_none(0) == 0 and not_none("") == ""
    with pytest.raises(ValueError, match="None"):
        not_none(None)


def test_the_line_that_installs_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkout = Path(misc_utils.__file__).parents[2]
    assert (checkout / "constraints.txt").is_file()
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "executable", str(checkout / ".venv" / "bin" / "python"))
    assert install_line("wandb") == (
        ".venv/bin/python -m pip install --constraint constraints.txt --editable '.[wandb]'"
    )
    monkeypatch.chdir(tmp_path)
    assert install_line("wandb").startswith(f"{checkout}/.venv/bin/python -m pip install ")
    assert install_line("wandb").endswith(f"'{checkout}[wandb]'")
    monkeypatch.setattr(misc_utils, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert install_line("wandb").endswith(" -m pip install 'open-tinker-cookbook[wandb]'")


def test_timed_adds_up_and_survives_an_exception() -> None:
    metrics: dict[str, float] = {}
    with timed("work", metrics):
        time.sleep(0.01)
    with pytest.raises(KeyError), timed("work", metrics):
        time.sleep(0.01)
        raise KeyError
    assert 0.02 <= metrics["time/work"] < 1


def test_dict_mean_takes_each_key_over_the_dicts_that_have_it() -> None:
    assert dict_mean([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}
    assert dict_mean([]) == {}


def test_all_same() -> None:
    assert all_same([]) and all_same([1]) and all_same([2, 2, 2])
    assert not all_same([2, 2, 3])


@pytest.mark.parametrize(("n", "k"), [(10, 3), (3, 3), (7, 1), (128, 5)])
def test_split_list_keeps_order_and_balances(n: int, k: int) -> None:
    parts = split_list(range(n), k)
    assert [x for part in parts for x in part] == list(range(n))
    assert len(parts) == k
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@pytest.mark.parametrize("k", [0, 4])
def test_split_list_refuses_empty_parts(k: int) -> None:
    with pytest.raises(ValueError, match="3 items"):
        split_list([1, 2, 3], k)


def test_runs_path_comes_from_the_environment_or_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", "/data/runs")
    assert runs_path("a", "b") == Path("/data/runs/a/b")
    monkeypatch.delenv("TINKER_COOKBOOK_RUNS_DIR")
    monkeypatch.setenv("HOME", "/home/u")
    assert runs_path("a") == Path("/home/u/tinker-runs/a")


def test_is_whole_takes_integers_only() -> None:
    assert is_whole(3) and is_whole(-1) and is_whole(np.int64(3))
    assert not any(is_whole(each) for each in (2.0, True, "2", None, float("nan"), np.float32(2)))


def test_counted() -> None:
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
