import io
import re
import sys
from types import SimpleNamespace

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import display
from tinker_cookbook.utils.display import Display, duration, short


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_hold_all_figures_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first step and evaluations count neither for the speed nor for the ETA."""
    now = iter([10.0, 50.0, 52.0, 57.0])
    monkeypatch.setattr(display.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(display, "memory", lambda: "1.50 GiB")
    stream = io.StringIO()
    shown = Display(5, stream=stream)
    shown.start()
    lines = [
        shown.update(0, {"train_mean_nll": 2.5, "num_tokens": 1000, "time/total": 39.9}),
        shown.update(1, {"train_mean_nll": 1.25, "num_tokens": 1000}),
    ]
    shown.log_line("saved [x]")
    shown.evaluating(2)
    shown.evaluations_after = lambda step: 3.0
    row = {"train_mean_nll": 1.0, "num_tokens": 3000, "test/nll": 3.0, "time/evals": 3.0}
    shown.update(2, row)
    shown.close()
    assert stream.getvalue() == (
        "step 0/5  loss 2.5  1.50 GiB\n"
        "step 1/5  loss 1.25  500 tok/s  ETA 0:06  1.50 GiB\n"
        "saved [x]\n"
        "step 2/5  evaluating\n"
        "step 2/5  loss 1  test/nll 3  1000 tok/s  ETA 0:07  1.50 GiB\n"
    )
    assert "".join(f"{line}\n" for line in lines) == "".join(stream.getvalue().splitlines(True)[:2])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (80, "step 3/24  reward 0.5  reply tokens 10.25  ETA 0:40"),
        (60, "step 3/24  reward 0.5  ETA 0:40"),
        (
            120,
            "step 3/24  reward 0.5  reply tokens 10.25  other 1  25.05 tok/s  ETA 0:40  1.50 GiB",
        ),
    ],
)
def test_the_live_line_leaves_out_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, columns: int, expected: str
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(display, "memory", lambda: "1.50 GiB")
    now = iter([0.0, 5.0, 7.0])
    stream = Terminal()
    shown = Display(24, stream=stream, headlines={"tokens": "reply tokens", "other": "other"})
    monkeypatch.setattr(display.time, "perf_counter", lambda: next(now))
    row = {"reward/total": 0.5, "tokens": 10.25, "other": 1, "num_tokens": 50.1}
    shown.start()
    shown.update(2, row)
    shown.update(3, row)
    assert shown._progress is not None
    assert shown._progress.tasks[0].description == expected
    assert len(expected) + 23 <= columns
    monkeypatch.undo()
    shown.close()


def test_a_run_without_a_known_end_has_no_eta() -> None:
    stream = io.StringIO()
    shown = Display(None, stream=stream)
    shown.start(7)
    shown.update(7, {"env/all/reward/total": 0.5})
    assert re.fullmatch(r"step 7  reward 0\.5  [\d.]+ GiB\n", stream.getvalue())


def test_the_row_after_the_last_step_does_not_count_as_a_step() -> None:
    stream = io.StringIO()
    shown = Display(3, stream=stream)
    shown.start()
    shown.update(3, {"test/nll": 0.5})
    assert stream.getvalue().startswith("step 3/3  test/nll 0.5")


def test_extra_headlines() -> None:
    stream = io.StringIO()
    shown = Display(3, stream=stream, headlines={"exact_match/seen": "seen"})
    shown.start()
    shown.update(0, {"exact_match/seen": 0.25})
    assert "  seen 0.25  " in stream.getvalue()


def test_on_a_terminal_the_line_is_redrawn_and_evaluations_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    shown = Display(3, stream=stream)
    shown.start()
    shown.update(0, {"loss": 1.0})
    shown.log_line("a remark")
    shown.update(1, {"loss": 0.5, "test/nll": 0.75})
    shown.close()
    shown.close()
    text = stream.getvalue()
    assert "\x1b[2K" in text  # redrawn
    assert "a remark\n" in text
    assert re.search(r"step 1/3  loss 0.5  test/nll 0.75 .*GiB\n", text)
    # the cursor is visible while the run lives, so that a killed one leaves it visible
    assert text.index("\x1b[?25h") < text.index("a remark")


def test_table_and_none() -> None:
    stream = io.StringIO()
    shown = Display(3, "table", stream)
    shown.start()
    shown.update(0, {"some/metric": 0.12345})
    assert "some/metric" in stream.getvalue() and "0.1235" in stream.getvalue()
    stream = io.StringIO()
    shown = Display(3, "none", stream)
    shown.start()
    shown.update(0, {"loss": 1.0})
    assert stream.getvalue() == ""


def test_an_unknown_mode_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"display='fancy'.*auto, live, plain"):
        Display(3, "fancy")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (4.2e-5, "4.2e-05"),
        (9999, "9999"),
        (12345, "12.3k"),
        (4560000, "4.56M"),
        (-3.1e-18, "0"),
        (float("nan"), "nan"),
        (True, "True"),
        ("x", "x"),
    ],
)
def test_short(value: object, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("used", [True, False])
def test_memory_of_a_gpu_in_use_or_of_the_process(
    monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: used,
        max_memory_allocated=lambda: 3 * 2**30,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    text = display.memory()
    assert text == "3.0 GiB GPU" if used else re.fullmatch(r"\d+\.\d\d GiB", text)


def test_duration() -> None:
    assert [duration(s) for s in (7, 754.4, 12301)] == ["0:07", "12:34", "3:25:01"]
