"""What the archive needs of an object store, tried at the start: the record of a version must be created once.

Some stores ignore the condition of a conditional create, or keep it only while nobody else tries at the same time. Such
a store would let a version be replaced, and two servers own one archive, so a server refuses it. Several servers need
the same of replacing an object that is still as it was read.
"""

import asyncio
import contextlib
import secrets

from cogment_model_registry.errors import ModelRegistryError, StartError
from cogment_model_registry.storage.bucket.layout import PROBES
from cogment_model_registry.storage.bucket.objects import Objects, Written
from cogment_model_registry.storage.bucket.translation import ObjectExists, ObjectMissing, reason_of

_RACES = 3


async def probe(objects: Objects, *, is_shared: bool = False) -> None:
    """Try the store.

    Args:
        objects: The objects of the archive.
        is_shared: Whether several servers write the archive.

    Raises:
        StartError: It does not keep a promise, or does not work.
    """
    names = [f"{PROBES}/{secrets.token_hex(16)}" for _ in range(_RACES)]
    try:
        try:
            for name in names:
                await _race(objects, name)
                if is_shared:
                    await _race_to_replace(objects, name)
        except BaseException:
            with contextlib.suppress(ModelRegistryError):  # the first failure says more
                await objects.delete(names)
            raise
        await objects.delete(names)
        if await objects.find(names[0]) is not None:
            raise _broken(objects, "an object that was deleted is still there")
    except (ModelRegistryError, ObjectMissing) as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"archive {objects.url} cannot be used: {reason_of(error)}") from error


async def _race(objects: Objects, name: str) -> None:
    """Create an object twice at once, and once more."""
    data = [secrets.token_bytes(16) for _ in range(3)]
    created = [each for each in await asyncio.gather(*[_create(objects, name, each) for each in data[:2]]) if each]
    if len(created) != 1:
        raise _broken(objects, f"of two that create an object at once, {len(created)} succeed and not 1")
    if await _create(objects, name, data[2]):
        raise _broken(objects, "an object that exists can be created again")
    if await objects.get(name) != created[0]:
        raise _broken(objects, "an object is not the one that was created")
    if name not in await objects.all_names(PROBES):
        raise _broken(objects, "an object that was created is not listed")


async def _race_to_replace(objects: Objects, name: str) -> None:
    """Replace an object twice at once, and once more as it was before."""
    before = await objects.find_written(name)
    if before is None:
        raise _broken(objects, "an object that was created is not there")
    data = [secrets.token_bytes(16) for _ in range(3)]
    # On a local path, two who try at once may both succeed: see `Objects.replace`.
    racers = data[:1] if objects.is_local else data[:2]
    results = await asyncio.gather(*[_replace(objects, name, each, before) for each in racers])
    replaced = [each for each in results if each]
    if len(replaced) != 1:
        raise _broken(objects, f"of two that replace an object at once, {len(replaced)} succeed and not 1", "If-Match")
    if await _replace(objects, name, data[2], before):
        raise _broken(objects, "an object that has changed can be replaced as it was before", "If-Match")
    if await objects.get(name) != replaced[0]:
        raise _broken(objects, "an object is not the one that replaced another", "If-Match")


async def _replace(objects: Objects, name: str, data: bytes, before: Written) -> bytes:
    try:
        await objects.replace(name, data, before)
    except ObjectExists:
        return b""
    return data


async def _create(objects: Objects, name: str, data: bytes) -> bytes:
    try:
        await objects.create(name, data)
    except ObjectExists:
        return b""
    return data


def _broken(objects: Objects, what: str, header: str = "If-None-Match") -> StartError:
    return StartError(
        f"the object store of archive {objects.url} does not keep what an archive needs: {what}; "
        f"use a store with conditional writes ({header})"
    )
