"""Which of several registries a client uses, and when it goes on with another one."""

import asyncio
import copy
import pickle
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from cogment_model_registry import ModelRegistry, aio, errors
from cogment_model_registry.client.encryption import encryption_of
from cogment_model_registry.client.endpoints import Direct, Discovered, Several, locate
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire import pings
from cogment_model_registry.wire.pushback import SERVING_KEY
from tests.ports import free_port, free_ports
from tests.registry_client.conftest import connection_of, opened, opened_at, port_of
from tests.registry_client.network import listening, tcp_server
from tests.registry_client.scripted import Answer, Call, Scripted, created, failing, has_model, scripted, silence
from tests.waiting import PATIENCE_SECONDS

A, B = "grpc://a.example:9000", "grpcs://b.example:9001"
BOTH = Several((Direct("a.example:9000"), Direct("b.example:9001", is_secure=True)))


async def status(call: Call) -> None:
    """Answer as a server that allows pings."""
    await call.send(m.StatusReply(statuses={pings.STATUS: "1"}))


def server(**answers: Answer) -> Any:
    """Return a context manager for a server with some methods that answers when it is asked for its status."""
    return scripted(**{"Status": status, "RetrieveModels": has_model, **answers})


# Where they are.


@pytest.mark.parametrize("endpoint", [f"{A},{B}", f" {A} , {B} ", [A, B], (A, B), [A, B, A], f"{A},{B},{A}"], ids=str)
def test_several_endpoints_are_given_in_a_list_or_separated_by_commas(endpoint: Any) -> None:
    assert locate(endpoint, environment={}) == BOTH
    if isinstance(endpoint, str):
        assert locate(environment={"COGMENT_MODEL_REGISTRY_ENDPOINT": endpoint}) == BOTH
    assert locate(endpoint, environment={"COGMENT_MODEL_REGISTRY_ENDPOINT": "grpc://other:1"}) == BOTH


@pytest.mark.parametrize("endpoint", [A, [A], (A, A), f"{A},{A}"], ids=str)
def test_one_endpoint_in_a_list_is_the_same_as_alone(endpoint: Any) -> None:
    assert locate(endpoint, environment={}) == Direct("a.example:9000")


def test_a_comma_within_the_properties_of_a_directory_separates_nothing() -> None:
    found = locate("cogment://discover?name=a,b", "grpc://directory:1", environment={})
    assert isinstance(found, Discovered)
    assert found.inquiry.properties == {"name": "a,b"}  # type: ignore[union-attr] # it has no id


@pytest.mark.parametrize(
    ("endpoint", "kind", "message"),
    [
        (f"{A},", errors.SettingError, "it must be grpc://host:port"),
        (f"{A},nonsense", errors.SettingError, "it must be grpc://host:port"),
        ([A, "cogment://discover"], errors.SettingError, "it must be grpc://host:port"),
        ([A, f"{A},{B}"], errors.SettingError, "it must be a list with one endpoint in each string"),
        ([A, ""], errors.SettingError, "it must be a list with one endpoint in each string"),
        ([], errors.InvalidError, "has no endpoints"),
        ([A, 7], errors.InvalidError, "it must be a string, or a list of strings"),
        ({A: B}, errors.InvalidError, "it must be a string, or a list of strings"),
        (7, errors.InvalidError, "it must be a string, or a list of strings"),
    ],
    ids=str,
)
def test_malformed_endpoints_are_refused(endpoint: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        locate(endpoint, environment={})


def test_arguments_for_tls_require_it_of_every_endpoint() -> None:
    with pytest.raises(errors.SettingError, match=r"it must be grpcs://a\.example:9000 where tls_ca is given"):
        encryption_of(BOTH, tls_ca="ca.pem", environment={})
    assert encryption_of(BOTH, environment={}).is_wanted is False


def test_a_client_of_several_is_shown_copied_and_pickled_with_all_of_them() -> None:
    given = ["grpc://a.example:9000", "grpc://b.example:9001"]
    for registry in (ModelRegistry(given), aio.ModelRegistry(given)):
        assert "grpc://a.example:9000,grpc://b.example:9001>" in repr(registry)
        for again in (copy.copy(registry), pickle.loads(pickle.dumps(registry))):
            assert connection_of(again).location == connection_of(registry).location
    given.append("grpc://c.example:1")
    assert "c.example" not in repr(copy.copy(registry))


# Which one is used.


async def test_all_calls_of_a_client_go_to_one_registry(flavour: str) -> None:
    async with server() as first, server() as second, opened(flavour, first.port, second.port) as registry:
        for _ in range(5):
            await registry.get_model("policy")
        calls = [each.calls["RetrieveModels"] for each in (first, second)]
        assert sorted(calls) == [0, 5]


async def test_calls_that_begin_together_choose_together(flavour: str) -> None:
    async with server() as first, server() as second, opened(flavour, first.port, second.port) as registry:
        await asyncio.gather(*(registry.get_model("policy") for _ in range(20)))
        assert sorted(each.calls["RetrieveModels"] for each in (first, second)) == [0, 20]
        assert sorted(each.calls["Status"] for each in (first, second)) == [0, 1]


async def test_one_that_refuses_connections_is_passed_over_even_without_retries(flavour: str) -> None:
    nobody = free_ports(3)
    async with server() as here, opened(flavour, *nobody, here.port, retry_seconds=0) as registry:
        await registry.get_model("policy")
        assert port_of(registry) == here.port


async def test_one_that_is_no_registry_is_passed_over(flavour: str) -> None:
    async with (
        tcp_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web,
        scripted(Other=silence) as grpc_server,
        server() as here,
        opened(flavour, web, grpc_server.port, here.port, retry_seconds=0) as registry,
    ):
        await registry.get_model("policy")
        assert port_of(registry) == here.port


async def test_one_that_accepts_connections_and_says_nothing_is_passed_over(flavour: str) -> None:
    async with (
        tcp_server(b"") as silent,
        scripted(Status=silence) as busy,
        server() as here,
        # On a busy machine, the one that answers may need several attempts too.
        opened(flavour, silent, busy.port, here.port, retry_seconds=PATIENCE_SECONDS) as registry,
    ):
        await registry.get_model("policy")
        assert port_of(registry) == here.port


async def test_an_error_names_each_of_them_when_none_answers(flavour: str) -> None:
    ports = free_ports(2)
    async with opened(flavour, *ports, retry_seconds=0.1) as registry:
        with pytest.raises(errors.UnavailableError) as caught:
            await registry.get_model("policy")
    message = str(caught.value)
    assert message.startswith('looking up model "policy": none of the 2 registries answers: ')
    for port in ports:
        assert f"cannot connect to grpc://127.0.0.1:{port}: Connection refused" in message
    assert not caught.value.may_be_done


async def test_the_time_of_a_call_limits_the_search_for_one_that_answers(flavour: str) -> None:
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(tcp_server(b"")) for _ in range(30)]
        registry = await stack.enter_async_context(opened(flavour, *silent, retry_seconds=600))
        # Asking each for two seconds would take a minute.
        async with asyncio.timeout(40):
            with pytest.raises((errors.TimedOutError, errors.UnavailableError)):
                await registry.get_model("policy", timeout=1)


async def test_closing_a_client_ends_its_search(flavour: str) -> None:
    asked = asyncio.Event()

    async def talk(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with (
        listening(talk) as first,
        listening(talk) as second,
        opened(flavour, first, second, retry_seconds=600) as registry,
    ):
        callers = [asyncio.ensure_future(registry.get_model("policy", timeout=600)) for _ in range(3)]
        await asked.wait()
        await registry.close()
        for each in callers:
            with pytest.raises(errors.ClosedError):
                await each


# When it goes on with another one.


async def both_with_home(stack: AsyncExitStack, flavour: str, **answers: Answer) -> tuple[Any, Scripted, Scripted]:
    """Return a client of two servers, the one that it uses, and the other one."""
    servers = [await stack.enter_async_context(server(**answers)) for _ in range(2)]
    registry = await stack.enter_async_context(opened(flavour, *(each.port for each in servers), retry_seconds=60))
    await registry.list_models()
    home, other = sorted(servers, key=lambda each: each.port != port_of(registry))
    return registry, home, other


async def test_calls_go_on_with_another_one_when_one_says_that_it_stops(flavour: str) -> None:
    async with AsyncExitStack() as stack:
        registry, home, other = await both_with_home(stack, flavour)
        home.replace(RetrieveModels=failing(100, has_model))
        await registry.get_model("policy")
        assert port_of(registry) == other.port
        home.replace(RetrieveModels=has_model)
        for _ in range(3):
            await registry.get_model("policy")
        assert port_of(registry) == other.port


async def test_a_registry_that_cannot_do_one_request_now_keeps_its_clients(flavour: str) -> None:
    async def refuse_once(call: Call) -> None:
        if call.number == 2:
            await call.context.abort(grpc.StatusCode.UNAVAILABLE, "for the test", ((SERVING_KEY, "true"),))
        await has_model(call)

    async with AsyncExitStack() as stack:
        registry, home, other = await both_with_home(stack, flavour, RetrieveModels=refuse_once)
        await registry.get_model("policy")
        assert (port_of(registry), home.calls["RetrieveModels"]) == (home.port, 3)
        assert other.calls["RetrieveModels"] == 0


async def test_a_caller_over_a_limit_waits_and_does_not_go_elsewhere(flavour: str) -> None:
    async def limit_once(call: Call) -> None:
        if call.number == 2:
            await call.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "", (("grpc-retry-pushback-ms", "10"),))
        await has_model(call)

    async with AsyncExitStack() as stack:
        registry, home, other = await both_with_home(stack, flavour, RetrieveModels=limit_once)
        await registry.get_model("policy")
        assert (port_of(registry), other.calls["RetrieveModels"]) == (home.port, 0)


async def test_a_deletion_that_may_be_done_is_not_repeated_elsewhere(flavour: str) -> None:
    async with AsyncExitStack() as stack:
        registry, home, other = await both_with_home(stack, flavour, DeleteModel=failing(100, silence))
        with pytest.raises(errors.UnavailableError) as caught:
            await registry.delete_model("policy")
        assert caught.value.may_be_done
        assert home.calls["DeleteModel"] + other.calls["DeleteModel"] == 1


async def test_a_deletion_that_reached_no_registry_is_made_elsewhere(flavour: str) -> None:
    async def delete(call: Call) -> None:
        await call.send(m.DeleteModelReply())

    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(server(DeleteModel=delete))
        for _ in range(5):
            client = await stack.enter_async_context(opened(flavour, free_port(), here.port, retry_seconds=0))
            await client.delete_model("policy")
        assert here.calls["DeleteModel"] == 5


async def test_an_upload_to_servers_of_the_original_is_not_sent_twice(flavour: str) -> None:
    async def lose(call: Call) -> None:
        await call.receive_all()
        await call.fail(grpc.StatusCode.UNAVAILABLE)

    async with AsyncExitStack() as stack:
        registry, home, other = await both_with_home(stack, flavour, CreateVersion=lose)
        with pytest.raises(errors.UnavailableError) as caught:
            await registry.publish("policy", b"weights")
        assert caught.value.may_be_done
        assert home.calls["CreateVersion"] + other.calls["CreateVersion"] == 1


async def test_what_is_known_of_one_registry_does_not_hold_for_another(flavour: str) -> None:
    async with AsyncExitStack() as stack:
        registry, home, _other = await both_with_home(stack, flavour, CreateVersion=created)
        await registry.publish("policy", b"weights")
        assert not connection_of(registry).has_lifecycle
        home.replace(RetrieveModels=failing(100, has_model))
        await registry.get_model("policy")
        assert connection_of(registry).has_lifecycle


@pytest.mark.parametrize("allowed", ["", "300", "nonsense", "nan", "0"], ids=repr)
async def test_a_server_that_does_not_allow_pings_gets_none(flavour: str, allowed: str) -> None:
    """A server of gRPC would break the connection."""

    async def other_status(call: Call) -> None:
        await call.send(m.StatusReply(statuses={pings.STATUS: allowed} if allowed else {}))

    for answer, is_pinged in ((other_status, False), (status, True)):
        async with server(Status=answer) as first, opened(flavour, first.port, free_port()) as registry:
            await registry.get_model("policy")
            link = connection_of(registry)._current
            assert link is not None
            assert link.is_pinged is is_pinged


async def test_the_variable_may_name_several(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server() as here:
        endpoints = f"grpc://127.0.0.1:{free_port()},grpc://127.0.0.1:{here.port}"
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", endpoints)
        async with opened_at(flavour, None) as registry:
            assert (await registry.get_model("policy")).model_id == "policy"
