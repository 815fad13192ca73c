import asyncio
import json
import sys
import types
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from tinker_cookbook import checkpoint_utils
from tinker_cookbook.checkpoint_utils import (
    CheckpointManager,
    CheckpointRecord,
    append_record,
    get_last_checkpoint,
    load_checkpoints_file,
    resolve_renderer_name_from_checkpoint_or_default,
    resolve_renderer_name_from_checkpoint_or_default_async,
    save_checkpoint,
    save_checkpoint_async,
    submit_checkpoint,
)
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError


class FakeClient:
    """Keeps the requests in the order of their submission; saves end when `release` is called."""

    def __init__(self, hold: bool = False) -> None:
        self.requests: list[tuple] = []
        self.deleted: list[str] = []
        self._hold = hold
        self._held: list[tuple[Future, str]] = []

    def save_state(self, name: str, ttl_seconds: int | None = None):
        return self._save("weights", name, ttl_seconds)

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None):
        return self._save("sampler_weights", name, ttl_seconds)

    def delete_checkpoint_from_tinker_path(self, path: str):
        self.deleted.append(path)
        return self._done(None)

    def release(self) -> None:
        for future, path in self._held:
            future.set_result(SimpleNamespace(path=path))

    def _save(self, kind: str, name: str, ttl_seconds: int | None):
        self.requests.append((kind, name, ttl_seconds))
        future: Future = Future()
        self._held.append((future, f"tinker://run/{kind}/{name}"))
        if not self._hold:
            self.release()
            self._held.clear()
        return AwaitableConcurrentFuture(future)

    def _done(self, value):
        future: Future = Future()
        future.set_result(value)
        return AwaitableConcurrentFuture(future)


def lines(directory: Path) -> list[dict]:
    text = (directory / "checkpoints.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_one_line_and_reads_back(tmp_path: Path):
    record = CheckpointRecord(
        "000020", batch=20, epoch=0, state_path="tinker://r/weights/000020", extra={"seen": [1]}
    )
    append_record(tmp_path, record)
    assert lines(tmp_path) == [
        {
            "name": "000020",
            "batch": 20,
            "epoch": 0,
            "state_path": "tinker://r/weights/000020",
            "seen": [1],
        }
    ]
    assert load_checkpoints_file(tmp_path) == [record]


def test_the_last_record_with_the_key_wins(tmp_path: Path):
    assert get_last_checkpoint(tmp_path) is None
    append_record(tmp_path, CheckpointRecord("a", batch=1, state_path="s1"))
    append_record(tmp_path, CheckpointRecord("b", batch=2, state_path="s2", sampler_path="p2"))
    append_record(tmp_path, CheckpointRecord("c", batch=3, sampler_path="p3"))
    last, sampler = get_last_checkpoint(tmp_path), get_last_checkpoint(tmp_path, "sampler_path")
    assert last and last.name == "b" and sampler and sampler.name == "c"
    assert get_last_checkpoint(tmp_path, "no_such_key") is None


def test_a_half_written_last_record_does_not_count_and_is_repaired(tmp_path: Path, caplog):
    append_record(tmp_path, CheckpointRecord("a", batch=1, state_path="s1"))
    with open(tmp_path / "checkpoints.jsonl", "a") as file:
        file.write('{"name": "b", "batch": 2, "state_pa')
    last = get_last_checkpoint(tmp_path)
    assert last and last.name == "a" and "half-written" in caplog.text
    append_record(tmp_path, CheckpointRecord("c", batch=3, state_path="s3"))
    assert [line["name"] for line in lines(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("bad", ["nonsense", '{"batch": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, bad: str):
    (tmp_path / "checkpoints.jsonl").write_text(bad + '\n{"name": "a"}\n')
    with pytest.raises(CheckpointError, match=r"checkpoints\.jsonl is damaged"):
        load_checkpoints_file(tmp_path)


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        ("state", ["weights"]),
        ("sampler", ["sampler_weights"]),
        ("both", ["weights", "sampler_weights"]),
    ],
)
async def test_save_checkpoint_saves_then_records(tmp_path: Path, kind, kinds: list[str]):
    client = FakeClient()
    paths = save_checkpoint(client, "x", tmp_path, {"batch": 3, "epoch": 1}, kind, 7200)
    assert client.requests == [(k, "x", 7200) for k in kinds]
    assert list(paths.values()) == [f"tinker://run/{k}/x" for k in kinds]
    assert lines(tmp_path) == [{"name": "x", "batch": 3, "epoch": 1, **paths}]
    again = await save_checkpoint_async(FakeClient(), "x", tmp_path, {"batch": 3}, kind)
    assert again == paths and len(lines(tmp_path)) == 2


def test_an_unknown_kind(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"kind='all'.*state, sampler, both"):
        submit_checkpoint(FakeClient(), "x", {}, "all")  # type: ignore[arg-type]


async def test_nothing_is_recorded_before_the_checkpoint_exists(tmp_path: Path):
    client = FakeClient(hold=True)
    manager = CheckpointManager(tmp_path, save_every=2)
    pending = manager.submit(client, 2, epoch=0)
    assert pending is not None
    assert [request[0] for request in client.requests] == ["weights", "sampler_weights"]
    finish = asyncio.create_task(manager.finish(pending))
    await asyncio.sleep(0.05)
    assert load_checkpoints_file(tmp_path) == []
    client.release()
    record = await finish
    assert load_checkpoints_file(tmp_path) == [record]


async def test_a_failed_save_is_not_recorded(tmp_path: Path):
    client = FakeClient(hold=True)
    manager = CheckpointManager(tmp_path, save_every=1)
    pending = manager.submit(client, 1)
    assert pending is not None
    client._held[0][0].set_exception(CheckpointError("disk full"))
    with pytest.raises(CheckpointError, match="disk full"):
        await manager.finish(pending)
    assert load_checkpoints_file(tmp_path) == []


async def test_what_is_saved_when(tmp_path: Path):
    client = FakeClient()
    manager = CheckpointManager(
        tmp_path, save_every=4, rolling_save_every=2, total_steps=8, rest_client=client
    )
    for step in range(1, 9):
        pending = manager.submit(client, step, epoch=0)
        if pending is not None:
            await manager.finish(pending)
    final = manager.submit(client, 8, final=True)
    assert final is not None
    await manager.finish(final)
    hours, days = 3600, 24 * 3600
    assert client.requests == [
        ("weights", "000002", 2 * hours),
        ("weights", "000004", 7 * days),
        ("sampler_weights", "000004", 7 * days),
        ("weights", "000006", 2 * hours),
        ("weights", "final", None),
        ("sampler_weights", "final", None),
    ]
    assert client.deleted == ["tinker://run/weights/000002", "tinker://run/weights/000006"]
    records = load_checkpoints_file(tmp_path)
    assert [(r.batch, r.final, r.extra) for r in records] == [
        (2, None, {"rolling": True}),
        (4, None, {}),
        (6, None, {"rolling": True}),
        (8, True, {}),
    ]


async def test_a_resumed_manager_deletes_the_rolling_checkpoint_of_its_predecessor(tmp_path: Path):
    append_record(
        tmp_path, CheckpointRecord("000002", batch=2, state_path="old", extra={"rolling": True})
    )
    client = FakeClient()
    manager = CheckpointManager(tmp_path, rolling_save_every=2, rest_client=client)
    pending = manager.submit(client, 4)
    assert pending is not None
    await manager.finish(pending)
    assert client.deleted == ["old"]


async def test_a_rolling_checkpoint_that_cannot_be_deleted_stops_nobody(tmp_path: Path, caplog):
    class Broken(FakeClient):
        def delete_checkpoint_from_tinker_path(self, path: str):
            raise CheckpointError("gone")

    client = Broken()
    manager = CheckpointManager(tmp_path, rolling_save_every=1, rest_client=client)
    for step in (1, 2):
        pending = manager.submit(client, step)
        assert pending is not None
        await manager.finish(pending)
    assert len(load_checkpoints_file(tmp_path)) == 2
    assert "tinker://run/weights/000001 could not be deleted: gone" in caplog.text


def test_negative_intervals_are_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="rolling_save_every=-1"):
        CheckpointManager(tmp_path, rolling_save_every=-1)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict | None]:
    """Stands for the service and the table of models; the dict holds user_metadata by path."""
    metadata: dict[str, dict | None] = {}

    class Rest:
        def get_training_run_by_tinker_path(self, path: str):
            future: Future = Future()
            future.set_result(SimpleNamespace(user_metadata=metadata[path]))
            return AwaitableConcurrentFuture(future)

    monkeypatch.setattr(checkpoint_utils, "_rest_client", lambda base_url: Rest())
    models = types.ModuleType("tinker_cookbook.models")
    models.resolve = lambda name: SimpleNamespace(renderers=("recommended", "other"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinker_cookbook.models", models)
    monkeypatch.setattr("tinker_cookbook.models", models, raising=False)
    return metadata


@pytest.mark.parametrize(
    ("explicit", "metadata", "expected"),
    [
        (None, None, "recommended"),
        (None, {}, "recommended"),
        (None, {"renderer_name": "stored"}, "stored"),
        ("explicit", {"renderer_name": "stored"}, "explicit"),
        ("explicit", None, "explicit"),
    ],
)
async def test_renderer_name(service, caplog, explicit, metadata, expected: str):
    service["tinker://r/weights/x"] = metadata
    arguments = {
        "model_name": "m",
        "explicit_renderer_name": explicit,
        "load_checkpoint_path": "tinker://r/weights/x",
        "base_url": None,
    }
    assert resolve_renderer_name_from_checkpoint_or_default(**arguments) == expected
    warned = "was trained with stored" in caplog.text
    assert warned == (explicit is not None and metadata is not None)
    assert await resolve_renderer_name_from_checkpoint_or_default_async(**arguments) == expected


def test_renderer_name_without_a_checkpoint(service):
    name = resolve_renderer_name_from_checkpoint_or_default(
        model_name="m", explicit_renderer_name=None, load_checkpoint_path=None, base_url=None
    )
    assert name == "recommended"
