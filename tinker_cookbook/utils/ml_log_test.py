import asyncio
import json
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import chz
import numpy as np
import pytest

from tinker_cookbook.utils import code_state, ml_log


@chz.chz
class Config:
    rate: float = 0.1
    name: str = "x"


def test_metrics_lines_have_the_step_first_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ml_log.setup_logging(tmp_path, config=Config()) as logger:
        logger.log_metrics({"loss": np.float32(0.5), "step_time": 1, "bad": math.nan}, step=0)
        # on disk before close
        line = (tmp_path / "metrics.jsonl").read_text()
        assert line == '{"step": 0, "loss": 0.5, "step_time": 1, "bad": "NaN"}\n'
        logger.log_metrics({"loss": 0.25}, step=1)
    rows = ml_log.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1]
    assert math.isnan(rows[0]["bad"])
    assert capsys.readouterr().out == "step 0  loss 0.5  step_time 1  bad nan\nstep 1  loss 0.25\n"


def test_config_and_code_are_written(tmp_path: Path) -> None:
    ml_log.setup_logging(tmp_path, config=Config()).close()
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "class": f"{__name__}:Config",
        "rate": 0.1,
        "name": "x",
    }
    assert (tmp_path / "code.diff").read_text().startswith("# ")


def test_code_of_another_state_goes_beside_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for state in ("one", "one", "two", "two"):
        monkeypatch.setattr(ml_log, "code_state", lambda state=state: state)
        ml_log.write_code_state(tmp_path)
    found = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert found == {"code.diff": "one", "code-2.diff": "two"}


def test_python_logging_goes_to_the_file_until_close(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.getLogger().handlers)
    logger = ml_log.setup_logging(tmp_path, show_metrics=False)
    logging.getLogger("some.module").info("an info")
    logging.getLogger("some.module").warning("a warning")
    logger.close()
    logging.getLogger("some.module").warning("too late")
    text = (tmp_path / "logs.log").read_text()
    assert "INFO some.module: an info" in text and "a warning" in text and "too late" not in text
    assert "WARNING: a warning" in capsys.readouterr().err
    assert logging.getLogger().handlers == before


def test_loggers_alone_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    together = ml_log.MultiplexLogger(
        [ml_log.JsonLogger(tmp_path / "a"), ml_log.PrettyPrintLogger()]
    )
    with together, ml_log.JsonLogger(str(tmp_path / "b")) as alone:
        for logger in (together, alone):
            logger.log_hparams(Config(rate=0.5))
            logger.log_metrics({"loss": np.float32(0.5)})
            logger.log_metrics({"right": np.int64(3), "tag": None}, step=4)
    rows = [{"loss": 0.5}, {"step": 4, "right": 3, "tag": None}]
    for name in ("a", "b"):
        assert ml_log.read_metrics(tmp_path / name) == rows
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config == ml_log.dump_config(Config(rate=0.5)) and config["rate"] == 0.5
        assert (tmp_path / name / "code.diff").read_text().startswith("# ")
    assert capsys.readouterr().out == "metrics  loss 0.5\nstep 4  right 3  tag None\n"


def test_only_loggers_that_show_tables_read_the_samples(tmp_path: Path) -> None:
    class Tables(ml_log.JsonLogger):
        def log_samples(self, name: str, rows: Iterable[ml_log.Sample], step: int) -> None:
            seen.append((name, list(rows), step))

    seen: list[tuple] = []
    consumed: list[int] = []

    def rows() -> Iterator[ml_log.Sample]:
        consumed.append(1)
        yield {"prompt": "p", "reply": "r"}

    with ml_log.setup_logging(tmp_path) as logger:
        logger.log_samples("test", rows(), step=3)
        assert not consumed
        logger.loggers.append(Tables(tmp_path))
        logger.log_samples("test", rows(), step=3)
    assert seen == [("test", [{"prompt": "p", "reply": "r"}], 3)]


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (KeyboardInterrupt(), 255), (asyncio.CancelledError(), 255), (OSError(), 1)],
)
def test_loggers_learn_how_the_program_ends(error: BaseException | None, code: int) -> None:
    class Log(ml_log.PrettyPrintLogger):
        def set_exit_code(self, code: int) -> None:
            events.append(code)

        def close(self) -> None:
            events.append("closed")

    events: list[object] = []
    with suppress(BaseException), ml_log.MultiplexLogger([Log()]):
        if error is not None:
            raise error
    assert events == [code, "closed"]


def test_a_logger_that_cannot_start_leaves_no_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(logging.getLogger().handlers)
    monkeypatch.setattr(ml_log, "WandbLogger", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ml_log.setup_logging(tmp_path, wandb_project="p")
    assert logging.getLogger().handlers == before


def test_python_logging_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    level = root.level
    try:
        assert ml_log.configure_logging_module(str(tmp_path / "x.log"), logging.WARNING) is root
        for each in (root.info, root.warning):
            each("words")
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
    assert (tmp_path / "x.log").read_text().endswith("WARNING root: words\n")
    assert (tmp_path / "x.log").read_text().count("words") == 1
    assert capsys.readouterr().err == "WARNING: words\n"


def test_code_state_of_a_checkout_and_of_none(tmp_path: Path) -> None:
    assert "no git checkout" in code_state.code_state(tmp_path)
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "x"]):
        (tmp_path / "a.py").write_text("one\n")
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        assert code_state._git(tmp_path, *identity, *command) is not None
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "new.py").write_text("three\n")
    state = code_state.code_state(tmp_path)
    assert state.startswith("# commit ") and "# untracked: new.py\n" in state
    assert "-one\n+two\n" in state
