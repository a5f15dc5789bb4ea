"""Freeing the bytes of a model that is out of the archive in a bucket."""

from collections.abc import Sequence

import structlog

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.registry.contracts import Removal
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.system.tasks import run_to_end

_log = structlog.stdlib.get_logger(__name__)


class BucketRemoval(Removal):
    """A life that no model has any more, whose objects go one by one."""

    def __init__(self, home: Holdings, life: str) -> None:
        self._home = home
        self._life = life

    async def finish(self) -> None:
        await run_to_end(self._finish())

    async def _finish(self) -> None:
        try:
            await free_life(self._home, self._life)
        except ModelRegistryError as error:
            _log.warning("removal of part of a deleted model postponed", reason=error.message)


async def free_life(home: Holdings, life: str) -> int:
    """Delete the objects of a life that no model has any more; bytes that are being read here go when they were.

    Args:
        home: What the archive has.
        life: The life.

    Returns:
        How many objects were deleted.

    Raises:
        UnavailableError: The store failed.
    """
    deleted = 0
    for prefix in (layout.VERSIONS, layout.HINTS, layout.MARKS):
        deleted += await _delete(home, await home.objects.all_names(f"{prefix}/{life}"))
    by_key: dict[str, list[str]] = {}
    for name in await home.objects.all_names(f"{layout.DATA}/{life}"):
        if data := layout.parse_data_name(name):
            by_key.setdefault(data[1], []).append(name)
    free = [name for key, names in by_key.items() if not home.chores.is_pinned(key) for name in names]
    deleted += await _delete(home, free)
    for key, names in by_key.items():
        if home.chores.is_pinned(key):
            home.chores.delete_data_soon(key, names)
    return deleted


async def _delete(home: Holdings, names: Sequence[str]) -> int:
    if names:
        await home.require_writable()
        await home.objects.delete(names)
    return len(names)
