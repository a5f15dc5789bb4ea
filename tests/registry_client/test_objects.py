"""Clients, trackers, records and errors as objects: their repr, pickling, copying and conversion to JSON."""

import asyncio
import copy
import dataclasses
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cogment_model_registry
from cogment_model_registry import ModelInfo, ModelRegistry, Progress, VersionInfo, aio, errors
from cogment_model_registry.server.composition import Server
from tests.certificates import Authority
from tests.registry_client.conftest import opened
from tests.waiting import PATIENCE_SECONDS, until

CLIENTS: list[Callable[..., Any]] = [ModelRegistry, aio.ModelRegistry]
WHERE = "grpc://127.0.0.1:9"


def test_the_repr_of_a_client_has_its_endpoint_and_whether_it_is_closed() -> None:
    with ModelRegistry(WHERE) as registry:
        assert repr(registry) == "<ModelRegistry: grpc://127.0.0.1:9>"
    assert repr(registry) == "<ModelRegistry: grpc://127.0.0.1:9, closed>"
    assert repr(aio.ModelRegistry(WHERE)) == "<aio.ModelRegistry: grpc://127.0.0.1:9>"
    discovered = ModelRegistry(directory_endpoint="grpc://d:1", directory_authentication_token="secret")
    assert repr(discovered) == "<ModelRegistry: the Directory at grpc://d:1>"


async def test_the_repr_of_a_tracker_has_its_model_its_version_and_its_error(flavour: str, server: Server) -> None:
    kind, where = ("AsyncLatest", "Latest")[flavour == "blocking"], f"grpc://127.0.0.1:{server.port}"
    async with opened(flavour, server.port) as registry:
        tracked = (registry.registry if flavour == "blocking" else registry).track("po\nlicy")
        begin = f'<{kind}: model "po\\nlicy" of {where}, no version yet, ClosedError: model "po\\nlicy" is not tracked '
        assert repr(tracked).startswith(begin)
        await registry.publish("policy", b"1")
        async with registry.track("policy") as latest:
            await latest.wait_for(timeout=PATIENCE_SECONDS)
            tracker = latest.latest if flavour == "blocking" else latest
            assert repr(tracker) == f'<{kind}: model "policy" of {where}, version 1>'
            await registry.delete_model("policy")
            await until(lambda: "version 1, NotFoundError: " in repr(tracker))


@pytest.mark.parametrize("make", CLIENTS, ids=["blocking", "asyncio"])
@pytest.mark.parametrize("duplicate", [lambda client: pickle.loads(pickle.dumps(client)), copy.copy, copy.deepcopy])
def test_a_pickled_or_copied_client_is_a_new_one_with_the_same_arguments(
    make: Callable[..., Any], duplicate: Callable[[Any], Any], tmp_path: Path
) -> None:
    shown = Authority(tmp_path).issue()
    arguments = {
        "directory_endpoint": "grpc://d:1",
        "directory_authentication_token": "secret",
        "token": "another_secret",
        "token_file": None,
        "tls_ca": shown.certificate,
        **shown.options,
        "timeout": 3,
        "retry_seconds": 4,
        "cache_dir": tmp_path,
        "cache_max_bytes": 5,
        "progress": False,
    }
    assert {"endpoint", *arguments} == set(inspect.signature(make).parameters)
    registry = make("cogment://discover?a=b", **arguments)
    other = duplicate(registry)
    assert type(other) is type(registry)
    assert other._options == registry._options == {"endpoint": "cogment://discover?a=b", **arguments}
    assert other._core.calls.connection is not registry._core.calls.connection


@pytest.mark.parametrize("make", CLIENTS, ids=["blocking", "asyncio"])
@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_tracker_says_that_it_cannot_be_pickled(
    make: Callable[..., Any], duplicate: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match="pickle the client, and call its `track` there"):
        duplicate(make(WHERE).track("policy"))


ERRORS = [
    errors.NotFoundError.version("policy", 3),
    errors.DataLossError.version("policy", 3, "its bytes are others"),
    errors.StoppingError(),
    errors.ClosedError(),
    errors.SettingError("--port", "x", "a number"),
    *[kind("a message", model_id="policy", version_number=1) for kind in errors.ModelRegistryError.__subclasses__()
      if kind is not errors.SettingError],
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_with_all_of_its_fields(error: errors.ModelRegistryError) -> None:
    error.may_be_done = True
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


VERSION = VersionInfo("policy", 7, 10**18, True, "hash", 100, {"step": "1"})


@pytest.mark.parametrize("record", [VERSION, ModelInfo("policy", {"a": "1"}), Progress("storing", 1, 2)])
def test_a_record_becomes_json_by_asdict_and_can_be_pickled(record: Any) -> None:
    assert pickle.loads(pickle.dumps(record)) == record
    read = json.loads(json.dumps(dataclasses.asdict(record)))
    assert type(record)(**read) == record


def test_the_package_has_its_public_names_and_only_those() -> None:
    lifecycle = ["Alias", "Consumer", "Decision", "Gap", "ModelSummary", "RetentionReport", "RetentionRule"]
    classes = [
        *lifecycle,
        "CaughtUp",
        "Folder",
        "Gone",
        "HistoryEntry",
        "Latest",
        "ModelInfo",
        "ModelRegistry",
        "News",
        "Progress",
        "PublicKey",
        "Saved",
        "SealedMemory",
        "Signature",
        "TransientShare",
        "Version",
        "VersionInfo",
    ]
    names = [*sorted(classes), "__version__", "aio", "errors"]
    assert dir(cogment_model_registry) == cogment_model_registry.__all__ == names
    assert all(hasattr(cogment_model_registry, name) for name in names)
    assert dir(cogment_model_registry) == names
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cogment_model_registry.nothing


# Clients for asyncio, and event loops.


def test_a_client_for_asyncio_belongs_to_one_event_loop(shared_endpoint: str) -> None:
    registry = aio.ModelRegistry(shared_endpoint)
    tracked = registry.track("policy")

    async def use() -> None:
        await registry.publish("policy", b"1")
        await tracked.__aenter__()
        await tracked.wait_for(timeout=PATIENCE_SECONDS)

    async def use_again() -> None:
        for call in (
            registry.retrieve("policy"),
            registry.publish("policy", b"2"),
            registry.publish("policy", bytes(200_000)),
            anext(registry.watch("policy")),
            registry.track("policy").__aenter__(),
        ):
            with pytest.raises(errors.ClosedError, match="belongs to the event loop in which it was first used"):
                await call
        with pytest.raises(errors.ClosedError, match="not tracked any more"):
            await tracked.wait_for(newer_than=1)
        await tracked.__aexit__(None, None, None)
        await registry.close()
        with pytest.raises(errors.ClosedError, match="the model registry client is closed"):
            await registry.list_models()

    asyncio.run(use())
    asyncio.run(use_again())


async def test_a_client_for_asyncio_is_closed_by_its_own_event_loop(server: Server) -> None:
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        await registry.create_model("policy")
        with pytest.raises(errors.ClosedError, match="belongs to the event loop"):
            await asyncio.to_thread(lambda: asyncio.run(registry.close()))
        assert await registry.get_model("policy") == ModelInfo("policy")


def test_a_client_for_asyncio_says_that_it_needs_an_event_loop() -> None:
    call = aio.ModelRegistry(WHERE).list_models()
    with pytest.raises(errors.ClosedError, match="needs an event loop of asyncio, and none is running here"):
        call.send(None)
