"""Programs in processes of their own that start at once: forks of one that imported the libraries.

A new interpreter takes seconds to import torch and transformers. Here one process imports them once
and then forks for each program, which runs as `python -m module words` or `python file.py words`
would: in its own process, with its own directory, environment, signals and exit code. It does not
see variables that are read when a library is imported (HF_HOME, OMP_NUM_THREADS), and all programs
hash strings with the same seed; a test that is about those starts an interpreter.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

# what recipes import; not the recipes themselves, which runpy would find already imported
PRELOADED = (
    "tinker_cookbook.supervised.data",
    "tinker_cookbook.supervised.train",
    "tinker_cookbook.rl.train",
    "tinker_cookbook.service.local",
    "tinker_cookbook.cli_utils",
    "tinker_cookbook.renderers.loss_mask_view",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.auto.tokenization_auto",
)
MAX_REQUEST = 1 << 20  # bytes: an environment and a command line
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


class Program:
    """A running program, with the interface of subprocess.Popen as far as tests need it."""

    def __init__(self, reply: socket.socket, stdin: int, stdout: int, stderr: int) -> None:
        self.stdin: IO[str] = os.fdopen(stdin, "w")
        self.stdout: IO[str] = os.fdopen(stdout)
        self.stderr: IO[str] = os.fdopen(stderr)
        self.returncode: int | None = None
        self._reply = reply
        self.pid = int.from_bytes(self._reply.recv(4), "big")

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._reply], [], [], 0)[0]:
            self._read_status()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("program", timeout or 0)
            self._read_status()
        assert self.returncode is not None
        return self.returncode

    def _read_status(self) -> None:
        status = self._reply.recv(4)
        assert len(status) == 4, "the process that starts programs has ended"
        self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
        self._reply.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, typed: str = "", timeout: float | None = None) -> tuple[str, str]:
        """All of stdout and stderr that nobody has read, after the end."""
        found: dict[str, str] = {}

        def read(name: str, file: IO[str]) -> None:
            with file:
                found[name] = file.read()

        readers = [
            threading.Thread(target=read, args=(name, file), daemon=True)
            for name, file in (("out", self.stdout), ("err", self.stderr))
            if not file.closed
        ]
        for reader in readers:
            reader.start()
        try:
            with self.stdin:
                self.stdin.write(typed)
        except BrokenPipeError:
            pass
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return found.get("out", ""), found.get("err", "")


class Programs:
    """Starts programs; the process that they are forked from begins with the first of them."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def start(
        self,
        program: str,
        *words: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                number = theirs.fileno()
                subprocess.Popen(
                    [sys.executable, __file__, str(number)],
                    pass_fds=[number], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip
        request = {
            "program": program,
            "words": words,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        (in_read, in_write), (out_read, out_write), (err_read, err_write) = (
            os.pipe() for _ in range(3)
        )
        ours, theirs = socket.socketpair()
        given = [in_read, out_write, err_write, theirs.detach()]
        socket.send_fds(self._socket, [json.dumps(request).encode()], given)
        for number in given:
            os.close(number)
        return Program(ours, in_write, out_read, err_read)

    def run(
        self,
        name: str,
        *words: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        typed: str = "",
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        program = self.start(name, *words, cwd=cwd, env=env)
        try:
            out, err = program.communicate(typed, timeout)
        except BaseException:
            program.kill()
            raise
        return subprocess.CompletedProcess([name, *words], program.wait(), out, err)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


# -- in the process that forks


def serve(requests: socket.socket) -> dict | None:
    """Forks for every request. In the fork: what is to be run; in the first process, when nobody
    asks any more: None."""
    for number in (signal.SIGINT, signal.SIGCHLD):  # Ctrl-C is for pytest; the dead need no burial
        signal.signal(number, signal.SIG_IGN)
    while True:
        content, fds, *_ = socket.recv_fds(requests, MAX_REQUEST, 4)
        if not content:
            return None
        if os.fork() == 0:
            requests.close()
            return watched(json.loads(content), fds)
        for number in fds:
            os.close(number)


def watched(request: dict, fds: list[int]) -> dict:
    """Forks again: returns in the program; the first fork waits for its end and reports it."""
    *standard, reply = fds
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        for number in standard:
            os.close(number)
        os.write(reply, pid.to_bytes(4, "big"))
        os.write(reply, os.waitpid(pid, 0)[1].to_bytes(4, "big"))
        os._exit(0)
    os.close(reply)
    for number, target in zip(standard, (0, 1, 2)):
        os.dup2(number, target)
        os.close(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return request


def become(request: dict) -> None:
    """Runs a module as `python -m` would, a file as `python` would."""
    program = request["program"]
    is_file = program.endswith(".py")
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    added = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [os.path.dirname(program) if is_file else request["cwd"], *added]
    sys.argv = [program, *request["words"]]
    if is_file:
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's directory
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a fork then does not copy what it only looks through
    if (wanted := serve(channel)) is not None:
        become(wanted)
