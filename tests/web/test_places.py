"""Places for what clients keep open: no address takes all of them, and none is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from cogment_model_registry.errors import ClosedError
from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web import events, uploads
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.pages import install, live
from cogment_model_registry.web.places import Places
from cogment_model_registry.web.registries import Caller, Registry, current
from cogment_model_registry.web.state import State
from cogment_model_registry.wire.forwarding import Description
from tests.waiting import until


def _fill(places: Places, address: str) -> list[ExitStack]:
    """Take places until the address gets none, and return what gives them back."""
    taken: list[ExitStack] = []
    while True:
        place = ExitStack()
        try:
            place.enter_context(places.taken(address))
        except RefusedError:
            return taken
        taken.append(place)


def test_an_address_takes_half_of_the_places_and_others_the_rest() -> None:
    places = Places(10, "uploads", 3)
    first = _fill(places, "192.0.2.1")
    assert len(first) == 5
    network = _fill(places, "2001:db8::1")
    assert len(network) == 5
    assert not _fill(places, "2001:db8::ffff")  # in the same network
    assert not _fill(places, "192.0.2.2")
    for place in network:
        place.close()
    assert len(places) == 5
    with (
        pytest.raises(RefusedError, match="5 uploads from your address are open; try again later") as refused,
        places.taken("::ffff:192.0.2.1"),
    ):
        pass
    assert refused.value.headers == {"Retry-After": "3"}
    second = _fill(places, "192.0.2.2")
    assert len(second) == 5
    with pytest.raises(RefusedError, match="10 uploads are open"), places.taken("192.0.2.3"):
        pass
    for place in [*first, *second]:
        place.close()
    assert not len(places)


def test_this_host_takes_all_places_since_a_proxy_may_be_on_it() -> None:
    places = Places(10, "uploads", 1)
    taken = _fill(places, "127.0.0.1")
    assert len(taken) == 10
    assert not _fill(places, "::1")
    for place in taken:
        place.close()
    assert not len(places)


def _request(state: State) -> Request:
    """Return a request of a client whose address is not of this host."""
    app = Starlette()
    app.state.shared, app.state.feeds = state, install(state)
    caller = Caller("ipv4:192.0.2.1:4711")
    current.set(caller)
    return Request(
        {
            "type": "http",
            "method": "PUT",
            "path": "/",
            "query_string": b"",
            "app": app,
            "client": ("192.0.2.1", 4711),
            "caller": caller,
            "path_params": {"model": "walker"},
            "headers": [(b"content-length", b"1")],
        }
    )


def _state() -> State:
    return State(WebOptions(socket_path="", descriptors=(), grpc_port=9002), Registry("unused"))


@pytest.mark.parametrize(
    ("kind", "answer"), [("uploads", uploads.create), ("streams", events.of_models), ("live_pages", live.answer)]
)
async def test_an_address_that_has_its_share_is_refused(
    kind: str, answer: Callable[[Request], Awaitable[Response]]
) -> None:
    state = _state()
    places: Places = getattr(state, kind)
    taken = _fill(places, "192.0.2.1")
    with pytest.raises(RefusedError, match="from your address are open"):
        await answer(_request(state))
    assert len(places) == len(taken)
    await state.registry.close()


async def test_pages_that_reconnect_at_once_take_no_more_than_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _state()
    state.live_pages = Places(4, "pages", 30)
    asked, may_answer = 0, asyncio.Event()

    async def describe_caller() -> Description:
        nonlocal asked
        asked += 1
        await may_answer.wait()
        return Description("a caller without a token", "anonymous", ("read",))

    monkeypatch.setattr(state.registry, "describe_caller", describe_caller)
    request = _request(state)
    request.scope["path_params"] = {}
    pages = [asyncio.create_task(live.answer(request)) for _ in range(10)]
    await until(lambda: asked + sum(page.done() for page in pages) == len(pages))
    assert (asked, len(state.live_pages)) == (2, 2)  # half of the places
    may_answer.set()
    results = await asyncio.gather(*pages, return_exceptions=True)
    answers = [result for result in results if isinstance(result, Response)]
    assert len(answers) == 2
    assert sum(isinstance(result, RefusedError) for result in results) == 8

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        pass

    for each in answers:
        await each(request.scope, receive, send)
    assert not len(state.live_pages)
    await request.app.state.feeds.close()
    await state.registry.close()


@pytest.mark.parametrize(("kind", "answer"), [("streams", events.of_models), ("live_pages", live.answer)])
async def test_a_request_that_fails_gives_its_place_back(
    kind: str, answer: Callable[[Request], Awaitable[Response]]
) -> None:
    state = _state()
    await state.registry.close()
    with pytest.raises(ClosedError):
        await answer(_request(state))
    assert not len(getattr(state, kind))
