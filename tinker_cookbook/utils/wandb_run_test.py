import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.programs import Programs
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import jsonl, ml_log, wandb_run
from tinker_cookbook.utils.wandb_run import WandbRun, is_reachable

# Three starts of a run: one that fails after a row that is not in metrics.jsonl any more when the
# next one begins, one that is interrupted, and one that finishes.
STARTS = """
import sys
from pathlib import Path
from tinker_cookbook.utils import jsonl, ml_log

directory, stop = Path(sys.argv[1]), sys.argv[2]
rows = len(ml_log.read_metrics(directory))
try:
    with ml_log.setup_logging(directory, "project", config={"stop": stop}) as logger:
        for step in range(rows, rows + 2):
            if step % 2 == 0:
                row = {"prompt": "p" * 9000, "reply": f"reply {step}", "reward": step / 2}
                logger.log_samples("test", [row] * 20, step)
            logger.log_metrics({"loss": 1 / (step + 1), "text": "x", "none": None}, step)
        if stop == "error":
            raise ValueError
        if stop == "interrupt":
            raise KeyboardInterrupt
except (ValueError, KeyboardInterrupt):
    pass
jsonl.keep_lines(directory / "metrics.jsonl", lambda row: stop != "error" or row["step"] < 1)
"""


def start(directory: Path, stop: str, home: Path, **environment: str) -> str:
    """Run STARTS in a process of its own, because wandb changes the interpreter; what it prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", STARTS, str(directory), stop],
        env={**inherited, "HOME": str(home), "NETRC": str(home / "netrc"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert not done.stderr
    return done.stdout


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log of protobuf messages after 7 bytes of header.

    The log is blocks of 32 KiB with chunks of checksum, length, kind and data. Kind: 1 a whole
    record, 2, 3 and 4 the first, a middle and the last part of one. No chunk header is split.
    """
    from wandb.proto import wandb_internal_pb2

    data, position, record = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position < len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            yield message
            record = b""


def history(file: Path) -> list[dict[str, Any]]:
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        for record in records(file)
        if (items := record.history.item)
    ]


class Resumed(NamedTuple):
    directory: Path
    home: Path
    printed: list[str]  # by each start
    codes: list[int]  # by which each start says how it ended

    @property
    def file(self) -> Path:
        (file,) = (self.directory / "wandb").glob("offline-run-*/*.wandb")
        return file


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """A run of three starts. The user sets the mode of the second one."""
    pytest.importorskip("wandb")
    directory = tmp_path_factory.mktemp("runs") / "my run"
    run = Resumed(directory, tmp_path_factory.mktemp("home"), [], [])
    for stop in ("error", "interrupt", ""):
        mode = {"WANDB_MODE": "offline"} if stop == "interrupt" else {}
        run.printed.append(start(directory, stop, run.home, **mode))
        run.codes.extend(
            record.exit.exit_code for record in records(run.file) if record.HasField("exit")
        )
    return run


def test_three_starts_are_one_offline_run(resumed: Resumed) -> None:
    directory, file = resumed.directory, resumed.file
    assert file.parent.name.startswith("offline-run-")
    runs = [record.run for record in records(file) if record.HasField("run")]
    assert {(run.run_id, run.display_name, run.project) for run in runs} == {
        ((directory / ".wandb-id").read_text(), "my run", "project")
    }
    rows = history(file)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [1 / (step + 1) for step in range(5)]
    assert not any({"text", "none", "step"} & row.keys() for row in rows)
    assert resumed.codes == [1, 255, 0]
    configs = [
        {update.key: update.value_json for update in record.config.update}
        for record in records(file)
        if record.HasField("config")
    ]
    assert {"stop": '""'} in configs
    assert (file.parent / "files/code.diff").read_text() == (directory / "code.diff").read_text()
    assert not (file.parent / "files/code.diff").is_symlink()
    assert list(resumed.home.iterdir()) == []


def test_each_start_prints_one_line(resumed: Resumed) -> None:
    upload = f"python -m wandb sync '{resumed.directory}/wandb'"
    reasons = (", no key (run `wandb login`)", "", ", no key (run `wandb login`)")
    for text, reason in zip(resumed.printed, reasons):
        line, *rows = text.splitlines()
        assert line.startswith(f"wandb: offline{reason}; to upload: ") and line.endswith(upload)
        assert len(rows) == 2 and "wandb" not in "".join(rows)


def test_tables_of_every_start_are_readable(resumed: Resumed) -> None:
    file = resumed.file
    tables = {
        row["_step"]: json.loads((file.parent / "files" / row["samples/test/path"]).read_text())
        for row in history(file)
        if "samples/test/path" in row
    }
    assert sorted(tables) == [0, 2, 4]
    for step, table in tables.items():
        assert table["columns"] == ["prompt", "reply", "reward"]
        assert len(table["data"]) == wandb_run.MAX_SAMPLES
        prompt, reply, reward = table["data"][0]
        assert 4000 < len(prompt) < 4010 and (reply, reward) == (f"reply {step}", step / 2)


def test_without_network_a_key_is_not_enough(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    printed = start(tmp_path / "a", "", tmp_path, WANDB_API_KEY="a" * 40, WANDB_BASE_URL=url)
    assert printed.startswith(f"wandb: offline, {url} does not answer; to upload: ")
    assert time.monotonic() - began < 60


def test_disabled_by_the_user(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    printed = start(tmp_path / "a", "", tmp_path, WANDB_MODE="disabled")
    assert printed.startswith("step 0  loss 1 ")
    assert not list((tmp_path / "a/wandb").glob("*run*"))


def test_without_the_key_wandb_is_never_imported(programs: Programs, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import sys
import recipes.rl_basic, recipes.sl_basic, recipes.sl_loop
from tinker_cookbook.utils import ml_log
with ml_log.setup_logging(sys.argv[1], config={}) as logger:
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_samples("test", [{"prompt": "p"}], 0)
assert "wandb" not in sys.modules
""")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = programs.run(str(program), str(tmp_path / "run"), env=environment)
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------- with a fake of the package


class FakeRun:
    """Records calls; `broken` names a method that raises."""

    url, disabled = "https://wandb.test/p/runs/1", False

    def __init__(self, directory: Path, step: int = 0, broken: str = "") -> None:
        self.step, self.broken, self.calls = step, broken, []
        self.dir = str(directory)
        self.config = types.SimpleNamespace(update=lambda *_, **__: None)

    def log(self, row: dict[str, Any], step: int | None) -> None:
        if self.broken == "log":
            raise BrokenPipeError("the service is gone\nand so on")
        self.calls.append((row, step))

    def finish(self, exit_code: int) -> None:
        if self.broken == "finish":
            raise TimeoutError
        self.calls.append(("finish", exit_code))


class CommError(Exception):
    pass


class AuthenticationError(CommError):
    pass


def fake_wandb(
    monkeypatch: pytest.MonkeyPatch, run: FakeRun, error: Exception | None = None
) -> list[dict[str, Any]]:
    """Put a fake wandb with a key and a network in place; returns the arguments of `init`, which
    raises `error` unless it is called with mode="offline"."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        calls.append(arguments)
        if error is not None and arguments["mode"] != "offline":
            raise error
        return run

    settings = types.SimpleNamespace(mode="online", base_url="https://wandb.test")
    package = types.SimpleNamespace(
        Settings=dict,
        setup=lambda **_: types.SimpleNamespace(settings=settings),
        login=lambda **_: True,
        init=init,
        errors=types.SimpleNamespace(
            AuthenticationError=AuthenticationError, CommError=CommError, UsageError=ValueError
        ),
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(wandb_run, "is_reachable", lambda url: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


def test_an_online_run_gets_the_rows_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun(tmp_path, step=2)
    calls = fake_wandb(monkeypatch, run)
    for step in range(4):
        jsonl.append_line(tmp_path / "metrics.jsonl", {"step": step, "loss": step})
    with ml_log.setup_logging(tmp_path, "p", show_metrics=False) as logger:
        logger.log_metrics({"loss": 4}, step=4)
    assert run.calls == [({"loss": step}, step) for step in (2, 3, 4)] + [("finish", 0)]
    (arguments,) = calls
    assert (arguments["resume"], arguments["mode"]) == ("allow", "online")
    assert arguments["id"] == (tmp_path / ".wandb-id").read_text()
    assert capsys.readouterr().out == f"wandb: {run.url}\n"


def test_a_network_that_fails_at_the_start_makes_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_wandb(monkeypatch, FakeRun(tmp_path), CommError("no answer"))
    WandbRun(tmp_path, "p", None, [])
    assert [(each["mode"], each["resume"]) for each in calls] == [
        ("online", "allow"),
        ("offline", None),
    ]


def test_a_refused_key_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(monkeypatch, FakeRun(tmp_path), AuthenticationError("wrong key"))
    with pytest.raises(ConfigurationError, match=r"\(wrong key\); run `wandb login` or set WANDB_"):
        WandbRun(tmp_path, "p", None, [])


def test_missing_wandb_names_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigurationError, match=r"wandb_project='p'.* -m pip install.*\[wandb\]"):
        ml_log.setup_logging(tmp_path, wandb_project="p")


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_an_error_later_is_reported_once_and_raises_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    fake_wandb(monkeypatch, FakeRun(tmp_path, broken=broken))
    with ml_log.setup_logging(tmp_path, "p", show_metrics=False) as logger:
        for step in range(3):
            logger.log_metrics({"loss": 1}, step=step)
            logger.log_samples("test", [], step)
    (message,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert message.startswith(
        "wandb: BrokenPipeError: the service is gone; the run goes on without it"
        if broken == "log"
        else "wandb: the upload is not complete; later: "
    )
    assert len(ml_log.read_metrics(tmp_path)) == 3


# ----------------------------------------------------------------------------- is_reachable


def test_a_server_that_refuses_is_reachable_and_one_that_is_silent_is_not() -> None:
    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert is_reachable(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        assert not is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        assert time.monotonic() - began < 2
    assert not is_reachable("no url")
