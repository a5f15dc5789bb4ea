"""Clearing away what interrupted uploads and removals left, by the server that owns the archive.

Whatever belongs to a life that no model has is left of a deleted model. Bytes that no record leads to are left of an
upload if an earlier owner wrote them; those of this one may be of an upload under way.
"""

import structlog

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.contents import Listing
from cogment_model_registry.storage.bucket.holdings import Holdings

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
    lives = {model.life: model.info.model_id for model in home.models.values()}
    known = {life: await _keys_of(home, life, model_id, listing) for life, model_id in lives.items()}
    deleted = 0
    for prefix in (layout.VERSIONS, layout.HINTS, layout.MARKS, layout.DATA):
        names: list[str] = []
        async for chunk in home.objects.list_names(prefix):
            names += [found.name for found in chunk if _is_left(home, found.name, known, listing)]
        for start in range(0, len(names), _BATCH):
            await home.require_writable()
            await home.objects.delete(names[start : start + _BATCH])
        deleted += len(names)
    if deleted:
        _log.info("leftovers of interrupted work cleared away", objects=deleted)
    return deleted


async def _keys_of(home: Holdings, life: str, model_id: str, listing: Listing) -> set[str] | None:
    """Return the keys of bytes that records of a life lead to; None when not all are known."""
    keys = set()
    hints = listing.hints.get(life, {})
    for number in listing.versions.get(life, ()):
        hint = hints.get(number)
        if hint is None or hint.size_bytes < 0:
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
    if data := layout.parse_data_name(name):
        keys = known.get(life, set())
        is_ours = data[2] >= home.epoch
        return not is_ours and keys is not None and data[1] not in keys and not home.chores.is_pinned(data[1])
    if hint := layout.parse_hint_name(name):
        if life not in known:
            return _is_dead(home, life)
        is_ours = bool(hint[2].key) and int(hint[2].key[:8], 16) >= home.epoch
        return not is_ours and bool(hint[2].key) and hint[1] not in listing.versions.get(life, ())
    if layout.parse_version_name(name) or layout.parse_mark_name(name):
        return life not in known and _is_dead(home, life)
    return False


def _is_dead(home: Holdings, life: str) -> bool:
    """Return whether no model has this life now: one may have been created since the names were listed."""
    return all(model.life != life for model in home.models.values())
