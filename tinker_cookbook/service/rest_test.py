"""LocalRestClient against the SDK's RestClient: same methods, same signatures, same answers."""

from __future__ import annotations

import inspect
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tinker import APIFuture, types
from tinker.lib.public_interfaces.rest_client import RestClient

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, TrainingError
from tinker_cookbook.service.rest import LocalRestClient
from tinker_cookbook.service.store import Store

RUN = "abc:train:0"
PUBLIC = [name for name in dir(RestClient) if not name.startswith("_")]
NEED_A_SERVER = {
    "assign_session_project",
    "assign_session_project_async",
    "copy_weights",
    "copy_weights_async",
    "export_session_trace",
    "export_session_trace_async",
    "get_audit_log",
    "get_audit_log_async",
    "get_billing_usage",
    "get_billing_usage_async",
    "get_current_checkpoint_storage_usage",
    "get_current_checkpoint_storage_usage_async",
    "get_sampler",
    "get_sampler_async",
    "get_server_capabilities",
    "get_session",
    "get_session_async",
    "list_sessions",
    "list_sessions_async",
    "search_sessions",
    "whoami",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs; the first has a training and a sampler checkpoint of each of two names."""
    store = Store(tmp_path)
    store.create_run("abc:train:1", "nano", 4)
    store.create_run(
        RUN, "nano", 8, train_unembed=False, user_metadata={"renderer_name": "qwen3_instruct"}
    )
    for name in ("000020", "final"):
        for kind in ("weights", "sampler_weights"):
            store.write_checkpoint(
                RUN,
                kind,
                name,
                lambda d: (d / "adapter.bin").write_bytes(b"12345") and None,
                user_metadata={"step": name},
                ttl_seconds=7200 if name == "000020" else None,
            )
    return store


@pytest.fixture
def rest(store: Store) -> LocalRestClient:
    return LocalRestClient(store)


def parameters(method: object) -> list[tuple[str, object, object]]:
    found = inspect.signature(method).parameters.values()  # type: ignore[arg-type]
    return [(p.name, p.kind, p.default) for p in found]


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures_match_the_sdk(name: str) -> None:
    assert parameters(getattr(LocalRestClient, name)) == parameters(getattr(RestClient, name))


def test_no_name_of_our_own() -> None:
    assert [name for name in dir(LocalRestClient) if name[0] != "_"] == PUBLIC


def test_what_needs_a_server_says_so_by_name(rest: LocalRestClient) -> None:
    refused = set()
    for name in PUBLIC:
        method = getattr(rest, name)
        given = {
            p.name: "x"
            for p in inspect.signature(getattr(LocalRestClient, name)).parameters.values()
            if p.default is p.empty and p.name != "self"
        }
        try:
            answer = method(**given)
        except TrainingError as error:
            assert f"RestClient.{name}() needs a server" in str(error)
            refused.add(name)
        else:
            if inspect.iscoroutine(answer):
                answer.close()
    assert refused == NEED_A_SERVER


def test_training_run(rest: LocalRestClient) -> None:
    future = rest.get_training_run(RUN)
    assert isinstance(future, APIFuture)
    run = future.result()
    assert isinstance(run, types.TrainingRun)
    assert (run.training_run_id, run.base_model, run.lora_rank) == (RUN, "nano", 8)
    assert run.is_lora and not run.corrupted
    assert run.user_metadata == {"renderer_name": "qwen3_instruct"}
    assert abs(run.last_request_time - datetime.now(UTC)) < timedelta(seconds=10)
    assert run.last_checkpoint is not None and run.last_sampler_checkpoint is not None
    assert run.last_checkpoint.tinker_path == f"tinker://{RUN}/weights/final"
    assert run.last_sampler_checkpoint.tinker_path == f"tinker://{RUN}/sampler_weights/final"
    assert rest.get_training_run_by_tinker_path(f"tinker://{RUN}/weights/x").result() == run
    empty = rest.get_training_run("abc:train:1").result()
    assert empty.last_checkpoint is None and empty.user_metadata is None


def test_list_training_runs(rest: LocalRestClient, store: Store) -> None:
    answer = rest.list_training_runs().result()
    assert isinstance(answer, types.TrainingRunsResponse)
    assert [run.training_run_id for run in answer.training_runs] == [RUN, "abc:train:1"]
    assert (answer.cursor.offset, answer.cursor.limit, answer.cursor.total_count) == (0, 20, 2)
    page = rest.list_training_runs(limit=1, offset=1).result()
    assert [run.training_run_id for run in page.training_runs] == ["abc:train:1"]
    assert page.cursor.total_count == 2
    (store.root / "runs" / RUN / "run.json").write_text("{")
    runs = {run.training_run_id: run for run in rest.list_training_runs().result().training_runs}
    assert runs[RUN].corrupted and not runs["abc:train:1"].corrupted
    with pytest.raises(TrainingError, match="project_id='p'"):
        rest.list_training_runs(project_id="p").result()
    with pytest.raises(ConfigurationError, match="offset=-1"):
        rest.list_training_runs(offset=-1).result()


def test_list_checkpoints(rest: LocalRestClient) -> None:
    answer = rest.list_checkpoints(RUN).result()
    assert isinstance(answer, types.CheckpointsListResponse)
    ids = [checkpoint.checkpoint_id for checkpoint in answer.checkpoints]
    assert ids == [f"{k}/{n}" for n in ("final", "000020") for k in ("sampler_weights", "weights")]
    final, old = answer.checkpoints[1], answer.checkpoints[3]
    assert isinstance(final, types.Checkpoint)
    assert (final.checkpoint_type, final.size_bytes, final.public) == ("training", 5, False)
    assert final.tinker_path == f"tinker://{RUN}/weights/final"
    assert final.user_metadata == {"step": "final"} and final.expires_at is None
    assert old.expires_at is not None
    assert timedelta(seconds=7100) < old.expires_at - old.time < timedelta(seconds=7200)
    everything = rest.list_user_checkpoints(limit=3, offset=2).result()
    assert everything.checkpoints == answer.checkpoints[2:]
    assert everything.cursor is not None and everything.cursor.total_count == 4
    assert rest.list_checkpoints("abc:train:1").result().checkpoints == []
    with pytest.raises(ConfigurationError, match="limit=-1"):
        rest.list_user_checkpoints(limit=-1).result()


def test_paths_are_the_sdks_paths(rest: LocalRestClient) -> None:
    """The SDK's own parser reads our paths, with the same id and type."""
    for checkpoint in rest.list_checkpoints(RUN).result().checkpoints:
        parsed = types.ParsedCheckpointTinkerPath.from_tinker_path(checkpoint.tinker_path)
        assert parsed.training_run_id == RUN
        assert parsed.checkpoint_id == checkpoint.checkpoint_id
        assert parsed.checkpoint_type == checkpoint.checkpoint_type


def test_weights_info(rest: LocalRestClient) -> None:
    info = rest.get_weights_info_by_tinker_path(f"tinker://{RUN}/weights/final").result()
    assert isinstance(info, types.WeightsInfoResponse)
    assert (info.base_model, info.is_lora, info.lora_rank) == ("nano", True, 8)
    assert (info.train_unembed, info.train_mlp, info.train_attn) == (False, True, True)


def test_changes(rest: LocalRestClient) -> None:
    path = f"tinker://{RUN}/weights/final"

    def listed() -> dict[str, types.Checkpoint]:
        return {c.checkpoint_id: c for c in rest.list_checkpoints(RUN).result().checkpoints}

    assert rest.publish_checkpoint_from_tinker_path(path).result() is None
    assert listed()["weights/final"].public
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not listed()["weights/final"].public
    rest.set_checkpoint_ttl_from_tinker_path(path, 60).result()
    expires = listed()["weights/final"].expires_at
    assert expires is not None and expires > datetime.now(UTC)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert listed()["weights/final"].expires_at is None
    rest.delete_checkpoint_from_tinker_path(path).result()
    rest.delete_checkpoint(RUN, "sampler_weights/000020").result()
    assert sorted(listed()) == ["sampler_weights/final", "weights/000020"]


def test_external_urls_can_be_fetched(rest: LocalRestClient) -> None:
    path = f"tinker://{RUN}/weights/final"
    answer = rest.get_external_weights_urls(path).result()
    assert isinstance(answer, types.ExternalWeightsUrlsResponse)
    assert list(answer.urls) == ["adapter.bin"] and answer.expires > datetime.now(UTC)
    with urllib.request.urlopen(answer.urls["adapter.bin"]) as stream:
        assert stream.read() == b"12345"


def test_errors_come_out_of_the_future(rest: LocalRestClient) -> None:
    path = f"tinker://{RUN}/weights/none"
    for call in (
        lambda: rest.get_training_run("zzz"),
        lambda: rest.list_checkpoints("zzz"),
        lambda: rest.get_weights_info_by_tinker_path(path),
        lambda: rest.get_training_run_by_tinker_path("hub/model"),
        lambda: rest.delete_checkpoint_from_tinker_path(path),
        lambda: rest.delete_checkpoint(RUN, "final"),
        lambda: rest.set_checkpoint_ttl_from_tinker_path(path, 60),
        lambda: rest.publish_checkpoint_from_tinker_path(path),
        lambda: rest.get_external_weights_urls(path),
    ):
        future = call()
        with pytest.raises(CheckpointError):
            future.result()
    with pytest.raises(TypeError):
        rest.list_checkpoints()  # a wrong call is the caller's mistake, and raised at once


async def test_await_and_async_names(rest: LocalRestClient) -> None:
    path = f"tinker://{RUN}/weights/final"
    run = rest.get_training_run(RUN).result()
    assert await rest.get_training_run(RUN) == run
    assert await rest.get_training_run_async(training_run_id=RUN) == run
    assert await rest.get_training_run_by_tinker_path_async(path) == run
    runs = rest.list_training_runs(limit=1).result()
    assert await rest.list_training_runs_async(limit=1) == runs
    listed = rest.list_checkpoints(RUN).result()
    assert await rest.list_checkpoints_async(RUN) == listed
    assert (await rest.list_user_checkpoints_async()).checkpoints == listed.checkpoints
    urls = await rest.get_external_weights_urls_async(path)
    assert urls.urls == rest.get_external_weights_urls(path).result().urls
    await rest.publish_checkpoint_from_tinker_path_async(path)
    assert (await rest.list_checkpoints_async(RUN)).checkpoints[1].public
    await rest.unpublish_checkpoint_from_tinker_path_async(path)
    await rest.set_checkpoint_ttl_from_tinker_path_async(path, 60)
    found = (await rest.list_checkpoints_async(RUN)).checkpoints[1]
    assert not found.public and found.expires_at is not None
    await rest.delete_checkpoint_from_tinker_path_async(path)
    await rest.delete_checkpoint_async(RUN, "weights/000020")
    left = (await rest.list_checkpoints_async(RUN)).checkpoints
    assert {checkpoint.checkpoint_type for checkpoint in left} == {"sampler"}
    with pytest.raises(CheckpointError, match="no run zzz"):
        await rest.get_training_run_async("zzz")
