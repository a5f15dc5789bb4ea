"""Looking up versions: by number, all of them, and the newest archived ones.

The API has no listing of archived versions, and its listings go up from a number. So the search for the newest archived
ones looks right below the latest version first, and then at twice as many numbers below those, until it has enough: the
calls that it takes grow with the logarithm of the distance.
"""

from typing import TypeVar

from cogment_model_registry.client.arguments import LATEST
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.errors import NotFoundError, WrongServerError, quoted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import convert, messages

AnyVersion = TypeVar("AnyVersion", bound=VersionInfo)

_FIRST_NUMBERS = 64
"""How many numbers below the latest version the search looks at first."""

_PAGE_ITEMS = 128
"""How many versions it asks for at once. A server sends as many in one reply, whatever their `user_data`."""


def version_text(model_id: str, key: int | str, *, archived: bool = False) -> str:
    """Return a description of a version that is asked for by its number or by an alias."""
    if isinstance(key, str):
        return f"version {quoted(key)} of model {quoted(model_id)}"
    tier = "archived " if archived else ""
    named = {LATEST: f"the latest {tier}version"}.get(key, f"{tier}version {key}")
    return f"{named} of model {quoted(model_id)}"


async def one(calls: Calls, model_id: str, number: int, deadline: Deadline) -> VersionInfo:
    """Return a version by its number.

    Raises:
        NotFoundError: The model or the version does not exist.
    """
    subject = Subject(f"looking up {version_text(model_id, number)}", model_id, number)
    request = messages.RetrieveVersionInfosRequest(model_id=model_id, version_numbers=[number])
    reply = await calls.unary("RetrieveVersionInfos", request, messages.RetrieveVersionInfosReply, subject, deadline)
    if not reply.version_infos:
        raise NotFoundError.version(model_id, number)
    return of_model(convert.version_from_message(reply.version_infos[0]), model_id)


def of_model(info: AnyVersion, model_id: str) -> AnyVersion:
    """Return a version that the server sent for a model.

    Raises:
        WrongServerError: It is one of another model, whose signature may well be right.
    """
    if info.model_id != model_id:
        message = f"asked for a version of model {quoted(model_id)}, the server sent one of {quoted(info.model_id)}"
        raise WrongServerError(message, model_id=model_id)
    return info


async def every(calls: Calls, model_id: str, deadline: Deadline) -> list[VersionInfo]:
    """Return all versions of a model, oldest first."""
    return await _listed(calls, model_id, "", None, deadline)


async def one_archived(calls: Calls, model_id: str, number: int, deadline: Deadline) -> VersionInfo:
    """Return an archived version by its number; -n is the n-th from the last of the archived ones.

    Raises:
        NotFoundError: The model does not exist, has no such version, or that version is transient.
    """
    if number >= 0:
        return checked_archived(await one(calls, model_id, number, deadline))
    latest = await one(calls, model_id, LATEST, deadline)
    found = await newest_archived(calls, latest, -number, 0, deadline)
    if len(found) < -number:
        amount = "no" if not found else f"only {len(found)}"
        message = f"model {quoted(model_id)} has {amount} archived version{'s' * (len(found) != 1)}"
        raise NotFoundError(message, model_id=model_id, version_number=number)
    return found[number]


def checked_archived(info: VersionInfo) -> VersionInfo:
    """Return a version.

    Raises:
        NotFoundError: It is transient.
    """
    if not info.archived:
        message = f"version {info.number} of model {quoted(info.model_id)} is transient, not archived"
        raise NotFoundError(message, model_id=info.model_id, version_number=info.number)
    return info


async def newest_archived(
    calls: Calls, latest: VersionInfo, count: int, after: int, deadline: Deadline
) -> list[VersionInfo]:
    """Return the newest archived versions of a model, oldest first: as many as are asked for, or a few more.

    Args:
        calls: Makes the calls.
        latest: The latest version of the model.
        count: How many to look for.
        after: The number after which to look.
        deadline: When to give up.
    """
    found = [latest] if latest.archived else []
    end, numbers = latest.number, _FIRST_NUMBERS
    while len(found) < count and end - 1 > after:
        first = max(end - numbers, after + 1)
        handle = str(first) if first > 1 else ""
        listed = await _listed(calls, latest.model_id, handle, end, deadline)
        found = [info for info in listed if info.archived and info.number < end] + found
        end, numbers = first, 2 * numbers
    return found


async def _listed(calls: Calls, model_id: str, handle: str, end: int | None, deadline: Deadline) -> list[VersionInfo]:
    """Return the versions of a model from a handle on, at least those below a number, oldest first."""
    versions: list[VersionInfo] = []
    subject = Subject(f"listing the versions of model {quoted(model_id)}", model_id)
    count = 0 if end is None else min(end - int(handle or 1), _PAGE_ITEMS)
    while True:
        request = messages.RetrieveVersionInfosRequest(model_id=model_id, version_handle=handle, versions_count=count)
        reply = await calls.unary(
            "RetrieveVersionInfos", request, messages.RetrieveVersionInfosReply, subject, deadline
        )
        versions += map(convert.version_from_message, reply.version_infos)
        is_last = not reply.version_infos or reply.next_version_handle in ("", handle)
        if is_last or (end is not None and versions[-1].number >= end - 1):
            return versions
        handle = reply.next_version_handle
