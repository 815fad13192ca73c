import asyncio
import json
import sys
import types
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import tinker
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from tinker_cookbook import checkpoint_utils
from tinker_cookbook.checkpoint_utils import (
    CheckpointManager,
    CheckpointRecord,
    append_record,
    get_last_checkpoint,
    get_last_resumable_checkpoint,
    load_checkpoints_file,
    resolve_renderer_name_from_checkpoint_or_default,
    resolve_renderer_name_from_checkpoint_or_default_async,
    save_checkpoint,
    save_checkpoint_async,
    start_training_client,
    submit_checkpoint,
)
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError


class FakeClient:
    """Keeps the requests in the order of their submission; saves end when `release` is called."""

    def __init__(self, hold: bool = False) -> None:
        self.requests: list[tuple] = []
        self.deleted: list[str] = []
        self.expiring: list[tuple[str, int | None]] = []
        self._hold = hold
        self._held: list[tuple[Future, str]] = []

    def save_state(self, name: str, ttl_seconds: int | None = None) -> AwaitableConcurrentFuture:
        return self._save("weights", name, ttl_seconds)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> AwaitableConcurrentFuture:
        return self._save("sampler_weights", name, ttl_seconds)

    def delete_checkpoint_from_tinker_path(self, path: str) -> AwaitableConcurrentFuture:
        self.deleted.append(path)
        return self._done(None)

    def set_checkpoint_ttl_from_tinker_path(
        self, path: str, ttl_seconds: int | None
    ) -> AwaitableConcurrentFuture:
        self.expiring.append((path, ttl_seconds))
        return self._done(None)

    def release(self) -> None:
        for future, path in self._held:
            future.set_result(SimpleNamespace(path=path))

    def _save(self, kind: str, name: str, ttl_seconds: int | None) -> AwaitableConcurrentFuture:
        self.requests.append((kind, name, ttl_seconds))
        future: Future = Future()
        self._held.append((future, f"tinker://run/{kind}/{name}"))
        if not self._hold:
            self.release()
            self._held.clear()
        return AwaitableConcurrentFuture(future)

    def _done(self, value: Any) -> AwaitableConcurrentFuture:
        future: Future = Future()
        future.set_result(value)
        return AwaitableConcurrentFuture(future)


def lines(directory: Path) -> list[dict]:
    text = (directory / "checkpoints.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_one_line_and_reads_back(tmp_path: Path) -> None:
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


def test_the_last_record_with_the_key_wins(tmp_path: Path) -> None:
    assert get_last_checkpoint(tmp_path) is None
    append_record(tmp_path, CheckpointRecord("a", batch=1, state_path="s1"))
    append_record(tmp_path, CheckpointRecord("b", batch=2, state_path="s2", sampler_path="p2"))
    append_record(tmp_path, CheckpointRecord("c", batch=3, sampler_path="p3"))
    last, sampler = get_last_checkpoint(tmp_path), get_last_checkpoint(tmp_path, "sampler_path")
    assert last and last.name == "b" and sampler and sampler.name == "c"
    assert get_last_checkpoint(tmp_path, "no_such_key") is None


def test_a_half_written_last_record_does_not_count_and_is_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append_record(tmp_path, CheckpointRecord("a", batch=1, state_path="s1"))
    with open(tmp_path / "checkpoints.jsonl", "a") as file:
        file.write('{"name": "b", "batch": 2, "state_pa')
    last = get_last_checkpoint(tmp_path)
    assert last and last.name == "a" and "partial line" in caplog.text
    append_record(tmp_path, CheckpointRecord("c", batch=3, state_path="s3"))
    assert [line["name"] for line in lines(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("bad", ["nonsense", '{"batch": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, bad: str) -> None:
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
async def test_save_checkpoint_saves_then_records(
    tmp_path: Path, kind: str, kinds: list[str]
) -> None:
    client = FakeClient()
    paths = save_checkpoint(client, "x", tmp_path, {"batch": 3, "epoch": 1}, kind, 7200)
    assert client.requests == [(k, "x", 7200) for k in kinds]
    assert list(paths.values()) == [f"tinker://run/{k}/x" for k in kinds]
    assert lines(tmp_path) == [{"name": "x", "batch": 3, "epoch": 1, **paths}]
    again = await save_checkpoint_async(FakeClient(), "x", tmp_path, {"batch": 3}, kind)
    assert again == paths and len(lines(tmp_path)) == 2


def test_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"kind='all'.*state, sampler, both"):
        submit_checkpoint(FakeClient(), "x", {}, "all")  # type: ignore[arg-type]


async def test_nothing_is_recorded_before_the_checkpoint_exists(tmp_path: Path) -> None:
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


async def test_a_failed_save_is_not_recorded(tmp_path: Path) -> None:
    client = FakeClient(hold=True)
    manager = CheckpointManager(tmp_path, save_every=1)
    pending = manager.submit(client, 1)
    assert pending is not None
    client._held[0][0].set_exception(CheckpointError("disk full"))
    with pytest.raises(CheckpointError, match="disk full"):
        await manager.finish(pending)
    assert load_checkpoints_file(tmp_path) == []


async def test_what_is_saved_when(tmp_path: Path) -> None:
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
    assert client.requests == [  # none of them ends by itself
        ("weights", "000002", None),
        ("weights", "000004", None),
        ("sampler_weights", "000004", None),
        ("weights", "000006", None),
        ("weights", "final", None),
        ("sampler_weights", "final", None),
    ]
    assert client.deleted == ["tinker://run/weights/000002", "tinker://run/weights/000006"]
    assert client.expiring == [
        ("tinker://run/weights/000004", 7 * 24 * 3600),
        ("tinker://run/sampler_weights/000004", 7 * 24 * 3600),
    ]
    records = load_checkpoints_file(tmp_path)
    assert [(r.batch, r.final, r.extra) for r in records] == [
        (2, None, {"rolling": True}),
        (4, None, {}),
        (6, None, {"rolling": True}),
        (8, True, {}),
    ]


async def test_a_resumed_manager_deletes_the_rolling_checkpoint_of_its_predecessor(
    tmp_path: Path,
) -> None:
    append_record(
        tmp_path, CheckpointRecord("000002", batch=2, state_path="old", extra={"rolling": True})
    )
    client = FakeClient()
    manager = CheckpointManager(tmp_path, rolling_save_every=2, rest_client=client)
    pending = manager.submit(client, 4)
    assert pending is not None
    await manager.finish(pending)
    assert client.deleted == ["old"]


async def test_a_rolling_checkpoint_that_cannot_be_deleted_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeClient):
        def delete_checkpoint_from_tinker_path(self, path: str) -> NoReturn:
            raise ConnectionError("no route")

    client = Broken()
    manager = CheckpointManager(tmp_path, rolling_save_every=1, rest_client=client)
    for step in (1, 2):
        pending = manager.submit(client, step)
        assert pending is not None
        await manager.finish(pending)
    assert len(load_checkpoints_file(tmp_path)) == 2
    assert "tinker://run/weights/000001 stays where it is: no route" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"), [("save_every", -1), ("rolling_save_every", -1), ("ttl_seconds", 0)]
)
def test_numbers_that_cannot_work_are_refused(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{key}={value} must be"):
        CheckpointManager(tmp_path, **{key: value})


async def saved(manager: CheckpointManager, client: FakeClient, step: int, **state: Any) -> None:
    pending = manager.submit(client, step, **state)
    assert pending is not None
    await manager.finish(pending)


async def test_without_a_rest_client_or_a_ttl_nothing_ends(tmp_path: Path) -> None:
    client = FakeClient()
    for directory, rest, ttl in (("a", None, 3600), ("b", client, None)):
        (tmp_path / directory).mkdir()
        manager = CheckpointManager(
            tmp_path / directory, save_every=1, ttl_seconds=ttl, rest_client=rest
        )
        await saved(manager, client, 1)
        await saved(manager, client, 2)
    assert (client.deleted, client.expiring) == ([], [])
    assert {ttl for _, _, ttl in client.requests} == {None}


async def test_a_crash_between_record_and_replacement_leaves_nothing_behind(tmp_path: Path) -> None:
    for step in (2, 4):  # 2 was to be deleted when 4 was recorded
        append_record(
            tmp_path,
            CheckpointRecord(f"{step}", batch=step, state_path=f"{step}", extra={"rolling": True}),
        )
    client = FakeClient()
    manager = CheckpointManager(tmp_path, rolling_save_every=2, rest_client=client)
    await saved(manager, client, 6)
    await saved(manager, client, 8)
    assert client.deleted == ["2", "4", "tinker://run/weights/000006"]


async def test_a_final_checkpoint_is_kept_when_its_run_goes_on(tmp_path: Path) -> None:
    client = FakeClient()
    await saved(CheckpointManager(tmp_path, rest_client=client), client, 2, final=True)
    manager = CheckpointManager(tmp_path, save_every=1, rest_client=client)
    await saved(manager, client, 3)
    assert (client.deleted, client.expiring) == ([], [])


# ---- which checkpoint a run can be resumed from


class Answers:
    """A RestClient with an answer, or an error, for each path."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[str] = []
        self._answers = answers

    def get_weights_info_by_tinker_path(self, path: str) -> AwaitableConcurrentFuture:
        self.asked.append(path)
        future: Future = Future()
        answer = self._answers[path]
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return AwaitableConcurrentFuture(future)


def not_found() -> Exception:
    import httpx

    response = httpx.Response(404, request=httpx.Request("POST", "http://server"))
    return tinker.NotFoundError("no such checkpoint", response=response, body=None)


def no_connection() -> Exception:
    import httpx

    return tinker.APIConnectionError(request=httpx.Request("POST", "http://server"))


def three_records(directory: Path) -> None:
    for step in (1, 2, 3):
        append_record(directory, CheckpointRecord(f"{step}", batch=step, state_path=f"s{step}"))
    append_record(directory, CheckpointRecord("4", batch=4, sampler_path="only to sample"))


@pytest.mark.parametrize("gone", [CheckpointError("it expired"), not_found()])
def test_records_whose_state_is_gone_are_skipped(tmp_path: Path, gone: Exception) -> None:
    three_records(tmp_path)
    rest = Answers(s3=gone, s2=gone, s1="info")
    record, lost = get_last_resumable_checkpoint(tmp_path, rest)
    assert record and record.name == "1" and rest.asked == ["s3", "s2", "s1"]
    assert lost == [f"skipping checkpoint 3: {gone}", f"skipping checkpoint 2: {gone}"]


def test_a_broken_connection_skips_nothing(tmp_path: Path) -> None:
    three_records(tmp_path)
    rest = Answers(s3=no_connection(), s2="info")
    with pytest.raises(tinker.APIConnectionError):
        get_last_resumable_checkpoint(tmp_path, rest)
    assert rest.asked == ["s3"]


def test_a_run_that_lost_everything_is_not_started_over(tmp_path: Path) -> None:
    three_records(tmp_path)
    gone = CheckpointError("no run r in the store /s")
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run .* no run r in the st"):
        get_last_resumable_checkpoint(tmp_path, Answers(s3=gone, s2=gone, s1=gone))


def test_without_records_or_without_a_rest_client_nobody_is_asked(tmp_path: Path) -> None:
    assert get_last_resumable_checkpoint(tmp_path, Answers()) == (None, [])
    three_records(tmp_path)
    record, lost = get_last_resumable_checkpoint(tmp_path)
    assert record and record.name == "3" and lost == []


# ---- where training starts


class Service:
    """Keeps what was asked for; every checkpoint is of rank 32, without the unembedding."""

    def __init__(self, **info: Any) -> None:
        fields = {"lora_rank": 32, "train_attn": True, "train_mlp": True, "train_unembed": False}
        self.rest = Answers(**{"tinker://r/weights/x": SimpleNamespace(**{**fields, **info})})
        self.created: list[tuple] = []

    def create_rest_client(self) -> Answers:
        return self.rest

    async def create_training_client_from_state(self, path: str, **keys: Any) -> None:
        self.created.append((path, keys["base_model"], keys["user_metadata"]))

    async def create_lora_training_client(self, **keys: Any) -> None:
        self.created.append((keys["rank"], keys["train_unembed"]))


def a_config(**keys: Any) -> SimpleNamespace:
    defaults = {"train_attn": True, "train_mlp": True, "train_unembed": False, "lora_rank": 32}
    names = {"model_name": "m", "renderer_name": "r", "seed": 0}
    return SimpleNamespace(
        **{**defaults, **names, "load_checkpoint_path": "tinker://r/weights/x", **keys}
    )


async def test_a_checkpoint_of_the_same_adapter_is_loaded() -> None:
    service = Service()
    await start_training_client(service, a_config(), None)
    assert service.created == [("tinker://r/weights/x", "m", {"renderer_name": "r"})]


async def test_a_checkpoint_of_another_adapter_is_refused() -> None:
    service = Service()
    with pytest.raises(ConfigurationError) as e:
        await start_training_client(service, a_config(lora_rank=4, train_unembed=True), None)
    assert str(e.value) == (
        "lora_rank=4 train_unembed=True does not fit load_checkpoint_path=tinker://r/weights/x, "
        "which was trained with lora_rank=32 train_unembed=False; "
        "set lora_rank=32 train_unembed=False"
    )
    assert service.created == []


async def test_what_a_service_does_not_tell_is_not_compared() -> None:
    service = Service(train_unembed=None, train_attn=None, train_mlp=None)
    await start_training_client(service, a_config(train_unembed=True), None)
    assert len(service.created) == 1


async def test_without_a_checkpoint_nothing_is_compared() -> None:
    service = Service()
    await start_training_client(service, a_config(load_checkpoint_path=None, lora_rank=4), None)
    assert service.created == [(4, False)] and service.rest.asked == []


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict | None]:
    """Stands for the service and the table of models; the dict holds user_metadata by path."""
    metadata: dict[str, dict | None] = {}

    class Rest:
        def get_training_run_by_tinker_path(self, path: str) -> AwaitableConcurrentFuture:
            future: Future = Future()
            future.set_result(SimpleNamespace(user_metadata=metadata[path]))
            return AwaitableConcurrentFuture(future)

    monkeypatch.setattr(checkpoint_utils, "_rest_client", lambda base_url: Rest())
    models = types.ModuleType("tinker_cookbook.models")
    models.recommended_renderer = lambda name: "recommended"  # type: ignore[attr-defined]
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
async def test_renderer_name(
    service: dict[str, dict[str, str] | None],
    caplog: pytest.LogCaptureFixture,
    explicit: str | None,
    metadata: dict[str, str] | None,
    expected: str,
) -> None:
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


def test_renderer_name_without_a_checkpoint(service: dict[str, dict[str, str] | None]) -> None:
    name = resolve_renderer_name_from_checkpoint_or_default(
        model_name="m", explicit_renderer_name=None, load_checkpoint_path=None, base_url=None
    )
    assert name == "recommended"


def test_a_value_of_a_record_by_its_key() -> None:
    record = CheckpointRecord("000004", batch=0, final=None, state_path="p", extra={"cursor": 3})
    assert record.has("state_path") and record.has("batch") and record.has("cursor")
    assert not record.has("final") and not record.has("sampler_path") and not record.has("absent")
    assert (record.get("batch"), record.get("cursor"), record.get("name")) == (0, 3, "000004")
    assert record.get("final") is None and record.get("sampler_path", "none") == "none"
