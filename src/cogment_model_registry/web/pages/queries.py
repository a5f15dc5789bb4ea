"""The requests of the pages to the registry, one page of a listing at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cogment_model_registry.client.backends import Channel
from cogment_model_registry.client.calls import method_path
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.errors import DataLossError, NotFoundError, quoted
from cogment_model_registry.records.lifecycle import ModelSummary, Objections, RetentionReport, Version
from cogment_model_registry.web.pages.formats import NS_PER_SECOND
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.wire import lifecycle as wire
from cogment_model_registry.wire import models as wire_models

_SECONDS = 30.0
"""How long a page waits for an answer."""

_DELETION_SECONDS = 600.0
"""How long it waits while many versions are deleted; each takes a sync of the disk."""

_RATE_VERSIONS = 10
"""Over how many versions the rate of publishing is an average."""


@dataclass(frozen=True, slots=True)
class VersionPage:
    """A page of versions.

    Attributes:
        versions: The versions.
        next_token: Names the next page; empty at the end.
    """

    versions: Sequence[Version]
    next_token: str


async def find_versions(
    registry: Registry, model_id: str, *, accepted: str = "", order_by: str, token: str = "", size: int
) -> VersionPage:
    """Return a page of the versions that a filter accepts.

    Args:
        registry: The registry.
        model_id: Their model.
        accepted: The filter.
        order_by: The order.
        token: Names the page; empty for the first one.
        size: How many to return at most.

    Raises:
        InvalidError: The filter, the order or the token is malformed.
    """
    request = wire.ListVersionsRequest(
        model_id=model_id, filter=accepted, order_by=order_by, page_size=size, page_token=token
    )
    subject = Subject("looking for versions", model_id)
    reply = await _ask(registry, "ListVersions", request, wire.ListVersionsReply, subject)
    return VersionPage([*map(wire.version_from_message, reply.versions)], reply.next_page_token)


async def find_models(registry: Registry, accepted: str, token: str, size: int) -> tuple[list[ModelSummary], str]:
    """Return a page of models, and the token of the next one; see `find_versions`."""
    request = wire_models.ListModelsRequest(filter=accepted, page_size=size, page_token=token)
    subject = Subject("looking for models", None)
    reply = await _ask(registry, "ListModels", request, wire_models.ListModelsReply, subject)
    return [*map(wire_models.model_from_message, reply.models)], reply.next_page_token


async def named_models(registry: Registry, model_ids: Sequence[str]) -> list[ModelSummary]:
    """Return models by their ids, in the order given.

    Raises:
        NotFoundError: One does not exist.
    """
    found: list[ModelSummary] = []
    token = ""
    while model_ids:
        request = wire_models.ListModelsRequest(model_ids=model_ids, page_token=token)
        subject = Subject("looking up models", None)
        reply = await _ask(registry, "ListModels", request, wire_models.ListModelsReply, subject)
        found += map(wire_models.model_from_message, reply.models)
        token = reply.next_page_token
        if not token:
            break
    return found


async def named_versions(registry: Registry, refs: Sequence[tuple[str, int]]) -> list[Version]:
    """Return versions by their models and numbers, or -n for the n-th from the last, in the order given.

    Raises:
        NotFoundError: One does not exist.
    """
    if not refs:
        return []
    found: list[Version] = []
    token = ""
    while True:
        request = wire.ListVersionsRequest(versions=[wire.version_ref(*ref) for ref in refs], page_token=token)
        subject = Subject("looking up versions", None)
        reply = await _ask(registry, "ListVersions", request, wire.ListVersionsReply, subject)
        found += map(wire.version_from_message, reply.versions)
        token = reply.next_page_token
        if not token:
            return found


async def existing_versions(registry: Registry, refs: Sequence[tuple[str, int]]) -> list[Version]:
    """Return those of some versions that exist; see `named_versions`."""
    try:
        return await named_versions(registry, refs)
    except NotFoundError:  # one was evicted or deleted
        return [version for ref in refs for version in await _if_it_exists(registry, ref)]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a model gets versions.

    Attributes:
        latest: Its newest version; None if it has none.
        per_second: How many versions were published in a second, over the last few of them; None if that is not known.
    """

    latest: Version | None = None
    per_second: float | None = None


async def paces(registry: Registry, models: Sequence[ModelSummary], now_ns: int) -> dict[str, Pace]:
    """Return how often some models get versions, by their ids.

    Args:
        registry: The registry.
        models: The models.
        now_ns: The time, in nanoseconds since the Unix epoch.
    """
    refs: list[tuple[str, int]] = []
    for model in models:
        if model.versions:
            refs += [(model.model_id, -1), (model.model_id, -min(model.versions, _RATE_VERSIONS))]
    versions = await existing_versions(registry, refs)
    by_model: dict[str, list[Version]] = {}
    for version in versions:
        by_model.setdefault(version.model_id, []).append(version)
    return {model_id: pace_of(some, now_ns) for model_id, some in by_model.items()}


async def _if_it_exists(registry: Registry, ref: tuple[str, int]) -> list[Version]:
    try:
        return await named_versions(registry, [ref])
    except NotFoundError:
        return []


def pace_of(versions: Sequence[Version], now_ns: int | None = None) -> Pace:
    """Return how often a model gets versions, from some of its newest versions.

    The time since the newest version counts too, so the rate falls while no version is created.
    """
    if not versions:
        return Pace()
    oldest, latest = min(versions, key=_number), max(versions, key=_number)
    numbers = latest.number - oldest.number
    now_ns = time.time_ns() if now_ns is None else now_ns
    seconds = (max(latest.created_ns, now_ns) - oldest.created_ns) / NS_PER_SECOND
    return Pace(latest, numbers / seconds if numbers and seconds > 0 else None)


def _number(version: Version) -> int:
    return version.number


async def read_part(registry: Registry, version: Version, start: int, length: int) -> bytes:
    """Return some bytes of a version; fewer if it ends before.

    Args:
        registry: The registry.
        version: The version.
        start: Where to begin.
        length: How many bytes to return.

    Raises:
        PreconditionError: Another version has its number.
        DataLossError: The bytes ended too soon.
    """
    length = min(length, version.data_size_bytes - start)
    if length <= 0:
        return b""
    name = f"version {version.number} of model {quoted(version.model_id)}"
    subject = Subject(f"reading {name}", version.model_id, version.number)
    request = wire.read_request(version.model_id, version.number, start, length, version.data_hash)
    path = method_path("ReadVersion", wire.SERVICE_NAME)
    deadline = Deadline(_SECONDS)

    async def read(channel: Channel) -> bytes:
        replies = registry.calls.backend.stream(channel, path, request.SerializeToString(), deadline.left_seconds())
        parts = bytearray()
        try:
            while len(parts) < length and (message := await replies.read()) is not None:
                content = wire.read_reply(message)
                if not isinstance(content, Version):
                    parts += content
        finally:
            replies.cancel()
        if len(parts) < length:
            raise DataLossError.version(version.model_id, version.number, "its bytes end too soon")
        return bytes(parts[:length])

    return await registry.calls.retrying(read, subject, deadline)


async def read_objections(registry: Registry, model_id: str, number: int) -> Objections:
    """Return what stands against the deletion of a version now.

    Raises:
        NotFoundError: It does not exist.
    """
    request = wire.DeleteVersionRequest(tried=wire.version_ref(model_id, number))
    subject = Subject("looking up what needs the version", model_id, number)
    reply = await _ask(registry, "DeleteVersion", request, wire.DeleteVersionReply, subject)
    return wire.objections_from_reply(reply)


async def delete_version(registry: Registry, model_id: str, number: int, state: str, *, force: bool) -> None:
    """Delete a version, if exactly the objections with a state stand against it.

    Args:
        registry: The registry.
        model_id: Its model.
        number: Its number.
        state: The state; see `Objections`.
        force: Whether to delete it despite them.

    Raises:
        ConflictError: There are other objections.
        PreconditionError: There are any, and `force` was not given.
    """
    request = wire.DeleteVersionRequest(version=wire.version_ref(model_id, number), force=force, expected_state=state)
    subject = Subject(f"deleting version {number} of model {quoted(model_id)}", model_id, number)
    await _ask(registry, "DeleteVersion", request, wire.DeleteVersionReply, subject)


async def apply_retention(registry: Registry, model_id: str, numbers: Sequence[int], revision: int) -> RetentionReport:
    """Delete those of some versions that the rules of a model do not keep.

    Args:
        registry: The registry.
        model_id: The model.
        numbers: The only versions that may be deleted.
        revision: The revision that the model must have.

    Raises:
        ConflictError: It has another one.
    """
    request = wire_models.apply_retention_request(
        model_id, None, is_dry_run=False, numbers=numbers, expected_revision=revision
    )
    subject = Subject("applying the rules", model_id)
    reply = await _ask(
        registry, "ApplyRetention", request, wire_models.ApplyRetentionReply, subject, seconds=_DELETION_SECONDS
    )
    return wire_models.report_from_message(reply)


async def _ask(
    registry: Registry, method: str, request: Any, reply_type: Any, subject: Subject, *, seconds: float = _SECONDS
) -> Any:
    """Return the reply to a request of the lifecycle service, waiting so long at most."""
    return await registry.calls.unary(
        method, request, reply_type, subject, Deadline(seconds), service=wire.SERVICE_NAME
    )
