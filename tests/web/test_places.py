"""Places for what clients keep open: no address takes all of them, and none is lost."""

from collections.abc import Awaitable, Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web import events, uploads
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.pages import install, live
from cogment_model_registry.web.places import Places
from cogment_model_registry.web.registries import Caller, Registry
from cogment_model_registry.web.state import State


def _fill(places: Places, address: str) -> int:
    """Take places until the address gets none, and return how many it took."""
    taken = 0
    while True:
        try:
            places.check(address)
        except RefusedError:
            return taken
        places.take(address)
        taken += 1


def test_an_address_takes_half_of_the_places_and_others_the_rest() -> None:
    places = Places(10, "uploads", 3)
    assert _fill(places, "192.0.2.1") == 5
    assert _fill(places, "2001:db8::1") == 5
    assert _fill(places, "192.0.2.2") == 0
    for _ in range(5):
        places.give_back("2001:db8::ffff")  # in the same network
    assert len(places) == 5
    with pytest.raises(RefusedError, match="5 uploads from your address are open; try again later") as refused:
        places.check("::ffff:192.0.2.1")
    assert refused.value.headers == {"Retry-After": "3"}
    assert _fill(places, "192.0.2.2") == 5
    with pytest.raises(RefusedError, match="10 uploads are open"):
        places.check("192.0.2.3")


def test_this_host_takes_all_places_since_a_proxy_may_be_on_it() -> None:
    places = Places(10, "uploads", 1)
    assert _fill(places, "127.0.0.1") == 10
    assert _fill(places, "::1") == 0
    for _ in range(10):
        places.give_back("::1")
    assert not places


@pytest.mark.parametrize(
    ("kind", "answer"), [("uploads", uploads.create), ("streams", events.of_models), ("live_pages", live.answer)]
)
async def test_an_address_that_has_its_share_is_refused(
    kind: str, answer: Callable[[Request], Awaitable[Response]]
) -> None:
    state = State(WebOptions(socket_path="", descriptors=(), grpc_port=9002), Registry("unused"))
    app = Starlette()
    app.state.shared, app.state.feeds = state, install(state)
    scope = {
        "type": "http",
        "method": "PUT",
        "path": "/",
        "query_string": b"",
        "app": app,
        "client": ("192.0.2.1", 4711),
        "caller": Caller("ipv4:192.0.2.1:4711"),
        "path_params": {"model": "walker"},
        "headers": [(b"content-length", b"1")],
    }
    places: Places = getattr(state, kind)
    _fill(places, "192.0.2.1")
    taken = len(places)
    with pytest.raises(RefusedError, match="from your address are open"):
        await answer(Request(scope))
    assert len(places) == taken
    await state.registry.close()
