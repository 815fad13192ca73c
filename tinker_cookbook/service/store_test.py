"""Crash, contention and corruption tests of the store, in real processes that are killed."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.service import store as store_module
from tinker_cookbook.service.store import CheckpointInfo, Store, parse_path

RUN = "abc:train:0"


def writes(content: bytes) -> Callable[[Path], None]:
    """A `write` that leaves two files, one of them in a folder."""

    def write(directory: Path) -> None:
        (directory / "adapter.bin").write_bytes(content)
        (directory / "optimizer").mkdir()
        (directory / "optimizer" / "state.bin").write_bytes(content * 2)

    return write


def content(info: CheckpointInfo) -> bytes:
    first = (info.directory / "adapter.bin").read_bytes()
    assert (info.directory / "optimizer" / "state.bin").read_bytes() == first * 2
    return first


def data_entries(store: Store, run_id: str = RUN) -> list[str]:
    return sorted(os.listdir(store.root / "runs" / run_id / "data"))


def start(action: Callable[[], object]) -> int:
    """Run `action` in a forked process; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def finish(child: int) -> int:
    """Exit status: 0 done, 1 failed (traceback on stderr), -9 killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(action: Callable[[], object]) -> int:
    return finish(start(action))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def run(store: Store) -> Store:
    """A store with an open run."""
    store.create_run(RUN, "nano", 8, user_metadata={"renderer_name": "qwen3_instruct"})
    return store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A function that moves the store's clock forward by some seconds."""
    shift = 0.0

    def forward(seconds: float) -> None:
        nonlocal shift
        shift += seconds

    def shifted() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=shift)

    monkeypatch.setattr(store_module, "_now", shifted)
    yield forward


# -- what is written is what is read


def test_write_then_open(run: Store) -> None:
    path = run.write_checkpoint(
        RUN,
        "weights",
        "000020",
        writes(b"one"),
        user_metadata={"step": "20"},
        extra={"seq": 7, 3: [1, 2]},
    )
    assert path == f"tinker://{RUN}/weights/000020"
    info = Store(run.root).open_checkpoint(path)
    assert content(info) == b"one"
    manifest = info.manifest
    assert manifest["base_model"] == "nano" and manifest["rank"] == 8
    assert manifest["train_mlp"] is manifest["train_attn"] is manifest["train_unembed"] is True
    assert (manifest["kind"], manifest["name"]) == ("weights", "000020")
    assert manifest["size_bytes"] == 9
    assert manifest["files"]["adapter.bin"]["size_bytes"] == 3
    assert manifest["files"]["optimizer/state.bin"] == {
        "size_bytes": 6,
        "sha256": hashlib.sha256(b"oneone").hexdigest(),
    }
    assert manifest["user_metadata"] == {"step": "20"}
    assert manifest["extra"] == {"seq": 7, "3": [1, 2]}
    assert manifest["public"] is False and info.expires_at is None
    assert abs(datetime.now(UTC) - info.time) < timedelta(seconds=10)
    # The way a person looks at it: a folder under the checkpoint's name.
    by_name = run.root / "runs" / RUN / "weights" / "000020"
    assert (by_name / "adapter.bin").read_bytes() == b"one"
    assert json.loads((by_name / "manifest.json").read_text()) == manifest


def test_kinds_have_names_of_their_own(run: Store) -> None:
    for kind in store_module.KINDS:
        run.write_checkpoint(RUN, kind, "final", writes(kind.encode()))
    for kind in store_module.KINDS:
        assert content(run.open_checkpoint(f"tinker://{RUN}/{kind}/final")) == kind.encode()


def test_store_can_be_moved(run: Store, tmp_path: Path) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))
    os.rename(run.root, tmp_path / "elsewhere")
    assert content(Store(tmp_path / "elsewhere").open_checkpoint(path)) == b"one"


def test_copy_that_followed_the_links_can_be_read(run: Store, tmp_path: Path) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-rL", run.root, copy], check=True)
    assert not (copy / "runs" / RUN / "weights" / "a").is_symlink()
    assert content(Store(copy).open_checkpoint(path)) == b"one"


# -- names and paths


@pytest.mark.parametrize(
    "name", ["", "a/b", ".hidden", "..", "x" * 201, "é" * 199, "a\nb", "a\0b", "\udc80", 3]
)
def test_bad_names_are_refused(run: Store, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint name .* use 1 to 200"):
        run.write_checkpoint(RUN, "weights", name, writes(b"x"))
    with pytest.raises(CheckpointError, match=r"run id .* use 1 to 200"):
        run.create_run(name, "nano", 8)


def test_longest_names_work(run: Store) -> None:
    name = "x" * 200
    assert content(
        run.open_checkpoint(run.write_checkpoint(RUN, "weights", name, writes(b"x")))
    ) == (b"x")


@pytest.mark.parametrize(
    "path",
    [
        "hub/model",
        "tinker://",
        "tinker://run",
        "tinker://run/weights",
        "tinker://run/weights/",
        "tinker:///weights/a",
        "tinker://run/weights/a/b",
        "tinker://run/adapters/a",
        "tinker://../weights/a",
        "tinker://run/weights/..",
        None,
    ],
)
def test_bad_paths_are_refused(run: Store, path: str) -> None:
    with pytest.raises(CheckpointError):
        parse_path(path)
    with pytest.raises(CheckpointError):
        run.delete(path)


def test_path_round_trip() -> None:
    path = f"tinker://{RUN}/sampler_weights/final"
    assert parse_path(path) == (RUN, "sampler_weights", "final")
    assert str(parse_path(path)) == path


def test_unknown_kind(run: Store) -> None:
    with pytest.raises(CheckpointError, match=r"'adapters' is not a kind.*sampler_weights"):
        run.write_checkpoint(RUN, "adapters", "a", writes(b"x"))


def test_unknown_run_names_the_nearest(run: Store) -> None:
    with pytest.raises(CheckpointError, match=f"no run abc:train:1 .*{RUN}"):
        run.find("tinker://abc:train:1/weights/a")
    with pytest.raises(CheckpointError, match=f"no run zzz .*{RUN}"):
        run.list_checkpoints("zzz")


def test_unknown_checkpoint_lists_those_there_are(run: Store) -> None:
    with pytest.raises(CheckpointError, match=f"{RUN} has no weights/c; it has no checkpoints"):
        run.find(f"tinker://{RUN}/weights/c")
    run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    run.write_checkpoint(RUN, "sampler_weights", "b", writes(b"x"))
    with pytest.raises(CheckpointError, match=r"has no weights/b; .*sampler_weights/b, weights/a"):
        run.find(f"tinker://{RUN}/weights/b")
    with pytest.raises(CheckpointError, match=r"has no weights/b; .*sampler_weights/b, weights/a"):
        run.delete(f"tinker://{RUN}/weights/b")


def test_empty_store(store: Store) -> None:
    assert store.list_runs() == [] and store.list_all() == []
    assert not store.root.exists()  # looking makes nothing
    with pytest.raises(CheckpointError, match="it has no runs yet"):
        store.get_run(RUN)


# -- overwriting


def test_taken_name_is_refused_before_the_work(run: Store) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))

    def never(directory: Path) -> None:
        raise AssertionError("called for a name that is taken")

    with pytest.raises(CheckpointError, match="exists; set overwrite=True"):
        run.write_checkpoint(RUN, "weights", "a", never)
    assert content(run.open_checkpoint(path)) == b"one"


def test_name_taken_while_writing(run: Store) -> None:
    def slow(directory: Path) -> None:
        run.write_checkpoint(RUN, "weights", "a", writes(b"first"))
        writes(b"second")(directory)

    with pytest.raises(CheckpointError, match="exists; set overwrite=True"):
        run.write_checkpoint(RUN, "weights", "a", slow)
    assert content(run.open_checkpoint(f"tinker://{RUN}/weights/a")) == b"first"
    assert len(data_entries(run)) == 2  # one directory and its lock: nothing of the loser is left


def test_overwrite_replaces_everything(run: Store) -> None:
    run.write_checkpoint(
        RUN, "weights", "a", writes(b"one"), user_metadata={"k": "1"}, ttl_seconds=60
    )
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"two"), overwrite=True)
    info = run.open_checkpoint(path)
    assert content(info) == b"two"
    assert info.manifest["user_metadata"] is None and info.expires_at is None
    assert len(data_entries(run)) == 2


def test_overwrite_is_atomic_for_readers(run: Store) -> None:
    """A reader in a loop always sees one complete version."""
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"0" * 4000))
    stop, seen, errors = threading.Event(), set(), []

    def read() -> None:
        reader = Store(run.root)
        while not stop.is_set():
            try:
                with reader.open_checkpoint(path) as info:
                    seen.add(content(info)[:1])
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(60):
            run.write_checkpoint(
                RUN, "weights", "a", writes(b"%d" % (i % 10) * 4000), overwrite=True
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == [] and len(seen) > 1
    run.sweep()
    assert len(data_entries(run)) == 2


def test_replaced_between_link_and_manifest(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is removed after a reader resolved the link: it looks again, reports no damage."""
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))
    real = store_module._read_json

    def late(file: Path) -> dict:
        monkeypatch.setattr(store_module, "_read_json", real)
        run.write_checkpoint(RUN, "weights", "a", writes(b"two"), overwrite=True)
        return real(file)

    reader = Store(run.root)
    monkeypatch.setattr(store_module, "_read_json", late)
    assert content(reader.open_checkpoint(path)) == b"two"


def test_reader_keeps_what_it_opened(run: Store, clock: Callable[[float], None]) -> None:
    """Overwriting, deleting and expiring remove the name, but not the files of an open reader."""
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))
    first = Store(run.root).open_checkpoint(path)
    run.write_checkpoint(RUN, "weights", "a", writes(b"two"), overwrite=True)
    second = Store(run.root).open_checkpoint(path)
    run.delete(path)
    run.write_checkpoint(RUN, "weights", "a", writes(b"three"), ttl_seconds=60)
    third = Store(run.root).open_checkpoint(path)
    clock(61)
    run.sweep()
    assert [content(info) for info in (first, second, third)] == [b"one", b"two", b"three"]
    assert run.list_all() == []
    first.close()
    del second
    third.close()
    run.sweep()
    assert data_entries(run) == []


# -- runs and their locks


def test_run_facts(run: Store) -> None:
    info = run.get_run(RUN)
    assert (info.base_model, info.rank, info.train_unembed) == ("nano", 8, True)
    assert info.user_metadata == {"renderer_name": "qwen3_instruct"}
    assert not info.corrupted


def test_runs_are_listed_by_activity(store: Store) -> None:
    handles = [store.create_run(f"s:train:{i}", "nano", 8) for i in range(4)]
    for i, handle in enumerate(handles):
        os.utime(handle.directory / "lock", (1000 + i, 1000 + i))
    assert [r.run_id for r in store.list_runs(limit=2, offset=1)] == ["s:train:2", "s:train:1"]
    assert store.get_run("s:train:0").last_request_time == datetime.fromtimestamp(1000, UTC)
    handles[0].touch()
    assert store.run_ids()[0] == "s:train:0"
    store.write_checkpoint("s:train:1", "weights", "a", writes(b"x"))
    assert store.run_ids()[0] == "s:train:1"
    with pytest.raises(ConfigurationError, match="limit=-1"):
        store.list_runs(limit=-1)


def test_sweeping_is_no_activity(run: Store, clock: Callable[[float], None]) -> None:
    run.write_checkpoint(RUN, "weights", "a", writes(b"x"), ttl_seconds=10)
    os.utime(run.root / "runs" / RUN / "lock", (1000, 1000))
    clock(11)
    Store(run.root)
    assert data_entries(run) == []
    assert run.get_run(RUN).last_request_time == datetime.fromtimestamp(1000, UTC)


def test_damaged_run_is_listed_as_corrupted(run: Store) -> None:
    file = run.root / "runs" / RUN / "run.json"
    file.write_text(file.read_text().replace("nano", "nine"))
    assert [(r.run_id, r.corrupted) for r in run.list_runs()] == [(RUN, True)]
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        run.get_run(RUN)


def test_run_is_written_by_one_store_only(run: Store) -> None:
    other = Store(run.root)
    with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on "):
        other.create_run(RUN, "nano", 8)
    with pytest.raises(CheckpointError, match="not open for writing; call create_run"):
        other.write_checkpoint(RUN, "weights", "a", writes(b"x"))


def test_closed_run_cannot_be_written_and_can_be_taken(run: Store) -> None:
    other = Store(run.root)
    run._handles[RUN].close()
    with pytest.raises(CheckpointError, match="not open for writing"):
        run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    with other.create_run(RUN, "nano", 8):
        other.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    with pytest.raises(CheckpointError, match="exists with rank=8, not 16"):
        run.create_run(RUN, "nano", 16)
    run.create_run(RUN, "nano", 8)  # the refusal did not keep the lock


def test_lock_between_processes_ends_with_the_process(store: Store) -> None:
    """A process holds its run exactly until it is killed."""
    program = (
        "import sys, time; from tinker_cookbook.service.store import Store\n"
        "handle = Store(sys.argv[1]).create_run(sys.argv[2], 'nano', 8)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, store.root, RUN], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"in use by process {process.pid} on "):
            store.create_run(RUN, "nano", 8)
        process.kill()
        process.wait()
    store.create_run(RUN, "nano", 8)
    store.write_checkpoint(RUN, "weights", "a", writes(b"x"))


def test_forked_child_does_not_keep_the_lock(run: Store) -> None:
    """A worker that outlives its killed parent must not block the run; nor may it write it."""
    ready, go = os.pipe(), os.pipe()

    def work() -> None:
        with pytest.raises(CheckpointError, match="not open for writing"):
            run.write_checkpoint(RUN, "weights", "child", writes(b"x"))
        os.write(ready[1], b"x")
        os.read(go[0], 1)

    child = start(work)
    try:
        os.read(ready[0], 1)
        run._handles[RUN].close()
        run.create_run(RUN, "nano", 8)  # while the child still lives
    finally:
        os.write(go[1], b"x")
        assert finish(child) == 0


def test_processes_write_one_store(store: Store) -> None:
    """Concurrent runs under one root: nothing is lost or mixed up."""

    def work(run_id: str) -> None:
        mine = Store(store.root)
        mine.create_run(run_id, "nano", 8)
        for i in range(15):
            mine.write_checkpoint(
                run_id, "weights", f"{i:06d}", writes(b"%s %d" % (run_id.encode(), i))
            )
            mine.sweep()
            mine.list_all()

    runs = [f"s{i}:train:0" for i in range(3)]
    children = [start(lambda run_id=run_id: work(run_id)) for run_id in runs]
    assert [finish(child) for child in children] == [0, 0, 0]
    assert len(store.list_all()) == 45
    for run_id in runs:
        infos = store.list_checkpoints(run_id)
        assert [info.path.name for info in infos] == [f"{i:06d}" for i in reversed(range(15))]
        for i, info in enumerate(reversed(infos)):
            store.verify(info)
            assert content(info) == b"%s %d" % (run_id.encode(), i)
        assert len(data_entries(store, run_id)) == 30


def test_threads_write_one_run(run: Store) -> None:
    threads = [
        threading.Thread(
            target=run.write_checkpoint, args=(RUN, "weights", str(i), writes(b"%d" % i))
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert content(run.open_checkpoint(f"tinker://{RUN}/weights/{i}")) == b"%d" % i


# -- crashes


def killing(function: Callable, at: int, counter: list[int]) -> Callable:
    """`function`, but the call that makes the counter reach `at` kills the process instead."""

    def call(*args: Any, **kwargs: Any) -> Any:
        counter[0] += 1
        if counter[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


# Every way in which the store changes the disk.
SYSTEM_CALLS = [
    "open",
    "mkdir",
    "fsync",
    "replace",
    "symlink",
    "unlink",
    "rmdir",
    "utime",
    "pwrite",
]


def crash_at(call: int, action: Callable[[], object]) -> bool:
    """Run `action` in a process that is killed before its call-th change; False: it got through."""

    def child() -> None:
        counter = [0]
        for name in SYSTEM_CALLS:
            setattr(os, name, killing(getattr(os, name), call, counter))
        action()

    status = in_child(child)
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("old", [None, b"old"])
def test_killed_at_every_step_of_a_write(store: Store, old: bytes | None) -> None:
    """Old, new or (if there was none) none; never damage, and no leftovers afterwards."""
    path = f"tinker://{RUN}/weights/a"
    seen = []
    for call in range(1, 1000):
        with store.create_run(RUN, "nano", 8):
            for info in store.list_all():
                store.delete(str(info.path))
            if old is not None:
                store.write_checkpoint(RUN, "weights", "a", writes(old))

        def write() -> None:
            own = Store(store.root)
            own.create_run(RUN, "nano", 8)
            own.write_checkpoint(RUN, "weights", "a", writes(b"new"), overwrite=True)

        killed = crash_at(call, write)
        after = Store(store.root)
        try:
            info = after.open_checkpoint(path)
            found = content(info)
            info.close()
        except CheckpointError as error:
            assert "has no weights/a" in str(error)
            found = None
        seen.append(found)
        assert len(data_entries(after)) == (0 if found is None else 2)
        for kind in store_module.KINDS:
            assert [n for n in os.listdir(store.root / "runs" / RUN / kind) if n != "a"] == []
        if not killed:
            break
    changes = [a != b for a, b in itertools.pairwise(seen)]
    assert seen[0] == old and seen[-1] == b"new" and sum(changes) == 1  # there is one such moment
    assert len(seen) > 25  # the calls were really counted
    assert seen[:-1].count(b"new") > 2  # killed after it, too


def test_killed_inside_the_callback(run: Store) -> None:
    run._handles[RUN].close()

    def die(directory: Path) -> None:
        writes(b"new")(directory)
        os.kill(os.getpid(), signal.SIGKILL)

    def write() -> None:
        own = Store(run.root)
        own.create_run(RUN, "nano", 8)
        own.write_checkpoint(RUN, "weights", "a", die)

    assert in_child(write) == -signal.SIGKILL
    assert len(data_entries(run)) == 2
    assert run.list_all() == []
    with run.create_run(RUN, "nano", 8):
        assert data_entries(run) == []
        run.write_checkpoint(RUN, "weights", "a", writes(b"again"))


def test_killed_at_every_step_of_a_change(run: Store) -> None:
    """set_ttl and delete: the state before or after, never an unreadable manifest."""
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    for call in range(1, 100):
        killed = crash_at(call, lambda: Store(run.root).set_ttl(path, 3600))
        expires = run.open_checkpoint(path).expires_at
        assert killed or expires is not None
        if not killed:
            break
    assert call > 5
    for call in range(1, 100):
        if not os.path.lexists(run._link(parse_path(path))):
            run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
        killed = crash_at(call, lambda: Store(run.root).delete(path))
        after = Store(run.root)
        assert len(data_entries(after)) == 2 * len(after.list_all())
        if not killed:
            break
    assert call > 5 and run.list_all() == []


def test_killed_at_every_step_of_create_run(store: Store) -> None:
    for call in range(1, 100):
        run_id = f"s:train:{call}"
        killed = crash_at(call, lambda i=run_id: Store(store.root).create_run(i, "nano", 8))
        assert all(not run.corrupted for run in store.list_runs())
        store.create_run(run_id, "nano", 8)
        store.write_checkpoint(run_id, "weights", "a", writes(b"x"))
        if not killed:
            break
    assert call > 5


def test_sweep_leaves_a_writer_at_work_alone(run: Store) -> None:
    def sweep_meanwhile(directory: Path) -> None:
        (directory / "adapter.bin").write_bytes(b"x")
        old = time.time() - 7 * 24 * 3600
        os.utime(directory, (old, old))  # a slow writer is no dead one
        Store(run.root)
        assert (directory / "adapter.bin").exists()

    path = run.write_checkpoint(RUN, "weights", "a", sweep_meanwhile)
    run.open_checkpoint(path)


def test_leftover_directory_without_a_lock_file_is_removed(run: Store) -> None:
    (run.root / "runs" / RUN / "data" / "20200101T000000-00000000").mkdir()
    Store(run.root)
    assert data_entries(run) == []


# -- what goes wrong in the callback, and on the disk


def test_error_of_the_callback_is_passed_on(run: Store) -> None:
    class Odd(Exception):
        pass

    def fail(directory: Path) -> None:
        writes(b"x")(directory)
        raise Odd("bug")

    with pytest.raises(Odd, match="bug"):
        run.write_checkpoint(RUN, "weights", "a", fail)
    assert data_entries(run) == [] and run.list_all() == []


def test_callback_may_not_write_links_or_the_manifest(run: Store) -> None:
    for write in (
        lambda d: (d / "link").symlink_to("/etc/hostname"),
        lambda d: (d / "manifest.json").write_text("{}"),
        lambda d: os.mkfifo(d / "pipe"),
    ):
        with pytest.raises(CheckpointError, match="a checkpoint cannot contain"):
            run.write_checkpoint(RUN, "weights", "a", write)
    assert data_entries(run) == []


def test_full_disk(run: Store) -> None:
    """The kernel's own 'no space left', from /dev/full."""
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))

    def fill(directory: Path) -> None:
        writes(b"two")(directory)
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(CheckpointError) as caught:
        run.write_checkpoint(RUN, "weights", "a", fill, overwrite=True)
    message = str(caught.value)
    assert "No space left on device" in message and str(run.root / "runs" / RUN) in message
    assert "bytes free" in message and "TINKER_COOKBOOK_STORE_DIR" in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, OSError)
    assert content(run.open_checkpoint(path)) == b"one" and len(data_entries(run)) == 2


def test_safetensors_that_does_not_fit(run: Store) -> None:
    """safetensors wraps a failed write in its own exception; the message must be the same."""
    run._handles[RUN].close()

    def write() -> None:
        own = Store(run.root)
        own.create_run(RUN, "nano", 8)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        arrays = {"a": np.zeros(100_000, np.float32)}
        with pytest.raises(CheckpointError, match=r"File too large.*bytes free"):
            own.write_checkpoint(
                RUN, "weights", "a", lambda d: save_file(arrays, d / "adapter.safetensors")
            )

    assert in_child(write) == 0
    assert data_entries(run) == []


@pytest.mark.parametrize("call", ["fsync", "symlink", "replace", "mkdir"])
def test_disk_error_at_our_own_calls(
    run: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CheckpointError, match=r"cannot write .*Permission denied.*bytes free"):
            run.write_checkpoint(RUN, "weights", "a", writes(b"two"), overwrite=True)
    assert content(run.open_checkpoint(path)) == b"one"
    assert len(data_entries(run)) == 2


def test_root_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(CheckpointError, match=r"cannot create run .*Not a directory"):
        store.create_run(RUN, "nano", 8)


def test_read_only_store_can_be_read(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's store: nothing can be written, but everything can be opened."""
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"one"))
    run.write_checkpoint(RUN, "weights", "b", writes(b"old"), ttl_seconds=0.001)
    real = os.open

    def only_read(file: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(file, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", only_read)
    reader = Store(run.root)
    assert content(reader.open_checkpoint(path)) == b"one"
    assert [info.path.name for info in reader.list_all()] == ["a"]
    with pytest.raises(CheckpointError, match=r"cannot change .*Read-only file system"):
        reader.set_ttl(path, 60)


# -- damage


@pytest.mark.parametrize("file", ["adapter.bin", "optimizer/state.bin"])
def test_changed_byte_is_found(run: Store, file: str) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"0123456789"))
    target = run.find(path).directory / file
    before = target.stat()
    raw = bytearray(target.read_bytes())
    raw[5] ^= 1
    target.write_bytes(raw)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match=f"damaged: .*weights/a/{file}: sha256"):
        run.open_checkpoint(path)


def test_short_and_missing_files_are_found(run: Store) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"0123456789"))
    target = run.find(path).directory / "adapter.bin"
    target.write_bytes(b"012345678")
    with pytest.raises(CheckpointError, match=r"adapter\.bin: size_bytes is 9, not 10"):
        run.open_checkpoint(path)
    target.unlink()
    with pytest.raises(CheckpointError, match=r"damaged: .*adapter\.bin.*No such file"):
        run.open_checkpoint(path)


def test_damaged_manifest_is_found(run: Store) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    run.write_checkpoint(RUN, "weights", "b", writes(b"x"))
    manifest = run.find(path).directory / "manifest.json"
    good = manifest.read_text()
    for bad in (good.replace('"rank": 8', '"rank": 9'), good[:-5], "[]", "\xff"):
        manifest.write_text(bad)
        with pytest.raises(CheckpointError, match=r"weights/a is damaged: .*manifest\.json"):
            run.find(path)
        assert [info.path.name for info in run.list_all()] == ["b"]
    with pytest.raises(CheckpointError, match="overwrite=True"):
        run.write_checkpoint(RUN, "weights", "a", writes(b"y"))
    run.write_checkpoint(RUN, "weights", "a", writes(b"y"), overwrite=True)
    assert content(run.open_checkpoint(path)) == b"y"
    run.find(path).directory.joinpath("manifest.json").unlink()
    run.delete(path)
    assert len(data_entries(run)) == 2


# -- expiry, publishing, listing


def test_expired_is_hidden_then_swept(run: Store, clock: Callable[[float], None]) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"), ttl_seconds=100)
    kept = run.write_checkpoint(RUN, "weights", "b", writes(b"x"))
    clock(99)
    run.open_checkpoint(path)
    clock(2)
    with pytest.raises(CheckpointError, match="expired at"):
        run.find(path)
    assert [str(info.path) for info in run.list_all()] == [kept]
    run.write_checkpoint(RUN, "weights", "a", writes(b"y"))  # its name is free again
    assert content(run.open_checkpoint(path)) == b"y"
    assert len(data_entries(run)) == 4


def test_long_run_sweeps_its_own_rolling_checkpoints(
    run: Store, clock: Callable[[float], None]
) -> None:
    for i in range(5):
        run.write_checkpoint(RUN, "weights", f"{i}", writes(b"x"), ttl_seconds=100)
        clock(60)
    assert [info.path.name for info in run.list_all()] == ["4"]
    assert len(data_entries(run)) == 4  # "3" expires only after "4" was written


def test_set_ttl_counts_from_now(run: Store, clock: Callable[[float], None]) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"), ttl_seconds=100)
    clock(90)
    run.set_ttl(path, 100)
    clock(90)
    run.open_checkpoint(path)
    run.set_ttl(path, None)
    clock(1e6)
    assert run.open_checkpoint(path).expires_at is None


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e15, "60"])
def test_bad_ttl(run: Store, ttl: float) -> None:
    with pytest.raises(CheckpointError, match=r"ttl_seconds=.* above 0, or None"):
        run.write_checkpoint(RUN, "weights", "a", writes(b"x"), ttl_seconds=ttl)
    assert run.list_all() == []


def test_publish_and_ttl_keep_each_other(run: Store) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    run.set_public(path, True)
    run.set_ttl(path, 60)
    info = run.open_checkpoint(path)
    assert info.manifest["public"] is True and info.expires_at is not None
    run.set_public(path, False)
    assert run.open_checkpoint(path).manifest["public"] is False


def test_changes_from_two_sides_are_not_lost(run: Store) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"))

    def publish() -> None:
        for i in range(40):
            Store(run.root).set_public(path, i % 2 == 1)

    child = start(publish)
    for i in range(40):
        run.set_ttl(path, 1000 + i)
    assert finish(child) == 0
    info = run.open_checkpoint(path)
    assert info.manifest["public"] is True and info.expires_at is not None


def test_lists_are_newest_first_and_paged(store: Store) -> None:
    for run_id in ("s:train:0", "s:train:1"):
        store.create_run(run_id, "nano", 8)
    for i in range(4):
        store.write_checkpoint(f"s:train:{i % 2}", "weights", f"{i}", writes(b"x"))
    assert [info.path.name for info in store.list_all()] == ["3", "2", "1", "0"]
    assert [info.path.name for info in store.list_all(limit=2, offset=1)] == ["2", "1"]
    assert [info.path.name for info in store.list_checkpoints("s:train:0")] == ["2", "0"]
    assert store.list_checkpoints("s:train:0", limit=0) == []


def test_delete(run: Store) -> None:
    path = run.write_checkpoint(RUN, "weights", "a", writes(b"x"))
    kept = run.write_checkpoint(RUN, "sampler_weights", "a", writes(b"x"))
    Store(run.root).delete(path)
    assert [str(info.path) for info in run.list_all()] == [kept]
    assert len(data_entries(run)) == 2
    with pytest.raises(CheckpointError, match="has no weights/a"):
        run.delete(path)


# ---- links to checkpoints from elsewhere


def test_a_link_leads_to_a_checkpoint_and_goes_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.create_run(RUN, "nano", 8)
    for name in ("kept", "deleted", "brief", "again"):
        store.write_checkpoint(RUN, "weights", name, writes(name.encode()))
    at = tmp_path / "run" / "weights"
    paths = {name: f"tinker://{RUN}/weights/{name}" for name in ("kept", "deleted", "brief")}
    for name, path in paths.items():
        store.link(path, at / name)
        assert not os.path.isabs((at / name).readlink())
        assert (at / name / "manifest.json").is_file()
    store.link(paths["deleted"], at / "other")
    store.link(paths["kept"], at / "other")  # in its place
    store.delete(paths["deleted"])
    store.set_ttl(paths["brief"], 0.05)
    time.sleep(0.1)
    store.sweep()
    assert {each.name for each in at.iterdir()} == {"kept", "other"}
    assert all(each.exists() for each in at.iterdir())
    (at / "kept").unlink()
    (at / "kept").write_text("the user's own")
    with pytest.raises(OSError):
        store.link(paths["kept"], at / "kept")
    store.delete(paths["kept"])
    assert (at / "kept").read_text() == "the user's own"
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    assert not Store(tmp_path / "elsewhere").find(f"tinker://{RUN}/weights/again").expired
