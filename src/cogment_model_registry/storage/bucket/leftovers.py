"""Clearing away what interrupted uploads and removals left.

Whatever belongs to a life that no model has is left of a deleted model. Bytes that no record leads to are left of an
upload if a server wrote them that is gone: an earlier owner, or one of several; those of others may be of an upload
under way.
"""

from collections.abc import AsyncIterator, Sequence

import structlog

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.contents import Listing, list_names, load_models
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.removal import free_life

_log = structlog.stdlib.get_logger(__name__)

_BATCH = 500


async def clear_leftovers(home: Holdings, listing: Listing) -> int:
    """Delete what is left, and return how many objects that were.

    Args:
        home: What the archive has.
        listing: The names of all lives, listed since this process owns the archive.

    Raises:
        UnavailableError: The store failed.
    """
    deleted = 0
    async for names in find_leftovers(home, listing):
        deleted += await delete_leftovers(home, names)
    if deleted:
        _log.info("leftovers of interrupted work cleared away", objects=deleted)
    return deleted


async def find_leftovers(home: Holdings, listing: Listing) -> AsyncIterator[list[str]]:
    """Yield the names of what is left, some at once; see `clear_leftovers`."""
    lives = {model.life: model.info.model_id for model in home.models.values()}
    known = {life: await _keys_of(home, life, model_id, listing) for life, model_id in lives.items()}
    for prefix in (layout.VERSIONS, layout.HINTS, layout.MARKS, layout.DATA):
        names: list[str] = []
        async for chunk in home.objects.list_names(prefix):
            names += [found.name for found in chunk if _is_left(home, found.name, known, listing)]
        yield names


async def delete_leftovers(home: Holdings, names: Sequence[str]) -> int:
    """Delete objects that nothing leads to, and return how many.

    Raises:
        UnavailableError: The store failed.
    """
    for start in range(0, len(names), _BATCH):
        await home.require_writable()
        await home.objects.delete(names[start : start + _BATCH])
    return len(names)


async def clear_leftovers_of(home: Holdings, server: int) -> int:
    """Delete what one of several servers left that is gone, and what is left of removed models.

    Args:
        home: What the archive has in memory.
        server: The number of the server.

    Returns:
        How many objects were deleted.

    Raises:
        UnavailableError: The store failed.
    """
    lives: set[str] = set()
    suspects: dict[str, list[str]] = {}
    for prefix in (layout.VERSIONS, layout.HINTS, layout.MARKS, layout.DATA):
        async for chunk in home.objects.list_names(prefix):
            for found in chunk:
                life = layout.life_of(found.name)
                lives.add(life)
                if _server_of(found.name) == server:
                    suspects.setdefault(life, []).append(found.name)
    # Loaded after the names were listed: a life begins before anything of it is written, and does not come back.
    models, malformed = await load_models(home.objects)
    living = {model.life: model.info.model_id for model in models.values()}
    deleted = 0
    if not malformed:  # one of these lives may be theirs
        for life in lives - living.keys() - {""}:
            deleted += await free_life(home, life)
    for life in suspects.keys() & living.keys():
        listing = await list_names(home.objects, life)
        known = {life: await _keys_of(home, life, living[life], listing)}
        names = [name for name in suspects[life] if _is_unused(home, name, known, listing)]
        if names:
            await home.require_writable()
            await home.objects.delete(names)
        deleted += len(names)
    if deleted:
        _log.info("leftovers of a server that is gone cleared away", server=server, objects=deleted)
    return deleted


def _server_of(name: str) -> int | None:
    """Return the number of the server that wrote bytes or a hint of them; None for other objects."""
    if data := layout.parse_data_name(name):
        return data[2]
    hint = layout.parse_hint_name(name)
    return layout.server_of(hint[2].key) if hint and hint[2].key else None


def _is_unused(home: Holdings, name: str, known: dict[str, set[str] | None], listing: Listing) -> bool:
    """Return whether no record leads to bytes, or a hint is of no record, in a life that is known."""
    if data := layout.parse_data_name(name):
        keys = known[data[0]]
        return keys is not None and data[1] not in keys and not home.chores.is_pinned(data[1])
    hint = layout.parse_hint_name(name)
    return hint is not None and hint[1] not in listing.versions.get(hint[0], ())


async def _keys_of(home: Holdings, life: str, model_id: str, listing: Listing) -> set[str] | None:
    """Return the keys of bytes that records of a life lead to; None when not all are known."""
    keys = set()
    hints = listing.hints.get(life, {})
    for number in listing.versions.get(life, ()):
        hint = hints.get(number)
        if hint is None or not hint.key:
            try:
                record = await home.read_record(model_id, life, number)
            except DataLossError:
                return None
            keys.add(record.key if record is not None else "")
        else:
            keys.add(hint.key)
    return keys


def _is_left(home: Holdings, name: str, known: dict[str, set[str] | None], listing: Listing) -> bool:
    """Return whether nothing leads to an object of this archive."""
    life = name.split("/")[1]
    server = _server_of(name)
    is_gone = server is not None and server < home.server
    if layout.parse_data_name(name):
        return is_gone and _is_unused(home, name, {life: set(), **known}, listing)
    if layout.life_of(name) and life not in known:
        return _is_dead(home, life)
    return is_gone and _is_unused(home, name, known, listing)


def _is_dead(home: Holdings, life: str) -> bool:
    """Return whether no model has this life now: one may have been created since the names were listed."""
    return all(model.life != life for model in home.models.values())
