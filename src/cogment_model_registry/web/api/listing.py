"""Pages of listings."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry.client.lifecycle_calls import Page
from cogment_model_registry.web.parameters import parameters, whole_number

PAGE_ITEMS, PAGE_MAX_ITEMS = 100, 1000
"""How many entries a page has by default, and at most."""

_T = TypeVar("_T")


async def page_of(
    request: Request,
    name: str,
    find: Callable[[Mapping[str, str], int, str], Awaitable[Page[_T]]],
    as_json: Callable[[_T], dict[str, object]],
    allowed: Collection[str] = ("filter",),
) -> Response:
    """Answer with a page of a listing.

    Args:
        request: The request.
        name: The name of the list in the answer.
        find: Returns a page for the parameters, a size and the token of the page.
        as_json: Returns the JSON object for an entry.
        allowed: The allowed parameters, in addition to those of all listings.
    """
    query = parameters(request, {*allowed, "page_size", "page_token"})
    size = whole_number(query, "page_size", 1, PAGE_MAX_ITEMS, PAGE_ITEMS)
    found, token = await find(query, size, query.get("page_token", ""))
    return JSONResponse({name: [as_json(each) for each in found], "next_page_token": token})
